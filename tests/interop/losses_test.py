"""Our loss of tokens against torch's and transformers', with gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mhr_jax import losses
import random_t5

pytestmark = pytest.mark.interop

REFERENCE = 'torch cross-entropy'
SEEDS = range(4)


def draw(seed):
  """Returns logits, targets and which of them count, at least one."""
  rng = np.random.default_rng(seed)
  batch, length, vocab = (int(n) for n in rng.integers(2, 40, 3))
  logits = rng.normal(size=(batch, length, vocab)) * rng.uniform(0.1, 20)
  targets = rng.integers(0, vocab, (batch, length))
  counts = rng.random((batch, length)) < 0.7
  counts[0, 0] = True
  return logits, targets, counts


def mean_loss(logits, targets, counts, label_smoothing):
  total, weight, _ = losses.token_cross_entropy(
    logits,
    targets,
    counts.astype(logits.dtype),
    label_smoothing=label_smoothing,
  )
  return total / weight


@pytest.mark.parametrize('label_smoothing', [0.0, 0.1, 0.6])
@pytest.mark.parametrize('seed', SEEDS)
def test_value_and_gradient(torch, report_difference, seed, label_smoothing):
  logits, targets, counts = draw(seed)
  leaf = torch.tensor(logits, requires_grad=True)
  expected = torch.nn.functional.cross_entropy(
    leaf.flatten(0, 1),
    torch.tensor(np.where(counts, targets, -100)).flatten(),
    label_smoothing=label_smoothing,
  )
  expected.backward()
  with jax.enable_x64(True):
    arguments = map(jnp.asarray, (logits, targets, counts))
    actual = jax.value_and_grad(mean_loss)(*arguments, label_smoothing)
  case = f'loss and gradient, label smoothing {label_smoothing}'
  expected = expected.item(), leaf.grad
  assert report_difference(case, REFERENCE, actual, expected) < 1e-10


@pytest.mark.parametrize('family', ['t5_1_1', 't5_1_0'])
def test_gradient_of_transformers_loss(
  torch, transformers, report_difference, family
):
  config = random_t5.draw_config(family, 0)
  model, _ = random_t5.build(config, 0)
  batch = random_t5.draw_batch(config, 0)
  output = model(**random_t5.as_their_inputs(batch))
  output.logits.retain_grad()
  output.loss.backward()
  actual = jax.value_and_grad(mean_loss)(
    jnp.asarray(output.logits.detach().numpy()),
    batch['decoder_target_tokens'],
    batch['decoder_loss_weights'],
    0.0,
  )
  expected = output.loss.item(), output.logits.grad
  case = f"loss and gradient of {family}'s logits"
  assert report_difference(case, 'transformers', actual, expected) < 1e-6
