"""Cells whose shots a benchmark gives, seed by seed."""

import pytest

from mhr_jax import few_shot
from mhr_jax.errors import UserError

_SETTINGS = {
  'input_length': 12,
  'target_length': 6,
  'steps': 2,
  'batch_size': 4,
  'shots': None,
}


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory, write_task):
  data_dir = tmp_path_factory.mktemp('data')
  write_task(
    data_dir, 'task', few_shot_seed13=5, few_shot_seed42=3, test=4, train=9
  )
  return data_dir


def _open(data_dir, **kwargs):
  return few_shot.open_few_shot_tasks(data_dir, ['task'], **kwargs)


def test_each_seed_has_the_whole_of_its_own_split(data_dir):
  seeds = (42, 13)
  (task,) = _open(data_dir, train_split='few_shot_seed{seed}', seeds=seeds)
  settings = few_shot.FewShotSettings(seeds=seeds, **_SETTINGS)
  cells = few_shot.build_cells([task], settings)
  assert [cell.name for cell in cells] == ['task/seed42', 'task/seed13']
  assert [sorted(cell.indices) for cell in cells] == [[0, 1, 2], list(range(5))]
  rows = {
    seed: {
      tuple(inputs)
      for inputs in cell.batches['encoder_input_tokens'].reshape(-1, 12)
    }
    for seed, cell in zip(seeds, cells, strict=True)
  }
  whole = few_shot.FewShotSettings(seeds=(0,), **_SETTINGS)
  for seed, found in rows.items():
    (one,) = few_shot.build_cells(
      _open(data_dir, train_split=f'few_shot_seed{seed}'), whole
    )
    other = one.batches['encoder_input_tokens'].reshape(-1, 12)
    assert found == set(map(tuple, other))


def test_a_seed_without_shots_is_an_error(data_dir):
  with pytest.raises(UserError, match='few_shot_seed7'):
    _open(data_dir, train_split='few_shot_seed{seed}', seeds=(13, 7))
  tasks = _open(data_dir, train_split='few_shot_seed{seed}', seeds=(13,))
  settings = few_shot.FewShotSettings(seeds=(13, 42), **_SETTINGS)
  with pytest.raises(UserError, match='no shots of seed 42, only of 13'):
    few_shot.build_cells(tasks, settings)


def test_too_few_shots_say_how_many_there_are(data_dir):
  settings = {**_SETTINGS, 'shots': 10}
  with pytest.raises(UserError, match="10 examples .*'task' has 9 there"):
    few_shot.build_cells(
      _open(data_dir), few_shot.FewShotSettings(seeds=(0,), **settings)
    )


def test_tasks_of_another_vocabulary_are_refused(data_dir):
  with pytest.raises(UserError, match="'task' was prepared with vocabulary"):
    _open(data_dir, vocabulary_fingerprint='another')
