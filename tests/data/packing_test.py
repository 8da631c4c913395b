"""Tests of packing examples into rows."""

import numpy as np
import pytest

from mhr_jax.data.packing import pack_rows


@pytest.mark.parametrize('n, most', [(1, 4), (200, 12), (3000, 7)])
def test_rows_hold_every_example_once_and_have_room(n, most):
  generator = np.random.default_rng(n)
  inputs = generator.integers(1, most + 1, n)
  targets = generator.integers(1, 4, n)
  rows = pack_rows(
    generator.permutation(n),
    inputs,
    targets,
    input_length=12,
    target_length=6,
  )
  assert sorted(rows.members) == list(range(n))
  for i in range(len(rows)):
    members = rows.members[rows.starts[i] : rows.starts[i + 1]]
    assert len(members)
    assert inputs[members].sum() <= 12 and targets[members].sum() <= 6


def test_little_room_is_wasted():
  generator = np.random.default_rng(0)
  sizes = generator.integers(10, 100, 2000)
  small = np.ones(2000, np.int64)
  rows = pack_rows(
    range(2000), sizes, small, input_length=512, target_length=512
  )
  assert len(rows) < 1.06 * sizes.sum() / 512


def test_the_first_open_row_with_room_takes_an_example():
  rows = pack_rows(
    [2, 0, 1, 3],
    np.array([3, 4, 4, 2]),
    np.array([1, 1, 1, 1]),
    input_length=6,
    target_length=9,
  )
  assert rows.members.tolist() == [2, 3, 0, 1]
  assert rows.starts.tolist() == [0, 2, 3, 4]
