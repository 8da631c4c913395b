"""Checkpoints of routed models that T5X trains, read and written without T5X.

T5X's folder of checkpoints (MODEL_DIR) says what they are checkpoints of:

  model.json      the model's configuration, as in a run folder
  tasks.json      the task table
  vocabulary/     where it is one that can be saved
  optimizer.json  which optimizer, and what it trains
  checkpoint_N/   the backbone's parameters under T5X's names, `adapters` and
                  `routers` beside, the optimizer's state by our names
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, NamedTuple

from etils import epath
from flax import traverse_util
import numpy as np

from mhr_jax import (
  checkpoints,
  optimizer_state,
  run_files,
  run_folder,
  tree_check,
)
from mhr_jax.convert import t5x, t5x_files, t5x_tree
from mhr_jax.errors import UserError
from mhr_jax.model import RoutedT5
from mhr_jax.optimizer_state import OptimizerState
from mhr_jax.t5 import parameters
from mhr_jax.t5.config import T5Config
from mhr_jax.task_table import TaskTable
from mhr_jax.tree_paths import leaves_by_path
from mhr_jax.vocabulary import Vocabulary

OPTIMIZER_FILE = 'optimizer.json'

_STATES = 'param_states/'
_FILES = (run_folder.MODEL_FILE, run_files.TASKS_FILE, OPTIMIZER_FILE)


class RoutedCheckpoint(NamedTuple):
  """A checkpoint read back.

  Attributes:
    params: all parameters, NumPy arrays.
    task_table: None where there is none.
    vocabulary: None where there is none.
    step: T5X's, those of the checkpoint that it started from included.
    optimizer: None where it was not asked for, or is not there.
  """

  params: dict[str, Any]
  task_table: TaskTable | None
  vocabulary: Vocabulary | None
  step: int
  optimizer: OptimizerState | None


def find_description(folder: epath.PathLike) -> epath.Path | None:
  """Returns the folder that says what a checkpoint is of; None for a plain T5's.

  Args:
    folder: `checkpoint_N`, or a folder of several, of which the newest counts.

  Raises:
    UserError: there is no checkpoint.
  """
  checkpoint = t5x_files.find_checkpoint(folder)
  for place in (checkpoint, checkpoint.parent):
    if (place / run_folder.MODEL_FILE).exists():
      return place
  return None


def read_config(folder: epath.PathLike) -> T5Config | None:
  """Returns the config of the backbone, scanned, where that is described."""
  where = find_description(folder)
  return None if where is None else _scanned(where).config


def read_vocabulary(folder: epath.PathLike) -> Vocabulary | None:
  """Returns the vocabulary of a checkpoint; None where there is none."""
  where = find_description(folder)
  return None if where is None else run_folder.read_vocabulary(where)


def _scanned(where: epath.Path) -> RoutedT5:
  model = run_folder.read_model(where)
  config = dataclasses.replace(model.config, scan_layers=True)
  return dataclasses.replace(model, config=config)


def read_model(folder: epath.PathLike) -> RoutedT5 | None:
  """Returns the model of a checkpoint, scanned; None where it is a plain T5.

  Args:
    folder: see `find_description`.

  Raises:
    UserError: it has adapters or routers, and nothing says what they are.
  """
  where = find_description(folder)
  if where is not None:
    return _scanned(where)
  checkpoint = t5x_files.find_checkpoint(folder)
  with t5x_files.open_part(checkpoint) as target:
    added = sorted(filter(t5x_tree.is_added, target.shapes))
  if added:
    raise UserError(
      f'{checkpoint} has {added[0]}, and no {run_folder.MODEL_FILE} in it or'
      ' beside it says how adapters are mixed. T5X writes'
      f' {", ".join(_FILES)} to MODEL_DIR where its gin file has'
      ' train.summarize_config_fn = @building.summarize_config, as'
      ' t5x/train.gin: copy them from there, next to the checkpoint.'
    )
  return None


def read_checkpoint(
  folder: epath.PathLike,
  model: RoutedT5,
  *,
  dtype: str = 'float32',
  with_optimizer: bool = False,
  on_message: Callable[[str], Any] | None = None,
) -> RoutedCheckpoint:
  """Reads a checkpoint; every leaf must be the model's.

  Args:
    folder: see `find_description`.
    model: what `read_model` returned; the parameters come in the layout of its
      `scan_layers`, whichever the files have.
    dtype: of the backbone.
    with_optimizer: also read the optimizer's state, where there is one of ours.
    on_message: told of optimizer state that is left out.

  Raises:
    UserError: a leaf is missing, extra, of another shape or not readable.
  """
  checkpoint = t5x_files.find_checkpoint(folder)
  where = find_description(checkpoint)
  assert where is not None
  saved = run_folder.read_model(where)
  params = _read_params(checkpoint, saved, dtype)
  if not model.config.scan_layers:
    params['backbone'] = parameters.unstack_layers(
      params['backbone'], model.config
    )
  step, optimizer = _read_state(
    checkpoint, where, saved, with_optimizer, on_message
  )
  if optimizer is not None:
    optimizer = optimizer.in_layout(model)
  return RoutedCheckpoint(
    params,
    run_folder.read_task_table(where),
    run_folder.read_vocabulary(where),
    step,
    optimizer,
  )


def _read_params(
  checkpoint: epath.Path, saved: RoutedT5, dtype: str
) -> dict[str, Any]:
  """Reads all parameters; the backbone comes scanned."""
  wanted = t5x_tree.to_t5x(saved.abstract_params())
  with t5x_files.open_part(checkpoint) as target:
    shapes = t5x_files.as_tree(target.shapes)
    tree_check.check_tree(shapes, wanted, where=target.where)
    added = {
      name: np.asarray(target.read(name), np.float32)
      for name in filter(t5x_tree.is_added, target.shapes)
    }
  _, backbone = t5x.read_backbone(checkpoint, saved.config, dtype=dtype)
  return {'backbone': backbone, **traverse_util.unflatten_dict(added, sep='/')}


def _read_state(
  checkpoint: epath.Path,
  where: epath.Path,
  saved: RoutedT5,
  with_optimizer: bool,
  on_message: Callable[[str], Any] | None,
) -> tuple[int, OptimizerState | None]:
  """Reads the step, and perhaps the optimizer's state."""
  with t5x_files.open_part(checkpoint, 'state') as state:
    step = int(state.read('step'))
    names = [name for name in state.shapes if name.startswith(_STATES)]
    if not (with_optimizer and names):
      return step, None
    description = optimizer_state.read_description(where / OPTIMIZER_FILE)
    if description is None:
      if on_message is not None:
        on_message(
          f'{checkpoint} has optimizer state, and no {OPTIMIZER_FILE} beside it'
          " says that it is of one of mhr_jax's optimizers: it is left out."
        )
      return step, None
    arrays = {name.removeprefix(_STATES): state.read(name) for name in names}
  return step, optimizer_state.make_state(
    description, saved, arrays, where=f'{checkpoint}: {_STATES[:-1]}'
  )


def write_checkpoint(
  folder: epath.PathLike,
  model: RoutedT5,
  params: Mapping[str, Any],
  *,
  step: int,
  task_table: TaskTable | None = None,
  vocabulary: Vocabulary | None = None,
  optimizer: OptimizerState | None = None,
) -> int:
  """Writes `checkpoint_<step>` as T5X does, and beside it what it is.

  It is unrolled, as routed models are under T5X where nobody says otherwise.

  Args:
    folder: new, or that of checkpoints of the same model: MODEL_DIR for T5X.
    model: what it is a checkpoint of.
    params: all parameters.
    step: the step at which T5X goes on.
    task_table: which id is which task.
    vocabulary: saved with its model file.
    optimizer: its state; without, T5X can start from the checkpoint, not
      resume.

  Returns:
    The step.

  Raises:
    UserError: the checkpoint exists, or the folder holds those of another
      model.
  """
  folder = checkpoints.absolute(folder)
  described = (folder / run_folder.MODEL_FILE).exists()
  if t5x.is_checkpoint(folder) and not described:
    raise UserError(
      f'{folder} holds checkpoints of a plain T5: those of a routed model want'
      ' a folder of their own.'
    )
  config = dataclasses.replace(model.config, scan_layers=False)
  unrolled = dataclasses.replace(model, config=config)
  backbone = params['backbone']
  if model.config.scan_layers:
    backbone = parameters.unstack_layers(backbone, config)
  run_folder.write_description(
    folder, model=unrolled, task_table=task_table, vocabulary=vocabulary
  )
  states = {}
  if optimizer is not None:
    write_optimizer(folder, optimizer.description)
    arrays = optimizer.in_layout(unrolled).arrays
    states = traverse_util.unflatten_dict(dict(arrays), sep='/')
  target = t5x_tree.to_t5x({**params, 'backbone': backbone})
  arrays = {name: np.asarray(x) for name, x in leaves_by_path(target).items()}
  t5x_files.write_state(
    folder,
    traverse_util.unflatten_dict(arrays, sep='/'),
    step=step,
    optimizer=states,
  )
  return step


def check_plain_folder(folder: epath.PathLike) -> None:
  """Refuses a folder of a routed model's checkpoints for one of a plain T5."""
  path = checkpoints.absolute(folder) / run_folder.MODEL_FILE
  if path.exists():
    raise UserError(
      f'{path} says that the checkpoints beside it are of a routed model: that'
      ' of a plain T5 wants a folder of its own.'
    )


def write_optimizer(
  folder: epath.PathLike, description: optimizer_state.OptimizerDescription
) -> None:
  """Says in a folder of checkpoints which optimizer their state is of."""
  path = checkpoints.absolute(folder) / OPTIMIZER_FILE
  optimizer_state.write_description(path, description)
