"""The side of a run folder that training writes, and takes up again."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from etils import epath
import numpy as np

from mhr_jax import checkpoints, frozen, partitioning, run_files, run_folder
from mhr_jax.optim import OptimizerSettings
from mhr_jax.task_table import TaskTable
from mhr_jax.train_settings import TrainSettings
from mhr_jax.train_state import TrainState
from mhr_jax.vocabulary import Vocabulary


class SavedRun:
  """What `fit` saves in a run folder and takes up from it.

  Without a folder everything here does nothing.
  """

  def __init__(
    self,
    run_dir: epath.PathLike | None,
    settings: TrainSettings,
    optimizer: OptimizerSettings,
    on_message: Callable[[str], None],
  ):
    """Opens the folder.

    Args:
      run_dir: the run folder, or None.
      settings: saved with each step, and compared on resuming.
      optimizer: likewise.
      on_message: called with sentences for people.
    """
    self._run_dir = run_dir
    self._on_message = on_message
    self._facts: dict[str, Any] = {
      'format_version': run_folder.FORMAT_VERSION,
      'settings': dataclasses.asdict(settings),
      'optimizer': dataclasses.asdict(optimizer),
    }
    self._checkpoints: checkpoints.Checkpoints | None = None
    if run_dir is not None:
      self._checkpoints = checkpoints.Checkpoints(
        run_dir, keep=settings.keep, keep_every=settings.keep_every
      )

  def __enter__(self) -> 'SavedRun':
    return self

  def __exit__(self, *exc_info: Any):
    if self._checkpoints is not None:
      self._checkpoints.close()

  def describe(
    self,
    model: Any,
    state: TrainState,
    task_table: TaskTable | None,
    vocabulary: Vocabulary | None,
  ):
    """Writes what the run is, and what is frozen, or compares with them."""
    if self._run_dir is None:
      return
    run_folder.write_description(
      self._run_dir,
      model=model,
      task_table=task_table,
      vocabulary=vocabulary,
    )
    root = checkpoints.absolute(self._run_dir)
    self._facts['frozen'] = {
      label: frozen.save_frozen(
        root / label, tree, config=getattr(model, 'config', None)
      )
      for label, tree in state.frozen.items()
    }
    names = None if task_table is None else list(task_table.names)
    self._facts['tasks'] = names

  def resume(self, state: TrainState) -> TrainState:
    """Returns the last committed state, or the one given; says which."""
    if self._checkpoints is None:
      return state
    step = self._checkpoints.latest_step
    if step is None:
      self._on_message(
        f'Starting at step 0: {self._run_dir} has no checkpoint.'
      )
      return state
    self._on_message(
      f'Resuming at step {step}: it is the last checkpoint committed in'
      f' {self._run_dir}.'
    )
    self._compare(self._checkpoints.metadata(step))
    trainable, opt_state = self._checkpoints.restore(
      step, trainable=state.trainable, optimizer=state.opt_state
    )
    where = state.step.sharding
    return TrainState(
      partitioning.put(np.int32(step), where),
      trainable,
      state.frozen,
      opt_state,
    )

  def _compare(self, saved: Mapping[str, Any]):
    """Says what was set otherwise when the checkpoint was made."""
    for part in ('settings', 'optimizer'):
      old, new = saved.get(part, {}), _as_json(self._facts[part])
      for name in new:
        if name in old and old[name] != new[name]:
          self._on_message(
            f'Changed since the checkpoint: {name} was {old[name]}, is'
            f' {new[name]}.'
          )

  def save(self, step: int, state: TrainState):
    """Saves in the background."""
    if self._checkpoints is not None:
      self._checkpoints.save(
        step,
        trainable=state.trainable,
        optimizer=state.opt_state,
        metadata=_as_json({'step': step, **self._facts}),
      )

  def wait(self):
    """Waits until everything is committed."""
    if self._checkpoints is not None:
      self._checkpoints.wait()


def _as_json(value: Any) -> Any:
  """Returns what JSON makes of a value: tuples become lists."""
  return run_files.to_json_value(value)
