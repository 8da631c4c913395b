"""Statistics, against numbers that are known by hand."""

import pytest

from benchmarks import summaries


def test_summary_of_zero_to_ten():
  found = summaries.summarise([10, *range(10)])
  assert (found.median, found.p10, found.p90) == (5, 1, 9)
  assert found.mad == 3  # distances 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5
  assert found.count == 11


def test_ratios_by_round_do_not_see_noise_that_lasts_a_round():
  # The machine is three times as slow in the second round.
  under = [[1.0, 1.0], [3.0, 3.0], [1.0, 1.0]]
  over = [[0.5, 0.5], [1.5, 1.5], [0.5, 0.5]]
  found = summaries.compare(over, under)
  assert found == summaries.Ratio(0.5, 0.5, 0.5, 0.5)


def test_ratios_of_uneven_rounds():
  found = summaries.compare([[2.0], [6.0], [8.0]], [[1.0], [2.0], [8.0]])
  assert found.of_medians == pytest.approx(6 / 2)
  assert (found.low, found.by_round, found.high) == (1.0, 2.0, 3.0)


def test_rounds_must_be_as_many():
  with pytest.raises(ValueError, match='zip'):
    summaries.compare([[1.0]], [[1.0], [2.0]])
