"""Tests of drawing a few examples and training on them."""

import dataclasses

import numpy as np
import pytest

from mhr_jax.data import records
from mhr_jax.data.few_shot import examples_loader, few_shot_examples
from mhr_jax.data.loader import MixtureSettings
from mhr_jax.errors import UserError
from mhr_jax.task_table import TaskTable

_SETTINGS = MixtureSettings(batch_size=8, input_length=12, target_length=6)


@pytest.fixture(scope='module')
def source(tmp_path_factory, write_task):
  data_dir = tmp_path_factory.mktemp('data')
  write_task(data_dir, 'task', train=40)
  return records.open_task(data_dir, 'task').source('train')


def test_draws_are_seeded_and_without_replacement(source):
  draw = few_shot_examples(source, 16, 0)
  assert len(set(draw.indices)) == len(draw.train) == 16
  assert few_shot_examples(source, 16, 0).indices == draw.indices
  assert few_shot_examples(source, 16, 1).indices != draw.indices
  assert few_shot_examples(source, 32, 0).indices[:16] == draw.indices
  for index, example in zip(draw.indices, draw.train, strict=True):
    assert example['example_id'] == source[index]['example_id']
  assert sorted(few_shot_examples(source, 40, 5).indices) == list(range(40))


def test_every_example_is_drawn_equally_often(source):
  counts = np.zeros(40)
  for seed in range(600):
    counts[list(few_shot_examples(source, 10, seed).indices)] += 1
  assert np.all(np.abs(counts - 150) < 55)


def test_a_part_can_be_held_back(source):
  draw = few_shot_examples(source, 16, 0, held_back=4)
  ids = [example['example_id'] for example in draw.train + draw.held_back]
  assert (len(draw.train), len(draw.held_back)) == (12, 4)
  assert ids == [source[i]['example_id'] for i in draw.indices]


def test_errors(source):
  with pytest.raises(UserError, match="'task' has 40"):
    few_shot_examples(source, 41, 0)
  with pytest.raises(UserError, match='held back'):
    few_shot_examples(source, 4, 0, held_back=4)
  settings = dataclasses.replace(_SETTINGS, objective='span_corruption')
  with pytest.raises(UserError, match='prepared tasks'):
    examples_loader(
      {'task': [source[0]]}, settings, task_table=TaskTable(('task',))
    )


def test_training_sees_each_example_once_an_epoch(source):
  draw = few_shot_examples(source, 12, 0)
  table = TaskTable(('other', 'task'))
  loader = examples_loader({'task': draw.train}, _SETTINGS, task_table=table)
  assert loader.steps_per_epoch == 2
  seen = []
  for step in range(6):
    batch = loader.batch(step)
    assert batch['task_ids'].tolist() == [1] * 8
    units = loader.plan(step).examples.units
    seen += units.tolist()
    for unit, tokens in zip(units, batch['encoder_input_tokens'], strict=True):
      want = [*draw.train[unit]['inputs'].tolist(), 1]
      assert tokens[tokens != 0].tolist() == want
  for epoch in range(4):
    assert sorted(seen[12 * epoch : 12 * epoch + 12]) == list(range(12))
