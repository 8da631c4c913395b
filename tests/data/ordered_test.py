"""Tests of evaluation batches."""

import numpy as np
import pytest

from mhr_jax.data import records
from mhr_jax.data.ordered import ExampleSource, eval_batches, report_cuts
from mhr_jax.errors import UserError
from mhr_jax.task_table import TaskTable

_WIDTHS = {'input_length': 10, 'target_length': 6}


@pytest.fixture(scope='module')
def sources(tmp_path_factory, write_task):
  data_dir = tmp_path_factory.mktemp('data')
  for name, n in (('one', 11), ('two', 6)):
    write_task(data_dir, name, category=f'kind {name}', test=n)
  return [
    records.open_task(data_dir, name).source('test') for name in ('one', 'two')
  ]


def _all(batches):
  return [record for batch in batches for record in batch.records]


def test_every_example_once_in_order(sources):
  batches = list(eval_batches(sources, batch_size=4, **_WIDTHS))
  want = [(s.name, i) for s in sources for i in range(len(s))]
  assert [(r.task, r.index) for r in _all(batches)] == want
  assert sum(batch.row_weights.sum() for batch in batches) == 17
  assert all(len(batch.row_weights) == 4 for batch in batches)
  for batch in batches:
    for row, record in enumerate(batch.records):
      source = sources[record.task == 'two']
      example = source[record.index]
      assert record.inputs == example['inputs_pretokenized']
      assert record.targets == example['targets_pretokenized']
      assert record.example_id == example['example_id']
      assert record.category == f'kind {record.task}'
      tokens = batch.arrays['encoder_input_tokens'][row]
      assert tokens[tokens > 1].tolist() == example['inputs'].tolist()
      target = batch.arrays['decoder_target_tokens'][row]
      first = example['targets'][: example['target_lengths'][0]]
      assert target[target > 1].tolist() == first.tolist()


def test_rows_that_fill_up_weigh_nothing(sources):
  last = list(eval_batches(sources, batch_size=4, **_WIDTHS))[-1]
  assert last.row_weights.tolist() == [1, 0, 0, 0]
  assert not last.arrays['decoder_loss_weights'][1:].any()
  assert last.arrays['decoder_loss_weights'][0].any()
  assert np.all((last.arrays['encoder_input_tokens'] != 0).any(axis=1))


@pytest.mark.parametrize('processes', [2, 4])
def test_processes_share_every_batch(sources, processes):
  whole = list(eval_batches(sources, batch_size=8, **_WIDTHS))
  parts = [
    list(
      eval_batches(
        sources,
        batch_size=8,
        process_index=i,
        process_count=processes,
        **_WIDTHS,
      )
    )
    for i in range(processes)
  ]
  for step, want in enumerate(whole):
    got = [part[step] for part in parts]
    for name, array in want.arrays.items():
      joined = np.concatenate([each.arrays[name] for each in got])
      np.testing.assert_array_equal(joined, array)
    assert sum((each.records for each in got), ()) == want.records


def test_limit_and_ids(sources):
  table = TaskTable(('two', 'one'))
  batches = list(
    eval_batches(sources, batch_size=8, limit=3, task_table=table, **_WIDTHS)
  )
  assert [r.index for r in _all(batches)] == [0, 1, 2, 0, 1, 2]
  assert batches[0].arrays['task_ids'].tolist() == [1, 1, 1, 0, 0, 0, 1, 1]
  with pytest.raises(UserError, match='one'):
    list(
      eval_batches(
        sources, batch_size=8, task_table=TaskTable(('two',)), **_WIDTHS
      )
    )
  with pytest.raises(UserError, match='3 processes'):
    next(eval_batches(sources, batch_size=8, process_count=3, **_WIDTHS))


def test_what_was_cut_is_told(sources):
  widths = {'input_length': 4, 'target_length': 3}
  for record in _all(eval_batches(sources, batch_size=8, **widths)):
    example = sources[record.task == 'two'][record.index]
    want = ('inputs',) * (len(example['inputs']) > 3)
    want += ('targets',) * bool(example['target_lengths'][0] > 2)
    assert record.cut == want


def test_examples_in_memory(sources):
  examples = [sources[0][i] for i in (4, 2)]
  source = ExampleSource('one', examples, category='kind one')
  (batch,) = eval_batches([source], batch_size=2, **_WIDTHS)
  assert [record.example_id for record in batch.records] == [
    examples[0]['example_id'],
    examples[1]['example_id'],
  ]


def test_what_is_cut_is_counted_and_said_once(sources, caplog):
  batches = eval_batches(sources, batch_size=4, input_length=5, target_length=3)
  records = _all(report_cuts(batches))
  inputs = sum(len(s[i]['inputs']) > 4 for s in sources for i in range(len(s)))
  targets = sum('targets' in record.cut for record in records)
  (said,) = caplog.messages
  assert 'Of 17 instances' in said
  assert f'{inputs} in inputs' in said and f'{targets} in targets' in said
  caplog.clear()
  wide = eval_batches(sources, batch_size=4, input_length=20, target_length=9)
  assert len(_all(report_cuts(wide))) == 17 and not caplog.messages
