"""Tests of the mixture order."""

import itertools

import numpy as np
import pytest

from mhr_jax.data import mixing
from mhr_jax.errors import UserError


@pytest.mark.parametrize('size', [1, 2, 3, 4, 5, 9, 10, 16, 17, 100, 4099])
def test_permute_is_a_bijection(size):
  for key in range(5):
    image = mixing.permute(np.arange(size), size, mixing.hash_words(key))
    assert sorted(image) == list(range(size))


@pytest.mark.parametrize('size', [2, 3, 4, 5])
def test_permute_reaches_every_order_equally_often(size):
  n = 6000
  keys = mixing.hash_words(np.arange(n))[:, None]
  images = mixing.permute(np.arange(size), size, keys)
  orders = [tuple(image) for image in images]
  known = list(itertools.permutations(range(size)))
  counts = np.array([orders.count(order) for order in known])
  expected = n / len(known)
  chi2 = np.sum((counts - expected) ** 2 / expected)
  freedom = len(known) - 1
  assert chi2 < freedom + 5 * np.sqrt(2 * freedom)


def test_permute_takes_sizes_and_keys_an_index():
  sizes = np.array([7, 100, 3])
  keys = mixing.hash_words(np.arange(3))
  together = mixing.permute(np.array([5, 50, 1]), sizes, keys)
  alone = [
    int(mixing.permute(i, size, key))
    for i, size, key in zip([5, 50, 1], sizes, keys, strict=True)
  ]
  assert together.tolist() == alone


def test_draw_below_is_uniform():
  draws = mixing.draw_below(mixing.hash_words(7, np.arange(9000)), 3)
  counts = np.bincount(draws, minlength=3)
  assert counts.sum() == 9000 and np.all(np.abs(counts - 3000) < 200)


def test_task_rates():
  sizes = [10, 30, 60]
  np.testing.assert_allclose(mixing.task_rates(sizes), [0.1, 0.3, 0.6])
  np.testing.assert_allclose(mixing.task_rates(sizes, cap=20), [0.2, 0.4, 0.4])
  np.testing.assert_allclose(
    mixing.task_rates(sizes, kind='equal'), [1 / 3] * 3
  )
  roots = np.sqrt([10, 20, 20])
  np.testing.assert_allclose(
    mixing.task_rates(sizes, kind='temperature', temperature=2, cap=20),
    roots / roots.sum(),
  )


@pytest.mark.parametrize(
  'options, message',
  [
    ({'kind': 'fair'}, "Unknown rates 'fair'"),
    ({'cap': 0}, 'cap'),
    ({'kind': 'temperature', 'temperature': 0.5}, 'temperature'),
  ],
)
def test_task_rates_refuse(options, message):
  with pytest.raises(UserError, match=message):
    mixing.task_rates([1, 2], **options)


def test_an_empty_task_is_refused():
  with pytest.raises(UserError, match='at least one example'):
    mixing.task_rates([1, 0])


_SIZES = [1, 5, 17, 900, 333]
_RATES = [0.0004, 0.05, 0.2, 0.7, 0.0496]


def _walk(order, n, batch=37):
  """Locates positions 0 to n in batches."""
  parts = [
    order.locate(np.arange(start, min(n, start + batch)))
    for start in range(0, n, batch)
  ]
  return [
    np.concatenate([getattr(part, name) for part in parts])
    for name in ('tasks', 'epochs', 'units')
  ]


def test_counts_after_each_block_are_within_one_of_the_share():
  order = mixing.MixtureOrder(_SIZES, _RATES, seed=3)
  before = np.zeros(len(_SIZES), np.int64)
  for block in range(1, 200):
    counts = order.cumulative_counts(block)
    positions = block * order.block_length
    assert counts.sum() == positions
    assert np.all(np.abs(counts - positions * np.array(_RATES)) < 1 + 1e-3)
    assert np.all(counts > before)  # no task is missing from a block
    before = counts


def test_rare_tasks_reach_their_rate():
  sizes = np.full(1000, 50)
  rates = np.ones(1000)
  rates[7] = 0.01
  order = mixing.MixtureOrder(sizes, rates, seed=0, block_length=64)
  blocks = 30
  counts = order.cumulative_counts(blocks)
  share = rates / rates.sum() * blocks * order.block_length
  assert np.all(np.abs(counts - share) < 1.01)
  tasks = order.locate(np.arange(order.block_length)).tasks
  assert (tasks == 7).sum() == order.cumulative_counts(1)[7] >= 1


def test_what_is_counted_is_what_comes():
  order = mixing.MixtureOrder(_SIZES, _RATES, seed=3)
  n = 3 * order.block_length
  tasks, _, _ = _walk(order, n)
  np.testing.assert_array_equal(
    np.bincount(tasks, minlength=len(_SIZES)), order.cumulative_counts(3)
  )


def test_no_example_comes_twice_within_its_tasks_epoch():
  order = mixing.MixtureOrder(_SIZES, _RATES, seed=3)
  tasks, epochs, units = _walk(order, 4 * order.block_length)
  for task, size in enumerate(_SIZES):
    mine = tasks == task
    for epoch in range(epochs[mine].max() + 1):
      seen = units[mine & (epochs == epoch)]
      assert len(set(seen.tolist())) == len(seen)
      if epoch < epochs[mine].max():
        assert sorted(seen) == list(range(size))


def test_a_task_finishes_an_epoch_before_the_next():
  order = mixing.MixtureOrder(_SIZES, _RATES, seed=3)
  tasks, epochs, _ = _walk(order, 3 * order.block_length)
  for task in range(len(_SIZES)):
    assert np.all(np.diff(epochs[tasks == task]) >= 0)


def test_rates_too_small_for_a_block_are_raised():
  order = mixing.MixtureOrder([5, 5], [1e-12, 1.0], seed=0)
  assert order.block_length == 2**22
  np.testing.assert_allclose(order.rates, [2**-22, 1 - 2**-22], atol=1e-12)


def test_epochs_have_different_orders():
  order = mixing.MixtureOrder([50], [1.0], seed=0)
  _, _, units = _walk(order, 100)
  assert units[:50].tolist() != units[50:].tolist()
  assert units[:50].tolist() != list(range(50))


def test_a_position_is_what_walking_there_finds():
  order = mixing.MixtureOrder(_SIZES, _RATES, seed=5)
  n = 2 * order.block_length + 11
  walked = np.stack(_walk(order, n))
  fresh = mixing.MixtureOrder(_SIZES, _RATES, seed=5)
  positions = np.random.default_rng(0).permutation(n)[:300]
  found = fresh.locate(positions)
  np.testing.assert_array_equal(
    np.stack([found.tasks, found.epochs, found.units]), walked[:, positions]
  )


def test_seeds_and_task_names_choose_the_order():
  positions = np.arange(64)
  one = mixing.MixtureOrder([100], [1], seed=0, task_keys=[1]).locate(positions)
  other = mixing.MixtureOrder([100], [1], seed=1, task_keys=[1])
  renamed = mixing.MixtureOrder([100], [1], seed=0, task_keys=[2])
  assert one.units.tolist() != other.locate(positions).units.tolist()
  assert one.units.tolist() != renamed.locate(positions).units.tolist()


def test_refuses_rates_that_are_none():
  with pytest.raises(UserError, match='positive'):
    mixing.MixtureOrder([1, 2], [1.0, 0.0], seed=0)
  with pytest.raises(UserError, match='2 tasks but 1 rates'):
    mixing.MixtureOrder([1, 2], [1.0], seed=0)
