"""A checksum of arrays that is the same however they are spread over devices.

Every element's bits are multiplied by an odd number that depends on the
element's position, and summed modulo 2³²: whole numbers, so the order of the
sum does not matter. It is computed where the arrays are, without a copy to the
host. It tells one backbone from another; it does not resist an adversary.
"""

import hashlib
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from mhr_jax.tree_paths import leaves_by_path

_ROW = np.uint32(2654435761)  # odd constants with well mixed bits
_MIX = (np.uint32(2246822519), np.uint32(3266489917))


def checksum(tree: Any) -> str:
  """Returns 32 hex digits over paths, shapes, types and every bit of a tree."""
  # By path, so that a dictionary and a named tuple of the same are the same.
  leaves = dict(sorted(leaves_by_path(tree).items()))
  # One at a time: many programs in flight, each with a sum over devices, wait
  # for each other for good where devices are threads of few cores.
  sums = [jax.device_get(_sums(leaf)) for leaf in leaves.values()]
  digest = hashlib.blake2b(digest_size=16)
  for (path, leaf), value in zip(leaves.items(), sums, strict=True):
    head = f'{path} {tuple(leaf.shape)} {leaf.dtype} '
    digest.update(head.encode() + np.asarray(value).tobytes())
  return digest.hexdigest()


@jax.jit
def _sums(x: Array) -> Array:
  """Returns two sums modulo 2³² over the bits of `x`."""
  bits = _bits(x)
  position = jnp.zeros(bits.shape, jnp.uint32)
  for axis, size in enumerate(bits.shape):
    index = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    position = position * np.uint32(size % 2**32) + index
  mixed = (position + 1) * _ROW
  mixed = mixed ^ (mixed >> 15)
  return jnp.stack(
    [
      jnp.sum(((mixed * m) | 1) * bits, dtype=jnp.uint32)
      for m in _MIX
    ]
  )  # fmt: skip


def _bits(x: Array) -> Array:
  if x.dtype == jnp.bool_:
    return x.astype(jnp.uint32)
  size = x.dtype.itemsize
  if size == 8:
    return jax.lax.bitcast_convert_type(x, jnp.uint32)
  kind = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[size]
  return jax.lax.bitcast_convert_type(x, kind).astype(jnp.uint32)
