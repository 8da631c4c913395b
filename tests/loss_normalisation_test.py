"""The loss of a batch over its tokens or its examples, by plain formulas."""

import jax.numpy as jnp
import numpy as np
import pytest

from mhr_jax import losses, optim, train_state
from mhr_jax.errors import UserError
from mhr_jax.side_by_side import LossSettings
from mhr_jax.train_settings import TrainSettings

_WORDS, _ROWS, _LENGTH, _SMOOTHING = 5, 4, 6, 0.1


class _Table:
  """Logits of the next word are a row of a table: gradients by hand."""

  def loss(self, params, batch, *, label_smoothing=0.0, z_loss=0.0, **unused):
    del unused
    return losses.token_cross_entropy(
      params['backbone']['table'][batch['decoder_input_tokens']],
      batch['decoder_target_tokens'],
      batch['decoder_loss_weights'],
      label_smoothing=label_smoothing,
      z_loss=z_loss,
    )


def _batch(packed: bool):
  """Targets of 1, 2, 4 and 0 tokens; packed, the third row is two examples."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(1, _WORDS, (2, _ROWS, _LENGTH)).astype(np.int32)
  weights = np.arange(_LENGTH) < np.array([1, 2, 4, 0])[:, None]
  batch = {
    'encoder_input_tokens': tokens[0],
    'decoder_input_tokens': tokens[0],
    'decoder_target_tokens': tokens[1],
    'decoder_loss_weights': weights.astype(np.float32),
    'task_ids': np.zeros(_ROWS, np.int32),
  }
  if packed:
    segments = weights.astype(np.int32)
    segments[2, 1:4] = 2
    batch['decoder_segment_ids'] = segments
  return batch


def _expected(table, batch, divisor):
  """One step of gradient descent at rate 1."""
  gradient = np.zeros_like(table)
  for row in range(_ROWS):
    for at in np.flatnonzero(batch['decoder_loss_weights'][row]):
      word = batch['decoder_input_tokens'][row, at]
      p = np.exp(table[word]) / np.exp(table[word]).sum()
      wanted = np.full(_WORDS, _SMOOTHING / _WORDS)
      wanted[batch['decoder_target_tokens'][row, at]] += 1 - _SMOOTHING
      gradient[word] += p - wanted
  return table - gradient / divisor


@pytest.mark.parametrize(
  ('normalisation', 'packed', 'accumulation', 'divisor'),
  [
    ('tokens', False, 1, 7),
    ('examples', False, 1, 3),  # the row without targets is none
    ('examples', False, 2, 3),
    ('examples', True, 1, 4),
  ],
)
def test_a_step_follows_the_formula(
  normalisation, packed, accumulation, divisor
):
  settings = optim.OptimizerSettings(
    name='sgd',
    schedule='constant',
    warmup_steps=0,
    clip_norm=None,
    learning_rates={'backbone': 1.0},
    weight_decay={'backbone': 0.0},
  )
  rule = optim.make_optimizer(settings, 1)
  step = train_state.make_train_step(
    _Table(),
    rule,
    accumulation=accumulation,
    label_smoothing=_SMOOTHING,
    normalisation=normalisation,
  )
  table = np.random.default_rng(1).normal(size=(_WORDS, _WORDS))
  table = table.astype(np.float32)
  params = {'backbone': {'table': jnp.array(table)}}
  state = train_state.init_state(params, rule, ('backbone',))
  batch = _batch(packed)
  state, metrics = step(state, batch, jnp.zeros(2, jnp.uint32))
  np.testing.assert_allclose(
    state.trainable['backbone']['table'],
    _expected(table, batch, divisor),
    rtol=1e-5,
    atol=1e-6,
  )
  assert metrics['weight_sum'] == 7
  assert metrics['examples'] == 3 + packed


def test_the_name_is_checked():
  message = "'token'; .*Did you mean 'tokens'"
  with pytest.raises(UserError, match=message):
    TrainSettings(1, loss_normalisation='token')
  with pytest.raises(UserError, match=message):
    LossSettings(normalisation='token')
