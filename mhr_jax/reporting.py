"""What a run leaves behind: its numbers, and the files that say what it is.

    run_dir/
      README.md       the model card
      run.json        the same facts for programs (`RunDescription`)
      config.gin      the resolved configuration
      tasks.json      name of each task id
      metrics.jsonl   one JSON object a line: {"step": 10, "train/loss": …}
      tensorboard/    the same numbers for TensorBoard
      wandb/          the same numbers for Weights & Biases, where asked for

Only the first process writes. Every path may be a local folder or a bucket.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from importlib import metadata
import json
import platform
import time
from typing import Any, Self

from etils import epath
import jax

from mhr_jax import json_text, run_files
from mhr_jax.errors import UserError
from mhr_jax.metric_writers import MetricWriter, Writer, open_writer
from mhr_jax.model_card import RunDescription as RunDescription
from mhr_jax.model_card import model_card
from mhr_jax.model_card import parameter_rows as parameter_rows
from mhr_jax.progress import Progress

FORMAT_VERSION = 1


class MetricsWriter:
  """Writes numbers to `metrics.jsonl`, and to what else is asked for.

  A run that resumes drops what was written about the steps it does again: all
  from the first step on that it writes. An interrupted run's file has the
  lines and the numbers of an uninterrupted one; only times and rates differ.
  """

  def __init__(
    self,
    run_dir: epath.PathLike,
    *,
    writers: Sequence[Writer] = ('tensorboard',),
    settings: Mapping[str, str] | None = None,
  ):
    """Prepares to write in `run_dir`; nothing is touched before `write`.

    Args:
      run_dir: the run folder.
      writers: what else to write, see `metric_writers`.
      settings: of the run, for those that show some.
    """
    self._run_dir = epath.Path(run_dir)
    self._active = jax.process_index() == 0
    self._names = tuple(writers)
    self._settings = dict(settings or {})
    self._lines: run_files.AppendFile | None = None
    self._writers: list[MetricWriter] = []

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Writes one line: the step, the time and `values` ('part/name').

    Raises:
      UserError: it cannot be written.
    """
    if not self._active:
      return
    numbers = {name: float(value) for name, value in values.items()}
    line = {'step': int(step), 'time': round(time.time(), 3), **numbers}
    with run_files.written(self._run_dir / run_files.METRICS_FILE):
      if self._lines is None:
        self._lines = self._open(int(step))
      self._lines.write((_to_json(line) + '\n').encode())
      self._lines.flush()
      for writer in self._writers:
        writer.write(int(step), numbers)

  def _open(self, first_step: int) -> run_files.AppendFile:
    kept = [
      line for line in read_metrics(self._run_dir) if line['step'] < first_step
    ]
    self._writers = [
      open_writer(name, self._run_dir, first_step, self._settings)
      for name in self._names
    ]
    start = ''.join(_to_json(line) + '\n' for line in kept)
    return run_files.open_append(
      self._run_dir / run_files.METRICS_FILE, start=start.encode()
    )

  def close(self) -> None:
    """Writes what is left and closes the files.

    Raises:
      UserError: it cannot be written.
    """
    with run_files.written(self._run_dir / run_files.METRICS_FILE):
      if self._lines is not None:
        self._lines.close()
      for writer in self._writers:
        writer.close()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exc_info: Any):
    self.close()


def _to_json(value: Any) -> str:
  return json.dumps(run_files.to_json_value(value))


def read_metrics(run_dir: epath.PathLike) -> list[dict[str, Any]]:
  """Returns the lines of `metrics.jsonl`, in order; [] where there is none.

  A last line that a killed run left unfinished is ignored.

  Raises:
    UserError: another line is not JSON.
  """
  path = epath.Path(run_dir) / run_files.METRICS_FILE
  if not path.exists():
    return []
  lines = path.read_bytes().decode('utf-8', 'replace').splitlines()
  found = []
  for number, line in enumerate(lines, start=1):
    try:
      found.append(json_text.parse(line))
    except json.JSONDecodeError as error:
      if number == len(lines):
        break
      raise UserError(f'{path}, line {number} is not JSON: {error}') from error
  return found


class RunLog:
  """Shows a run's progress and writes its numbers: the trainer's `on_log`.

  Use it as a context manager around the training loop and pass it on:

    with RunLog(run_dir, settings.steps) as log:
      fit(…, on_log=log, on_message=log.say)
  """

  def __init__(
    self,
    run_dir: epath.PathLike | None,
    steps: int,
    *,
    label: str = 'train',
    writers: Sequence[Writer] = ('tensorboard',),
    settings: Mapping[str, str] | None = None,
    progress: Progress | None = None,
  ):
    """Prepares the display and the files.

    Args:
      run_dir: where to write; None writes nothing.
      steps: of the whole run.
      label: first word of the bar or of each line.
      writers: see `MetricsWriter`.
      settings: see `MetricsWriter`.
      progress: the display, made by default.
    """
    enabled = jax.process_index() == 0
    self._progress = progress or Progress(steps, label=label, enabled=enabled)
    self._writer: MetricsWriter | None = None
    if run_dir is not None:
      self._writer = MetricsWriter(run_dir, writers=writers, settings=settings)

  def __call__(self, step: int, numbers: Mapping[str, float]) -> None:
    """Takes in the numbers of a step: those of training, or of evaluation."""
    if self._writer is not None:
      self._writer.write(step, numbers)
    if 'train/loss' in numbers:
      self._progress.update(
        step,
        loss=numbers['train/loss'],
        examples=numbers.get('train/examples', 0),
        tokens=numbers.get('train/tokens', 0),
        seconds_left=numbers.get('train/seconds_left'),
      )
    else:
      # Those of parts of the model (two slashes) are many: in the file alone.
      shown = '  '.join(
        f'{k} {v:.4g}' for k, v in numbers.items() if k.count('/') < 2
      )
      self._progress.say(f'step {step}  {shown}')

  def say(self, text: str) -> None:
    """Prints a sentence for people, above the bar where there is one."""
    self._progress.say(text)

  def __enter__(self) -> Self:
    self._progress.__enter__()
    return self

  def __exit__(self, *exc_info: Any):
    self._progress.__exit__(*exc_info)
    if self._writer is not None:
      self._writer.close()


def write_run_folder(
  run_dir: epath.PathLike, description: RunDescription
) -> None:
  """Writes the files that say what a run is; the first process only."""
  if jax.process_index() != 0:
    return
  run_dir = epath.Path(run_dir)
  tasks = description.tasks
  facts = {
    'format_version': FORMAT_VERSION,
    **{
      field.name: getattr(description, field.name)
      for field in dataclasses.fields(description)
      if field.name not in ('tasks', 'config_text')
    },
    'n_tasks': None if tasks is None else len(tasks),
    'versions': versions(),
  }
  run_files.write_json(run_dir / run_files.RUN_FILE, facts)
  if description.config_text:
    run_files.write_text(
      run_dir / run_files.CONFIG_FILE, description.config_text
    )
  if tasks is not None:
    run_files.write_text(run_dir / run_files.TASKS_FILE, tasks.to_json() + '\n')
  run_files.write_text(
    run_dir / run_files.CARD_FILE, model_card(description, path=str(run_dir))
  )


def versions() -> dict[str, str]:
  """Returns the versions of Python and of the libraries that decide numbers."""
  found = {'python': platform.python_version()}
  for name in ('mhr-jax', 'jax', 'jaxlib', 'flax', 'optax', 'numpy'):
    try:
      found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
      continue
  return found
