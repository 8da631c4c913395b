"""Sums of unit gradients, whole and by group of layers: what alignment needs.

The sums are {kind: [part, …]}, a part for each way to group a kind's leaves
(all as one, by sublayer, and by name of leaf: a and b apart), with

    sums    {path of a leaf: Σ ĝ}, ĝ over the norm of the leaf's whole group
    counts  {group: how many of the gradients were not 0}

however many gradients there are. A part's sums are a float32 copy of all
leaves: three copies in all (two of (IA)³, whose leaves have one name, and of
a backbone), so 12 bytes a parameter of the inventories and 12 of one task's
adapter, beside the gradient that is added. See `gradients`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import Array, PyTree

from mhr_jax.tree_paths import leaves_by_path, sublayer_of

Part = dict[str, Any]
Leaves = dict[str, Array]


def partitions(paths: Sequence[str], kind: str) -> list[dict[str, str]]:
  """Returns the ways to group leaves: {path: group}, '' is everything."""
  found = [dict.fromkeys(paths, '')]
  ways = [{path: sublayer_of(path) for path in paths}]
  if kind != 'backbone':
    ways.append({path: path.rpartition('/')[2] for path in paths})
  return found + [way for way in ways if len(set(way.values())) > 1]


def start_sums(
  tree: PyTree, kind: str, everywhere: jax.sharding.Sharding | None = None
) -> list[Part]:
  """Returns the parts of no gradients.

  Args:
    tree: what the gradients are like: arrays, or shapes.
    kind: 'inventories', 'effective' or 'backbone'.
    everywhere: where counts live, and sums of leaves that live nowhere.
  """
  leaves = leaves_by_path(tree)
  places = {
    path: getattr(leaf, 'sharding', None) or everywhere
    for path, leaf in leaves.items()
  }
  return [
    {
      'sums': {
        path: jnp.zeros(leaf.shape, jnp.float32, device=places[path])
        for path, leaf in leaves.items()
      },
      'counts': {
        group: jnp.zeros([], jnp.int32, device=everywhere)
        for group in way.values()
      },
    }
    for way in partitions(tuple(leaves), kind)
  ]


def add_gradient(
  parts: Sequence[Mapping[str, Any]], gradient: PyTree, kind: str
) -> list[dict[str, Any]]:
  """Adds a gradient, each group of it over its own norm."""
  leaves = {
    path: leaf.astype(jnp.float32)
    for path, leaf in leaves_by_path(gradient).items()
  }
  squares = {path: jnp.sum(g * g) for path, g in leaves.items()}
  added = []
  for part, way in zip(parts, partitions(tuple(leaves), kind), strict=True):
    square = _by_group(squares, way)
    unit = {
      group: jnp.where(x > 0, jax.lax.rsqrt(jnp.where(x > 0, x, 1.0)), 0.0)
      for group, x in square.items()
    }
    added.append(
      {
        'sums': {
          path: part['sums'][path] + g * unit[way[path]]
          for path, g in leaves.items()
        },
        'counts': {
          group: part['counts'][group] + (x > 0).astype(jnp.int32)
          for group, x in square.items()
        },
      }
    )
  return added


def _by_group(values: Leaves, way: Mapping[str, str]) -> Leaves:
  totals: Leaves = {}
  for path, value in values.items():
    group = way[path]
    totals[group] = totals[group] + value if group in totals else value
  return totals


def finish_sums(
  parts: Sequence[Mapping[str, Any]], kind: str
) -> dict[str, tuple[Array, Array]]:
  """Returns by group the mean cosine over pairs, and how many gradients."""
  found = {}
  ways = partitions(tuple(parts[0]['sums']), kind)
  for part, way in zip(parts, ways, strict=True):
    squares = {path: jnp.sum(x * x) for path, x in part['sums'].items()}
    for group, square in _by_group(squares, way).items():
      n = part['counts'][group]
      found[group] = ((square - n) / jnp.maximum(n * (n - 1), 1), n)
  return found
