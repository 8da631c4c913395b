"""The official format: prompts, splits, references, and what is malformed."""

import hashlib
import json

import pytest

from mhr_jax.data import prepare, records, registry
from mhr_jax.errors import UserError
from mhr_jax.tasks import natural_instructions as ni
from mhr_jax.tasks import ni_files, ni_splits
from mhr_jax.tasks.natural_instructions import PromptSettings
from mhr_jax.tasks.ni_splits import SplitSettings
from mhr_jax.vocabulary import ByteVocabulary

_BYTES = ByteVocabulary()
_TASK = {
  'Definition': ['Name the capital', 'unused'],
  'Categories': ['Misc.'],
  'Positive Examples': [
    {'input': 'Italy', 'output': 'Rome', 'explanation': 'x'},
    {'input': 'Spain?', 'output': 'Madrid!'},
  ],
  'Instances': [
    {
      'id': f'i{i}',
      'input': f'Land {i}',
      'output': [f'Stadt {i}', 'weiß nicht'],
    }
    for i in range(50)
  ],
}


def _write(folder, **tasks):
  """A folder in the official form: task_a trains, task_b tests."""
  (folder / 'tasks').mkdir()
  (folder / 'splits/default').mkdir(parents=True)
  for name, task in {'task_a': _TASK, 'task_b-x': _TASK, **tasks}.items():
    text = task if isinstance(task, str) else json.dumps(task, indent=1)
    (folder / f'tasks/{name}.json').write_text(text)
  (folder / 'splits/default/train_tasks.txt').write_text('task_a\n')
  (folder / 'splits/default/test_tasks.txt').write_text('task_b-x\n\n')
  return folder


def _prompt(text='Land', **settings):
  return ni.make_prompt(_TASK, text, PromptSettings(**settings), _BYTES)


def test_prompt_with_definition():
  assert _prompt('Land') == (
    'Task definition: Name the capital.\n'
    'Now complete the following example -\nInput: Land.\nOutput:'
  )


def test_prompt_without_definition_keeps_punctuation():
  assert _prompt(' Land? ', definition='none') == (
    'Now complete the following example -\nInput: Land?\nOutput:'
  )


def test_prompt_with_positive_examples():
  expected = (
    'Task definition: Name the capital.\n'
    ' Positive Example 1 -\nInput: Italy.\n Output: Rome.\n\n'
    ' Positive Example 2 -\nInput: Spain?\n Output: Madrid!\n\n'
    'Now complete the following example -\nInput: Land.\nOutput:'
  )
  assert _prompt(positive_examples=2) == expected
  assert _prompt(positive_examples=9) == expected


def test_prompt_leaves_examples_out_and_then_cuts_to_fit():
  whole = _prompt(positive_examples=2)
  one, none = _prompt(positive_examples=1), _prompt()
  lengths = {len(text) + 1: text for text in (whole, one, none)}
  for limit, text in lengths.items():
    made = _prompt(positive_examples=2, max_input_tokens=limit)
    assert made == text
  for limit in (20, len(none)):
    cut = _prompt(positive_examples=2, max_input_tokens=limit)
    assert len(cut) + 1 == limit and cut.endswith('\nOutput:')
    assert none.startswith(cut.removesuffix('\nOutput:'))


def test_splits_of_a_training_task():
  instances = _TASK['Instances']
  splits = ni_splits.choose_splits(
    instances, 'train', SplitSettings(), path='f'
  )
  by_hash = sorted(
    instances,
    key=lambda one: hashlib.sha256(f'validation {one["id"]}'.encode()).digest(),
  )
  held_back = {one['id'] for one in by_hash[:10]}  # a fifth, less than 20
  assert {one['id'] for one in splits['validation']} == held_back
  rest = [one for one in instances if one['id'] not in held_back]
  assert splits['train'] == rest
  capped = SplitSettings(validation_instances=4, max_train_instances=7)
  splits = ni_splits.choose_splits(instances, 'train', capped, path='f')
  assert [len(splits[name]) for name in ('train', 'validation')] == [7, 4]


@pytest.mark.parametrize(('n', 'n_test'), [(132, 100), (200, 100), (100, 68)])
def test_splits_of_a_test_task(n, n_test):
  instances = [{'id': str(i)} for i in range(n)]
  splits = ni_splits.choose_splits(instances, 'test', SplitSettings(), path='f')
  assert splits['few_shot'] == instances[-32:]
  assert splits['test'] == instances[:n_test]
  assert splits['official_test'] == instances[:100]


def test_a_test_task_too_small_for_its_pool_is_an_error():
  with pytest.raises(UserError, match='has 32 instances: a few-shot pool'):
    ni_splits.choose_splits([{}] * 32, 'test', SplitSettings(), path='f')


def test_registered_prepared_and_read(tmp_path):
  folder = _write(tmp_path)
  mixtures = ni.register(folder, vocabulary='bytes', name='n')
  assert mixtures == {
    'n_train': ('n_task_a',),
    'n_test': ('n_task_b_x',),
    'n_few_shot': ('n_task_b_x',),
  }
  assert ni.register(folder, vocabulary='bytes', name='n') == mixtures
  with pytest.raises(UserError, match='registered twice'):
    ni.register(folder, vocabulary='bytes', name='n', positive_examples=1)
  prepare.prepare(tmp_path / 'data', ['n_train', 'n_test'])
  task = records.open_task(tmp_path / 'data', 'n_task_b_x')
  assert task.category == 'Misc.'
  assert task.splits == {'few_shot': 32, 'test': 18, 'official_test': 50}
  record = task.source('few_shot')[31]
  assert record['example_id'] == 'i49'
  assert record['targets_pretokenized'] == ('Stadt 49', 'weiß nicht')
  prompt = _prompt('Land 49')
  assert record['inputs'].tolist() == _BYTES.encode(prompt)


@pytest.mark.parametrize(
  ('task', 'message'),
  [
    ('{"Definition": "x",\n "Instances": [}', r'bad\.json:2: not JSON'),
    ('[]', r'bad\.json:1: a task file is a JSON object'),
    ({'Instances': _TASK['Instances']}, "there is no 'Definition'"),
    ({'Definition': 'x', 'instances': [1]}, "'Instances'.*mean 'instances'"),
    (
      '{"Definition": "x", "Instances": [\n'
      '{"id": "p", "input": "", "output": "y"},\n{"id": "q", "input": ""}]}',
      r"bad\.json:3: instance 1 has no 'output'",
    ),
    (
      '{"Definition": "x", "Instances": [\n'
      '{"id": "p", "input": "", "output": "y"},\n\n {"input": ""}]}',
      r"bad\.json:4: instance 1 has no 'id'",
    ),
    (
      {'Definition': 'x', 'Instances': [{'id': 1, 'input': '', 'output': []}]},
      'instance 0 has no reference',
    ),
    (
      {'Definition': 'x', 'Instances': [{'id': 1, 'input': '', 'output': [2]}]},
      'not text',
    ),
    (
      '{"Definition": "x",\n"Instances": "abc"}',
      r"bad\.json:2: 'Instances' is a list of JSON objects, not str",
    ),
    (
      '{"Definition": "x", "Instances": [\n'
      '{"id": "p", "input": "", "output": 3}]}',
      r'bad\.json:2: instance 0 has an output that is not text',
    ),
    (
      '{"Definition": "x", "Instances": [\n'
      '\n{"id": ["a"], "input": "", "output": "y"}]}',
      r"bad\.json:3: instance 0 has an 'id' that is not text: \['a'\]",
    ),
    (
      '{"Definition": "x", "Instances": [\n'
      '{"id": "p", "input": 3, "output": "y"}]}',
      r"bad\.json:2: instance 0 has an 'input' that is not text: 3",
    ),
    (
      '{"Definition": 3, "Instances": [1]}',
      r"bad\.json:1: 'Definition' is a text or a list of texts",
    ),
    (
      '{"Definition": "x", "Instances": [1],\n"Categories": "QA"}',
      r"bad\.json:2: 'Categories' is a list of texts, not 'QA'",
    ),
    (
      '{"Definition": "x", "Instances": [1],\n'
      '"Positive Examples": [{"input": "x"}]}',
      r"bad\.json:2: 'Positive Examples' .*: 0 has no 'output'",
    ),
    (
      {**_TASK, 'Instances': _TASK['Instances'][:1] * 2},
      "two instances have the id 'i0'",
    ),
  ],
)
def test_malformed_files_name_the_file_and_the_line(tmp_path, task, message):
  folder = _write(tmp_path, bad=task)
  with pytest.raises(UserError, match=message):
    ni_files.read_task_file(folder / 'tasks/bad.json')


def test_a_task_file_that_is_no_text_is_named(tmp_path):
  path = _write(tmp_path) / 'tasks/bad.json'
  path.write_bytes(b'{"Definition": "x",\n "Input": "\xe9"}')
  with pytest.raises(UserError, match=r'bad\.json:2: no text in UTF-8'):
    ni_files.read_task_file(path)


def test_a_list_that_names_an_absent_task_is_an_error(tmp_path):
  folder = _write(tmp_path)
  path = folder / 'splits/default/train_tasks.txt'
  path.write_text('task_a\ntask_bx\n')
  with pytest.raises(
    UserError, match=r"train_tasks\.txt:2: .*task_bx\.json.*mean 'task_b-x'"
  ):
    ni.register(folder, vocabulary='bytes', name='n2')
  path.unlink()
  with pytest.raises(UserError, match='in the official form'):
    ni.register(folder, vocabulary='bytes', name='n2')


def test_settings_are_checked():
  with pytest.raises(UserError, match="'last'; one of 'first', 'none'"):
    PromptSettings(definition='last')


def test_the_real_subset(shared_dir, tmp_path):
  folder = shared_dir / 'data/natural_instructions_subset'
  vocabulary = shared_dir / 'data/vocab/t5_vocab.model'
  mixtures = ni.register(folder, vocabulary=vocabulary, name='real')
  assert {name: len(tasks) for name, tasks in mixtures.items()} == {
    'real_train': 46,
    'real_test': 7,
    'real_few_shot': 7,
  }
  results = prepare.prepare(tmp_path, ['real_test'])
  assert sum(result.seconds for result in results) < 60
  references = {}
  lines = (folder / 'eval/test_references.jsonl').read_text().splitlines()
  for one in map(json.loads, lines):
    references[one['id']] = (tuple(one['references']), one['task_category'])
  for name in mixtures['real_test']:
    task = records.open_task(tmp_path, name)
    test, pool = task.source('test'), task.source('few_shot')
    assert (len(test), len(pool)) == (68, 32)
    assert not {r['example_id'] for r in test} & {r['example_id'] for r in pool}
    for record in task.source('official_test'):
      expected = references.pop(record['example_id'])
      assert (record['targets_pretokenized'], task.category) == expected
  assert not references
  (one,) = registry.read_examples('real_task1146_country_capital', 'train', 1)
  assert one.inputs_pretokenized.endswith('\nOutput:')


def test_copies_of_the_input_score_as_the_official_evaluation(shared_dir):
  names = {'multi_task': 'a', 'zero_shot': 'b', 'few_shot': 'c'}
  found = ni.score_copies(
    shared_dir / 'data/natural_instructions_subset', names=names
  )
  zero_shot = found['zero_shot']
  assert len(zero_shot) == 7
  assert 'b_task1358_xlsum_title_generation' in zero_shot
  mean = sum(zero_shot.values()) / 7  # All have 100 instances.
  assert mean == pytest.approx(34.1332, abs=5e-5)
