"""Names of the leaves of a tree, as people read them: `adapters/encoder/…/a`."""

from collections.abc import Callable
from typing import Any

import jax


def names_of(path: tuple[Any, ...]) -> tuple[str, ...]:
  """Returns the names in a path of `jax.tree_util`.

  >>> names_of((jax.tree_util.DictKey('a'), jax.tree_util.SequenceKey(0)))
  ('a', '0')
  """
  return tuple(_name_of(entry) for entry in path)


def _name_of(entry: Any) -> str:
  for attribute in ('key', 'name', 'idx'):
    if hasattr(entry, attribute):
      return str(getattr(entry, attribute))
  return str(entry)


def leaves_by_path(
  tree: Any, *, is_leaf: Callable[[Any], bool] | None = None
) -> dict[str, Any]:
  """Returns the leaves of a tree by their path, joined with '/'.

  >>> leaves_by_path({'a': {'b': 1}, 'c': [2, 3]})
  {'a/b': 1, 'c/0': 2, 'c/1': 3}
  """
  found = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)[0]
  return {'/'.join(names_of(path)): leaf for path, leaf in found}


def sublayer_of(path: str) -> str:
  """Returns the stack and the sublayer of a parameter, without its layer.

  >>> sublayer_of('encoder/attention/query/a')
  'encoder/attention'
  >>> sublayer_of('decoder/layers_3/mlp/wo/kernel')
  'decoder/mlp'
  """
  *parents, _ = path.split('/')
  kept = [name for name in parents if not name.startswith('layers')]
  return '/'.join(kept[:2])
