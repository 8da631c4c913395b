"""The training loop: resume, step, log, evaluate, save.

`fit` is the loop, on one screen. Around it stand the compiled step
(`train_state`), the thread that fetches batches (`prefetch`), what is measured
(`meter`) and what is saved and resumed (`saved_run`).
"""

from collections.abc import Callable, Mapping
import dataclasses
import logging
import signal
from typing import Any

from etils import epath
import jax

from mhr_jax import optim, partitioning
from mhr_jax.errors import UserError
from mhr_jax.meter import Meter, OnLog, TrainingStopped
from mhr_jax.prefetch import Batches, prefetch
from mhr_jax.run_signals import StopSignals, Terminated
from mhr_jax.saved_run import SavedRun
from mhr_jax.task_table import TaskTable
from mhr_jax.train_state import (
  Model,
  Params,
  TrainState,
  TrainStep,
  make_train_step,
  place_state,
)
from mhr_jax.vocabulary import Vocabulary

__all__ = (
  'Terminated',
  'TrainSettings',
  'TrainState',
  'TrainingStopped',
  'fit',
  'make_train_step',
)

Evaluate = Callable[[int, Params], Mapping[str, float]]

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TrainSettings:
  """How long to train, what trains, and when to look and save.

  Attributes:
    steps: in all; also where the learning-rate schedule ends.
    seed: of dropout and routing noise.
    trains: labels of the subtrees that train; the others are frozen.
    accumulation: micro-batches a step.
    label_smoothing: share of the loss spread over the vocabulary.
    z_loss: weight of the squared log-partition.
    log_every: steps between calls of `on_log`.
    eval_every: steps between evaluations, one more at the end; 0 for none.
    save_every: steps between checkpoints, one more at the end.
    keep: how many of the last checkpoints to keep.
    keep_every: keep also the checkpoints of steps this divides, for good.

  Raises:
    UserError: a number is out of range.
  """

  steps: int
  seed: int = 0
  trains: tuple[str, ...] = ('adapters', 'routers')
  accumulation: int = 1
  label_smoothing: float = 0.0
  z_loss: float = 0.0
  log_every: int = 50
  eval_every: int = 0
  save_every: int = 1000
  keep: int = 3
  keep_every: int | None = None

  def __post_init__(self):
    object.__setattr__(self, 'trains', tuple(self.trains))
    for name in ('steps', 'accumulation', 'log_every', 'save_every', 'keep'):
      if getattr(self, name) < 1:
        raise UserError(f'{name} is {getattr(self, name)}; at least 1.')
    if not self.trains:
      raise UserError('Nothing trains: `trains` is empty.')

  def is_due(self, done: int, every: int) -> bool:
    """Whether something done every so many steps, and at the end, is due."""
    return every > 0 and (done % every == 0 or done == self.steps)


def fit(
  model: Model,
  params: Mapping[str, Any],
  batches: Batches,
  *,
  settings: TrainSettings,
  optimizer: optim.OptimizerSettings | None = None,
  run_dir: epath.PathLike | None = None,
  mesh: partitioning.Mesh | None = None,
  rules: partitioning.Rules | None = None,
  evaluate: Evaluate | None = None,
  on_log: OnLog | None = None,
  on_message: Callable[[str], None] = _log.info,
  task_table: TaskTable | None = None,
  vocabulary: Vocabulary | None = None,
) -> TrainState:
  """Trains, from the last commit in `run_dir` where there is one.

  The same call after any interruption ends with the same parameters, bit for
  bit on the same machine: batches and random keys depend on the step alone.

  Args:
    model: what to train.
    params: where a fresh run starts; in a run that resumes, the frozen ones
      must be those it started with.
    batches: this process's rows of the batch of a step (0 is the first).
    settings: how long, what, when.
    optimizer: how parameters move.
    run_dir: where to save; None saves nothing.
    mesh: all devices along `data` by default.
    rules: `partitioning.LOGICAL_AXIS_RULES` by default.
    evaluate: called with the steps done and all parameters.
    on_log: called in the first process with the steps done and numbers, named
      `train/…`, and those of `evaluate`.
    on_message: called with sentences for people.
    task_table: names for messages; saved.
    vocabulary: saved.

  Returns:
    The state after the last step.

  Raises:
    TrainingStopped: the loss or a gradient is not finite.
    Terminated: SIGTERM or SIGINT came; the run is saved.
    UserError: the run folder holds another run.
  """
  mesh = mesh or partitioning.make_mesh()
  optimizer = optimizer or optim.OptimizerSettings()
  state, train_step = _prepare(
    model, params, settings, optimizer, mesh, rules, on_message
  )
  key = jax.random.key(settings.seed)
  run = SavedRun(
    run_dir,
    keep=settings.keep,
    keep_every=settings.keep_every,
    facts={'settings': vars(settings), 'optimizer': vars(optimizer)},
    on_message=on_message,
  )
  with run, StopSignals() as signals:
    run.describe(model, state, task_table, vocabulary)
    state = run.resume(state)
    meter = Meter(
      int(state.step),
      settings.steps,
      log_every=settings.log_every,
      on_log=on_log,
      task_table=task_table,
    )
    for batch in prefetch(batches, mesh, int(state.step), settings.steps):
      state, metrics = train_step(state, batch.arrays, key)
      meter.add(batch, metrics)
      done = batch.step + 1
      if settings.is_due(done, settings.save_every):
        meter.flush()
        run.save(done, state)
      if evaluate and settings.is_due(done, settings.eval_every):
        meter.flush()
        meter.log(done, evaluate(done, state.params))
        meter.restart_clock()
      if signals.stop_after(done):
        meter.flush()
        run.save(done, state)
        on_message(f'Stopped by a signal after step {done}; saving.')
        raise Terminated(signals.received or signal.SIGTERM, done)
    meter.flush()
  return state


def _prepare(
  model: Model,
  params: Mapping[str, Any],
  settings: TrainSettings,
  optimizer: optim.OptimizerSettings,
  mesh: partitioning.Mesh,
  rules: partitioning.Rules | None,
  on_message: Callable[[str], None],
) -> tuple[TrainState, TrainStep]:
  """Returns the state at step 0 on the mesh, and the step."""
  rule = optim.make_optimizer(optimizer, settings.steps)
  state, places, notes = place_state(
    params,
    rule,
    settings.trains,
    mesh=mesh,
    logical_axes=model.logical_axes(),
    rules=rules,
  )
  for note in notes:
    on_message(note)
  train_step = make_train_step(
    model,
    rule,
    accumulation=settings.accumulation,
    label_smoothing=settings.label_smoothing,
    z_loss=settings.z_loss,
    places=places,
  )
  return state, train_step
