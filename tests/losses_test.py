"""Cross-entropy against a plain computation of values and gradients."""

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from mhr_jax import losses


def batch():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(3, 4, 7)) * 3
  targets = rng.integers(0, 7, size=(3, 4))
  weights = np.array([[1, 1, 0, 0], [1, 1, 1, 0.5], [0, 0, 0, 0]])
  return logits, targets, weights


def plain_loss(logits, targets, weights, label_smoothing=0.0, z_loss=0.0):
  """As the formula is written, differentiated by JAX."""
  log_z = jnp.log(jnp.exp(logits).sum(-1))
  log_p = logits - log_z[..., None]
  nll = -jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0]
  loss = (1 - label_smoothing) * nll - label_smoothing * log_p.mean(-1)
  return jnp.sum((loss + z_loss * log_z**2) * weights)


@pytest.mark.parametrize('label_smoothing', [0.0, 0.1])
@pytest.mark.parametrize('z_loss', [0.0, 1e-2])
def test_values_and_gradients_equal_the_formula(label_smoothing, z_loss):
  options = {'label_smoothing': label_smoothing, 'z_loss': z_loss}
  with jax.enable_x64(True):
    logits, targets, weights = map(jnp.array, batch())
    (loss, (total, parts)), gradient = jax.value_and_grad(
      lambda x: _with_aux(x, targets, weights, options), has_aux=True
    )(logits)
    expected, expected_gradient = jax.value_and_grad(plain_loss)(
      logits, targets, weights, **options
    )
    nll = plain_loss(logits, targets, weights)
  np.testing.assert_allclose(loss, expected, rtol=1e-12)
  np.testing.assert_allclose(gradient, expected_gradient, atol=1e-12)
  np.testing.assert_allclose(total, 5.5)
  np.testing.assert_allclose(parts['nll_sum'], nll, rtol=1e-12)
  np.testing.assert_allclose(
    np.asarray(parts['row_nll']).sum(), nll, rtol=1e-12
  )
  np.testing.assert_array_equal(parts['row_weights'], [2, 3.5, 0])


def _with_aux(logits, targets, weights, options):
  loss, total, parts = losses.token_cross_entropy(
    logits, targets, weights, **options
  )
  return loss, (total, parts)


def test_the_unsmoothed_part_has_its_own_gradient():
  with jax.enable_x64(True):
    logits, targets, weights = map(jnp.array, batch())
    gradient = jax.grad(
      lambda x: losses.token_cross_entropy(
        x, targets, weights, label_smoothing=0.3, z_loss=0.1
      )[2]['nll_sum']
    )(logits)
    expected = jax.grad(plain_loss)(logits, targets, weights)
  np.testing.assert_allclose(gradient, expected, atol=1e-12)


def test_large_logits_and_bfloat16_stay_finite():
  logits = jnp.array([[[3e4, -3e4, 0.0]]], jnp.bfloat16)
  targets, weights = jnp.array([[1]]), jnp.ones((1, 1))
  (loss, _), gradient = jax.value_and_grad(
    lambda x: _with_aux(x, targets, weights, {}), has_aux=True
  )(logits)
  assert loss.dtype == jnp.float32
  np.testing.assert_allclose(loss, 6e4, rtol=1e-2)
  assert gradient.dtype == jnp.bfloat16
  np.testing.assert_allclose(gradient.astype(np.float32)[0, 0], [1, -1, 0])
