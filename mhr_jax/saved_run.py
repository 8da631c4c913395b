"""The side of a run folder that training writes, and takes up again."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple

from etils import epath
import numpy as np

from mhr_jax import checkpoints, frozen, partitioning, run_files, run_folder
from mhr_jax.errors import UserError
from mhr_jax.meter import Window
from mhr_jax.optim import OptimizerSettings
from mhr_jax.task_table import TaskTable
from mhr_jax.train_settings import TrainSettings
from mhr_jax.train_state import TrainState
from mhr_jax.vocabulary import Vocabulary


class Resumed(NamedTuple):
  """Where a run goes on.

  Attributes:
    state: of training.
    window: what was measured since the last log; None at step 0, and in
      checkpoints that do not have it.
  """

  state: TrainState
  window: Window | None = None


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

  def resume(
    self, state: TrainState, resume_from: int | None = None
  ) -> Resumed:
    """Returns the last committed state, or the one given; says which.

    Args:
      state: at step 0.
      resume_from: a committed step to go on from in place of the last one; 0
        for `state`. Later steps are set aside once it has been read.

    Raises:
      UserError: the checkpoint is damaged, or there is none of that step.
    """
    if self._checkpoints is None:
      return Resumed(state)
    steps = self._checkpoints.steps
    step = self._choose(steps, resume_from)
    resumed = Resumed(state) if step == 0 else self._restore(step, state, steps)
    if steps and steps[-1] > step:
      self._checkpoints.set_aside(after=step)
      self._on_message(
        f'Later checkpoints are now in {self._checkpoints.aside}.'
      )
    return resumed

  def _choose(self, steps: Sequence[int], resume_from: int | None) -> int:
    """Returns the step to go on from, 0 for the start; says which."""
    if resume_from is None:
      if not steps:
        found = f'{self._run_dir} has no checkpoint'
        self._on_message(f'Starting at step 0: {found}.')
        return 0
      self._on_message(
        f'Resuming at step {steps[-1]}: it is the last checkpoint committed in'
        f' {self._run_dir}.'
      )
      return steps[-1]
    if resume_from not in (0, *steps):
      raise UserError(
        f'{self._run_dir} has no checkpoint of step {resume_from} to resume'
        f' from. It has: {", ".join(map(str, steps)) or "none"}; 0 starts anew.'
      )
    self._on_message(f'Resuming at step {resume_from}, as asked.')
    return resume_from

  def _restore(
    self, step: int, state: TrainState, steps: Sequence[int]
  ) -> Resumed:
    """Reads a step; where it is damaged, says from which one to go on."""
    assert self._checkpoints is not None
    try:
      facts = self._checkpoints.metadata(step)
      self._compare(facts)
      trainable, opt_state = self._checkpoints.restore(
        step, trainable=state.trainable, optimizer=state.opt_state
      )
    except checkpoints.DamagedError as error:
      before = max((0, *(each for each in steps if each < step)))
      raise UserError(
        f'{error}\nOr go on from the one before: --resume_from={before}'
        f' (in Python: resume_from={before}). It moves later checkpoints to'
        f' {self._checkpoints.aside}, and deletes nothing.'
      ) from error
    window = facts.get('window')
    step_now = partitioning.put(np.int32(step), state.step.sharding)
    return Resumed(
      TrainState(step_now, trainable, state.frozen, opt_state),
      window and Window(window['logged'], window['sums']),
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

  def save(self, step: int, state: TrainState, window: Window):
    """Saves in the background.

    Args:
      step: the steps done.
      state: after them.
      window: what was measured since the last log.

    Raises:
      UserError: it, or the save before it, cannot be written.
    """
    if self._checkpoints is not None:
      self._checkpoints.save(
        step,
        trainable=state.trainable,
        optimizer=state.opt_state,
        metadata=_as_json(
          {'step': step, 'window': window._asdict(), **self._facts}
        ),
      )

  def check(self):
    """Says now that a save in the background has failed.

    Raises:
      UserError: it has.
    """
    if self._checkpoints is not None:
      self._checkpoints.check()


def _as_json(value: Any) -> Any:
  """Returns what JSON makes of a value: tuples become lists."""
  return run_files.to_json_value(value)
