"""Tests of flat token arrays, against lists."""

import numpy as np
import pytest

from mhr_jax.data.tokens import Lengths, Spans, TokenTable, join_spans

_EXAMPLES = [
  {'inputs': [5, 6, 7], 'targets': [8, 9, 10], 'target_lengths': [1, 2]},
  {'inputs': [], 'targets': [11], 'target_lengths': [1]},
  {'inputs': [12], 'targets': [], 'target_lengths': []},
  {'inputs': [13, 14], 'targets': [15, 16], 'target_lengths': [0, 2]},
]


@pytest.fixture
def table():
  return TokenTable.from_examples(_EXAMPLES)


def _references(table, row):
  rows = np.array([row])
  count = int(table.n_references(rows)[0])
  return [
    table.target_spans(rows, np.array([choice]))[0].tolist()
    for choice in range(count)
  ]


def test_a_table_gives_back_its_examples(table):
  assert len(table) == 4
  inputs = table.input_spans(np.arange(4))
  for i, example in enumerate(_EXAMPLES):
    assert inputs[i].tolist() == example['inputs']
  want = [[[8], [9, 10]], [[11]], [[]], [[], [15, 16]]]
  assert [_references(table, i) for i in range(4)] == want


def test_take_and_concatenate(table):
  rows = np.array([3, 0, 0, 2])
  taken = TokenTable.concatenate([table.take(rows), table])
  assert len(taken) == 8
  for place, row in enumerate([*rows, 0, 1, 2, 3]):
    assert _references(taken, place) == _references(table, row)
    assert (
      taken.input_spans(np.array([place]))[0].tolist()
      == _EXAMPLES[row]['inputs']
    )


def test_an_empty_table():
  empty = TokenTable.concatenate([])
  assert len(empty) == 0 and len(Lengths.of(empty)) == 0
  assert len(empty.take(np.zeros(0, np.int64))) == 0


def test_lengths(table):
  lengths = Lengths.of(table)
  assert lengths.inputs.tolist() == [3, 0, 1, 2]
  assert lengths.first.tolist() == [1, 1, 0, 0]
  assert lengths.longest.tolist() == [2, 1, 0, 2]
  again = Lengths.concatenate([lengths.slice(0, 1), lengths.slice(1, 4)])
  assert again.longest.tolist() == lengths.longest.tolist()


def test_join_spans():
  first = Spans.from_arrays([[1, 2], [], [3]])
  second = Spans.from_arrays([[4], [5, 6], []])
  joined = join_spans(first, second.clip(1))
  assert [joined[i].tolist() for i in range(3)] == [[1, 2, 4], [5], [3]]
