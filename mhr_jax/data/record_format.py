"""The form of prepared data, and its writer; needs no TensorFlow.

A task is one tensorflow-datasets dataset in array_record form:

    <data_dir>/<dataset>/1.0.0/            dataset: the task's name, see below
      <dataset>-<split>.array_record-00000-of-00001
      dataset_info.json  features.json     tensorflow-datasets' own
      mhr_jax.json                         our manifest, always written last
    <data_dir>/vocabularies/               model files, shared by all tasks
    <data_dir>/mixtures/<name>.json        tasks in the order of ids, rates

A folder without a manifest is not whole and counts as absent.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import itertools
import re

from array_record.python import array_record_module
from etils import epath
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from mhr_jax import file_names
from mhr_jax.errors import UserError

# 2: answer choices and the label of the right one.
FORMAT_VERSION = 2
DATASET_VERSION = '1.0.0'
MANIFEST = 'mhr_jax.json'
VOCABULARIES = 'vocabularies'
MIXTURES = 'mixtures'

_RECORDS_PER_SHARD = 100_000


@dataclasses.dataclass(frozen=True)
class Record:
  """One example with all its references.

  Attributes:
    inputs: token ids, neither trimmed nor ended by EOS.
    targets: token ids of each reference, likewise.
    inputs_pretokenized: the text of the inputs.
    targets_pretokenized: the text of each reference, in the same order.
    example_id: names the example within its task.
    choices: token ids of each answer choice; () where a text is written
      freely.
    choices_pretokenized: the text of each choice, in the same order.
    label: index of the right choice, whose text is the first reference; -1
      without choices.
  """

  inputs: Sequence[int]
  targets: Sequence[Sequence[int]]
  inputs_pretokenized: str
  targets_pretokenized: Sequence[str]
  example_id: str
  choices: Sequence[Sequence[int]] = ()
  choices_pretokenized: Sequence[str] = ()
  label: int = -1


def dataset_name(task: str) -> str:
  """Returns the dataset's name of a task.

  >>> dataset_name('ni:task1146_Country-capital')
  'ni_task1146_country_capital'
  """
  return re.sub(r'[^a-z0-9_]', '_', task.lower())


def task_folder(data_dir: epath.PathLike, task: str) -> epath.Path:
  """Returns the folder that holds (or will hold) a prepared task."""
  return epath.Path(data_dir) / dataset_name(task) / DATASET_VERSION


def mixture_file(data_dir: epath.PathLike, mixture: str) -> epath.Path:
  """Returns the file that holds (or will hold) a prepared mixture."""
  name = file_names.as_file_name(mixture)
  return epath.Path(data_dir) / MIXTURES / f'{name}.json'


def features() -> tfds.features.FeaturesDict:
  """Returns the features of a stored record."""
  ids = tfds.features.Tensor(shape=(None,), dtype=np.int32)
  return tfds.features.FeaturesDict(
    {
      'inputs': ids,
      'targets': ids,
      'target_lengths': ids,
      'inputs_pretokenized': tfds.features.Text(),
      'targets_pretokenized': tfds.features.Sequence(tfds.features.Text()),
      'example_id': tfds.features.Text(),
      'choices': ids,
      'choice_lengths': ids,
      'choices_pretokenized': tfds.features.Sequence(tfds.features.Text()),
      'label': tfds.features.Scalar(dtype=np.int32),
    }
  )


def serialize(record: Record) -> bytes:
  """Returns the record as a tf.train.Example that `features` describes.

  Built field by field: a quarter of the time of the features' own encoding.
  """
  fields = {
    'inputs': _ints(record.inputs),
    'targets': _ints([i for ids in record.targets for i in ids]),
    'target_lengths': _ints([len(ids) for ids in record.targets]),
    'inputs_pretokenized': _texts([record.inputs_pretokenized]),
    'targets_pretokenized': _texts(record.targets_pretokenized),
    'example_id': _texts([record.example_id]),
    'choices': _ints([i for ids in record.choices for i in ids]),
    'choice_lengths': _ints([len(ids) for ids in record.choices]),
    'choices_pretokenized': _texts(record.choices_pretokenized),
    'label': _ints([record.label]),
  }
  return tf_example_pb2.Example(
    features=tf_feature_pb2.Features(feature=fields)
  ).SerializeToString(deterministic=True)


def write_dataset(
  folder: epath.PathLike, task: str, splits: Mapping[str, Iterable[Record]]
) -> dict[str, int]:
  """Writes a whole dataset, all but the manifest, into a local folder.

  Args:
    folder: a new local folder.
    task: the task's name.
    splits: the records of each split, consumed once.

  Returns:
    The number of records of each split; splits without records are left out.

  Raises:
    UserError: no split has a record.
  """
  folder, name = epath.Path(folder), dataset_name(task)
  folder.mkdir(parents=True, exist_ok=True)
  infos = [
    _write_split(folder, name, split, iter(records))
    for split, records in splits.items()
  ]
  infos = [info for info in infos if info.num_examples]
  if not infos:
    raise UserError(f'Task {task!r} has no examples in any split.')
  tfds.folder_dataset.write_metadata(
    data_dir=folder,
    features=features(),
    split_infos=infos,
    version=DATASET_VERSION,
    filename_template=_template(folder, name),
    check_data=False,
    description=f'Token ids of the task {task}, prepared by mhr_jax.',
    disable_shuffling=True,
  )
  return {info.name: info.num_examples for info in infos}


def file_sizes(folder: epath.PathLike) -> dict[str, int]:
  """Returns the bytes of each file of records, by its name.

  They go into the manifest: array_record reads a file that was cut short as one
  with other records.
  """
  return {
    path.name: path.stat().length
    for path in sorted(epath.Path(folder).glob('*.array_record-*'))
  }


def _write_split(
  folder: epath.Path, name: str, split: str, records: Iterator[Record]
) -> tfds.core.SplitInfo:
  """Writes one split; how many shards there are is known at its end."""
  lengths, size, parts = [], 0, []
  for first in records:
    parts.append(folder / f'part-{split}-{len(parts)}')
    lengths.append(0)
    writer = array_record_module.ArrayRecordWriter(
      str(parts[-1]), 'group_size:1'
    )
    rest = itertools.islice(records, _RECORDS_PER_SHARD - 1)
    for record in itertools.chain([first], rest):
      data = serialize(record)
      writer.write(data)
      lengths[-1] += 1
      size += len(data)
    writer.close()
  template = _template(folder, name, split)
  for i, part in enumerate(parts):
    part.rename(template.sharded_filepath(shard_index=i, num_shards=len(parts)))
  return tfds.core.SplitInfo(
    name=split,
    shard_lengths=lengths,
    num_bytes=size,
    filename_template=template,
  )


def _template(
  folder: epath.Path, name: str, split: str | None = None
) -> tfds.core.ShardedFileTemplate:
  return tfds.core.ShardedFileTemplate(
    data_dir=folder,
    dataset_name=name,
    split=split,
    filetype_suffix='array_record',
  )


def _ints(values: Sequence[int]) -> tf_feature_pb2.Feature:
  return tf_feature_pb2.Feature(
    int64_list=tf_feature_pb2.Int64List(value=values)
  )


def _texts(values: Sequence[str]) -> tf_feature_pb2.Feature:
  encoded = [value.encode('utf-8') for value in values]
  return tf_feature_pb2.Feature(
    bytes_list=tf_feature_pb2.BytesList(value=encoded)
  )
