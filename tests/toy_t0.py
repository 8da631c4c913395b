"""Small folders in the forms that T0's data comes in; texts of our own."""

import json
import pathlib

import tensorflow as tf

from mhr_jax.data import registry, sources

_HEAD = """\
dataset: {dataset}
templates:
"""
_TEMPLATE = """\
  {name}: !Template
    name: {name}
    answer_choices: '{choices}'
    jinja: '{jinja}'
    metadata: !TemplateMetadata
      original_task: {original}
"""
TARGET = '{{ answer_choices[label] }}'
COPA = (
  # name, answer choices, input, whether it is for the original task
  ('b best', '{{choice1}} ||| {{choice2}}', '{{premise}} So?', 'true'),
  ('a plain', '{{choice1}} ||| {{choice2}}', '{{premise}}', 'true'),
  ('c other', '{{choice1}} ||| {{choice2}}', 'Which? {{premise}}', 'false'),
)
MRPC = (
  ('same', 'no ||| yes', '{{sentence1}} = {{sentence2}}?', 'true'),
  ('equal-or_not', '', 'Is {{sentence1}} {{sentence2}}?', 'false'),
)


def copa_record(i):
  return {
    'premise': f'It was {i}.',
    'choice1': f'It is {i + 1}.',
    'choice2': f'It is {i + 2}.',
    'question': 'effect',
    'idx': i,
    'label': i % 2,
  }


def mrpc_record(i):
  return {
    'sentence1': f'one {i}',
    'sentence2': f'two {i}',
    'label': i % 2,
    'idx': i,
  }


def load_task(task):
  """Returns the examples of a registered task by split."""
  source = registry.get_task(task).source
  assert isinstance(source, sources.ExampleSource)
  made = source.load()
  return {split: list(made.splits[split]) for split in made.splits}


def write_lines(path, records):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(json.dumps(record) + '\n' for record in records))


def write_templates(path, dataset, templates):
  """Writes a file of PromptSource's form.

  A template without answer choices has the label itself as its target.
  """
  text = _HEAD.format(dataset=dataset)
  for name, choices, inputs, original in templates:
    target = TARGET if choices else '{{ label }}'
    text += _TEMPLATE.format(
      name=name,
      choices=choices,
      jinja=f'{inputs} ||| {target}',
      original=original,
    )
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)


def write_copa(folder, n_test=6):
  """A held-out set: validation, two draws, templates."""
  folder = pathlib.Path(folder) / 'super_glue_copa'
  write_lines(
    folder / 'validation.raw.jsonl', [copa_record(i) for i in range(n_test)]
  )
  (folder / 'validation.jsonl').write_text('rendered, and not to be read\n')
  for seed in (0, 7):
    write_lines(
      folder / f'few_shot_seed{seed}.raw.jsonl',
      [copa_record(100 * (seed + 1) + i) for i in range(4)],
    )
  write_templates(folder / 'templates.yaml', 'super_glue', COPA)
  return folder


def write_mrpc(folder, n=20):
  """A training set and its templates."""
  folder = pathlib.Path(folder) / 'glue_mrpc'
  write_lines(folder / 'train.jsonl', [mrpc_record(i) for i in range(n)])
  write_templates(folder / 'templates.yaml', 'glue', MRPC)
  return folder


def write_cached_task(folder, split, examples, *, n_shards=1, vocabulary=None):
  """Writes one split of a task as seqio caches it.

  Args:
    folder: of the task.
    split: its name.
    examples: features by name: texts, lists of texts, of numbers, numbers.
    n_shards: how many files.
    vocabulary: makes the ids of inputs and targets, which P3 has too.
  """
  folder.mkdir(parents=True, exist_ok=True)
  if vocabulary is not None:
    examples = [_with_ids(example, vocabulary) for example in examples]
  for shard in range(n_shards):
    name = f'{split}.tfrecord-{shard:05d}-of-{n_shards:05d}'
    with tf.io.TFRecordWriter(str(folder / name)) as writer:
      for example in examples[shard::n_shards]:
        writer.write(_to_proto(example).SerializeToString())
  info = {
    'num_shards': n_shards,
    'features': {key: _declared(value) for key, value in examples[0].items()}
    if examples
    else {},
    'seqio_version': '0.0.0',
  }
  (folder / f'info.{split}.json').write_text(json.dumps(info))
  stats = {'examples': len(examples)}
  (folder / f'stats.{split}.json').write_text(json.dumps(stats))
  (folder / 'COMPLETED').write_text('')


def _with_ids(example, vocabulary):
  ids = {
    key: vocabulary.encode(example[f'{key}_pretokenized'])
    for key in ('inputs', 'targets')
  }
  return example | ids


def _declared(value):
  """Returns a feature as seqio declares it."""
  values = value if isinstance(value, (list, tuple)) else [value]
  dtype = {str: 'string', float: 'float32'}.get(type(values[0]), 'int32')
  return {'shape': [None] if values is value else [], 'dtype': dtype}


def _to_proto(example):
  features = {}
  for key, value in example.items():
    values = value if isinstance(value, (list, tuple)) else [value]
    if isinstance(values[0], str):
      encoded = [each.encode() for each in values]
      feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=encoded))
    elif isinstance(values[0], float):
      feature = tf.train.Feature(float_list=tf.train.FloatList(value=values))
    else:
      numbers = [int(each) for each in values]
      feature = tf.train.Feature(int64_list=tf.train.Int64List(value=numbers))
    features[key] = feature
  return tf.train.Example(features=tf.train.Features(feature=features))
