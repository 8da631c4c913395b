"""The libraries that tests here compare with; without them, tests skip.

`make test-interop` sets MHR_JAX_REQUIRE_INTEROP: there they must be present.
"""

import importlib
import os

import pytest


def _library(name):
  if os.environ.get('MHR_JAX_REQUIRE_INTEROP'):
    return importlib.import_module(name)
  reason = f'needs {name}, which `make test-interop` adds'
  return pytest.importorskip(name, reason=reason)


@pytest.fixture(scope='session')
def torch():
  """torch, on one thread."""
  module = _library('torch')
  module.set_num_threads(1)
  return module


@pytest.fixture(scope='session')
def transformers(torch):
  """transformers, and torch."""
  return _library('transformers')


@pytest.fixture(scope='session')
def peft(transformers):
  """PEFT, transformers and torch."""
  return _library('peft')


@pytest.fixture(scope='session')
def rouge():
  """The package rouge, which CrossFit scores with."""
  return _library('rouge')


@pytest.fixture(scope='session')
def nano_moe():
  """nano-moe-jax."""
  return _library('nano_moe')


@pytest.fixture(scope='session')
def wandb():
  """Weights & Biases' client."""
  return _library('wandb')
