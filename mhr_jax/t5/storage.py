"""How the parameters of a frozen backbone are stored: whole, halved, in int8.

'int8' is weight-only: every kernel has one scale a column of its output, the
embedding one a row, so that a number is at most half a scale (1/254 of the
largest of its column or row) away from what it was. Norms and position tables
stay in float32: they are small. The layers make numbers of `dtype` of it
(`read_param`) and are otherwise the same. Only a backbone that does not train
is stored so, and what is stored so is never made whole and rounded again.
"""

from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

from mhr_jax.errors import UserError
from mhr_jax.t5.config import Storage

# The axis that shares a scale: the inputs of a kernel, the features of a row.
_AXES = {'kernel': -2, 'embedding': -1}
_SCALE = '_scale'
_LARGEST = 127  # Symmetric: -128 is not used.


def quantise(
  x: Float[Array, '...'], axis: int
) -> tuple[Int8[Array, '...'], Float[Array, '...']]:
  """Returns whole numbers and scales, of which the products are near x.

  Args:
    x: in float32, or wider than int8 at least.
    axis: along which all numbers share a scale.

  Returns:
    int8 in [-127, 127] of x's shape, and float32 scales without `axis`; where
    all numbers are 0 the scale is 1.
  """
  x = x.astype(jnp.float32)
  largest = jnp.max(jnp.abs(x), axis=axis)
  scale = jnp.where(largest > 0, largest / _LARGEST, 1.0)
  whole = jnp.round(x / jnp.expand_dims(scale, axis))
  return jnp.clip(whole, -_LARGEST, _LARGEST).astype(jnp.int8), scale


def storage_of(backbone: Mapping[str, Any]) -> Storage:
  """Returns how a backbone is stored, told from its embedding."""
  return as_storage(str(backbone['token_embedder']['embedding'].dtype))


def as_storage(dtype: str) -> Storage:
  """Returns what is nearest to a dtype; float64 is stored as float32."""
  if dtype in ('bfloat16', 'int8'):
    return dtype  # pyrefly: ignore[bad-return]
  return 'float32'


def store(backbone: Mapping[str, Any], storage: Storage) -> Any:
  """Returns a backbone stored in another way, or as it is.

  Args:
    backbone: its parameters, arrays of this program or global ones.
    storage: see `T5Config.storage`.

  Raises:
    UserError: it is stored as int8, and something else is asked for.
  """
  check_change(storage_of(backbone), storage)
  if storage_of(backbone) == storage:
    return backbone
  return jax.jit(_convert, static_argnums=1)(dict(backbone), storage)


def check_change(saved: Storage, wanted: Storage) -> None:
  """Refuses to take rounded numbers for whole ones.

  Raises:
    UserError: what is stored as int8 is wanted otherwise.
  """
  if saved == 'int8' != wanted:
    raise UserError(
      f'The backbone is stored as int8, and wanted as {wanted}: its numbers'
      " are rounded. Go on with T5Config.storage = 'int8', or start from the"
      ' backbone that it was made from.'
    )


def _convert(node: Any, storage: Storage) -> Any:
  if storage != 'int8':
    return jax.tree.map(lambda x: x.astype(storage), node)
  found = {}
  for name, value in node.items():
    if name in _AXES:
      found[name], found[name + _SCALE] = quantise(value, _AXES[name])
    elif isinstance(value, Mapping):
      found[name] = _convert(value, storage)
    else:
      found[name] = value.astype(jnp.float32)
  return found


def add_scale_axes(axes: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the logical axes of a backbone stored as int8.

  Args:
    axes: those of one that is not: a tree whose leaves are tuples of names.
  """
  found: dict[str, Any] = {}
  for name, value in axes.items():
    found[name] = add_scale_axes(value) if isinstance(value, Mapping) else value
    if name in _AXES:
      shared = len(value) + _AXES[name]
      found[name + _SCALE] = value[:shared] + value[shared + 1 :]
  return found


def read_param(
  module: nn.Module,
  name: str,
  init: Callable[..., Array],
  shape: tuple[int, ...],
  dtype: Any,
) -> Float[Array, '...']:
  """Returns a parameter of a module as numbers of `dtype`, however stored.

  Args:
    module: that has it.
    name: 'kernel' or 'embedding'.
    init: initialiser, of float32.
    shape: of the parameter.
    dtype: that the module computes in.
  """
  value = module.param(name, init, shape, jnp.float32)
  return scaled(value, read_scale(module, name), _AXES[name]).astype(dtype)


def read_scale(module: nn.Module, name: str) -> Float[Array, '...'] | None:
  """Returns the scales of a module's parameter; None where it has none."""
  if not module.has_variable('params', name + _SCALE):
    return None
  return module.get_variable('params', name + _SCALE)


def scaled(
  value: Array, scale: Float[Array, '...'] | None, axis: int
) -> Float[Array, '...']:
  """Returns whole numbers times their scales; without scales, as it is.

  Args:
    value: of `quantise`, or any numbers.
    scale: likewise, or None.
    axis: along which all numbers share a scale.
  """
  if scale is None:
    return value
  return value.astype(scale.dtype) * jnp.expand_dims(scale, axis)
