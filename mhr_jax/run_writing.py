"""A run folder written in one go, for our trainer to go on with."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp

from mhr_jax import checkpoints, frozen, run_files, run_folder
from mhr_jax.errors import UserError
from mhr_jax.model import RoutedT5
from mhr_jax.optimizer_state import OptimizerState
from mhr_jax.task_table import TaskTable
from mhr_jax.vocabulary import Vocabulary

_TRAINS = ('adapters', 'routers')


def write_run(
  run_dir: epath.PathLike,
  model: RoutedT5,
  params: Mapping[str, Any],
  *,
  step: int,
  task_table: TaskTable | None = None,
  vocabulary: Vocabulary | None = None,
  optimizer: OptimizerState | None = None,
) -> int:
  """Writes a run folder as training leaves it after a step.

  With the optimizer's state training resumes from it; without, a new run can
  start from it (`start_from`).

  Args:
    run_dir: the run folder, new or empty.
    model: what it is a run of.
    params: all parameters.
    step: of the checkpoint where there is no optimizer state. With one it is
      the number of updates made, as it always is in our runs: schedules are
      computed from it.
    task_table: which id is which task.
    vocabulary: saved with its model file.
    optimizer: its state, for `model`.

  Returns:
    The step.

  Raises:
    UserError: there is nothing that could train, or the folder holds another
      run.
  """
  trains = tuple(label for label in _TRAINS if label in params)
  if optimizer is not None:
    trains, step = optimizer.description.trains, optimizer.updates
  if not trains:
    raise UserError(
      'A run holds what trains, and a backbone alone is what runs start from:'
      " write it as 'native' and name it as backbone_from."
    )
  root = checkpoints.absolute(run_dir)
  run_folder.write_description(
    root, model=model, task_table=task_table, vocabulary=vocabulary
  )
  facts: dict[str, Any] = {
    'step': step,
    'format_version': run_folder.FORMAT_VERSION,
    'settings': {'trains': trains},
    'tasks': None if task_table is None else task_table.names,
    'frozen': {
      label: frozen.save_frozen(root / label, tree, config=model.config)
      for label, tree in params.items()
      if label not in trains
    },
  }
  if optimizer is not None:
    facts['optimizer'] = dataclasses.asdict(optimizer.description.settings)
  with checkpoints.Checkpoints(root) as saved:
    saved.save(
      step,
      trainable={
        label: jax.tree.map(
          lambda x: jnp.asarray(x, jnp.float32), params[label]
        )
        for label in trains
      },
      optimizer=None
      if optimizer is None
      else jax.tree.map(jnp.asarray, optimizer.tree),
      metadata=run_files.to_json_value(facts),
    )
  return step
