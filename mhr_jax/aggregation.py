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
  scores: Mapping[int, Mapping[str, float]],
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
