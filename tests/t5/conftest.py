"""The published-format tiny T5 in ../shared, with its names mapped to ours."""

import numpy as np
import pytest

from mhr_jax.t5 import config as config_lib
from mhr_jax.t5 import parameters

ATTENTIONS = {'query': 'q', 'key': 'k', 'value': 'v', 'out': 'o'}


def _attention(tensors, prefix):
  return {
    ours: {'kernel': tensors[f'{prefix}.{theirs}.weight'].T}
    for ours, theirs in ATTENTIONS.items()
  }


def _feed_forward(tensors, prefix):
  names = ('wi_0', 'wi_1', 'wo')
  return {
    name: {'kernel': tensors[f'{prefix}.DenseReluDense.{name}.weight'].T}
    for name in names
  }


def _norm(tensors, prefix):
  return {'scale': tensors[f'{prefix}.weight']}


def _encoder_layer(tensors, i):
  at = f'encoder.block.{i}.layer'
  return {
    'pre_attention_layer_norm': _norm(tensors, f'{at}.0.layer_norm'),
    'attention': _attention(tensors, f'{at}.0.SelfAttention'),
    'pre_mlp_layer_norm': _norm(tensors, f'{at}.1.layer_norm'),
    'mlp': _feed_forward(tensors, f'{at}.1'),
  }


def _decoder_layer(tensors, i):
  at = f'decoder.block.{i}.layer'
  return {
    'pre_self_attention_layer_norm': _norm(tensors, f'{at}.0.layer_norm'),
    'self_attention': _attention(tensors, f'{at}.0.SelfAttention'),
    'pre_cross_attention_layer_norm': _norm(tensors, f'{at}.1.layer_norm'),
    'encoder_decoder_attention': _attention(tensors, f'{at}.1.EncDecAttention'),
    'pre_mlp_layer_norm': _norm(tensors, f'{at}.2.layer_norm'),
    'mlp': _feed_forward(tensors, f'{at}.2'),
  }


def _stack(tensors, stack, layer):
  table = 'block.0.layer.0.SelfAttention.relative_attention_bias.weight'
  layers = {f'layers_{i}': layer(tensors, i) for i in range(2)}
  return layers | {
    'relpos_bias': {'rel_embedding': tensors[f'{stack}.{table}'].T},
    f'{stack}_norm': _norm(tensors, f'{stack}.final_layer_norm'),
  }


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
  encoder = _stack(tensors, 'encoder', _encoder_layer)
  decoder = _stack(tensors, 'decoder', _decoder_layer)
  decoder['logits_dense'] = {'kernel': tensors['lm_head.weight'].T}
  unrolled = {
    'token_embedder': {'embedding': tensors['shared.weight']},
    'encoder': encoder,
    'decoder': decoder,
  }
  return parameters.stack_layers(unrolled, hf_config)


@pytest.fixture(scope='session')
def hf_batch(shared_dir):
  """transformers' inputs and outputs on those weights."""
  folder = shared_dir / 'fixtures' / 'hf_t5_tiny'
  with np.load(folder / 'fixture.npz') as arrays:
    return dict(arrays)
