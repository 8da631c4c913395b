"""Where examples come from and how a seqio task's records are read.

`ExampleSource` is a seqio data source over a plain Python function. A task
over one with the standard preprocessors is tokenised by plain Python; every
other seqio task runs its own pipeline.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from etils import epath
import seqio
import tensorflow as tf

from mhr_jax import vocabulary as vocabulary_lib
from mhr_jax.data import fingerprints, preprocessors
from mhr_jax.data.record_format import Record
from mhr_jax.errors import UserError


class TextExample(NamedTuple):
  """One example as text.

  Attributes:
    example_id: names the example within its task; '7/2' is form 2 of an
      example 7 that stands there in several forms.
    inputs: what the model reads.
    targets: all acceptable targets.
    choices: the answers to choose from, at least two; () for none.
    label: which of `choices` is right, and is the first target.
  """

  example_id: str
  inputs: str
  targets: Sequence[str]
  choices: Sequence[str] = ()
  label: int | None = None


class TaskExamples(NamedTuple):
  """All examples of a task by split.

  Attributes:
    splits: its examples.
    category: what it is counted under in evaluation, if anything.
    metric: of `metrics`, by which it is scored where each task is scored by
      its own; None for none.
  """

  splits: Mapping[str, Iterable[TextExample]]
  category: str | None = None
  metric: str | None = None


class ExampleSource(seqio.DataSource):
  """Examples made by a Python function.

  Works in any seqio pipeline (as features `inputs`, `targets`, `references`,
  `example_id`; `choices` and `label` where an example of the split has
  choices), and is prepared without one.
  """

  def __init__(
    self,
    load: Callable[[], TaskExamples],
    *,
    splits: Sequence[str],
    files: Sequence[epath.PathLike] = (),
  ):
    """Describes a source; nothing is read yet.

    Args:
      load: returns the examples; a module's function, or a partial of one
        over settings, so that it can be fingerprinted.
      splits: the names of the splits that `load` returns.
      files: the files that `load` reads; their contents are fingerprinted.
    """
    super().__init__(splits=splits)
    self.load = load
    self.files = tuple(files)

  @property
  def supports_arbitrary_sharding(self) -> bool:
    return False

  def list_shards(self, split: str) -> Sequence[str]:
    return [split]

  def get_dataset(
    self, split='train', shuffle=True, seed=None, shard_info=None, **unused
  ) -> tf.data.Dataset:
    """Returns the split for seqio's own pipelines; see seqio.DataSource."""
    del unused
    if shard_info and shard_info.num_shards > 1:
      raise ValueError('An ExampleSource cannot be read in shards.')
    examples = list(self.load().splits[split])
    features: dict[str, Any] = {
      'inputs': [e.inputs for e in examples],
      'targets': [e.targets[0] for e in examples],
      preprocessors.REFERENCES: _ragged([e.targets for e in examples]),
      'example_id': [e.example_id for e in examples],
    }
    if any(e.choices for e in examples):
      features[preprocessors.CHOICES] = _ragged([e.choices for e in examples])
      features[preprocessors.LABEL] = [_label(e.label) for e in examples]
    dataset = tf.data.Dataset.from_tensor_slices(features)
    return (
      dataset.shuffle(max(len(examples), 1), seed=seed) if shuffle else dataset
    )


def _ragged(texts: Sequence[Sequence[str]]) -> tf.RaggedTensor:
  rows = [list(each) for each in texts]
  return tf.ragged.constant(rows, dtype=tf.string, ragged_rank=1)


def _label(label: int | None) -> int:
  return -1 if label is None else int(label)


class TaskRecords(NamedTuple):
  """The tokenised records of a task by split, made while they are read."""

  splits: Mapping[str, Iterator[Record]]
  category: str | None
  metric: str | None = None


def read_task(task: seqio.Task) -> TaskRecords:
  """Tokenises a task, by plain Python where its definition allows that.

  Raises:
    UserError: the vocabulary cannot be used, a split is absent, or, while
      records are read, the task's own pipeline fails or an example's choices
      and label do not fit.
  """
  vocabulary = task_vocabulary(task)
  if isinstance(task.source, ExampleSource) and tuple(task.preprocessors) == (
    preprocessors.STANDARD
  ):
    examples = task.source.load()
    absent = set(task.splits) - set(examples.splits)
    if absent:
      raise UserError(
        f'The source of task {task.name!r} did not return the split'
        f' {sorted(absent)[0]!r}, which it declares.'
      )
    splits = {
      split: _encode(examples.splits[split], vocabulary)
      for split in task.splits
    }
    category, metric = examples.category, examples.metric
  else:
    splits = {
      split: _run_pipeline(task, split, vocabulary) for split in task.splits
    }
    category, metric = None, None
  checked = {
    split: _with_right_choices(each, f'Task {task.name!r}, split {split!r}')
    for split, each in splits.items()
  }
  return TaskRecords(checked, category, metric)


def task_vocabulary(task: seqio.Task) -> vocabulary_lib.Vocabulary:
  """Returns the TF-free vocabulary of a task.

  Raises:
    UserError: inputs or targets are missing, or their vocabularies differ or
      are of a kind that has no TF-free form.
  """
  absent = {'inputs', 'targets'} - set(task.output_features)
  if absent:
    raise UserError(
      f'Task {task.name!r} has no feature {sorted(absent)[0]!r}; it needs'
      f' inputs and targets, and has {sorted(task.output_features)}.'
    )
  inputs, targets = (
    preprocessors.from_seqio(task.output_features[key].vocabulary)
    for key in ('inputs', 'targets')
  )
  if inputs != targets:
    raise UserError(
      f'Task {task.name!r} has one vocabulary for its inputs ({inputs}) and'
      f' another for its targets ({targets}); T5 shares one.'
    )
  return inputs


def source_files(task: seqio.Task) -> list[epath.Path]:
  """Returns the files whose contents the task's examples come from.

  Known for `ExampleSource` and seqio's file sources. What another kind of
  source reads is taken to change only when its definition changes.
  """
  source = task.source
  if isinstance(source, ExampleSource):
    return [epath.Path(path) for path in source.files]
  if isinstance(source, seqio.FileDataSource):
    shards = {p for split in source.splits for p in source.list_shards(split)}
    return [epath.Path(path) for path in sorted(shards)]
  return []


def define_source(
  source: seqio.DataSource, *, paths: Literal['full', 'name'] = 'full'
) -> Any:
  """Returns a source's definition as JSON, without the contents of files.

  Args:
    source: an `ExampleSource`, or one of seqio's or of a user's.
    paths: whether paths count whole, or by their last part alone.
  """
  if isinstance(source, ExampleSource):
    value = [source.load, source.splits, source.files]
  elif isinstance(source, seqio.TfdsDataSource):
    given = [source.tfds_dataset.name, source.tfds_dataset.data_dir]
    value = [type(source), given, source.splits]
  else:
    value = source
  return fingerprints.describe(value, paths=paths)


def _encode(
  examples: Iterable[TextExample], vocabulary: vocabulary_lib.Vocabulary
) -> Iterator[Record]:
  for example in examples:
    yield Record(
      inputs=vocabulary.encode(example.inputs),
      targets=[vocabulary.encode(target) for target in example.targets],
      inputs_pretokenized=example.inputs,
      targets_pretokenized=example.targets,
      example_id=example.example_id,
      choices=[vocabulary.encode(choice) for choice in example.choices],
      choices_pretokenized=example.choices,
      label=_label(example.label),
    )


def _with_right_choices(
  examples: Iterator[Record], where: str
) -> Iterator[Record]:
  """Passes records on; the first whose choices do not fit is an error."""
  for record in examples:
    wrong = _find_wrong_choices(record)
    if wrong:
      raise UserError(f'{where}: example {record.example_id!r} {wrong}')
    yield record


def _find_wrong_choices(record: Record) -> str | None:
  """Returns what is wrong with a record's choices, or nothing."""
  choices, label = record.choices_pretokenized, record.label
  if isinstance(choices, str):
    return f'has the text {choices!r} for choices; give a list of texts.'
  if not choices:
    return None if label == -1 else f'has the label {label}, but no choices.'
  if len(choices) == 1:
    return f'has one choice alone, {choices[0]!r}; give two at least, or none.'
  if not 0 <= label < len(choices):
    return f'has {len(choices)} choices, but the label {label}.'
  if not record.targets or record.targets_pretokenized[0] != choices[label]:
    first = list(record.targets_pretokenized)[:1]
    return (
      f'has choice {label}, {choices[label]!r}, as its label, but the first of'
      f' its targets is {first}: they must be equal.'
    )
  return None


def _run_pipeline(
  task: seqio.Task, split: str, vocabulary: vocabulary_lib.Vocabulary
) -> Iterator[Record]:
  """Runs a task's own seqio pipeline."""
  try:
    dataset = task.get_dataset(
      sequence_length=None,
      split=split,
      use_cached=task.requires_caching,
      shuffle=False,
      seed=0,
      trim_output_features=False,
    )
    for i, example in enumerate(dataset.as_numpy_iterator()):
      yield _from_seqio_example(example, f'{split}-{i}', vocabulary)
  except (ValueError, KeyError, TypeError, tf.errors.OpError) as e:
    raise UserError(
      f'Task {task.name!r}, split {split!r}: its seqio pipeline failed:'
      f' {type(e).__name__}: {e}'
    ) from e


def _from_seqio_example(
  example: Mapping[str, Any],
  example_id: str,
  vocabulary: vocabulary_lib.Vocabulary,
) -> Record:
  """Returns the record of an example that a seqio pipeline made."""
  inputs, inputs_text = _ids_and_text(example, 'inputs', vocabulary)
  if preprocessors.REFERENCES in example:
    texts = [
      preprocessors.as_text(text) for text in example[preprocessors.REFERENCES]
    ]
    targets = [vocabulary.encode(text) for text in texts]
  else:
    ids, text = _ids_and_text(example, 'targets', vocabulary)
    targets, texts = [ids], [text]
  given_id = example.get('example_id', example_id)
  choices, label = [], -1
  if preprocessors.CHOICES in example and preprocessors.LABEL in example:
    found = example[preprocessors.CHOICES]
    choices = [preprocessors.as_text(text) for text in found]
    label = int(example[preprocessors.LABEL])
  return Record(
    inputs=inputs,
    targets=targets,
    inputs_pretokenized=inputs_text,
    targets_pretokenized=texts,
    example_id=preprocessors.as_text(given_id),
    choices=[vocabulary.encode(choice) for choice in choices],
    choices_pretokenized=choices,
    label=label,
  )


def _ids_and_text(
  example: Mapping[str, Any], key: str, vocabulary: vocabulary_lib.Vocabulary
) -> tuple[list[int], str]:
  ids = [int(i) for i in example[key]]
  if ids and ids[-1] == vocabulary.eos_id:
    ids = ids[:-1]
  text = example.get(f'{key}_pretokenized')
  if text is None:
    return ids, vocabulary.decode(ids)
  return ids, preprocessors.as_text(text)
