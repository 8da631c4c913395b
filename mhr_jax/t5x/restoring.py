"""Starting from a T5X checkpoint that has no adapters: strict on the rest."""

from collections.abc import Mapping, Sequence
import re
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


def first_step(checkpoint: str) -> int:
  """Returns the step at which a run from a checkpoint begins.

  T5X goes on counting from it, and its schedules with it: a warm-up that is to
  happen needs it as `create_learning_rate_scheduler.step_offset`.

  Args:
    checkpoint: as `INITIAL_CHECKPOINT_PATH`, such as '…/checkpoint_1000000'.

  Raises:
    UserError: its name does not say.

  >>> first_step('gs://bucket/t5_1_1_xl/checkpoint_1000000/')
  1000000
  """
  found = re.search(r'checkpoint_(\d+)/*$', str(checkpoint))
  if found is None:
    raise UserError(
      f'{checkpoint} does not end in checkpoint_N: give the folder of one'
      ' step as INITIAL_CHECKPOINT_PATH, or set'
      ' create_learning_rate_scheduler.step_offset yourself.'
    )
  return int(found[1])


def _held(name: str, have: Mapping[str, Any]) -> bool:
  # A leaf may be a TensorStore spec: a dictionary with keys of its own.
  return name in have or any(key.startswith(f'{name}/') for key in have)


def _wanted(name: str, kept: Sequence[str]) -> bool:
  return any(name == key or name.startswith(f'{key}/') for key in kept)
