"""Who gets a run's numbers beside its `metrics.jsonl`.

tensorboard   event files in the run's folder `tensorboard`; they need the
              package of that name and no TensorFlow
wandb         Weights & Biases, in the run's folder `wandb`; its package is
              the extra `wandb`. Nothing leaves the machine before `wandb
              sync runs/a/wandb/*`, or with $WANDB_MODE=online at once;
              $WANDB_PROJECT names the project, else it is mhr_jax.
"""

from collections.abc import Mapping, Sequence
import importlib
import importlib.util
import os
import platform
import time
from typing import Any, Literal, Protocol, cast, get_args

from etils import epath

from mhr_jax import run_files
from mhr_jax.errors import UserError, nearest

Writer = Literal['tensorboard', 'wandb']
WRITERS: tuple[str, ...] = get_args(Writer)

_PROTO = 'tensorboard.compat.proto.'
_WANDB_FOLDER = 'wandb'


class MetricWriter(Protocol):
  """What `open_writer` returns."""

  def write(self, step: int, numbers: Mapping[str, float]) -> None: ...

  def close(self) -> None: ...


def check_names(names: Sequence[str]) -> tuple[Writer, ...]:
  """Returns the names of writers as a tuple.

  Raises:
    UserError: one of them is no writer.
  """
  if isinstance(names, str):
    raise UserError(f'writers is a list: [{names!r}].')
  for name in names:
    if name not in WRITERS:
      raise UserError(f'There is no writer {name!r}.{nearest(name, WRITERS)}')
  return cast(tuple[Writer, ...], tuple(names))


def check_installed(names: Sequence[Writer]) -> None:
  """Raises where a writer's package is absent.

  Raises:
    UserError: it names the extra that brings the package.
  """
  if 'wandb' in names and importlib.util.find_spec('wandb') is None:
    raise UserError(
      "The writer 'wandb' needs the package wandb: pip install"
      " 'mhr_jax[wandb]', or leave it out of TrainSettings.writers."
    )


def open_writer(
  name: Writer,
  run_dir: epath.Path,
  first_step: int,
  settings: Mapping[str, str],
) -> MetricWriter:
  """Returns the writer of this name, to write from `first_step` on.

  Args:
    name: one of `WRITERS`.
    run_dir: the run folder.
    first_step: what was written before about it and later steps is done again.
    settings: of the run, by name.

  Raises:
    UserError: see `check_installed`.
  """
  check_installed((name,))
  if name == 'wandb':
    return _Wandb(run_dir, settings)
  folder = run_dir / run_files.TENSORBOARD_FOLDER
  return _Tensorboard(folder, first_step=first_step)


class _Tensorboard:
  """TensorBoard's event file through its record writer, which needs no TF."""

  def __init__(self, folder: epath.Path, *, first_step: int):
    from tensorboard.summary.writer import record_writer

    # protobuf makes these classes at run time: type checkers cannot see them.
    event_pb2: Any = importlib.import_module(_PROTO + 'event_pb2')
    summary_pb2: Any = importlib.import_module(_PROTO + 'summary_pb2')
    self._event = event_pb2.Event
    self._summary = summary_pb2.Summary
    name = f'events.out.tfevents.{time.time_ns()}.{platform.node()}'
    self._records = record_writer.RecordWriter(
      run_files.open_append(folder / name)
    )
    self._add(file_version='brain.Event:2')
    # TensorBoard hides what earlier files hold from this step on.
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._add(step=first_step, session_log=start)

  def _add(self, **fields: Any):
    event = self._event(wall_time=time.time(), **fields)
    self._records.write(event.SerializeToString())

  def write(self, step: int, numbers: Mapping[str, float]):
    values = [
      self._summary.Value(tag=name, simple_value=value)
      for name, value in numbers.items()
    ]
    self._add(step=step, summary=self._summary(value=values))
    self._records.flush()

  def close(self):
    self._records.close()


class _Wandb:
  """One run of Weights & Biases; a run that resumes is the same one there."""

  def __init__(self, run_dir: epath.Path, settings: Mapping[str, str]):
    import wandb

    # The client writes local files alone: a bucket's run has them here.
    local = None if run_files.is_remote(run_dir) else os.fspath(run_dir)
    if local is not None:
      run_dir.mkdir(parents=True, exist_ok=True)
    self._run = wandb.init(
      project=os.environ.get('WANDB_PROJECT', 'mhr_jax'),
      name=run_dir.name,
      id=_known_id(run_dir),
      resume='allow',
      dir=local,
      config=dict(settings),
      mode=cast(Any, os.environ.get('WANDB_MODE', 'offline')),
      settings=wandb.Settings(console='off', silent=True),
    )

  def write(self, step: int, numbers: Mapping[str, float]):
    self._run.log(dict(numbers), step=step)

  def close(self):
    self._run.finish()


def _known_id(run_dir: epath.Path) -> str | None:
  """Returns the id that Weights & Biases gave a run, from its folder's name."""
  folders = (run_dir / _WANDB_FOLDER).glob('*run-*-*')
  names = sorted(path.name for path in folders)
  return names[-1].rpartition('-')[2] if names else None
