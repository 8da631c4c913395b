"""The published-format tiny T5 in ../shared, read into our layout."""

import numpy as np
import pytest

from mhr_jax.convert import hf_t5


@pytest.fixture(scope='session')
def _hf_folder(shared_dir):
  return shared_dir / 'fixtures' / 'hf_t5_tiny'


@pytest.fixture(scope='session')
def hf_config(_hf_folder):
  """The fixture's sizes, scanned."""
  return hf_t5.read_config(_hf_folder)


@pytest.fixture(scope='session')
def hf_params(_hf_folder):
  """transformers' weights in our scanned layout."""
  return hf_t5.read_backbone(_hf_folder)[1]


@pytest.fixture(scope='session')
def hf_batch(_hf_folder):
  """transformers' inputs and outputs on those weights."""
  with np.load(_hf_folder / 'fixture.npz') as arrays:
    return dict(arrays)
