"""The authors' choice of instances, against their procedure written out."""

import json
import random

import pytest

from mhr_jax.data import prepare, records
from mhr_jax.errors import UserError
from mhr_jax.tasks import natural_instructions as ni
from mhr_jax.tasks import ni_splits
from mhr_jax.tasks.ni_splits import SplitSettings

_SIZES = {'task9_b': 130, 'task2_a': 7, 'task30_c': 103, 'task4_d': 150}
_TRAIN, _TEST = ('task9_b', 'task2_a'), ('task30_c', 'task4_d')
_AUTHORS = {'order': 'authors', 'max_train_instances': 100}


def _task(name, size, **fields):
  return {
    'Definition': ['Do.'],
    'Categories': ['Title Generation'],
    'Instances': [
      {'id': f'{name}-{i}', 'input': str(i), 'output': [f'out {i}', 'x']}
      for i in range(size)
    ],
    **fields,
  }


def write_repository(folder, sizes, train, test, track='default', **fields):
  """Writes a repository whose tasks have so many instances."""
  (folder / 'tasks').mkdir(exist_ok=True)
  (folder / f'splits/{track}').mkdir(parents=True)
  for name, size in sizes.items():
    text = json.dumps(_task(name, size, **fields))
    (folder / f'tasks/{name}.json').write_text(text)
  for role, names in (('train', train), ('test', test)):
    path = folder / f'splits/{track}/{role}_tasks.txt'
    path.write_text('\n'.join(names) + '\n')
  return folder


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('ni')
  return write_repository(folder, _SIZES, _TRAIN, _TEST)


def _authors(seed):
  """One generator through both lists; test tasks without their first 100."""
  random.seed(seed)
  found = {}
  for name in _TRAIN + _TEST:
    instances = list(range(_SIZES[name]))
    if name in _TEST:
      instances = instances[100:]
    random.shuffle(instances)
    found[name] = [f'{name}-{i}' for i in instances]
  return found


def _chosen(folder, name, role, **options):
  path = folder / f'tasks/{name}.json'
  instances = json.loads(path.read_text())['Instances']
  settings = SplitSettings.of({**_AUTHORS, **options})
  chosen = ni_splits.choose_splits(instances, role, settings, path=path)
  assert tuple(chosen) == settings.names(role)
  return {split: [one['id'] for one in of] for split, of in chosen.items()}


def test_training_instances_are_the_authors(folder):
  expected = _authors(42)
  found = _chosen(folder, 'task9_b', 'train')
  assert found['train'] == expected['task9_b'][:100]
  assert found['validation'] == expected['task9_b'][100:120]
  small = _chosen(folder, 'task2_a', 'train')
  assert small == {'train': expected['task2_a'], 'validation': []}
  other = _chosen(folder, 'task2_a', 'train', seed=5)
  assert other['train'] == _authors(5)['task2_a']


@pytest.mark.parametrize('shots', [16, 32, 50])
def test_few_shot_examples_are_the_authors(folder, shots):
  found = _chosen(folder, 'task4_d', 'test', few_shot_pool=shots)
  for seed in (13, 42, 58):
    expected = _authors(seed)['task4_d'][:shots]
    assert found.pop(f'few_shot_seed{seed}') == expected
  first = [f'task4_d-{i}' for i in range(100)]
  assert found == {'test': first, 'official_test': first}


def test_too_few_instances_say_how_many_there_are(folder):
  with pytest.raises(UserError, match='task4_d.json has 50 inst.*; 1000 are w'):
    _chosen(folder, 'task4_d', 'test', few_shot_pool=1000)
  found = _chosen(
    folder, 'task30_c', 'test', few_shot_pool=1000, shortfall='take_all'
  )
  assert found['few_shot_seed13'] == _authors(13)['task30_c']


@pytest.mark.parametrize(
  ('shortfall', 'n_few_shot'), [('refuse', 1), ('take_all', 2)]
)
def test_tasks_to_adapt_to_have_enough_instances(
  tmp_path, shortfall, n_few_shot
):
  tests = {'a': 100, 'b': 103, 'c': 104}
  folder = write_repository(tmp_path, tests, (), tests)
  options = {**_AUTHORS, 'few_shot_pool': 4, 'shortfall': shortfall}
  name = f'n_{shortfall}'
  mixtures = ni.register(folder, vocabulary='bytes', name=name, splits=options)
  assert len(mixtures[f'{name}_test']) == 3
  wanted = [f'{name}_{task}' for task in tests][-n_few_shot:]
  assert list(mixtures[f'{name}_few_shot']) == wanted
  if shortfall == 'take_all':
    whole = _chosen(folder, 'a', 'test', **options)
    assert not whole['few_shot_seed13'] and len(whole['test']) == 100


def test_options_are_checked():
  with pytest.raises(UserError, match="'author'; .* Did you mean 'authors'"):
    SplitSettings(order='author')
  with pytest.raises(UserError, match="'few_shot'.*Did you mean 'few_shot_"):
    SplitSettings.of({'few_shot': 3})


def test_a_whole_checkout_has_756_and_119_tasks(tmp_path):
  """The official lists' sizes, as small files."""
  names = [f'task{i}_x' for i in range(756 + 119)]
  sizes = {name: 3 if i < 756 else 104 for i, name in enumerate(names)}
  write_repository(tmp_path, sizes, names[:756], names[756:])
  splits = {**_AUTHORS, 'few_shot_pool': 4}
  mixtures = ni.register(
    tmp_path, vocabulary='bytes', name='whole', splits=splits
  )
  assert [len(tasks) for tasks in mixtures.values()] == [756, 119, 119]
  prepare.prepare(tmp_path / 'data', ['whole_task0_x', 'whole_task874_x'])
  task = records.open_task(tmp_path / 'data', 'whole_task874_x')
  pools = {f'few_shot_seed{seed}': 4 for seed in (13, 42, 58)}
  assert task.splits == {**pools, 'test': 100, 'official_test': 100}
  record = task.source('few_shot_seed58')[0]
  assert record['targets_pretokenized'][1] == 'x'
  assert (task.category, task.metric) == ('Title Generation', 'rouge_l')
