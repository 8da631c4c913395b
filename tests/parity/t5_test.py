"""The backbone against transformers' numbers: one T5 1.1, five rows.

The reference's float64 has float32 inside (norms and softmax): its values are
good to about 4e-6, no better than what float32 gives here.
"""

import dataclasses

import jax
import numpy as np
import pytest

from mhr_jax.convert import hf_t5
from mhr_jax.model import RoutedT5
from mhr_jax.t5 import layers
from mhr_jax.t5.decoding import DecodingSettings
from mhr_jax.t5.network import T5

pytestmark = pytest.mark.parity

TOLERANCE = 1e-5
REFERENCE = 'transformers, T5 1.1'


@pytest.fixture(scope='module')
def folder(shared_dir):
  return shared_dir / 'fixtures' / 'hf_t5_tiny'


@pytest.fixture(scope='module')
def model_and_params(folder):
  config, backbone = hf_t5.read_backbone(folder)
  return RoutedT5(config), {'backbone': backbone}


@pytest.fixture(scope='module')
def theirs(folder):
  """transformers' inputs and outputs."""
  with np.load(folder / 'fixture.npz') as arrays:
    return dict(arrays)


@pytest.fixture(scope='module')
def batch(theirs):
  labels = theirs['labels']
  return {
    'encoder_input_tokens': theirs['input_ids'],
    'encoder_mask': theirs['attention_mask'] > 0,
    'decoder_input_tokens': theirs['decoder_input_ids'],
    'decoder_target_tokens': np.maximum(labels, 0),
    'decoder_loss_weights': (labels != -100).astype(np.float32),
  }


@pytest.fixture
def check(report_difference):
  def check(case, actual, expected, *, tolerance=TOLERANCE):
    difference = report_difference(case, REFERENCE, actual, expected)
    assert difference <= tolerance

  return check


@pytest.mark.parametrize(
  ('dtype', 'precision'),
  [('float32', 'f32'), ('float32', 'f64'), ('float64', 'f64')],
)
def test_encoder_states_logits_and_loss(
  model_and_params, batch, theirs, check, dtype, precision
):
  model, params = model_and_params
  model = RoutedT5(dataclasses.replace(model.config, dtype=dtype))

  def run(params, batch):
    encoded = T5(model.config).apply(
      {'params': params['backbone']},
      batch['encoder_input_tokens'],
      mask=batch['encoder_mask'],
      method='encode',
    )
    total, weights, _ = model.loss(params, batch)
    return encoded, model.logits(params, batch), total / weights

  with jax.enable_x64(dtype == 'float64'):
    encoded, logits, loss = jax.jit(run)(
      jax.tree.map(np.dtype(dtype).type, params), batch
    )
  assert logits.dtype == dtype
  read = batch['encoder_mask']
  states = theirs[f'encoder_last_hidden_state_{precision}']
  suffix = f'{dtype} to {precision}'
  check(f'encoder states, {suffix}', np.asarray(encoded)[read], states[read])
  check(f'logits, {suffix}', logits, theirs[f'logits_{precision}'])
  check(f'loss, {suffix}', loss, theirs[f'loss_{precision}'])


@pytest.mark.parametrize('num_beams', [1, 4])
def test_tokens(model_and_params, batch, theirs, check, num_beams):
  model, params = model_and_params
  settings = DecodingSettings(16, num_beams=num_beams)
  generate = jax.jit(model.generate, static_argnums=2)
  tokens = generate(params, batch, settings)
  name = 'greedy_16' if num_beams == 1 else 'beam4_16'
  start, expected = theirs[name][:, :1], theirs[name][:, 1:]
  assert (start == model.config.decoder_start_token_id).all()
  assert len(np.unique(expected, axis=0)) > 1
  check(f'tokens, {name}', tokens, expected, tolerance=0)


@pytest.mark.parametrize('bidirectional', [True, False])
def test_relative_position_buckets(folder, check, bidirectional):
  with np.load(folder / 'rel_buckets.npz') as arrays:
    distances = arrays['rel']
    kind = 'bidirectional' if bidirectional else 'causal'
    expected = arrays[kind]
  buckets = layers.relative_position_bucket(
    distances, bidirectional=bidirectional
  )
  assert expected.min() == 0 and expected.max() == 31
  check(f'buckets, {kind}', buckets, expected, tolerance=0)
