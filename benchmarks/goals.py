"""Ratios that a benchmark measures, and how large they may be."""

from collections.abc import Sequence
import dataclasses

from benchmarks.rounds import Comparison
from benchmarks.summaries import Ratio


@dataclasses.dataclass(frozen=True)
class Goal:
  """One work over another.

  Attributes:
    over: a work of the comparison, 'side: work'.
    under: another one.
    bound: what the ratio should not exceed, or, with `at_least`, reach; None
      where it is only reported.
    stretch: what it would be good to reach.
    of: what is compared.
    at_least: the bound is from below.
  """

  over: str
  under: str
  bound: float | None
  stretch: float | None = None
  of: str = 'seconds'
  at_least: bool = False


@dataclasses.dataclass(frozen=True)
class Outcome:
  """A goal and what was measured.

  Attributes:
    goal: what was asked.
    ratio: what came out.
    met: whether the ratio of medians is within the bound; None without one.
  """

  goal: Goal
  ratio: Ratio
  met: bool | None


def judge(found: Comparison, goals: Sequence[Goal]) -> list[Outcome]:
  """Returns the outcomes of the goals whose works were both measured."""
  outcomes = []
  for goal in goals:
    if goal.over not in found.works or goal.under not in found.works:
      continue
    of_memory = goal.of == 'peak memory'
    if of_memory and not found.works[goal.over].peaks:
      continue
    compare = found.peak_ratio if of_memory else found.ratio
    ratio = compare(goal.over, goal.under)
    met = None if goal.bound is None else ratio.of_medians <= goal.bound
    outcomes.append(Outcome(goal, ratio, met))
  return outcomes
