"""Runs the works of several processes in turns, so that noise hits all alike.

In a round every work runs a few times, one process at a time; the others are
blocked. What they use of the processor all the same is measured.
"""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import math
import time
from typing import Any

from benchmarks import summaries
from benchmarks.sides import Side, SideProcess
from benchmarks.summaries import Ratio, Summary

# Thread pools spin a little after their work before they sleep.
_PAUSE_SECONDS = 0.05
_LEAST_ROUNDS = 2


@dataclasses.dataclass
class Measured:
  """What was measured of one work.

  Attributes:
    seconds: of each run, by round.
    parts: numbers that each run returned, such as seconds of its parts.
    peaks: resident bytes at the peak of each round.
    resident: resident bytes at the end of each round.
    first_seconds: of the first run, compilation included.
  """

  seconds: list[list[float]] = dataclasses.field(default_factory=list)
  parts: list[dict[str, float]] = dataclasses.field(default_factory=list)
  peaks: list[int] = dataclasses.field(default_factory=list)
  resident: list[int] = dataclasses.field(default_factory=list)
  first_seconds: float = 0.0

  @property
  def time(self) -> Summary:
    """Seconds of a run."""
    return summaries.summarise([s for done in self.seconds for s in done])

  @property
  def peak_bytes(self) -> float:
    """Resident bytes of the process at the peak of a run; NaN if unknown."""
    return summaries.summarise(self.peaks or [float('nan')]).median

  def part_medians(self) -> dict[str, float]:
    """Returns the median of each number that the runs returned."""
    names = self.parts[0] if self.parts else {}
    return {
      name: summaries.summarise([x[name] for x in self.parts]).median
      for name in names
    }


@dataclasses.dataclass
class Comparison:
  """All that one benchmark measured.

  Attributes:
    works: by 'side: work'.
    facts: of each side.
    idle_share: processor time that blocked sides used, over that of the sides
      that were at work; what disturbs the comparison.
  """

  works: dict[str, Measured]
  facts: dict[str, Any]
  idle_share: float = 0.0

  def ratio(self, over: str, under: str) -> Ratio:
    """Returns how many times as long `over` takes as `under`."""
    return summaries.compare(
      self.works[over].seconds, self.works[under].seconds
    )

  def peak_ratio(self, over: str, under: str) -> Ratio:
    """Returns the ratio of two works' peaks of resident memory."""
    pairs = [
      [[float(peak)] for peak in self.works[name].peaks]
      for name in (over, under)
    ]
    return summaries.compare(*pairs)


def measure(
  sides: Sequence[Side],
  *,
  rounds: int,
  times: int,
  warm_up: int = 2,
  seconds: float = math.inf,
  check: Callable[[dict[str, Any]], None] | None = None,
) -> Comparison:
  """Starts all sides, then runs their works in turns.

  Args:
    sides: with names of their own.
    rounds: how many turns.
    times: runs of each work in a turn.
    warm_up: runs of each work before that.
    seconds: after which no third or later round is begun, so that a slow
      machine has something to tell too.
    check: called with the facts of all sides before anything is timed.

  Raises:
    UserError: a side could not be built.
  """
  with contextlib.ExitStack() as stack:
    processes = [
      stack.enter_context(SideProcess(side, warm_up=warm_up)) for side in sides
    ]
    found = Comparison({}, {})
    for process in processes:
      ready = process.wait()
      name = process.side.name
      found.facts[name] = ready['facts']
      for work, first in ready['first_seconds'].items():
        found.works[f'{name}: {work}'] = Measured(first_seconds=first)
    if check is not None:
      check(found.facts)
    started = sum(process.cpu_seconds() for process in processes)
    busy = 0.0
    until = time.monotonic() + seconds
    for i in range(rounds):
      if i >= _LEAST_ROUNDS and time.monotonic() > until:
        break
      # Each round starts with another side, so that none always follows the
      # same one.
      for process in (
        processes[i % len(processes) :] + processes[: i % len(processes)]
      ):
        busy += _take_turn(process, found, times)
    used = sum(process.cpu_seconds() for process in processes) - started
    found.idle_share = max(used - busy, 0.0) / busy if busy else 0.0
  return found


def _take_turn(process: SideProcess, found: Comparison, times: int) -> float:
  """Runs all works of a side; returns the processor time that it used."""
  before = process.cpu_seconds()
  for key, measured in found.works.items():
    side, _, work = key.partition(': ')
    if side != process.side.name:
      continue
    answer = process.run(work, times)
    measured.seconds.append(answer['seconds'])
    measured.parts.extend(answer['parts'])
    if 'peak' in answer['bytes']:
      measured.peaks.append(answer['bytes']['peak'])
      measured.resident.append(answer['bytes']['resident'])
  time.sleep(_PAUSE_SECONDS)
  return process.cpu_seconds() - before
