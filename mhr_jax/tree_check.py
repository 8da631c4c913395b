"""Whether a saved tree of arrays is the one that is wanted, by shapes alone."""

from typing import Any

from mhr_jax.errors import UserError
from mhr_jax.tree_paths import leaves_by_path

_PROBLEMS_SHOWN = 8


def check_tree(saved: Any, target: Any, *, where: str):
  """Compares what is saved with what is wanted.

  Raises:
    UserError: they differ; the message names leaves and both shapes.
  """
  have = {k: tuple(v.shape) for k, v in leaves_by_path(saved).items()}
  want = {k: tuple(v.shape) for k, v in leaves_by_path(target).items()}
  problems = [
    f'{path}: the checkpoint has no such array, the model wants {shape}'
    for path, shape in want.items()
    if path not in have
  ]
  problems += [
    f'{path}: the model has no such parameter, the checkpoint has {shape}'
    for path, shape in have.items()
    if path not in want
  ]
  problems += [
    f'{path}: the checkpoint has {have[path]}, the model wants {shape}'
    for path, shape in want.items()
    if have.get(path, shape) != shape
  ]
  if problems:
    shown = '\n  '.join(problems[:_PROBLEMS_SHOWN])
    rest = len(problems) - _PROBLEMS_SHOWN
    more = f'\n  … and {rest} more' if rest > 0 else ''
    raise UserError(f'{where} does not fit the model:\n  {shown}{more}')
