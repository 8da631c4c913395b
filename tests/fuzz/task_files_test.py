"""Task files: natural-instructions, PromptSource, raw records, TSV, P3."""

import json

from hypothesis import example, given
import pytest

from mhr_jax.tasks import (
  crossfit,
  ni_files,
  ni_splits,
  p3_cache,
  promptsource,
  t0_raw,
)
from mhr_jax.tasks.t0_datasets import HELD_OUT_SETS
from spoiling import (
  answers,
  spoiled_bytes,
  spoiled_json,
  spoiled_json_bytes,
  spoiled_text,
)

_INSTANCE = {'id': 'a-1', 'input': 'in', 'output': ['out', 'or']}
_NI = {
  'Definition': ['Do it.'],
  'Positive Examples': [{'input': 'x', 'output': 'y', 'explanation': ''}],
  'Instances': [_INSTANCE, {**_INSTANCE, 'id': 'a-2', 'output': 'one'}],
  'Categories': ['Kind'],
  'Input_language': ['English'],
}
_REFERENCES = {'id': 'a-1', 'references': ['out'], 'task_id': 'a', 'track': 'd'}
_TEMPLATES = """\
dataset: d
templates:
  a: !Template
    answer_choices: no ||| {{choice}}
    id: a
    jinja: '{{premise}} is {{label | int}}? ||| {{answer_choices[label]}}'
    metadata: !TemplateMetadata
      original_task: true
    name: plain
"""
_YAML = (
  *[
    ':',
    '|',
    '>',
    '-',
    '!',
    '!Template',
    '!!python/object:os.system',
    '&',
    '*',
    '{{',
    '}}',
    '{%',
    '%}',
    '|||',
  ],
  *('{% for x in range(9) %}', '{% endfor %}', 'jinja', 'name', '  ', '\n'),
  *('{{ 9**9 }}', '{{ "a" * 9 }}', '{{ self.x }}', '{{ ().__class__ }}'),
)
_RECORD = {'premise': 'It rained.', 'choice': 'yes', 'label': 1}
_TSV = 'in\tout\nanother\tone\ttwo\n'
_STORY = (
  'InputStoryid,InputSentence1,InputSentence2,InputSentence3,InputSentence4,'
  'RandomFifthSentenceQuiz1,RandomFifthSentenceQuiz2,AnswerRightEnding\n'
  'x,a,b,c,d,e,f,1\n'
)


@given(spoiled_json_bytes(_NI))
@example(b'{"Definition": "\\ud800", "Instances": []}')
@example(b'{"Definition": "a", "Instances": {"id": 1}}')
def test_a_task_of_natural_instructions(folder, data):
  (folder / 'task.json').write_bytes(data)
  task = answers(ni_files.read_task_file, folder / 'task.json')
  if task is not None:
    json.dumps(task, ensure_ascii=False).encode()
    ni_files.track_of(task), ni_files.category_of(task)


@given(spoiled_bytes(b'task1\ntask2\n'))
def test_a_list_of_tasks(folder, data):
  place = folder / 'splits' / 'default'
  place.mkdir(parents=True, exist_ok=True)
  (folder / 'tasks').mkdir(exist_ok=True)
  (folder / 'tasks' / 'task1.json').write_text(json.dumps(_NI))
  (place / 'test_tasks.txt').write_bytes(data)
  answers(ni_files.list_tasks, folder, 'test')


@given(spoiled_json_bytes(_REFERENCES))
def test_a_file_of_references(folder, data):
  path = folder / ni_files.REFERENCES
  path.parent.mkdir(exist_ok=True)
  path.write_bytes(data.replace(b'\n', b' '))
  ni_files._read_references.cache_clear()
  answers(ni_files.read_references, folder)


@given(spoiled_json({'order': 'file', 'validation_instances': 3, 'seed': 1}))
def test_options_of_splits(options):
  if isinstance(options, dict):
    answers(ni_splits.SplitSettings.of, options)


@given(spoiled_text(_TEMPLATES, _YAML))
@example(_TEMPLATES.replace('{{premise}}', '{{' * 200))
@example(_TEMPLATES.replace('{{premise}}', '{{ premise.__class__ }}'))
@example('a: ' + '[' * 3000)
@example('a: &a [*a]\ntemplates: *a')
def test_templates_of_promptsource(folder, text):
  path = folder / 'templates.yaml'
  path.write_bytes(text.encode('utf-8', 'surrogatepass'))
  for template in answers(promptsource.read_templates, path) or ():
    answers(template.render, _RECORD, seed='0')


@given(spoiled_json(_RECORD))
def test_a_record_in_a_template(folder, record):
  path = folder / 'good.yaml'
  path.write_text(_TEMPLATES)
  (template,) = promptsource.read_templates(path)
  if isinstance(record, dict):
    answers(template.render, record, seed='0')


@given(spoiled_json_bytes(_RECORD))
def test_raw_records(folder, data):
  path = folder / 'train.jsonl'
  path.write_bytes(data.replace(b'\n', b' ') + b'\n')
  answers(lambda: list(t0_raw.read_json_lines(path)))
  split = t0_raw.labelled(
    t0_raw._split(t0_raw.read_json_lines, path), HELD_OUT_SETS[0]
  )
  answers(lambda: list(split.read()))


@given(spoiled_text(_STORY, (',', '"', '1', '\r', '\n')))
@example(_STORY + '"' + 'x' * 200_000)
def test_story_cloze(folder, text):
  path = folder / 'story.csv'
  path.write_bytes(text.encode('utf-8', 'surrogatepass'))
  answers(lambda: list(t0_raw.read_story_cloze(path)))


@given(spoiled_bytes(_TSV.encode()))
def test_examples_of_crossfit(folder, data):
  (folder / 'x.tsv').write_bytes(data)
  answers(
    lambda: list(crossfit.read_examples(folder / 'x.tsv', 'x', prefix='0'))
  )


@given(spoiled_json_bytes({'train': ['a'], 'dev': [], 'test': ['b']}))
def test_a_partition_of_crossfit(folder, data):
  (folder / 'partition.json').write_bytes(data)
  answers(crossfit.read_partition, folder / 'partition.json', ('a', 'b'))


@given(spoiled_json_bytes({'num_shards': 1}))
def test_what_p3_says_of_its_shards(folder, data):
  (folder / 'info.train.json').write_bytes(data)
  answers(p3_cache.find_shards, folder, 'train')


@pytest.fixture(scope='module')
def p3_shard(folder):
  import toy_t0

  place = folder / 'p3'
  features = {
    'inputs_pretokenized': 'in',
    'targets_pretokenized': 'out',
    'answer_choices': ['out', 'in'],
    'idx': [0, 1],
    'is_correct': 1,
  }
  toy_t0.write_cached_task(place, 'train', [features] * 2)
  return place / 'train.tfrecord-00000-of-00001'


@pytest.mark.parametrize('read', [p3_cache.read_examples, p3_cache.read_scored])
def test_a_shard_of_p3(p3_shard, read):
  good = p3_shard.read_bytes()
  options = {'choices': 'keep'} if read is p3_cache.read_examples else {}

  @given(spoiled_bytes(good))
  def check(data):
    p3_shard.write_bytes(data)
    answers(lambda: list(read([p3_shard], 'form', **options)))

  check()
  p3_shard.write_bytes(good)
