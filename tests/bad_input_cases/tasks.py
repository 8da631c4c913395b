"""Task files and prepared data that are not as they should be."""

import json
import pathlib
import shutil

from bad_input_cases.case import (
  Case,
  both,
  cut,
  edit,
  edit_json,
  evaluate,
  prepare,
  remove,
  train,
  write,
)
from bad_input_cases.workspace import NI_TASK

_NI_FILE = 'ni/tasks/task1_capitals.json'
_MANIFEST = 'data_cache/one/1.0.0/mhr_jax.json'
_LIST = 'ni/splits/default/train_tasks.txt'
_COPA = 't0/super_glue_copa'
_TSV = 'crossfit/copa/copa_16_13_train.tsv'


def _ni(**options: str) -> tuple[str, ...]:
  return prepare('natural_instructions', 'ni_train', folder='"ni"', **options)


def _crossfit(**options: str) -> tuple[str, ...]:
  options = {'folder': '"crossfit"', **options}
  return prepare('crossfit', 'crossfit_all', **options)


def _t0(**options: str) -> tuple[str, ...]:
  return prepare('t0', 't0_heldout', **{'folder': '"t0"', **options})


def _p3(**options: str) -> tuple[str, ...]:
  given = {'part': '"heldout"', 'templates': '"templates"', **options}
  given |= {'datasets': '("super_glue_copa",)'}
  return prepare('p3', 't0_heldout', folder='"p3"', **given)


def _instance(**changes) -> str:
  """A task file whose second instance is changed; a key set to None is gone."""
  second = NI_TASK['Instances'][1] | changes
  second = {k: v for k, v in second.items() if v is not None}
  first, _, *rest = NI_TASK['Instances']
  return json.dumps({**NI_TASK, 'Instances': [first, second, *rest]}, indent=1)


def _without(key: str) -> str:
  return json.dumps({k: v for k, v in NI_TASK.items() if k != key}, indent=1)


def _task(name, text, *says, sample=False) -> Case:
  where = '' if 'UTF' in name else 'task1_capitals.json'
  return Case(name, _ni(), (where, *says), write(_NI_FILE, text), sample=sample)


def _templates_of_p3(folder: pathlib.Path) -> None:
  place = folder / 'templates' / 'super_glue' / 'copa'
  place.mkdir(parents=True)
  shutil.copy(folder / _COPA / 'templates.yaml', place)


_NATURAL_INSTRUCTIONS = (
  _task(
    'malformed JSON',
    '{"Definition":\n["a"],\n"Instances" [}',
    ':3: not JSON',
    sample=True,
  ),
  _task(
    'a huge malformed line', '{"Definition": "' + 'x' * 10**7, ':1: not JSON'
  ),
  _task('nested JSON', '[' * 10**5, 'Nested too deeply'),
  _task('a task file that is a list', '[]', ':1: a task file is a JSON object'),
  _task('no definition', _without('Definition'), "'Definition'"),
  _task('no instances', _without('Instances'), "'Instances'"),
  _task('an instance without an id', _instance(id=None), 'instance 1', "'id'"),
  _task('an empty output', _instance(output=''), 'its output is empty'),
  _task('an output of a wrong type', _instance(output=3), 'instance 1', '3'),
  _task('an input of a wrong type', _instance(input=['a']), "['a']"),
  _task('two instances of one id', _instance(id='task1-0'), "'task1-0'"),
  _task('half of a surrogate pair', _instance(input='\ud800'), 'surrogate'),
  Case(
    'a task file that is no UTF-8',
    _ni(),
    ('task1_capitals.json:2', 'UTF-8'),
    write(_NI_FILE, b'{\n"Definition": "\xe9"}'),
  ),
  Case(
    'a list that names an absent task',
    _ni(),
    ('train_tasks.txt:2', "'task1_capitals'"),
    write(_LIST, 'task1_capitals\ntask1_capitols\n'),
  ),
  Case('a list that is not there', _ni(), ('train_tasks.txt',), remove(_LIST)),
  Case('no such track', _ni(track='"xlinguall"'), ("'xlingual'",)),
  Case('no such option', _ni(positive_example='2'), ('positive_example',)),
  Case(
    'a number of examples that cannot be',
    _ni(positive_examples='-1'),
    ('positive_examples is -1; at least 0',),
  ),
  Case(
    'no such option of splits', _ni(splits='{"sed": 1}'), ("'sed'", "'seed'")
  ),
  Case(
    'a value of splits',
    _ni(splits='{"few_shot_pool": 0}'),
    ('few_shot_pool is 0; at least 1',),
  ),
  Case(
    'a vocabulary that is not there',
    _ni(vocabulary='"spice.model"'),
    ('spice.model',),
  ),
  Case(
    'a vocabulary that is none',
    _ni(vocabulary='"texts.txt"'),
    ('texts.txt is not a SentencePiece model',),
    sample=True,
  ),
  Case('sentinels that cannot be', _ni(extra_ids='-1'), ('extra_ids is -1',)),
  Case(
    'more sentinels than can be',
    _ni(extra_ids='1000000000'),
    ('extra_ids is 1',),
  ),
  Case(
    'references of another version',
    prepare('natural_instructions', 'ni_test', folder='"ni"'),
    ('task1-0', 'test_references.jsonl:1', 'different versions'),
    write(
      'ni/eval/test_references.jsonl',
      '{"id": "task1-0", "references": ["x"]}\n',
    ),
  ),
  Case(
    'references that are none',
    prepare('natural_instructions', 'ni_test', folder='"ni"'),
    ('test_references.jsonl:2',),
    write('ni/eval/test_references.jsonl', '\n{"id": \n'),
  ),
)
_OTHERS = (
  Case('CrossFit: no folder', _crossfit(folder='"none"'), ('none',)),
  Case('CrossFit: no task', _crossfit(folder='"ni"'), ('_train.tsv',)),
  Case(
    'CrossFit: no tab',
    _crossfit(),
    (f'{_TSV}:2', 'tabs'),
    write(_TSV, 'a\tb\nc\n'),
  ),
  Case(
    'CrossFit: an empty output',
    _crossfit(),
    (f'{_TSV}:1', 'empty'),
    write(_TSV, 'a\t\n'),
  ),
  Case(
    'CrossFit: no UTF-8',
    _crossfit(),
    (f'{_TSV}:1', 'UTF-8'),
    write(_TSV, b'\xe9\ta'),
  ),
  Case(
    'CrossFit: test sets that differ',
    _crossfit(),
    ('differ', 'seeds'),
    write('crossfit/copa/copa_16_21_test.tsv', 'c\td\n'),
  ),
  Case('CrossFit: no such seed', _crossfit(seeds='(7,)'), ('7', '13, 21')),
  Case(
    'CrossFit: a partition of absent tasks',
    _crossfit(partitions='"p.json"'),
    ('p.json', "'cpoa'", "'copa'"),
    write('p.json', '{"train": ["cpoa"]}'),
  ),
  Case(
    'CrossFit: a partition that is none',
    _crossfit(partitions='"p.json"'),
    ('p.json', 'line 1'),
    write('p.json', '{'),
  ),
  Case('T0: no folder', _t0(folder='"none"'), ('none',)),
  Case('T0: no data set', _t0(folder='"ni"'), ('super_glue_copa',)),
  Case(
    'T0: no such data set',
    _t0(datasets='("super_glue_cop",)'),
    ("'super_glue_copa'",),
  ),
  Case(
    'T0: templates that are no YAML',
    _t0(),
    ('templates.yaml:3', 'not YAML'),
    write(f'{_COPA}/templates.yaml', 'templates:\n  a: [\n'),
  ),
  Case(
    'T0: a template without Jinja',
    _t0(),
    ('templates.yaml', 'Jinja'),
    edit(
      f'{_COPA}/templates.yaml', lambda data: data.replace(b'}} So?', b'} So?')
    ),
  ),
  Case(
    'T0: templates that are not there',
    _t0(),
    ('templates.yaml',),
    remove(f'{_COPA}/templates.yaml'),
  ),
  Case(
    'T0: a record that is no JSON',
    _t0(),
    ('validation.raw.jsonl:2', 'not JSON'),
    edit(
      f'{_COPA}/validation.raw.jsonl',
      lambda data: data.replace(b'\n', b'\n{\n', 1),
    ),
  ),
  Case(
    'T0: a hidden label',
    _t0(),
    ('validation.raw.jsonl:1', "'label' is -1"),
    edit(
      f'{_COPA}/validation.raw.jsonl',
      lambda data: data.replace(b'"label": 0', b'"label": -1'),
    ),
  ),
  Case(
    'T0: a record without a field',
    _t0(),
    ('validation.raw.jsonl:1', "'premise'"),
    edit(
      f'{_COPA}/validation.raw.jsonl',
      lambda data: data.replace(b'"premise"', b'"promise"', 1),
    ),
  ),
  Case(
    'P3: no such part', _p3(part='"test"'), ("part is 'train' or 'heldout'",)
  ),
  Case(
    'P3: shards that were not copied',
    _p3(),
    ('0 of the 1 shards',),
    both(_templates_of_p3, remove('p3/*/validation.tfrecord*')),
  ),
  Case(
    'P3: a shard that is cut',
    _p3(),
    ('validation.tfrecord', 'is damaged'),
    both(
      _templates_of_p3,
      cut('p3/super_glue_copa_a_plain/validation.tfrecord-00000-of-00001', 0.7),
    ),
  ),
  Case(
    'a module without its package',
    ('prepare', 'skills_train_id', '--module=mhr_jax.tasks.skills'),
    ('seqio', "pip install 'mhr_jax[data]'"),
    absent=('seqio', 'tensorflow'),
    sample=True,
  ),
  Case(
    'an unregistered task',
    ('prepare', 'skills_trian_id', '--module=mhr_jax.tasks.skills'),
    ("'skills_trian_id'", "'skills_train_id'"),
    sample=True,
  ),
)
_PREPARED = (
  Case(
    'an unknown mixture', train(TASKS='"bth"'), ("'bth'", 'mhr-jax prepare')
  ),
  Case(
    'an unknown prepared task',
    train(TASKS='("one", "tow")'),
    ("'tow'", "'two'"),
    sample=True,
  ),
  Case('a list of no tasks', train(TASKS='()'), ('No tasks',)),
  Case('an id for a name', train(TASKS='3'), ('3',)),
  Case(
    'a manifest that is cut', train(), ('mhr_jax.json', 'line'), cut(_MANIFEST)
  ),
  Case(
    'a manifest of an older format',
    train(),
    ("'one'", 'format 1', 'mhr-jax prepare one'),
    edit_json(_MANIFEST, format_version=1),
  ),
  Case(
    'a manifest without splits',
    train(),
    ('mhr_jax.json: splits',),
    edit_json(_MANIFEST, splits=None),
  ),
  Case(
    'a mixture that is damaged',
    train(),
    ('both.json',),
    write('data_cache/mixtures/both.json', '{"tasks": ["one"], "rates": []}'),
  ),
  Case(
    'records that are not there',
    train(),
    ('data_cache/one', 'copy it again'),
    remove('data_cache/one/1.0.0/one-train*'),
  ),
  Case(
    'records that are cut',
    train(),
    ('data_cache/one', 'copy it again'),
    cut('data_cache/one/1.0.0/one-train.array_record-00000-of-00001', 0.1),
  ),
  Case(
    'a description that is not there',
    train(),
    ('one', 'copy it again'),
    remove('data_cache/one/1.0.0/dataset_info.json'),
  ),
  Case(
    'tasks of two vocabularies',
    train(),
    ("'two'", 'vocabulary'),
    edit_json(
      'data_cache/two/1.0.0/mhr_jax.json',
      vocabulary={'kind': 'bytes', 'extra_ids': 3, 'fingerprint': 'f'},
    ),
  ),
  Case(
    'a vocabulary of another kind',
    train(TASKS='"one"'),
    ("'byte'", "'bytes'"),
    edit_json(_MANIFEST, vocabulary={'kind': 'byte', 'fingerprint': 'f'}),
  ),
  Case(
    'a vocabulary beyond the model',
    train(TASKS='"one"'),
    ('359', '259', 'vocab_size to at least 359'),
    edit_json(_MANIFEST, vocabulary={'kind': 'bytes', 'extra_ids': 100}),
    sample=True,
  ),
  Case(
    'tasks that the run does not know',
    evaluate(TASKS='"new"'),
    ("'new'", "adapter='average'", 'adapt'),
  ),
  Case(
    'prepared data of another vocabulary',
    evaluate(),
    ("'copy'", 'vocabulary'),
    both(
      *(
        edit_json(
          f'data_cache/{name}/1.0.0/mhr_jax.json',
          vocabulary={'kind': 'bytes', 'fingerprint': 'f'},
        )
        for name in ('copy', 'first')
      )
    ),
  ),
)
CASES = (*_NATURAL_INSTRUCTIONS, *_OTHERS, *_PREPARED)
