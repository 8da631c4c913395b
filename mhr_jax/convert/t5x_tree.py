"""The parameters of a routed model as one tree of T5X's.

Under T5X the backbone's parameters stay where a plain T5 1.1 has them, so that
published checkpoints restore by name; `adapters` and `routers` lie beside.
"""

from collections.abc import Mapping
from typing import Any

_ADDED = ('adapters', 'routers')


def to_t5x(params: Mapping[str, Any]) -> dict[str, Any]:
  """Returns {label: subtree} as T5X's one tree.

  >>> to_t5x({'backbone': {'encoder': 1}, 'adapters': 2})
  {'encoder': 1, 'adapters': 2}
  """
  added = {label: params[label] for label in _ADDED if label in params}
  return {**params['backbone'], **added}


def is_added(name: str) -> bool:
  """Whether a parameter is none of the backbone's, by T5X's name of it.

  >>> is_added('routers/encoder/mlp/wo/routing_logits')
  True
  """
  return name.partition('/')[0] in _ADDED


def from_t5x(tree: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what `to_t5x` joined.

  >>> from_t5x({'encoder': 1, 'adapters': 2})
  {'backbone': {'encoder': 1}, 'adapters': 2}
  """
  backbone = {k: v for k, v in tree.items() if k not in _ADDED}
  added = {label: tree[label] for label in _ADDED if label in tree}
  return {'backbone': backbone, **added}
