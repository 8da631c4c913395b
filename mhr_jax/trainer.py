"""The training loop: resume, step, log, evaluate, save.

`fit` is the loop, on one screen. Around it stand the compiled step
(`train_state`), the thread that fetches batches (`prefetch`), what is measured
(`meter`) and what is saved and resumed (`saved_run`).
"""

from collections.abc import Callable, Mapping, Sequence
import logging
import signal
from typing import Any, NamedTuple

from etils import epath
import jax

from mhr_jax import optim, partitioning
from mhr_jax.meter import Meter, OnLog, TrainingStopped
from mhr_jax.prefetch import Batches, prefetch
from mhr_jax.run_signals import StopSignals, Terminated
from mhr_jax.saved_run import SavedRun
from mhr_jax.task_table import TaskTable
from mhr_jax.train_settings import TrainSettings
from mhr_jax.train_state import (
  Model,
  Params,
  TrainState,
  TrainStep,
  make_train_step,
  place_state,
  plan_state,
)
from mhr_jax.vocabulary import Vocabulary

__all__ = (
  'Terminated',
  'Probe',
  'TrainSettings',
  'TrainState',
  'TrainingStopped',
  'fit',
  'make_train_step',
)

Evaluate = Callable[[int, Params], Mapping[str, float]]


class Probe(NamedTuple):
  """Something to measure on the way, apart from evaluation.

  Attributes:
    every: steps between measurements, one more at the end; 0 for none.
    measure: called with the steps done and all parameters; returns numbers.
  """

  every: int
  measure: Evaluate


_log = logging.getLogger(__name__)


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
  probes: Sequence[Probe] = (),
  on_log: OnLog | None = None,
  on_message: Callable[[str], None] = _log.info,
  task_table: TaskTable | None = None,
  vocabulary: Vocabulary | None = None,
  resume_from: int | None = None,
) -> TrainState:
  """Trains, from the last commit in `run_dir` where there is one.

  The same call after any interruption ends with the same parameters, bit for
  bit on the same machine: batches and random keys depend on the step alone.

  Args:
    model: what to train.
    params: where a fresh run starts; the frozen ones always are the same.
    batches: this process's rows of the batch of a step (0 is the first).
    settings: how long, what, when.
    optimizer: how parameters move.
    run_dir: where to save; None saves nothing.
    mesh: all devices along `data` by default.
    rules: `partitioning.LOGICAL_AXIS_RULES` by default.
    evaluate: called with the steps done and all parameters.
    probes: what else is measured, each at steps of its own.
    on_log: called in the first process with the steps done and numbers.
    on_message: called with sentences for people.
    task_table: names for messages; saved.
    vocabulary: saved.
    resume_from: a committed step in place of the last one; 0 is the start.

  Returns:
    The state after the last step.

  Raises:
    TrainingStopped: the loss or a gradient is not finite.
    Terminated: SIGTERM or SIGINT came; the run is saved.
    UserError: the run folder holds another run, is damaged or not writable.
  """
  mesh = mesh or partitioning.make_mesh()
  optimizer = optimizer or optim.OptimizerSettings()
  state, train_step = _prepare(
    model, params, settings, optimizer, mesh, rules, on_message
  )
  key = jax.random.key(settings.seed)
  if evaluate is not None:
    probes = (Probe(settings.eval_every, evaluate), *probes)
  run = SavedRun(run_dir, settings, optimizer, on_message)
  with run, StopSignals() as signals:
    run.describe(model, state, task_table, vocabulary)
    state, window = run.resume(state, resume_from)
    start = int(state.step)
    meter = Meter(start, settings, on_log, task_table, window)
    for batch in prefetch(batches, mesh, start, settings.steps):
      state, metrics = train_step(state, batch.arrays, key)
      meter.add(batch, metrics)
      done = batch.step + 1
      # Before saving: what a kill cuts short is done again by who resumes.
      for probe in probes:
        if settings.is_due(done, probe.every):
          meter.measure(done, probe.measure, state.params)
      stop = signals.stop_after(done)
      if stop or settings.is_due(done, settings.save_every):
        meter.flush()
        run.save(done, state, meter.window)
      run.check()
      if stop:
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
  _, places, notes = plan_state(
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
    normalisation=settings.loss_normalisation,
    z_loss=settings.z_loss,
    uniform_share=settings.uniform_share,
    places=places,
  )
  return place_state(params, rule, places), train_step
