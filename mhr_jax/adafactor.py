"""Adafactor on stacked arrays, equal to transformers' on each linear's tensor.

The reference keeps one tensor for each linear; here the linears of all layers
are stacked. Factoring, the bound on an update and the parameter scale are
therefore taken for each layer's slice:

  adapters   [layer, split, skill, in, rank]   a 4-D tensor a layer, factored
                                               over the last two axes
  adapters   [layer, split, skill, out]        (IA)³ scales: vectors, not
                                               factored, whatever the splits
  routers    [layer, task, split, skill]       a matrix task × (split·skill)
  routers    [task, split, skill]              one such matrix
  backbone   encoder/layers/… [layer, in, out] a matrix a layer
  backbone   everything else                   as it is

Shazeer and Stern 2018 (arXiv:1804.04235); transformers' `Adafactor` with
`relative_step=False`, `warmup_init=False` and `beta1=None`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
import optax

from mhr_jax.tree_paths import names_of

_EPS_GRADIENT = 1e-30
_EPS_PARAMETER = 1e-3
_STACKED = 'layers'
_VECTOR = 'scale'  # of a norm or of (IA)³


class AdafactorState(NamedTuple):
  """Second moments; in place of each parameter a dictionary of them.

  Attributes:
    count: updates so far.
    moments: {'row', 'col'} means over the last and the last but one axis of a
      factored tensor, or {'full'} for a vector.
  """

  count: Array
  moments: Any


def scale_by_adafactor(
  *,
  scale_parameter: bool,
  clip_threshold: float,
  decay_rate: float,
  weight_decay: Callable[[tuple[str, ...]], float],
) -> optax.GradientTransformation:
  """Returns the direction that a learning rate then multiplies.

  Args:
    scale_parameter: multiply by max(1e-3, root mean square of the tensor).
    clip_threshold: bound of the root mean square of an update.
    decay_rate: the second moments decay by 1 - step ** decay_rate.
    weight_decay: decoupled decay of a parameter, by its path.
  """

  def init(params):
    moments = jax.tree_util.tree_map_with_path(
      lambda path, p: _init_moments(names_of(path), p), params
    )
    return AdafactorState(jnp.zeros([], jnp.int32), moments)

  def update(updates, state, params=None):
    count = state.count + 1
    beta = 1.0 - count.astype(jnp.float32) ** decay_rate
    paths_and_params, treedef = jax.tree_util.tree_flatten_with_path(params)
    directions, moments = [], []
    for (path, param), grad, moment in zip(
      paths_and_params,
      treedef.flatten_up_to(updates),
      treedef.flatten_up_to(state.moments),
      strict=True,
    ):
      names = names_of(path)
      p, g = _as_layers(names, param), _as_layers(names, grad)
      direction, moment = _direction(g, moment, beta)
      direction = direction / jnp.maximum(1.0, _rms(direction) / clip_threshold)
      decay = weight_decay(names)
      if decay:
        direction = direction + decay * p
      if scale_parameter:
        direction = direction * jnp.maximum(_EPS_PARAMETER, _rms(p))
      directions.append(direction.reshape(param.shape))
      moments.append(moment)
    return (
      treedef.unflatten(directions),
      AdafactorState(count, treedef.unflatten(moments)),
    )

  return optax.GradientTransformation(init, update)


def _as_layers(names: tuple[str, ...], x: Array) -> Array:
  """Returns `x` as [layer, the reference's tensor…]."""
  if names[0] == 'adapters':
    return x
  if names[0] == 'routers':
    x = x if x.ndim == 4 else x[None]
    return x.reshape(*x.shape[:2], -1)
  return x if _STACKED in names else x[None]


def _init_moments(names: tuple[str, ...], x: Array) -> dict[str, Array]:
  x = _as_layers(names, x)
  if x.ndim < 3 or names[-1] == _VECTOR:
    return {'full': jnp.zeros(x.shape, jnp.float32)}
  return {
    'row': jnp.zeros(x.shape[:-1], jnp.float32),
    'col': jnp.zeros((*x.shape[:-2], x.shape[-1]), jnp.float32),
  }


def _direction(
  grad: Array, moments: dict[str, Array], beta: Array
) -> tuple[Array, dict[str, Array]]:
  """Divides a gradient by the root of its (factored) second moment."""
  square = grad**2 + _EPS_GRADIENT

  def decayed(old, new):
    return beta * old + (1.0 - beta) * new

  if 'full' in moments:
    full = decayed(moments['full'], square)
    return grad * jax.lax.rsqrt(full), {'full': full}
  row = decayed(moments['row'], square.mean(-1))
  col = decayed(moments['col'], square.mean(-2))
  row_factor = jax.lax.rsqrt(row / row.mean(-1, keepdims=True))
  direction = grad * row_factor[..., None] * jax.lax.rsqrt(col)[..., None, :]
  return direction, {'row': row, 'col': col}


def _rms(x: Array) -> Array:
  """Root mean square of each layer's tensor, shaped to broadcast over it."""
  return jnp.sqrt(jnp.mean(x**2, axis=tuple(range(1, x.ndim)), keepdims=True))
