"""Prepared tasks and mixtures: opening them and reading their records.

`mhr-jax prepare` (data/prepare.py, which needs seqio and TensorFlow) writes
what this module reads without either. See `record_format` for the form.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import math
from typing import Any
import zipfile

from etils import epath
from google.protobuf import json_format, message
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from mhr_jax import npz_files, run_files
from mhr_jax.data import record_format
from mhr_jax.data.tokens import Lengths, TokenTable
from mhr_jax.errors import UserError, blaming, nearest
from mhr_jax.task_table import TaskTable
from mhr_jax.vocabulary import Vocabulary, from_spec

_FEATURES_FILE = 'features.json'
_FEATURES_OF = 'tensorflow_datasets.'
_READ_AT_ONCE = 4096
_MANIFEST = {'splits': dict, 'fingerprint': str, 'vocabulary': dict}
# What array_record, protobuf, NumPy and tensorflow-datasets raise where files
# are not as they were written.
_UNREADABLE = (
  AssertionError,
  AttributeError,
  EOFError,
  LookupError,
  OSError,
  RuntimeError,
  TypeError,
  ValueError,
  json_format.Error,
  message.Error,
  zipfile.BadZipFile,
)


@dataclasses.dataclass(frozen=True)
class PreparedTask:
  """A task that has been tokenised and stored.

  Attributes:
    name: the task's name, as seqio knows it.
    data_dir: the folder of all prepared data.
    splits: the number of records of each split.
    category: what the task is counted under in evaluation, if anything.
    fingerprint: of what the task was prepared from.
    vocabulary_spec: what `vocabulary.from_spec` takes.
    metric: the task's own, of `metrics`, if it names one.
    file_sizes: bytes of the files of records; older data does not say.
  """

  name: str
  data_dir: epath.Path
  splits: Mapping[str, int]
  category: str | None
  fingerprint: str
  vocabulary_spec: Mapping[str, Any]
  metric: str | None = None
  file_sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)

  @functools.cached_property
  def vocabulary(self) -> Vocabulary:
    """The vocabulary that the token ids belong to."""
    folder = self.data_dir / record_format.VOCABULARIES
    return from_spec(self.vocabulary_spec, folder)

  @property
  def vocabulary_fingerprint(self) -> str:
    """That of the vocabulary, which need not be read for it."""
    return str(self.vocabulary_spec.get('fingerprint'))

  def source(self, split: str) -> 'TaskSource':
    """Returns random access to the records of a split.

    Args:
      split: a split's name, or a part of one as tensorflow-datasets writes
        it: 'train[:90%]', 'train[-100:]'.

    Raises:
      UserError: there is no such split, or it is empty.
    """
    base = split.split('[')[0]
    if base not in self.splits:
      raise UserError(
        f'Task {self.name!r} has no split {base!r}.{nearest(base, self.splits)}'
      )
    return TaskSource(self, split)

  @property
  def folder(self) -> epath.Path:
    """Where its records lie."""
    return record_format.task_folder(self.data_dir, self.name)

  @contextlib.contextmanager
  def whole(self) -> Iterator[None]:
    """Says which task is damaged, where reading its files fails.

    Raises:
      UserError: instead of what the libraries raise that read them.
    """
    try:
      yield
    except UserError:
      raise
    except _UNREADABLE as error:
      reason = str(error).partition('\n')[0][:200].rstrip('. ')
      raise UserError(
        f'{self.folder} cannot be read: {reason}.'
        f'{_remedy(self.name, self.data_dir)}'
      ) from error


class TaskSource:
  """The records of one split, by index."""

  def __init__(self, task: PreparedTask, split: str):
    self.task = task
    self.split = split
    base = split.split('[')[0]
    with task.whole():
      _check_features(task.folder)
      builder = tfds.builder_from_directory(task.folder)
      whole = builder.info.splits[base]
      _check_split(task, base, whole)
    try:
      self._raw: Any = builder.as_data_source(
        split=split,
        deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
      )
    except (ValueError, AssertionError) as error:
      raise UserError(
        f'Nothing to read in split {split!r} of task {task.name!r}: {error}'
      ) from error
    self._nbytes = whole.num_bytes * len(self) // whole.num_examples

  @property
  def name(self) -> str:
    """The task's name."""
    return self.task.name

  @property
  def category(self) -> str | None:
    """The task's category."""
    return self.task.category

  @property
  def metric(self) -> str | None:
    """The task's own metric, if it names one."""
    return self.task.metric

  def __len__(self) -> int:
    return len(self._raw)

  def __repr__(self) -> str:
    return f'TaskSource({self.task.name!r}, {self.split!r}, {len(self)})'

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Returns a record as a dictionary.

    It has `inputs`, `targets` (all references, one behind the other) and
    `target_lengths` as int32 arrays, `inputs_pretokenized` and `example_id`
    as text, and `targets_pretokenized`, a tuple of texts. Of answer choices
    it has `choices` and `choice_lengths` like the targets,
    `choices_pretokenized` and `label`: empty and -1 where there are none.
    """
    if not 0 <= index < len(self):
      raise IndexError(f'{index} is not in [0, {len(self)}).')
    return self.__getitems__([index])[0]

  def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
    with self.task.whole():
      return [_decode(raw) for raw in self._read(indices)]

  def read_ids(self) -> list[str]:
    """Returns the `example_id` of every record, and decodes nothing else."""
    with self.task.whole():
      return [
        _texts(_fields(raw), 'example_id')[0]
        for raw in self._read(range(len(self)))
      ]

  @property
  def nbytes(self) -> int:
    """Bytes on disk, about."""
    return self._nbytes

  def read_tokens(self, indices: Sequence[int] | None = None) -> TokenTable:
    """Returns the token ids alone of some records, by default of all."""
    indices = range(len(self)) if indices is None else indices
    with self.task.whole():
      return TokenTable.from_examples(
        _decode_tokens(raw) for raw in self._read(indices)
      )

  def read_lengths(self) -> Lengths:
    """Returns how long all records are.

    Whole splits are looked up where `write_lengths` stored them, else
    measured by reading everything.
    """
    path = self.task.folder / f'lengths_{self.split}.npz'
    if '[' not in self.split and path.exists():
      with self.task.whole():
        arrays = npz_files.read_arrays(path, 'lengths of records')
        return Lengths(**arrays)
    return self.measure()

  def measure(self) -> Lengths:
    """Returns how long all records are, by reading them."""
    return Lengths.concatenate(
      [
        Lengths.of(self.read_tokens(range(start, stop)))
        for start, stop in _chunks(len(self))
      ]
    )

  def _read(self, indices: Sequence[int]) -> Iterator[bytes]:
    indices = [int(i) for i in indices]
    for start, stop in _chunks(len(indices)):
      yield from self._raw.__getitems__(indices[start:stop])


@dataclasses.dataclass(frozen=True)
class Mixture:
  """A prepared mixture.

  Attributes:
    name: the mixture's name.
    tasks: the tasks' names in the order of their ids.
    rates: the mixture's own rate of each task.
  """

  name: str
  tasks: tuple[str, ...]
  rates: tuple[float, ...]


def open_task(data_dir: epath.PathLike, task: str) -> PreparedTask:
  """Opens a prepared task.

  Args:
    data_dir: the folder of all prepared data, local or in a bucket.
    task: the task's name.

  Raises:
    UserError: the task is not there, or was written in another format.
  """
  data_dir = epath.Path(data_dir)
  folder = record_format.task_folder(data_dir, task)
  manifest_path = folder / record_format.MANIFEST
  if not manifest_path.exists():
    raise UserError(
      f'Task {task!r} is not prepared in {data_dir}: run'
      f' `mhr-jax prepare {task} --data_dir={data_dir}`.'
      f'{nearest(task, list_tasks(data_dir))}'
    )
  manifest = run_files.read_json(manifest_path)
  run_files.check_seal(
    manifest, where=str(manifest_path), remedy=_remedy(task, data_dir).strip()
  )
  _check_manifest(manifest, folder, task, data_dir)
  return PreparedTask(
    name=task,
    data_dir=data_dir,
    splits=manifest['splits'],
    category=manifest.get('category'),
    fingerprint=manifest['fingerprint'],
    vocabulary_spec=manifest['vocabulary'],
    metric=manifest.get('metric'),
    file_sizes=manifest.get('file_sizes', {}),
  )


def _check_split(
  task: PreparedTask, split: str, found: tfds.core.SplitInfo
) -> None:
  """Compares a split's records and files with what was written.

  Raises:
    ValueError: they are others.
  """
  if found.num_examples != task.splits[split]:
    raise ValueError(
      f'it has {found.num_examples} records of split {split!r},'
      f' {task.splits[split]} were written'
    )
  for path in map(epath.Path, found.filepaths):
    size, wanted = path.stat().length, task.file_sizes.get(path.name)
    if wanted is not None and size != wanted:
      raise ValueError(f'{path.name} has {size} bytes, {wanted} were written')


def _remedy(task: str, data_dir: epath.Path) -> str:
  """Returns how damaged data is made anew, as a sentence to append."""
  folder = record_format.task_folder(data_dir, task)
  return (
    f' Remove {folder} and run `mhr-jax prepare {task} --data_dir={data_dir}`'
    ' again, or copy it again.'
  )


def _check_manifest(
  manifest: Mapping[str, Any],
  folder: epath.Path,
  task: str,
  data_dir: epath.Path,
) -> None:
  version = manifest.get('format_version')
  if (version, manifest.get('task')) == (record_format.FORMAT_VERSION, task):
    for key, kind in _MANIFEST.items():
      where = f'{folder / record_format.MANIFEST}: {key}'
      run_files.check_kind(manifest.get(key), kind, where=where)
    for split, size in manifest['splits'].items():
      where = f'{folder / record_format.MANIFEST}: splits: {split}'
      run_files.check_kind(size, int, where=where)
    return
  why = ''
  if version == 1:
    why = ' (prepared before records had answer choices)'
  raise UserError(
    f'{folder} holds task {manifest.get("task")!r} in format {version}{why};'
    f' wanted is {task!r} in format {record_format.FORMAT_VERSION}: run'
    f' `mhr-jax prepare {task} --data_dir={data_dir}` again.'
  )


def open_tasks(
  data_dir: epath.PathLike,
  tasks: Iterable[str],
  *,
  vocabulary_fingerprint: str | None = None,
) -> tuple[PreparedTask, ...]:
  """Opens tasks that are to be used together.

  Args:
    data_dir: the folder of all prepared data.
    tasks: the tasks' names.
    vocabulary_fingerprint: the vocabulary that is wanted; by default that of
      the first task.

  Raises:
    UserError: a task is not there, or has another vocabulary.
  """
  opened = tuple(open_task(data_dir, task) for task in tasks)
  if not opened:
    raise UserError('No tasks were given.')
  wanted, origin = vocabulary_fingerprint, 'the model'
  if wanted is None:
    wanted = opened[0].vocabulary_fingerprint
    origin = f'task {opened[0].name!r}'
  for task in opened:
    found = task.vocabulary_fingerprint
    if found != wanted:
      raise UserError(
        f'Task {task.name!r} was prepared with vocabulary {found[:12]}, but'
        f' {origin} has {wanted[:12]}: prepare it again with that one.'
      )
  return opened


def open_mixture(data_dir: epath.PathLike, name: str) -> Mixture:
  """Opens a prepared mixture.

  Raises:
    UserError: the mixture is not there.
  """
  path = record_format.mixture_file(data_dir, name)
  if not path.exists():
    folder = path.parent
    found = [each.stem for each in folder.iterdir()] if folder.exists() else []
    raise UserError(
      f'Mixture {name!r} is not prepared in {data_dir}: run'
      f' `mhr-jax prepare {name} --data_dir={data_dir}`.{nearest(name, found)}'
    )
  content = run_files.read_json(path)
  remedy = f'Run `mhr-jax prepare {name} --data_dir={data_dir}` again.'
  run_files.check_seal(content, where=str(path), remedy=remedy)
  with blaming(path, 'a prepared mixture'):
    rates = tuple(map(float, content['rates']))
    tasks = TaskTable.from_names(content['tasks']).names
    if len(rates) != len(tasks) or not all(0 < r < math.inf for r in rates):
      raise ValueError(f'{len(tasks)} tasks with the rates {rates}')
  return Mixture(name, tasks, rates)


def list_tasks(data_dir: epath.PathLike) -> list[str]:
  """Returns the names of all prepared tasks, sorted."""
  data_dir = epath.Path(data_dir)
  if not data_dir.exists():
    return []
  paths = data_dir.glob(
    f'*/{record_format.DATASET_VERSION}/{record_format.MANIFEST}'
  )
  names = (run_files.read_json(path).get('task') for path in paths)
  return sorted(name for name in names if isinstance(name, str))


def write_lengths(data_dir: epath.PathLike, task: str) -> None:
  """Stores the lengths of a prepared task's records beside them.

  They save reading all records where rows are packed or put in buckets.
  """
  opened = open_task(data_dir, task)
  folder = record_format.task_folder(data_dir, task)
  for split in opened.splits:
    lengths = opened.source(split).measure()
    with (folder / f'lengths_{split}.npz').open('wb') as file:
      np.savez(file, **dataclasses.asdict(lengths))


def _check_features(folder: epath.Path) -> None:
  """Refuses features whose class tensorflow-datasets would import by name."""
  path = folder / _FEATURES_FILE
  pending: list[Any] = [run_files.read_json(path)]
  while pending:
    node = pending.pop()
    if isinstance(node, dict):
      for key in ('pythonClassName', 'type'):
        kind = node.get(key)
        if isinstance(kind, str) and not kind.startswith(_FEATURES_OF):
          raise UserError(
            f'{path} has a feature of the class {kind!r}, which prepared data'
            ' never has, and which would be imported: prepare it again.'
          )
    if isinstance(node, dict | list):
      pending += node.values() if isinstance(node, dict) else node


def _chunks(n: int) -> Iterator[tuple[int, int]]:
  for start in range(0, n, _READ_AT_ONCE):
    yield start, min(n, start + _READ_AT_ONCE)


def _fields(raw: bytes) -> Any:
  return tf_example_pb2.Example.FromString(raw).features.feature


def _decode_tokens(raw: bytes) -> dict[str, Any]:
  # The features' own decoding takes seven times as long.
  fields = _fields(raw)
  return _ints(fields, 'inputs', 'targets', 'target_lengths')


def _decode(raw: bytes) -> dict[str, Any]:
  fields = _fields(raw)
  return {
    **_ints(
      fields,
      'inputs',
      'targets',
      'target_lengths',
      'choices',
      'choice_lengths',
    ),
    'inputs_pretokenized': _texts(fields, 'inputs_pretokenized')[0],
    'targets_pretokenized': _texts(fields, 'targets_pretokenized'),
    'example_id': _texts(fields, 'example_id')[0],
    'choices_pretokenized': _texts(fields, 'choices_pretokenized'),
    'label': int(fields['label'].int64_list.value[0]),
  }


def _ints(fields: Any, *names: str) -> dict[str, np.ndarray]:
  return {
    name: np.array(fields[name].int64_list.value, np.int32) for name in names
  }


def _texts(fields: Any, name: str) -> tuple[str, ...]:
  return tuple(v.decode('utf-8') for v in fields[name].bytes_list.value)
