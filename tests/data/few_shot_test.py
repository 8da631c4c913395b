"""Tests of drawing a few examples and training on them."""

import collections
import dataclasses
import itertools

import numpy as np
import pytest

from mhr_jax.data import records
from mhr_jax.data.few_shot import (
  FewShotLoader,
  examples_loader,
  few_shot_examples,
)
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


class _Forms:
  """Four examples in one to three forms; what a record holds tells which."""

  name, category, metric = 'task', None, None
  counts = (3, 1, 2, 3)

  def __init__(self):
    self.records = [
      {
        'inputs': np.array([10 + i, 20 + form]),
        'targets': np.array([30 + i]),
        'target_lengths': np.array([1]),
        'example_id': f'{i}/{form}',
        'choices': np.array([30 + i, 40, 40, 50 + form]),
        'choice_lengths': np.array([1, 2, 1]),
        'label': 0,
      }
      for form in range(3)  # the forms of an example do not lie together
      for i, n in enumerate(self.counts)
      if form < n
    ]

  def __len__(self):
    return len(self.records)

  def __getitems__(self, indices):
    return [self.records[i] for i in indices]

  def read_ids(self):
    self.times_read = getattr(self, 'times_read', 0) + 1
    return [record['example_id'] for record in self.records]


def _loader(drawn, batch_size=4, seed=3):
  widths = {'input_length': 4, 'target_length': 8}
  return FewShotLoader(
    'task', drawn, batch_size=batch_size, seed=seed, **widths
  )


def test_forms_are_found_once_for_all_seeds(source):
  forms = _Forms()
  draws = [
    few_shot_examples(forms, 2, seed, forms='one_each') for seed in (0, 1)
  ]
  assert draws[0].indices != draws[1].indices
  assert forms.times_read == 1
  ids = [source[i]['example_id'] for i in range(len(source))]
  assert source.read_ids() == ids


def test_forms_belong_together():
  drawn = few_shot_examples(_Forms(), None, 0, forms='one_each')
  assert sorted(drawn.forms) == sorted(_Forms.counts)
  ids = [record['example_id'].split('/')[0] for record in drawn.train]
  assert [k for k, _ in itertools.groupby(ids)] == list(dict.fromkeys(ids))
  part = few_shot_examples(_Forms(), 3, 0, held_back=1, forms='one_each')
  assert part.indices == drawn.indices[: len(part.indices)]
  names = [
    {r['example_id'][0] for r in x} for x in (part.train, part.held_back)
  ]
  assert (len(names[0]), len(names[1])) == (2, 1)
  assert not names[0] & names[1]
  assert len(few_shot_examples(_Forms(), None, 0).forms) == 9
  with pytest.raises(
    UserError, match="5 examples are wanted, but 'task' has 4"
  ):
    few_shot_examples(_Forms(), 5, 0, forms='one_each')


def test_an_epoch_has_every_example_once_in_a_form_drawn_anew():
  drawn = few_shot_examples(_Forms(), None, 0, forms='one_each')
  loader = _loader(drawn)
  seen = collections.Counter()
  for epoch in range(300):
    batch = loader.batch(epoch)
    inputs = batch['encoder_input_tokens']
    assert sorted(inputs[:, 0]) == [10, 11, 12, 13]
    forms = inputs[:, 1] - 20
    # Targets and choices are those of the form.
    assert np.array_equal(
      batch['decoder_target_tokens'][:, 0], inputs[:, 0] + 20
    )
    assert np.array_equal(batch['choice_tokens'][:, 2, 0], 50 + forms)
    assert batch['choice_tokens'].shape == (4, 3, 8)
    assert batch['choice_mask'].all() and not batch['choice_labels'].any()
    seen.update(zip(inputs[:, 0] - 10, forms, strict=True))
  for i, n in enumerate(_Forms.counts):
    counts = [seen[i, form] for form in range(n)]
    assert sum(counts) == 300 and min(counts) > 220 / n
  for name, array in _loader(drawn).batch(7).items():
    np.testing.assert_array_equal(array, loader.batch(7)[name])
  others = [
    _loader(drawn, seed=s).batch(7)['encoder_input_tokens'] for s in (3, 4)
  ]
  assert not np.array_equal(*others)


def test_records_that_are_examples_come_as_from_a_mixture(source):
  draw = few_shot_examples(source, 12, 0)
  settings = dataclasses.replace(_SETTINGS, seed=3)
  table = TaskTable(('task',))
  mixture = examples_loader({'task': draw.train}, settings, task_table=table)
  loader = FewShotLoader(
    'task', draw, batch_size=8, input_length=12, target_length=6, seed=3
  )
  for step in (0, 1, 5):
    batch = loader.batch(step)
    for name, array in mixture.batch(step).items():
      np.testing.assert_array_equal(batch.pop(name), array)
    assert not batch
