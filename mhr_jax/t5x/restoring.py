"""Starting from a T5X checkpoint that has no adapters: strict on the rest."""

from collections.abc import Mapping, Sequence
from typing import Any

from flax import traverse_util

from mhr_jax.errors import UserError


class FreshLabels:
  """A T5X state transformation: some labels start afresh, all else restores.

  For `RestoreCheckpointConfig.state_transformation_fns`, together with
  `fallback_to_scratch = True`, which then fills in these labels and the
  optimizer's state alone. Nothing happens on resuming.
  """

  def __init__(self, labels: Sequence[str] = ('adapters', 'routers')):
    """Says what starts afresh.

    Args:
      labels: 'adapters' and 'routers' to start from a plain T5; 'routers' to
        go on with a trained inventory on new tasks; none to go on as it is.
    """
    self.labels = tuple(labels)

  def __call__(
    self,
    state_dict: Mapping[str, Any],
    target_state_dict: Mapping[str, Any],
    *,
    is_resuming: bool = False,
  ) -> Mapping[str, Any]:
    """Returns the state to restore.

    Raises:
      UserError: a parameter is missing from the checkpoint.
    """
    if is_resuming:
      return state_dict
    have = traverse_util.flatten_dict(dict(state_dict['target']), sep='/')
    want = traverse_util.flatten_dict(
      dict(target_state_dict['target']), sep='/'
    )
    kept = [k for k in want if k.partition('/')[0] not in self.labels]
    missing = [k for k in kept if not _held(k, have)]
    if missing:
      raise UserError(
        f'The checkpoint to start from lacks {len(missing)} of {len(kept)}'
        f' parameters, such as target/{missing[0]}. It has'
        f' {", ".join(sorted(have)[:3])}, …'
      )
    target = {k: v for k, v in have.items() if _wanted(k, kept)}
    return {
      'target': traverse_util.unflatten_dict(target, sep='/'),
      'state': {'step': state_dict['state']['step']},
    }


def _held(name: str, have: Mapping[str, Any]) -> bool:
  # A leaf may be a TensorStore spec: a dictionary with keys of its own.
  return name in have or any(key.startswith(f'{name}/') for key in have)


def _wanted(name: str, kept: Sequence[str]) -> bool:
  return any(name == key or name.startswith(f'{key}/') for key in kept)
