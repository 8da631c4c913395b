"""What the comparisons share that run beside peers on the same weights."""

import argparse
from collections.abc import Callable, Sequence
import pathlib
import tempfile
from typing import Any

from benchmarks import options, results, rounds, weights
from benchmarks.goals import Outcome
from benchmarks.rounds import Comparison
from benchmarks.setting import Setting
from benchmarks.sides import Side


def read_flags(
  doc: str | None, argv: Sequence[str] | None, *, default_rounds: int
) -> argparse.Namespace:
  """Returns the flags, among them `only`: whose sides are run.

  Args:
    doc: the benchmark's, for --help.
    argv: the command line; None takes the program's.
    default_rounds: where no flag says how many.
  """
  made = options.parser(doc, rounds=default_rounds, times=1)
  options.add_setting(made)
  made.add_argument('--only', choices=('all', 'ours', 'peers'), default='all')
  return made.parse_args(argv)


def measure(
  flags: argparse.Namespace,
  setting: Setting,
  make_sides: Callable[[Setting, str, str], Sequence[Side]],
  check: Callable[[dict[str, Any]], None],
) -> Comparison:
  """Writes weights that all sides read, and runs the sides in turns.

  Args:
    flags: of `read_flags`.
    setting: that the flags name.
    make_sides: of the setting, the weights' folder and `flags.only`.
    check: called with the facts of all sides before anything is timed.
  """
  with tempfile.TemporaryDirectory() as folder:
    weights.write_weights(pathlib.Path(folder), setting)
    return rounds.measure(
      make_sides(setting, folder, flags.only),
      rounds=flags.rounds,
      times=flags.times,
      seconds=flags.seconds,
      check=check,
    )


def write_json(
  benchmark: str,
  flags: argparse.Namespace,
  where: dict[str, Any],
  setting: Setting,
  found: Comparison,
  outcomes: Sequence[Outcome],
) -> None:
  """Writes all numbers to `flags.json`, where that is asked for."""
  results.write_json(
    flags.json,
    {
      'benchmark': benchmark,
      'machine': where,
      'setting': setting.as_json(),
      'flags': vars(flags),
      **results.comparison_json(found, outcomes),
    },
  )
