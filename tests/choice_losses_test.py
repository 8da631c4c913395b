"""T-Few's loss against a plain loop and against its formula in torch."""

import math

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from mhr_jax import choice_losses, losses
from mhr_jax.choice_losses import ChoiceLoss
from mhr_jax.errors import UserError

_SETTINGS = ChoiceLoss(choice_loss=0.7, unlikelihood=1.3, length_norm=1.0)


def draw_batch():
  """Four examples with 4, 2, 3 and no choices of 1 to 5 tokens."""
  rng = np.random.default_rng(3)
  n_choices = np.array([4, 2, 3, 0])
  mask = np.arange(4) < n_choices[:, None]
  lengths = rng.integers(1, 6, (4, 4)) * mask
  weights = (np.arange(5) < lengths[..., None]).astype(np.float64)
  targets = rng.integers(1, 7, (4, 4, 5)) * (weights > 0)
  logits = rng.normal(size=(4, 4, 5, 7)) * 2
  return logits, targets, weights, mask, np.array([3, 0, 1, -1])


def loss_of(logits, targets, weights, mask, labels, settings=_SETTINGS):
  """As the model puts it together, from logits on."""
  loss, nll = losses.token_losses(logits, targets)
  sums = choice_losses.sum_parts(
    loss, nll, weights, mask, labels, length_norm=settings.length_norm
  )
  shares = choice_losses.share_parts(
    choice_losses.count_parts(weights, mask, labels)
  )
  parts = [jnp.sum(a * b) for a, b in zip(sums, shares, strict=True)]
  total = parts[0] + settings.choice_loss * parts[1]
  return total + settings.unlikelihood * parts[2], parts


def plain_parts(logits, targets, weights, mask, labels, power, numpy=np):
  """The three parts, token by token."""
  right, wrong, among = [], [], []
  for row, label in enumerate(labels):
    scores = {}
    for choice in np.flatnonzero(mask[row]):
      of_tokens = []
      for place in np.flatnonzero(weights[row, choice]):
        at = logits[row, choice, place]
        p = numpy.exp(at) / numpy.exp(at).sum()
        of_tokens.append(p[targets[row, choice, place]])
      nll = [-numpy.log(p) for p in of_tokens]
      scores[choice] = -sum(nll) / len(nll) ** power
      if choice == label:
        right += nll
      else:
        wrong += [-numpy.log(1 - p + 0.01) for p in of_tokens]
    if scores:
      z = sum(numpy.exp(score) for score in scores.values())
      among.append(numpy.log(z) - scores[label])
  return [sum(part) / len(part) for part in (right, among, wrong)]


@pytest.mark.parametrize('power', [0.0, 0.5, 1.0])
def test_values_equal_a_plain_loop(power):
  settings = ChoiceLoss(length_norm=power)
  with jax.enable_x64(True):
    total, parts = jax.jit(lambda *batch: loss_of(*batch, settings=settings))(
      *draw_batch()
    )
  expected = plain_parts(*draw_batch(), power)
  np.testing.assert_allclose(parts, expected, rtol=1e-12)
  np.testing.assert_allclose(total, sum(expected), rtol=1e-12)


def test_gradients_equal_those_of_a_plain_loop():
  logits, *rest = draw_batch()

  def plain(x):
    parts = plain_parts(x, *rest, 1.0, numpy=jnp)
    return parts[0] + 0.7 * parts[1] + 1.3 * parts[2]

  with jax.enable_x64(True):
    found = jax.jit(jax.grad(lambda x: loss_of(x, *rest)[0]))(logits)
    expected = jax.jit(jax.grad(plain))(logits)
  np.testing.assert_allclose(found, expected, atol=1e-13)
  assert not found[3].any()  # the row without choices
  assert np.abs(found[0, 2]).max() > 1e-3


def test_equals_the_formula_in_torch_but_for_its_constant():
  """r-three/t-few keeps masked tokens in the sum, with log p = -100."""
  torch = pytest.importorskip('torch')
  logits, targets, weights, mask, labels = (x[:3] for x in draw_batch())
  x = torch.tensor(logits, requires_grad=True)
  ids = torch.tensor(targets)
  counted = torch.tensor(weights) > 0
  nll = torch.nn.functional.cross_entropy(
    x.flatten(0, 2), ids.flatten(), reduction='none'
  ).view(ids.shape)
  nll = nll * counted
  rows = torch.arange(3)
  label = torch.tensor(labels)
  gold = counted[rows, label]
  likelihood = nll[rows, label][gold].mean()
  score = nll.sum(-1) / counted.sum(-1).clamp(min=1)
  score = score.masked_fill(~torch.tensor(mask), math.inf)
  choice = torch.nn.functional.cross_entropy(-score, label)
  bad = counted.clone()
  bad[rows, label] = False
  log_p = torch.where(bad, -nll, torch.tensor(-100.0, dtype=x.dtype))
  unlikely = -torch.log(1 - torch.exp(log_p) + 0.01).sum() / bad.sum()
  total = likelihood + 0.7 * choice + 1.3 * unlikely
  total.backward()
  with jax.enable_x64(True):
    (found, parts), gradient = jax.value_and_grad(
      lambda x: loss_of(x, targets, weights, mask, labels), has_aux=True
    )(logits)
  constant = -math.log(1.01) * float((~bad).sum() / bad.sum())
  assert float(parts[2]) + constant == pytest.approx(unlikely.item(), rel=1e-12)
  assert float(found) + 1.3 * constant == pytest.approx(total.item(), rel=1e-12)
  np.testing.assert_allclose(gradient, x.grad.numpy(), atol=1e-14)


def test_parts_of_a_batch_sum_to_the_whole():
  """With the whole batch's shares, halves of unequal weight sum to it."""
  logits, *rest = draw_batch()
  shares = choice_losses.share_parts(choice_losses.count_parts(*rest[1:]))

  @jax.jit
  def part_of(logits, shares, targets, weights, mask, labels):
    loss, nll = losses.token_losses(logits, targets)
    sums = choice_losses.sum_parts(
      loss, nll, weights, mask, labels, length_norm=1.0
    )
    return [jnp.sum(a * b) for a, b in zip(sums, shares, strict=True)]

  halves = np.zeros(3)
  for rows in (slice(0, 2), slice(2, 4)):
    mine = [x[rows] for x in (logits, *rest)]
    share = choice_losses.Parts(*(np.asarray(x)[rows] for x in shares))
    halves += np.array(part_of(mine[0], share, *mine[1:]))
  np.testing.assert_allclose(halves, plain_parts(logits, *rest, 1.0), rtol=1e-5)


def test_negative_weights_are_refused():
  with pytest.raises(UserError, match='unlikelihood is -1'):
    ChoiceLoss(unlikelihood=-1)
