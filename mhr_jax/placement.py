"""Where intermediate arrays live, on the mesh that a compiled step set.

The compiler spreads parameters over devices as `partitioning` says and finds
by itself where everything in between lives. In a few places it would choose
badly: gather an inventory, or cut activations along their features. Those are
pinned here. Pinning changes no number, and without a mesh (one device,
decoding) nothing happens at all.
"""

from typing import Any

import jax
from jax import Array

DATA_AXIS = 'data'
MODEL_AXIS = 'model'

LEAVE = jax.sharding.PartitionSpec.UNCONSTRAINED
"""For `constrain`: the compiler chooses where this axis lives."""


def is_spread() -> bool:
  """Whether a mesh is set (`jax.set_mesh`) whose devices share the rows."""
  return DATA_AXIS in jax.sharding.get_abstract_mesh().axis_names


def axis_size(axis: str) -> int:
  """Returns how many devices the mesh has along an axis; 1 without it."""
  return jax.sharding.get_abstract_mesh().shape.get(axis, 1)


def constrain(x: Array, *entries: Any) -> Array:
  """Pins where an intermediate array lives.

  Args:
    x: the array.
    entries: for each of its leading axes an axis of the mesh, None for whole,
      or `LEAVE`; the axes after them are whole. An axis that does not divide
      is left to the compiler.
  """
  if not is_spread():
    return x
  sizes = jax.sharding.get_abstract_mesh().shape
  divided = [
    LEAVE if isinstance(entry, str) and size % sizes[entry] else entry
    for entry, size in zip(entries, x.shape, strict=False)
  ]
  spec = jax.sharding.PartitionSpec(*divided)
  return jax.lax.with_sharding_constraint(x, spec)


def constrain_rows(x: Array) -> Array:
  """Pins activations: rows over `data`, everything else whole."""
  return constrain(x, DATA_AXIS)


def constrain_axis(x: Array, axis: int, entry: str | None) -> Array:
  """Pins one axis and leaves the others to the compiler.

  Args:
    x: the array.
    axis: which one; negative ones count from the last.
    entry: an axis of the mesh, or None for whole.
  """
  entries: list[Any] = [LEAVE] * x.ndim
  entries[axis] = entry
  return constrain(x, *entries)
