"""What a training run measures, and the check that its numbers are finite."""

import collections
from collections.abc import Callable, Mapping
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from mhr_jax.errors import UserError
from mhr_jax.prefetch import Fetched
from mhr_jax.task_table import TaskTable
from mhr_jax.train_settings import TrainSettings

OnLog = Callable[[int, Mapping[str, float]], None]


class TrainingStopped(UserError):
  """The loss or a gradient is not finite.

  Attributes:
    step: the step at which it happened, counted from 1.
    tasks: names (or ids) of the tasks to blame: those of the rows whose loss
      is not finite, or of the whole batch where every row's loss is.
  """

  def __init__(self, step: int, tasks: tuple[str, ...], values: str):
    super().__init__(
      f'Training stopped at step {step}: {values}. Tasks of the batch:'
      f' {", ".join(tasks)}. What was saved before is kept; a lower learning'
      ' rate, a longer warm-up or clipping are the usual remedies.'
    )
    self.step = step
    self.tasks = tasks


class Window(NamedTuple):
  """What was measured since the last log.

  A checkpoint keeps it, so that the first numbers after resuming between two
  logs are over all the steps since the last one.

  Attributes:
    logged: the step of the last log.
    sums: of the steps since, by name.
  """

  logged: int
  sums: Mapping[str, float]


class Meter:
  """Reads metrics one step late, so that the devices never wait for the host.

  Sums are over the steps since the last log; rates exclude evaluation, and
  what was before the run resumed.
  """

  def __init__(
    self,
    start: int,
    settings: TrainSettings,
    on_log: OnLog | None = None,
    task_table: TaskTable | None = None,
    window: Window | None = None,
  ):
    """Starts to measure.

    Args:
      start: steps done before.
      settings: say how many there are and how often to log.
      on_log: called in the first process with the steps done and numbers.
      task_table: names for messages.
      window: what was measured since the last log before.
    """
    self._settings = settings
    self._on_log = on_log
    self._task_table = task_table
    self._pending: tuple[Fetched, dict[str, jax.Array]] | None = None
    window = window or Window(start, {})
    self._sums = collections.defaultdict(float, window.sums)
    self._logged = window.logged
    self._timed_from = start
    self.restart_clock()

  def restart_clock(self):
    """Leaves what happened since the last flush out of the rates."""
    self._since = time.monotonic()

  def add(self, batch: Fetched, metrics: dict[str, jax.Array]):
    """Takes in a step that was just dispatched, and reads the one before."""
    self.flush()
    self._pending = batch, metrics

  def flush(self):
    """Reads the last step; waits for it.

    Raises:
      TrainingStopped: its loss or gradient is not finite.
    """
    if self._pending is None:
      return
    batch, metrics = self._pending
    self._pending = None
    scalars = {name: x for name, x in metrics.items() if not x.ndim}
    numbers = {k: float(v) for k, v in jax.device_get(scalars).items()}
    if not numbers['finite']:
      raise self._stopped(batch, metrics, numbers)
    for name, value in numbers.items():
      self._sums[name] += value
    done = batch.step + 1
    if self._settings.is_due(done, self._settings.log_every):
      self.log(done, self._window(done, numbers))

  @property
  def window(self) -> Window:
    """What was measured since the last log, for who resumes from here."""
    return Window(self._logged, dict(self._sums))

  def measure(
    self,
    done: int,
    numbers_of: Callable[[int, Any], Mapping[str, float]],
    params: Any,
  ):
    """Logs other numbers; what they take is left out of the rates."""
    self.flush()
    self.log(done, numbers_of(done, params))
    self.restart_clock()

  def log(self, done: int, values: Mapping[str, float]):
    """Hands numbers to `on_log`, in the first process."""
    if self._on_log is not None and jax.process_index() == 0:
      self._on_log(done, values)

  def _window(self, done: int, last: dict[str, float]) -> dict[str, float]:
    """Returns the numbers of the steps since the last log and starts anew."""
    now, sums = time.monotonic(), self._sums
    seconds = max(now - self._since, 1e-9)
    steps = done - self._timed_from
    # Of the window's steps, those done since the run resumed were timed.
    timed = steps / (done - self._logged)
    weight = max(sums['weight_sum'], 1e-6)
    self._since, self._logged, self._timed_from = now, done, done
    self._sums = collections.defaultdict(float)
    found = {
      'train/loss': sums['loss_sum'] / weight,
      'train/grad_norm': last['grad_norm'],
      'train/examples': sums['examples'],
      'train/tokens': sums['tokens'],
      'train/examples_per_second': timed * sums['examples'] / seconds,
      'train/tokens_per_second': timed * sums['tokens'] / seconds,
      'train/seconds_per_step': seconds / steps,
      'train/seconds_left': seconds / steps * (self._settings.steps - done),
    }
    if 'nll_sum' in sums:
      found['train/nll'] = sums['nll_sum'] / weight
    return found

  def _stopped(
    self,
    batch: Fetched,
    metrics: dict[str, jax.Array],
    numbers: dict[str, float],
  ) -> TrainingStopped:
    ids = batch.task_ids
    row_nll = metrics.get('row_nll')
    if row_nll is not None and row_nll.is_fully_addressable:
      bad = ~np.isfinite(np.asarray(row_nll))
      ids = ids[bad] if bad.any() else ids
    table = self._task_table
    tasks = tuple(
      table.names[i] if table is not None and i < len(table) else str(i)
      for i in np.unique(ids)
    )
    values = (
      f'the summed loss is {numbers["loss_sum"]:.6g}, the norm of the gradients'
      f' {numbers["grad_norm"]:.6g}'
    )
    return TrainingStopped(batch.step + 1, tasks, values)
