"""Summaries against closed forms and against scipy's own intervals."""

import math

import numpy as np
import pytest
from scipy import stats

from mhr_jax import aggregation
from mhr_jax.errors import UserError


def test_closed_form_of_three_values():
  summary = aggregation.summarise([1.0, 2.0, 6.0])
  assert summary.mean == 3.0
  assert summary.median == 2.0
  assert summary.sd == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
  assert summary.values == (1.0, 2.0, 6.0)


@pytest.mark.parametrize('n', [2, 3, 5, 40])
def test_t_interval_equals_scipys(n):
  values = np.random.default_rng(n).normal(3, 2, n)
  summary = aggregation.summarise(list(values))
  low, high = stats.t.interval(
    0.95, n - 1, loc=values.mean(), scale=stats.sem(values)
  )
  assert (summary.low, summary.high) == pytest.approx((low, high))


def test_bootstrap_interval_of_many_values_is_near_the_t_interval():
  values = list(np.random.default_rng(0).normal(3, 2, 400))
  t = aggregation.summarise(values)
  bootstrap = aggregation.summarise(values, interval='bootstrap')
  assert bootstrap.interval == 'bootstrap'
  assert bootstrap.low == pytest.approx(t.low, abs=0.03)
  assert bootstrap.high == pytest.approx(t.high, abs=0.03)


def test_one_value_has_no_spread():
  summary = aggregation.summarise([4.0])
  assert summary.mean == 4.0
  assert math.isnan(summary.sd) and math.isnan(summary.low)


def test_no_values_are_an_error():
  with pytest.raises(UserError, match='no values'):
    aggregation.summarise([])


def test_pairing_removes_what_seeds_share():
  """The difference is constant while each side varies widely."""
  baseline = {0: 10.0, 1: 50.0, 2: 90.0}
  scores = {2: 91.0, 0: 11.0, 1: 51.0}
  summary = aggregation.paired_differences(scores, baseline)
  assert summary.mean == 1.0 and summary.sd == 0.0
  assert summary.low == summary.high == 1.0


def test_unpaired_keys_are_an_error():
  with pytest.raises(UserError, match=r"\['1', '2'\]"):
    aggregation.paired_differences({0: 1.0, 1: 1.0}, {0: 1.0, 2: 1.0})


def test_seeds_and_tasks_equal_a_plain_loop():
  scores = {0: {'a': 1.0, 'b': 3.0}, 1: {'b': 7.0, 'a': 1.0}}
  result = aggregation.over_seeds_and_tasks(scores)
  assert result.overall.values == (2.0, 4.0)
  assert result.overall.mean == 3.0
  assert result.tasks['b'].values == (3.0, 7.0)
  assert result.over_tasks.values == (1.0, 5.0)


def test_a_missing_task_is_an_error():
  with pytest.raises(UserError, match=r"Seed 1 .*\['b'\]"):
    aggregation.over_seeds_and_tasks({0: {'a': 1.0, 'b': 2.0}, 1: {'a': 1.0}})


def test_a_comparison_equals_a_plain_loop():
  left = {0: 5.0, 1: 7.0, 2: 6.0, 3: 2.0}
  right = {3: 2.0, 2: 8.0, 1: 3.0, 0: 4.0}
  found = aggregation.compare(left, right)
  differences = [1.0, 4.0, -2.0, 0.0]
  assert found.mean == 0.75 and found.median == 0.5
  assert found.sd == pytest.approx(np.std(differences, ddof=1))
  assert (found.wins, found.ties, found.pairs) == (2, 1, 4)
  assert found.t == pytest.approx(
    stats.ttest_1samp(differences, 0).confidence_interval()
  )
  again = aggregation.summarise(differences, interval='bootstrap')
  assert found.bootstrap == (again.low, again.high)


def test_a_crossed_comparison_resamples_seeds_and_tasks_apart():
  """Its variance is known: seeds, tasks and the rest each add theirs."""
  rng = np.random.default_rng(0)
  n_seeds, n_tasks = 6, 30
  grid = rng.normal(0, 5, (n_seeds, 1)) + rng.normal(0, 1, (1, n_tasks)) + 2
  left = {s: {f't{t}': grid[s, t] for t in range(n_tasks)} for s in range(6)}
  # Another order of the tasks is the same comparison.
  right = {s: {f't{t}': 0.0 for t in reversed(range(n_tasks))} for s in left}
  found = aggregation.compare_crossed(left, right)
  assert found.mean == pytest.approx(grid.mean())
  assert (found.pairs, found.wins) == (180, (grid > 0).sum())
  sd = math.sqrt(
    grid.mean(axis=1).var() / n_seeds + grid.mean(axis=0).var() / n_tasks
  )
  low, high = found.bootstrap
  assert (high - low) / (2 * 1.96 * sd) == pytest.approx(1, abs=0.06)
  assert (high + low) / 2 == pytest.approx(grid.mean(), abs=0.2)
  assert math.isnan(found.t[0])


def test_sides_that_differ_in_tasks_are_an_error():
  with pytest.raises(UserError, match='paired'):
    aggregation.compare_crossed({0: {'a': 1.0}}, {0: {'b': 1.0}})
  uneven = {0: {'a': 1.0, 'b': 1.0}, 1: {'a': 1.0}}
  with pytest.raises(UserError, match='Seed 1'):
    aggregation.compare_crossed(uneven, uneven)


def test_medians_over_runs_come_before_the_mean_over_data_sets():
  scores = {
    0: {'a': 1.0, 'b': 10.0},
    1: {'a': 9.0, 'b': 40.0},
    2: {'a': 2.0, 'b': 20.0},
  }
  found = aggregation.median_then_mean(scores)
  assert found.medians == {'a': 2.0, 'b': 20.0}
  assert found.mean == 11.0
  assert found.sd == pytest.approx(math.sqrt(162))
