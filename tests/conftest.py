"""Shared fixtures: eight virtual CPU devices and the optional shared data."""

import os
import pathlib

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import jax
import pytest

jax.config.update('jax_num_cpu_devices', 8)

_SHARED = pathlib.Path(__file__).resolve().parents[2] / 'shared'


@pytest.fixture(scope='session')
def shared_dir() -> pathlib.Path:
  """The folder of real data and fixtures that lies beside the checkout."""
  if not _SHARED.is_dir():
    pytest.skip('needs ../shared (real data and fixtures), which is absent')
  return _SHARED
