"""Losses on token logits.

Every loss comes as a sum and the sum of its weights, never as a mean: sums
over micro-batches, devices and hosts then give the loss of the whole batch.
"""

import functools

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int


def token_cross_entropy(
  logits: Float[Array, 'batch length vocab'],
  targets: Int[Array, 'batch length'],
  weights: Float[Array, 'batch length'],
  *,
  label_smoothing: float = 0.0,
  z_loss: float = 0.0,
) -> tuple[Float[Array, ''], Float[Array, ''], dict[str, Array]]:
  """Sums the cross-entropy of tokens, in float32 at least.

  A token's loss is `(1 - e) nll + e mean_v(-log p_v) + z (log Z)^2` with the
  label smoothing e as Hugging Face and mttl define it and z T5X's z-loss.

  Args:
    logits: scores before the softmax.
    targets: the right tokens.
    weights: 0 where a token does not count.
    label_smoothing: e in [0, 1).
    z_loss: weight of the squared log-partition.

  Returns:
    The weighted sum of the losses; the sum of the weights; and parts by
    name: `nll_sum` without smoothing and z-loss, and by row `row_nll` and
    `row_weights` [batch], whose sums over tasks are the losses a task.
  """
  loss, nll = token_losses(
    logits, targets, label_smoothing=label_smoothing, z_loss=z_loss
  )
  weights = weights.astype(loss.dtype)
  row_nll = jnp.sum(nll * weights, axis=-1)
  parts = {
    'nll_sum': row_nll.sum(),
    'row_nll': row_nll,
    'row_weights': weights.sum(axis=-1),
  }
  return jnp.sum(loss * weights), weights.sum(), parts


def token_losses(
  logits: Float[Array, '*batch length vocab'],
  targets: Int[Array, '*batch length'],
  *,
  label_smoothing: float = 0.0,
  z_loss: float = 0.0,
) -> tuple[Float[Array, '*batch length'], Float[Array, '*batch length']]:
  """Returns every token's loss and its -log p, in float32 at least.

  See `token_cross_entropy`.
  """
  dtype = jnp.promote_types(logits.dtype, jnp.float32)
  return _token_losses(label_smoothing, z_loss, logits.astype(dtype), targets)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _token_losses(label_smoothing, z_loss, logits, targets):
  """Returns (loss, nll), each [batch, length].

  The gradient is written out so that the backward pass keeps the logits and
  one number a token, and makes d loss / d logits in a single pass over the
  vocabulary.
  """
  return _forward(label_smoothing, z_loss, logits, targets)[0]


def _forward(label_smoothing, z_loss, logits, targets):
  log_z = jax.nn.logsumexp(logits, axis=-1)
  target = jnp.sum(jnp.where(_is_target(logits, targets), logits, 0), axis=-1)
  nll = log_z - target
  loss = nll
  if label_smoothing:
    spread = log_z - logits.mean(axis=-1)
    loss = (1 - label_smoothing) * nll + label_smoothing * spread
  if z_loss:
    loss = loss + z_loss * log_z**2
  return (loss, nll), (logits, targets, log_z)


def _backward(label_smoothing, z_loss, residuals, cotangents):
  logits, targets, log_z = residuals
  d_loss, d_nll = cotangents
  d_log_z = d_loss * (1 + 2 * z_loss * log_z) + d_nll
  d_target = d_loss * (1 - label_smoothing) + d_nll
  d_each = d_loss * (label_smoothing / logits.shape[-1])
  d_logits = (
    d_log_z[..., None] * jnp.exp(logits - log_z[..., None])
    - jnp.where(_is_target(logits, targets), d_target[..., None], 0)
    - d_each[..., None]
  )
  return d_logits, None


_token_losses.defvjp(_forward, _backward)


def _is_target(logits, targets):
  """A comparison and not a gather: it stays local where vocab is sharded."""
  vocab = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
  return vocab == targets[..., None]
