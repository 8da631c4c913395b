"""Tokenises tasks once and stores them for training without TensorFlow.

What is stored carries a fingerprint of what it was made from: the task's
definition, the contents of its source files, its vocabulary, the format. What
is there with the same fingerprint is kept; anything else is made again, in a
folder apart that takes its place in one rename, so that a reader sees a whole
task or none. Two processes at once: one makes a task, the other waits.
"""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import importlib.metadata
import json
import os
import sys
import tempfile
import time
from typing import Any, Literal
import uuid

from etils import epath
from rich import progress as rich_progress
import seqio
import tensorflow as tf

from mhr_jax import run_files
from mhr_jax.data import (
  fingerprints,
  folder_lock,
  record_format,
  records,
  registry,
  sources,
)
from mhr_jax.data.record_format import Record
from mhr_jax.errors import UserError
from mhr_jax.progress import stderr_console

_LOCK = 'prepare.lock'
_MAKING = 'making-'
_VERSIONS_OF = ('seqio', 'tensorflow', 'tensorflow-datasets', 'sentencepiece')

Outcome = Literal['made', 'made again', 'kept', 'made elsewhere']


@dataclasses.dataclass(frozen=True)
class Prepared:
  """What became of one task.

  Attributes:
    task: its name.
    outcome: whether it was made, made again because it was stale or not
      whole, kept, or made by another process meanwhile.
    splits: the number of records of each split.
    seconds: how long it took, waiting included.
  """

  task: str
  outcome: Outcome
  splits: dict[str, int]
  seconds: float


def prepare(
  data_dir: epath.PathLike,
  names: Sequence[str],
  *,
  remake: Literal['stale', 'all'] = 'stale',
  progress: Literal['auto', 'off'] = 'auto',
) -> list[Prepared]:
  """Prepares tasks and all tasks of mixtures.

  Args:
    data_dir: the folder of all prepared data, local or in a bucket.
    names: registered tasks and mixtures.
    remake: make again what is stale, or everything: for sources whose changes
      a fingerprint cannot see, such as a function that downloads.
    progress: a bar where standard error is a terminal, or none at all.

  Returns:
    One entry a task, in the order of their names.

  Raises:
    UserError: a name is unknown, a task cannot be made, or two tasks have the
      same folder.
  """
  _keep_off_gpus()
  data_dir = epath.Path(data_dir)
  resolved = {name: registry.resolve(name) for name in names}
  tasks = sorted({task for rates in resolved.values() for task in rates.tasks})
  _check_folders(tasks)
  results = []
  with _bar(progress, len(tasks)) as advance:
    for name in tasks:
      results.append(_prepare_task(data_dir, name, remake == 'all'))
      advance(name)
  for name, rates in resolved.items():
    if registry.is_mixture(name):
      _write_mixture(data_dir, name, rates)
  return results


def _keep_off_gpus() -> None:
  """Hides GPUs from TensorFlow, which would take all of their memory."""
  with contextlib.suppress(RuntimeError):  # It has started already.
    tf.config.set_visible_devices([], 'GPU')


def task_fingerprint(task: seqio.Task) -> str:
  """Returns the sha256 (hex) of all that decides a task's records.

  Files count by their contents and not by the folder they lie in.
  """
  files = sources.source_files(task)
  for path in files:
    if not path.exists():
      raise UserError(f'Task {task.name!r} needs {path}, which is absent.')
  return fingerprints.fingerprint(
    {
      'format': record_format.FORMAT_VERSION,
      'task': task.name,
      'definition': registry.define_task(task, paths='name'),
      'files': [fingerprints.file_digest(path) for path in files],
    }
  )


def read_manifest(data_dir: epath.PathLike, task: str) -> dict[str, Any] | None:
  """Returns a prepared task's manifest, or nothing if it is not whole."""
  folder = record_format.task_folder(data_dir, task)
  path = folder / record_format.MANIFEST
  try:
    manifest = run_files.read_json(path)
    run_files.check_seal(manifest, where=str(path), remedy='')
  except UserError:
    return None
  return manifest


def _prepare_task(data_dir: epath.Path, name: str, remake: bool) -> Prepared:
  started = time.monotonic()
  task = registry.get_task(name)
  wanted = task_fingerprint(task)

  def done(outcome: Outcome, manifest: dict[str, Any]) -> Prepared:
    seconds = time.monotonic() - started
    return Prepared(name, outcome, manifest['splits'], seconds)

  there = _usable_manifest(data_dir, name, wanted)
  if there and not remake:
    return done('kept', there)
  dataset = record_format.task_folder(data_dir, name).parent
  with (
    _no_empty_folders(dataset),
    folder_lock.folder_lock(dataset / _LOCK) as how,
  ):
    there = _usable_manifest(data_dir, name, wanted)
    if there and (not remake or how == 'after waiting'):
      return done('made elsewhere', there)
    final = record_format.task_folder(data_dir, name)
    outcome = 'made again' if final.exists() else 'made'
    return done(outcome, _make(data_dir, task, wanted))


@contextlib.contextmanager
def _no_empty_folders(dataset: epath.Path) -> Iterator[None]:
  """Takes the folders away that the lock made, where nothing came of it."""
  try:
    yield
  finally:
    if _is_local(dataset):
      with contextlib.suppress(OSError):  # They are not empty, as a rule.
        os.rmdir(dataset)
        os.rmdir(dataset.parent)


def _usable_manifest(
  data_dir: epath.Path, name: str, wanted: str
) -> dict[str, Any] | None:
  """Returns the manifest of what is there, if it is what is wanted."""
  manifest = read_manifest(data_dir, name)
  if manifest is None:
    return None
  if manifest.get('task') != name:
    raise UserError(
      f'{record_format.task_folder(data_dir, name)} holds the task'
      f' {manifest.get("task")!r}, whose folder {name!r} would share: give one'
      ' of them another name or another data_dir.'
    )
  return manifest if manifest.get('fingerprint') == wanted else None


def _make(
  data_dir: epath.Path, task: seqio.Task, wanted: str
) -> dict[str, Any]:
  """Makes a task apart, then puts it in its place; returns its manifest."""
  vocabulary = sources.task_vocabulary(task)
  with _workspace(data_dir, task.name) as workspace:
    made = record_format.task_folder(workspace, task.name)
    read = sources.read_task(task)
    splits = record_format.write_dataset(
      made,
      task.name,
      {
        split: _checked(task, split, read.splits[split])
        for split in read.splits
      },
    )
    manifest = {
      'format_version': record_format.FORMAT_VERSION,
      'task': task.name,
      'fingerprint': wanted,
      'vocabulary': vocabulary.save(data_dir / record_format.VOCABULARIES),
      'category': read.category,
      'metric': read.metric,
      'splits': splits,
      'file_sizes': record_format.file_sizes(made),
      'made_with': _versions(),
    }
    sealed = run_files.seal(manifest)
    text = json.dumps(sealed, indent=1, ensure_ascii=False)
    (made / record_format.MANIFEST).write_text(text)
    records.write_lengths(workspace, task.name)
    _install(made, record_format.task_folder(data_dir, task.name))
  return manifest


def _checked(
  task: seqio.Task, split: str, examples: Iterator[Record]
) -> Iterator[Record]:
  """Passes records on; the first without a reference is an error."""
  for record in examples:
    if not record.targets:
      raise UserError(
        f'Task {task.name!r}, split {split!r}: example {record.example_id!r}'
        ' has no target.'
      )
    yield record


@contextlib.contextmanager
def _workspace(data_dir: epath.Path, name: str) -> Iterator[epath.Path]:
  """A local folder to make a task in, on the same disk where that is local.

  Called under the task's lock, so what an interrupted process left is dead.
  """
  if not _is_local(data_dir):
    with tempfile.TemporaryDirectory() as folder:
      yield epath.Path(folder)
    return
  dataset = record_format.task_folder(data_dir, name).parent
  for left in dataset.glob(f'{_MAKING}*'):
    left.rmtree(missing_ok=True)
  workspace = dataset / f'{_MAKING}{uuid.uuid4().hex}'
  workspace.mkdir(parents=True)
  try:
    yield workspace
  finally:
    workspace.rmtree(missing_ok=True)


def _install(made: epath.Path, final: epath.Path) -> None:
  """Puts a made folder in its place; the manifest is the last to appear."""
  if final.exists():
    (final / record_format.MANIFEST).unlink(missing_ok=True)
    final.rmtree()
  if _is_local(final):
    made.rename(final)
    return
  final.mkdir(parents=True, exist_ok=True)
  files = sorted(made.iterdir(), key=lambda p: p.name == record_format.MANIFEST)
  for path in files:
    path.copy(final / path.name, overwrite=True)


def _is_local(path: epath.Path) -> bool:
  return '://' not in os.fspath(path)


def _write_mixture(
  data_dir: epath.Path, name: str, rates: registry.TaskRates
) -> None:
  path = record_format.mixture_file(data_dir, name)
  path.parent.mkdir(parents=True, exist_ok=True)
  text = json.dumps(run_files.seal(dataclasses.asdict(rates)), indent=1)
  if path.exists() and path.read_text() == text:
    return
  partial = path.parent / f'{path.name}.{uuid.uuid4().hex}.partial'
  partial.write_text(text)
  partial.replace(path)


def _check_folders(tasks: Sequence[str]) -> None:
  """Refuses two tasks whose names differ only in what folders cannot hold."""
  seen: dict[str, str] = {}
  for task in tasks:
    other = seen.setdefault(record_format.dataset_name(task), task)
    if other != task:
      raise UserError(
        f'Tasks {other!r} and {task!r} would share the folder'
        f' {record_format.dataset_name(task)!r}: rename one of them.'
      )


def _versions() -> dict[str, str]:
  versions = {'python': sys.version.split()[0]}
  for package in _VERSIONS_OF:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      versions[package] = importlib.metadata.version(package)
  return versions


@contextlib.contextmanager
def _bar(progress: Literal['auto', 'off'], total: int):
  """Yields a function that moves the bar on; silent without a terminal."""
  console = stderr_console()
  columns = (
    rich_progress.TextColumn('preparing'),
    rich_progress.BarColumn(),
    rich_progress.MofNCompleteColumn(),
    rich_progress.TimeRemainingColumn(),
    rich_progress.TextColumn('{task.description}'),
  )
  disable = progress == 'off' or not console.is_terminal
  with rich_progress.Progress(
    *columns, console=console, disable=disable, transient=True
  ) as bar:
    row = bar.add_task('', total=total)
    yield lambda name: bar.update(row, advance=1, description=name)
