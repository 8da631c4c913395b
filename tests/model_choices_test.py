"""Answer choices: scored and trained on at once, as one by one."""

import dataclasses

import jax
import numpy as np
import pytest

from mhr_jax.choice_losses import ChoiceLoss
import toy_text

_MODEL = toy_text.make_model()
_CHOICES = (
  # Few lengths: the loop compiles each.
  (b'yes', b''),
  (b'abc', b'', b'def', b'abd'),
  (b'can', b'may', b''),
)
_LABELS = np.array([1, 3, 0], np.int32)
_TASK_IDS = np.array([2, 0, 1], np.int32)


def _batch():
  rng = np.random.default_rng(1)
  inputs = rng.integers(3, 250, (3, 6)).astype(np.int32)
  inputs[1, 3:] = 0
  tokens = np.zeros((3, 4, 7), np.int32)
  mask = np.zeros((3, 4), bool)
  for row, choices in enumerate(_CHOICES):
    for i, choice in enumerate(choices):
      ids = [*(3 + byte for byte in choice), 1]
      tokens[row, i, : len(ids)] = ids
      mask[row, i] = True
  return {
    'encoder_input_tokens': inputs,
    'task_ids': _TASK_IDS,
    'choice_tokens': tokens,
    'choice_mask': mask,
    'choice_labels': _LABELS,
  }


def _one_by_one(model, params):
  """Each choice's token losses, from a decoder's pass of its own, unpadded."""
  logits = jax.jit(model.logits)
  batch = _batch()
  found = {}
  for row, choices in enumerate(_CHOICES):
    inputs = batch['encoder_input_tokens'][row]
    for i, choice in enumerate(choices):
      ids = np.array([*(3 + byte for byte in choice), 1])
      out = logits(
        params,
        {
          'encoder_input_tokens': inputs[None],
          'decoder_input_tokens': np.array([0, *ids[:-1]])[None],
          'task_ids': _TASK_IDS[row : row + 1],
        },
      )
      out = np.asarray(out, np.float64)[0]
      log_p = out - np.log(np.exp(out).sum(-1, keepdims=True))
      found[row, i] = -log_p[np.arange(len(ids)), ids]
  return found


@pytest.fixture(scope='module')
def params():
  return toy_text.make_params(_MODEL)


@pytest.fixture(scope='module')
def one_by_one(params):
  return _one_by_one(_MODEL, params)


def test_scores_equal_a_forward_pass_a_choice(params, one_by_one):
  scores, lengths = jax.jit(_MODEL.score_choices)(params, _batch())
  for row, choices in enumerate(_CHOICES):
    for i in range(4):
      nll = one_by_one.get((row, i), np.zeros(0))
      assert (
        lengths[row, i]
        == len(nll)
        == (i < len(choices)) * (len(choices[i]) + 1 if i < len(choices) else 0)
      )
      np.testing.assert_allclose(scores[row, i], -nll.sum(), atol=2e-5)


@pytest.mark.slow
def test_a_scale_an_example_serves_all_its_choices():
  """(IA)³: one vector a row of the batch, and rows of choices in groups."""
  model = toy_text.make_model(kind='ia3', rank=1, alpha=1.0)
  params = toy_text.make_params(model)
  scores, _ = jax.jit(model.score_choices)(params, _batch())
  for at, nll in _one_by_one(model, params).items():
    np.testing.assert_allclose(scores[at], -nll.sum(), atol=2e-5)


def test_the_loss_is_put_together_of_those_passes(params, one_by_one):
  settings = ChoiceLoss(choice_loss=0.5, unlikelihood=2.0, length_norm=0.5)
  model = dataclasses.replace(_MODEL, mix_in='layer')
  loss, weight, parts = jax.jit(lambda p, b: model.choice_loss(p, b, settings))(
    params, _batch()
  )
  right = np.concatenate([one_by_one[i, _LABELS[i]] for i in range(3)])
  wrong = np.concatenate(
    [nll for (i, j), nll in one_by_one.items() if j != _LABELS[i]]
  )
  scores = {at: -x.sum() / len(x) ** 0.5 for at, x in one_by_one.items()}
  among = []
  for i, choices in enumerate(_CHOICES):
    exps = [np.exp(scores[i, j]) for j in range(len(choices))]
    among.append(np.log(sum(exps)) - scores[i, _LABELS[i]])
  expected = {
    'likelihood': right.mean(),
    'choice': np.mean(among),
    'unlikelihood': -np.log(1 - np.exp(-wrong) + 0.01).mean(),
  }
  for name, value in expected.items():
    assert parts[name] == pytest.approx(value, rel=1e-5)
  total = expected['likelihood'] + 0.5 * expected['choice']
  total += 2.0 * expected['unlikelihood']
  assert loss == pytest.approx(total, rel=1e-5)
  assert weight == 1
