"""Medians, their spread, and ratios of what was measured in rounds."""

from collections.abc import Sequence
import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Summary:
  """Some numbers in a few.

  Attributes:
    median: of all.
    p10: a tenth lie below.
    p90: a tenth lie above.
    mad: median of the absolute distances from the median.
    count: how many there are.
  """

  median: float
  p10: float
  p90: float
  mad: float
  count: int


def summarise(values: Sequence[float]) -> Summary:
  """Returns the summary of at least one number."""
  array = np.asarray(values, np.float64)
  p10, median, p90 = np.quantile(array, [0.1, 0.5, 0.9]).tolist()
  mad = float(np.median(np.abs(array - median)))
  return Summary(median, p10, p90, mad, len(array))


@dataclasses.dataclass(frozen=True)
class Ratio:
  """How many times as long one work takes as another.

  Attributes:
    of_medians: of the medians over all rounds.
    by_round: median over rounds of the ratio of the round's medians, which
      noise that lasts longer than a round does not move.
    low: the lowest of the rounds' ratios.
    high: the highest of them.
  """

  of_medians: float
  by_round: float
  low: float
  high: float


def compare(
  over: Sequence[Sequence[float]], under: Sequence[Sequence[float]]
) -> Ratio:
  """Returns the ratio of two works.

  Args:
    over: measured values by round.
    under: likewise, of the work to divide by; of as many rounds.
  """
  ratios = [
    float(np.median(a) / np.median(b)) for a, b in zip(over, under, strict=True)
  ]
  of_medians = float(np.median(np.concatenate(over)))
  of_medians /= float(np.median(np.concatenate(under)))
  return Ratio(of_medians, float(np.median(ratios)), min(ratios), max(ratios))
