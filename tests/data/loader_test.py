"""Tests of the loader: which examples come, when, and as what."""

import dataclasses

import numpy as np
import pytest

from mhr_jax.data import loader as loader_lib
from mhr_jax.data.loader import MixtureSettings, describe_cuts
from mhr_jax.data.read_ahead import ReadAhead, batch_dataset
from mhr_jax.errors import UserError
from mhr_jax.task_table import TaskTable

_SIZES = {'alpha': 41, 'beta': 7, 'gamma': 150}
_SETTINGS = MixtureSettings(
  batch_size=8, input_length=24, target_length=16, seed=3
)
_PACKINGS = ('none', 'length_buckets', 'within_task')


@pytest.fixture(scope='module')
def prepared(tmp_path_factory, write_task, write_mixture):
  data_dir = tmp_path_factory.mktemp('data')
  written = {
    name: write_task(data_dir, name, seed=i, train=size)['train']
    for i, (name, size) in enumerate(_SIZES.items())
  }
  write_mixture(data_dir, 'all', _SIZES, [1.0, 1.0, 2.0])
  return data_dir, written


@pytest.fixture
def build(prepared):
  def make(
    tasks=tuple(_SIZES), *, split='train', table=None, share=(0, 1), **k
  ):
    settings = dataclasses.replace(_SETTINGS, **k)
    return loader_lib.build_loader(
      prepared[0],
      tasks,
      split,
      settings,
      task_table=table,
      process_index=share[0],
      process_count=share[1],
    )

  return make


def _unpack(batch):
  """Returns (row, inputs, targets, decoder inputs) of each example."""
  found = []
  segments = 'encoder_segment_ids' in batch
  inputs, targets = (
    batch['encoder_input_tokens'],
    batch['decoder_target_tokens'],
  )
  before = batch['decoder_input_tokens']
  of_in = batch['encoder_segment_ids'] if segments else (inputs != 0) * 1
  of_out = batch['decoder_segment_ids'] if segments else (targets != 0) * 1
  for row in range(len(inputs)):
    for number in range(1, of_in[row].max() + 1):
      found.append(
        (
          row,
          inputs[row][of_in[row] == number].tolist(),
          targets[row][of_out[row] == number].tolist(),
          before[row][of_out[row] == number].tolist(),
        )
      )
  return found


@pytest.mark.parametrize('packing', _PACKINGS)
def test_batches_hold_the_planned_examples(build, prepared, packing):
  loader = build(packing=packing)
  tasks = list(_SIZES)
  for step in range(30):
    batch, plan = loader.batch(step), loader.plan(step)
    examples = plan.examples
    found = _unpack(batch)
    assert [each[0] for each in found] == plan.rows.tolist()
    for k, (row, inputs, targets, before) in enumerate(found):
      task = tasks[examples.tasks[k]]
      record = prepared[1][task][examples.units[k]]
      assert inputs == [*record.inputs, 1]
      assert targets in [[*target, 1] for target in record.targets]
      assert before == [0, *targets[:-1]]
      assert batch['task_ids'][row] == examples.tasks[k]
    assert batch['decoder_loss_weights'].sum() == sum(len(f[2]) for f in found)


@pytest.mark.parametrize('packing', _PACKINGS)
@pytest.mark.parametrize('processes', [2, 4])
def test_processes_share_the_same_global_batches(build, packing, processes):
  whole = build(packing=packing)
  parts = [
    build(packing=packing, share=(i, processes)) for i in range(processes)
  ]
  for step in (0, 1, 57):
    want = whole.batch(step)
    shares = [part.batch(step) for part in parts]
    for name, array in want.items():
      got = np.concatenate([share[name] for share in shares])
      np.testing.assert_array_equal(got, array)


@pytest.mark.parametrize('packing', _PACKINGS)
@pytest.mark.parametrize('objective', ['targets', 'span_corruption'])
def test_a_step_is_the_same_whenever_it_is_asked_for(build, packing, objective):
  options = {'packing': packing, 'objective': objective}
  walked = build(**options)
  batches = [walked.batch(step) for step in range(45)]
  for step in (44, 17, 0):
    again = build(**options).batch(step)
    for name, array in batches[step].items():
      np.testing.assert_array_equal(again[name], array)


@pytest.mark.parametrize('packing', _PACKINGS)
def test_every_example_comes_once_an_epoch(build, packing):
  loader = build(packing=packing)
  seen = {}
  for step in range(4 * loader.steps_per_epoch):
    plan = loader.plan(step)
    each = plan.examples
    rows = np.stack([each.tasks, each.epochs, each.units], axis=1)
    for key in map(tuple, rows.tolist()):
      assert key not in seen
      seen[key] = step
  for task, size in enumerate(_SIZES.values()):
    whole = [unit for t, epoch, unit in seen if t == task and epoch == 0]
    assert sorted(whole) == list(range(size))


@pytest.mark.parametrize('packing', _PACKINGS)
def test_rates_count_examples(build, packing):
  loader = build(packing=packing, rates='equal')
  counts = np.zeros(3)
  for step in range(512):
    counts += np.bincount(loader.plan(step).examples.tasks, minlength=3)
  np.testing.assert_allclose(counts / counts.sum(), 1 / 3, atol=0.02)
  assert loader.rates == pytest.approx(dict.fromkeys(_SIZES, 1 / 3), abs=1e-8)


def test_a_row_carries_one_task(build):
  loader = build(packing='within_task')
  most = 0
  for step in range(20):
    plan = loader.plan(step)
    tasks = plan.row_tasks[plan.rows]
    np.testing.assert_array_equal(tasks, plan.examples.tasks)
    assert set(plan.rows) == set(range(8))
    most = max(most, np.bincount(plan.rows).max())
  assert most > 2


def test_buckets_give_a_few_shapes_and_less_padding(build):
  plain, buckets = (
    build(),
    build(packing='length_buckets', length_buckets=[(4, 8), (8, 8)]),
  )
  shapes = {buckets.batch(s)['encoder_input_tokens'].shape for s in range(64)}
  assert (8, 4) in shapes and shapes <= {(8, 4), (8, 8), (8, 24)}
  packed = build(packing='within_task')
  assert packed.padding_share < buckets.padding_share < plain.padding_share


def test_padding_share_is_that_of_the_batches(build):
  for packing in _PACKINGS:
    loader = build(packing=packing, reference='first')
    filled = cells = 0
    for step in range(min(64, loader.steps_per_epoch)):
      batch = loader.batch(step)
      for name in ('encoder_input_tokens', 'decoder_target_tokens'):
        filled += np.count_nonzero(batch[name])
        cells += batch[name].size
    assert loader.padding_share == pytest.approx(1 - filled / cells)


def test_references_are_drawn_uniformly_and_again_each_epoch(build, prepared):
  loader = build(('alpha',), batch_size=41)
  records = prepared[1]['alpha']
  counts = {}
  for step in range(300):
    units = loader.plan(step).examples.units
    for unit, (_, _, targets, _) in zip(
      units, _unpack(loader.batch(step)), strict=True
    ):
      choices = [[*target, 1] for target in records[unit].targets]
      counts.setdefault(unit, [0] * len(choices))
      counts[unit][choices.index(targets)] += 1
  assert len(counts) == 41
  for unit, found in counts.items():
    assert sum(found) == 300, unit
    assert max(found) - min(found) < 100
  first = build(('alpha',), batch_size=41, reference='first')
  for unit, (_, _, targets, _) in zip(
    first.plan(9).examples.units, _unpack(first.batch(9)), strict=True
  ):
    assert targets == [*records[unit].targets[0], 1]


@pytest.mark.parametrize('packing', _PACKINGS)
def test_span_corruption_hides_what_it_tells(build, prepared, packing):
  loader = build(
    objective='span_corruption', packing=packing, reference='first'
  )
  first = 259 + 100 - 1  # the byte vocabulary's last extra id
  for step in range(10):
    plan = loader.plan(step)
    for k, (_, inputs, targets, _) in enumerate(_unpack(loader.batch(step))):
      task = list(_SIZES)[plan.examples.tasks[k]]
      record = prepared[1][task][plan.examples.units[k]]
      text = [*record.inputs, *record.targets[0]]
      spans = {}
      for token in targets[:-1]:
        if token >= 259:
          assert token == first - len(spans)
          spans[token] = current = []
        else:
          current.append(token)
      restored = []
      for token in inputs[:-1]:
        restored += spans.get(token, [token]) if token >= 259 else [token]
      assert restored == text


def test_corruption_changes_from_epoch_to_epoch(build):
  loader = build(('beta',), batch_size=7, objective='span_corruption')
  rows = set()
  for step in range(6):
    where = loader.plan(step).examples.units.tolist().index(0)
    rows.add(tuple(loader.batch(step)['encoder_input_tokens'][where]))
  assert len(rows) > 1


def test_what_is_cut_is_counted_and_still_ends(build, prepared):
  loader = build(input_length=6, target_length=4, reference='first')
  report = {task.name: task for task in loader.report()}
  for name, records in prepared[1].items():
    assert report[name].examples == len(records)
    long = sum(len(record.inputs) > 5 for record in records)
    assert report[name].cut_inputs == long > 0
    long = sum(len(record.targets[0]) > 3 for record in records)
    assert report[name].cut_targets == long > 0
  inputs_cut = sum(row.cut_inputs for row in report.values())
  said = describe_cuts(loader.report())
  assert said is not None and said.startswith(f'{inputs_cut} inputs and ')
  assert (
    describe_cuts(build(input_length=99, target_length=99).report()) is None
  )
  inputs = loader.batch(0)['encoder_input_tokens']
  assert np.all((inputs == 1).sum(axis=1) == 1)


@pytest.mark.parametrize('cache_bytes', [0, 2000])
def test_tasks_on_disk_give_the_same_batches(build, cache_bytes):
  memory, disk = build(), build(cache_bytes=cache_bytes)
  for step in range(12):
    want, got = memory.batch(step), disk.batch(step)
    for name, array in want.items():
      np.testing.assert_array_equal(got[name], array)
  assert memory.report() == disk.report()


def test_ids_come_from_the_table(build):
  table = TaskTable(('gamma', 'delta', 'beta', 'alpha'))
  loader = build(table=table)
  batch, plan = loader.batch(0), loader.plan(0)
  names = [list(_SIZES)[task] for task in plan.row_tasks]
  assert batch['task_ids'].tolist() == [table.id_of(name) for name in names]
  with pytest.raises(UserError, match="no task 'gamma'"):
    build(table=TaskTable(('alpha', 'beta')))


def test_a_mixture_by_name(build):
  assert build('all', rates='mixture').rates == pytest.approx(
    {'alpha': 0.25, 'beta': 0.25, 'gamma': 0.5}
  )
  sizes = np.array(list(_SIZES.values()))
  rates = list(build('all').rates.values())
  np.testing.assert_allclose(rates, sizes / sizes.sum(), atol=1e-8)
  with pytest.raises(UserError, match='name of a mixture'):
    build(rates='mixture')


def test_parts_of_a_split(build):
  assert build(split='train[:-5]').n_examples == sum(_SIZES.values()) - 15


@pytest.mark.parametrize(
  'options, message',
  [
    ({'batch_size': 0}, 'batch_size is 0; at least 1'),
    ({'packing': 'tight'}, "packing is 'tight'; one of 'none'"),
    ({'objective': 'lm'}, "objective is 'lm'; one of"),
    ({'reference': 'last'}, "reference is 'last'; one of"),
    ({'rates': 'fair'}, "rates is 'fair'; one of"),
    ({'length_buckets': [(4, 4)]}, "need packing = 'length_buckets'"),
    (
      {'packing': 'length_buckets', 'length_buckets': [(99, 4)]},
      'larger than',
    ),
    (
      {'packing': 'length_buckets', 'length_buckets': [(9, 9), (4, 4)]},
      'must grow',
    ),
    ({'share': (0, 3)}, '3 processes cannot share a batch of 8'),
  ],
)
def test_settings_that_cannot_be(build, options, message):
  with pytest.raises(UserError, match=message):
    build(**options)


def test_reading_ahead_changes_nothing(build):
  loader = build()
  ahead = ReadAhead(loader)
  for step in (0, 1, 2, 7, 8, 3):
    found = ahead(step)
    for name, array in loader.batch(step).items():
      np.testing.assert_array_equal(found[name], array)
  dataset = batch_dataset(loader, start=5)
  np.testing.assert_array_equal(
    dataset[2]['encoder_input_tokens'],
    loader.batch(7)['encoder_input_tokens'],
  )
