"""Which linears of an mttl checkpoint share a router.

There a router ("selector") is one module that several linears hold. A state
dict names it under each of them; a checkpoint that keeps what trains alone
names it once, under the first.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mhr_jax.convert.linear_tensors import LinearTensors, Named
from mhr_jax.errors import UserError, nearest
from mhr_jax.routing import (
  LAYERED_SCOPES,
  LOGITS,
  RouterScope,
  router_of,
)

# From the narrowest to the widest.
_GRANULARITIES: dict[str, RouterScope] = {
  'finegrained': 'module',
  'layerwise': 'layer',
  'blockwise': 'block',
  'coderwise': 'stack',
  'coarsegrained': 'model',
}

# A router's path, and the layer it is in where each layer has its own.
_Key = tuple[str, int | None]


class Routers(NamedTuple):
  """The routers of a checkpoint.

  Attributes:
    scope: which linears share one.
    n_tasks: rows of their logits.
    arrays: routing logits by the routers' paths, as `init_routers` has them.
  """

  scope: RouterScope
  n_tasks: int
  arrays: dict[str, np.ndarray]


def read_routers(
  found: LinearTensors,
  n_splits: int,
  n_skills: int,
  granularity: str | None,
) -> Routers | None:
  """Returns the routers; None where there are no routing logits.

  Args:
    found: the checkpoint's tensors.
    n_splits: of the inventories.
    n_skills: of the inventories.
    granularity: mttl's `router_granularity`. Without it the widest scope is
      taken in which every router has logits, and the same under every name;
      of scopes that come to the same, the narrowest.

  Raises:
    UserError: routers are misshapen, or no scope explains them.
  """
  named = {
    (path, layer): tensor
    for path in found.linears
    for layer, tensor in found.by_layer(path, LOGITS).items()
  }
  if not named:
    return None
  n_tasks = _check_shapes(found, named, n_splits * n_skills)
  scope, routers = _find_scope(found, named, granularity)
  arrays: dict[str, list[np.ndarray]] = {}
  for (path, _), tensor in routers.items():
    logits = tensor.array.reshape(n_tasks, n_splits, n_skills)
    arrays.setdefault(path, []).append(logits.astype(np.float32))
  layered = scope in LAYERED_SCOPES
  return Routers(
    scope,
    n_tasks,
    {k: np.stack(x) if layered else x[0] for k, x in arrays.items()},
  )


def _check_shapes(found, named, width):
  first = next(iter(named.values()))
  n_tasks = first.array.shape[0] if first.array.ndim else 0
  for tensor in named.values():
    found.check_shape(tensor, (n_tasks, width))
  return n_tasks


def _find_scope(
  found: LinearTensors,
  named: Mapping[tuple[str, int], Named],
  granularity: str | None,
) -> tuple[RouterScope, dict[_Key, Named]]:
  if granularity is not None:
    if granularity not in _GRANULARITIES:
      raise UserError(
        f'{found.where}: there is no router_granularity {granularity!r}.'
        f'{nearest(granularity, _GRANULARITIES)}'
      )
    scope = _GRANULARITIES[granularity]
    routers, problem = _group(found, named, scope)
    if problem:
      raise UserError(
        f'{found.where} has the router_granularity {granularity!r}, but'
        f' {problem}.'
      )
    return scope, routers
  tried = {x: _group(found, named, x) for x in _GRANULARITIES.values()}
  fitting = {x: routers for x, (routers, _) in tried.items() if routers}
  if not fitting:
    raise UserError(
      f'{found.where}: no way of sharing routers explains the routing logits'
      f' that are there. With a router for every linear, {tried["module"][1]}.'
    )
  # Scopes with as many routers share them alike: the first is the narrowest.
  scope = min(fitting, key=lambda x: len(fitting[x]))
  return scope, fitting[scope]


def _group(
  found: LinearTensors,
  named: Mapping[tuple[str, int], Named],
  scope: RouterScope,
) -> tuple[dict[_Key, Named], str]:
  """Returns the routers of a scope, in order, and what speaks against it."""
  routers: dict[_Key, Named | None] = {}
  for path, linear in found.linears.items():
    for layer in range(linear.layers):
      own = layer if scope in LAYERED_SCOPES else None
      key, tensor = (router_of(path, scope), own), named.get((path, layer))
      known = routers.setdefault(key, tensor)
      if known is None:
        routers[key] = tensor
      elif tensor and not np.array_equal(known.array, tensor.array):
        return {}, f'{known.name} and {tensor.name} differ'
  whole = {key: tensor for key, tensor in routers.items() if tensor is not None}
  for path, layer in routers.keys() - whole.keys():
    of = f' in layer {layer}' if layer is not None else ''
    return {}, f'{path}{of} has no routing logits'
  return whole, ''
