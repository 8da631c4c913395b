"""Means over seeds and tasks, always with their spread.

Pre-training seeds differ more than few-shot draws do, so a mean without its
values says little: every summary keeps them. Intervals are Student's t over
the values given, or a percentile bootstrap; the summary says which.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any, Literal

import numpy as np
from scipy import special

from mhr_jax.errors import UserError

Interval = Literal['t', 'bootstrap']

_N_RESAMPLES = 10_000


@dataclasses.dataclass(frozen=True)
class Summary:
  """Location and spread of some values.

  Attributes:
    mean: arithmetic mean.
    sd: sample standard deviation (n − 1); NaN for one value.
    median: the middle value.
    low: lower end of the interval of the mean; NaN for one value.
    high: upper end of it.
    values: what was summarised, in order.
    interval: how `low` and `high` were found.
    confidence: of the interval.
  """

  mean: float
  sd: float
  median: float
  low: float
  high: float
  values: tuple[float, ...]
  interval: Interval = 't'
  confidence: float = 0.95


def summarise(
  values: Sequence[float],
  *,
  interval: Interval = 't',
  confidence: float = 0.95,
  seed: int = 0,
) -> Summary:
  """Returns mean, sd, median and interval of at least one value.

  Args:
    values: one number a seed (or a task).
    interval: 't' for mean ± t·sd/√n, which takes the values as draws from a
      normal distribution; 'bootstrap' for the percentiles of resampled means,
      too narrow for a handful of values.
    confidence: of the interval.
    seed: of the bootstrap.

  Raises:
    UserError: there are no values.

  >>> s = summarise([1.0, 2.0, 3.0])
  >>> s.mean, s.sd, round(s.high, 3)
  (2.0, 1.0, 4.484)
  """
  array = np.asarray(values, np.float64)
  if array.size == 0:
    raise UserError('There are no values to take the mean of.')
  low, high = _interval(array, interval, confidence, seed)
  sd = float(array.std(ddof=1)) if array.size > 1 else math.nan
  return Summary(
    mean=float(array.mean()),
    sd=sd,
    median=float(np.median(array)),
    low=low,
    high=high,
    values=tuple(float(value) for value in array),
    interval=interval,
    confidence=confidence,
  )


def _interval(
  array: np.ndarray, interval: Interval, confidence: float, seed: int
) -> tuple[float, float]:
  if array.size < 2:
    return math.nan, math.nan
  tail = (1 - confidence) / 2
  if interval == 'bootstrap':
    rng = np.random.default_rng(seed)
    draws = rng.integers(array.size, size=(_N_RESAMPLES, array.size))
    low, high = np.quantile(array[draws].mean(axis=1), [tail, 1 - tail])
    return float(low), float(high)
  quantile = float(special.stdtrit(array.size - 1, 1 - tail))
  half = quantile * array.std(ddof=1) / math.sqrt(array.size)
  return float(array.mean() - half), float(array.mean() + half)


def paired_differences(
  scores: Mapping[Any, float],
  baseline: Mapping[Any, float],
  *,
  interval: Interval = 't',
) -> Summary:
  """Summarises `scores[key] - baseline[key]` over the keys (seeds, tasks).

  Raises:
    UserError: the two do not have the same keys.
  """
  if set(scores) != set(baseline):
    odd = sorted(map(str, set(scores) ^ set(baseline)))
    raise UserError(f'Not in both sides of a paired difference: {odd}.')
  return summarise(
    [scores[key] - baseline[key] for key in scores], interval=interval
  )


@dataclasses.dataclass(frozen=True)
class SeedsAndTasks:
  """Scores of several seeds on several tasks.

  Attributes:
    overall: over seeds, of each seed's mean over tasks: how sure the mean is.
    over_tasks: over tasks, of each task's mean over seeds: how tasks differ.
    tasks: one summary over seeds a task.
  """

  overall: Summary
  over_tasks: Summary
  tasks: dict[str, Summary]


def over_seeds_and_tasks(
  scores: Mapping[Any, Mapping[str, float]],
) -> SeedsAndTasks:
  """Summarises `scores[seed][task]`.

  Raises:
    UserError: there are no scores, or a seed lacks a task another one has.
  """
  if not scores:
    raise UserError('There are no scores to aggregate.')
  names = list(next(iter(scores.values())))
  for seed, of_seed in scores.items():
    if set(of_seed) != set(names):
      odd = sorted(set(of_seed) ^ set(names))
      raise UserError(f'Seed {seed} and the others differ in tasks: {odd}.')
  tasks = {
    name: summarise([of_seed[name] for of_seed in scores.values()])
    for name in names
  }
  means = [float(np.mean([s[n] for n in names])) for s in scores.values()]
  return SeedsAndTasks(
    overall=summarise(means),
    over_tasks=summarise([tasks[name].mean for name in names]),
    tasks=tasks,
  )


@dataclasses.dataclass(frozen=True)
class Difference:
  """A paired difference, left minus right, in all the ways it is reported.

  Attributes:
    mean: of the differences.
    median: of the differences.
    sd: of the differences, sample; NaN for one pair.
    t: Student's t interval of the mean; NaN where pairs are no plain sample.
    bootstrap: percentile interval of resampled means; NaN for one pair.
    wins: pairs of which the left is higher.
    ties: pairs that are equal.
    pairs: in all.
  """

  mean: float
  median: float
  sd: float
  t: tuple[float, float]
  bootstrap: tuple[float, float]
  wins: int
  ties: int
  pairs: int


def compare(
  left: Mapping[Any, float], right: Mapping[Any, float], *, seed: int = 0
) -> Difference:
  """Compares two rows in pairs: one score a key (a seed) on both sides.

  Args:
    left: scores by key.
    right: scores by the same keys.
    seed: of the bootstrap.

  Raises:
    UserError: the two do not have the same keys.

  >>> found = compare({0: 3.0, 1: 5.0}, {0: 2.0, 1: 5.0})
  >>> found.mean, found.wins, found.ties, found.pairs
  (0.5, 1, 1, 2)
  """
  t = paired_differences(left, right)
  bootstrap = summarise(t.values, interval='bootstrap', seed=seed)
  array = np.asarray(t.values)
  return _difference(
    array, (t.low, t.high), (bootstrap.low, bootstrap.high), t.sd
  )


def compare_crossed(
  left: Mapping[Any, Mapping[str, float]],
  right: Mapping[Any, Mapping[str, float]],
  *,
  seed: int = 0,
) -> Difference:
  """Compares two rows in pairs over seeds × tasks.

  The tasks of one seed share its pre-training, and the seeds of one task its
  test set: they are no independent draws, so there is no t interval, and the
  bootstrap resamples seeds and tasks apart and takes every pair of the two.

  Args:
    left: `left[seed][task]`.
    right: as `left`.
    seed: of the bootstrap.

  Raises:
    UserError: the two differ in seeds or tasks.
  """
  flat = [
    {(row, task): of[task] for row, of in side.items() for task in of}
    for side in (left, right)
  ]
  paired_differences(*flat)  # Both sides have the same keys.
  over_seeds_and_tasks(left)  # Every seed has the same tasks.
  names = list(next(iter(left.values())))
  grid = np.array(
    [[left[row][name] - right[row][name] for name in names] for row in left]
  )
  nothing = (math.nan, math.nan)
  bootstrap = _crossed_bootstrap(grid, seed) if grid.size > 1 else nothing
  sd = float(grid.std(ddof=1)) if grid.size > 1 else math.nan
  return _difference(grid.ravel(), nothing, bootstrap, sd)


def _crossed_bootstrap(grid: np.ndarray, seed: int) -> tuple[float, float]:
  """95 % percentile interval of the mean of resampled rows and columns."""
  rng = np.random.default_rng(seed)
  shares = [
    rng.multinomial(n, [1 / n] * n, size=_N_RESAMPLES) / n for n in grid.shape
  ]
  means = np.einsum('ir,rc,ic->i', shares[0], grid, shares[1], optimize=True)
  low, high = np.quantile(means, [0.025, 0.975])
  return float(low), float(high)


def _difference(
  array: np.ndarray,
  t: tuple[float, float],
  bootstrap: tuple[float, float],
  sd: float,
) -> Difference:
  return Difference(
    mean=float(array.mean()),
    median=float(np.median(array)),
    sd=sd,
    t=t,
    bootstrap=bootstrap,
    wins=int((array > 0).sum()),
    ties=int((array == 0).sum()),
    pairs=array.size,
  )


def mean_by_group(
  tasks: Mapping[str, float], groups: Mapping[str, str]
) -> dict[str, float]:
  """Returns the mean over tasks of each group; others stand for themselves.

  Args:
    tasks: one score a task.
    groups: of the tasks that have one, such as the data set of a template.

  >>> mean_by_group({'a': 1.0, 'b': 3.0, 'c': 5.0}, {'a': 'x', 'b': 'x'})
  {'x': 2.0, 'c': 5.0}
  """
  members: dict[str, list[float]] = {}
  for task, score in tasks.items():
    members.setdefault(groups.get(task, task), []).append(score)
  return {group: float(np.mean(of)) for group, of in members.items()}


@dataclasses.dataclass(frozen=True)
class MedianThenMean:
  """What `median_then_mean` returns.

  Attributes:
    mean: over data sets, of their medians.
    sd: over data sets, sample; NaN for one.
    medians: over runs, by data set.
  """

  mean: float
  sd: float
  medians: dict[str, float]


def median_then_mean(
  scores: Mapping[Any, Mapping[str, float]],
) -> MedianThenMean:
  """Aggregates as the authors do: median over runs, mean over data sets.

  Source: microsoft/mttl at c66b20d6, projects/mhr, `utils/get_metrics.py`: the
  spread they print is over data sets, too, not over seeds.

  Args:
    scores: `scores[run][dataset]`.

  Raises:
    UserError: there are no scores, or a run lacks a data set another one has.
  """
  found = over_seeds_and_tasks(scores)
  medians = {name: of.median for name, of in found.tasks.items()}
  summary = summarise(list(medians.values()))
  return MedianThenMean(summary.mean, summary.sd, medians)
