"""The published-format tiny T5 in ../shared, with its names mapped to ours."""

import numpy as np
import pytest

from mhr_jax.t5 import config as config_lib
import transformers_weights


@pytest.fixture(scope='session')
def hf_config():
  """The fixture's sizes, scanned."""
  return config_lib.t5_config(
    't5_1_1_tiny',
    vocab_size=384,
    emb_dim=32,
    num_heads=4,
    head_dim=8,
    mlp_dim=64,
  )


@pytest.fixture(scope='session')
def hf_params(shared_dir, hf_config):
  """transformers' weights in our scanned layout."""
  numpy = pytest.importorskip('safetensors.numpy')
  folder = shared_dir / 'fixtures' / 'hf_t5_tiny'
  tensors = numpy.load_file(folder / 'model.safetensors')
  return transformers_weights.to_backbone(tensors, hf_config)


@pytest.fixture(scope='session')
def hf_batch(shared_dir):
  """transformers' inputs and outputs on those weights."""
  folder = shared_dir / 'fixtures' / 'hf_t5_tiny'
  with np.load(folder / 'fixture.npz') as arrays:
    return dict(arrays)
