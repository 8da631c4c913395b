"""What a benchmark prints and writes."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
import pathlib
from typing import Any

from rich import console as rich_console
from rich import table as rich_table

from benchmarks.goals import Outcome
from benchmarks.rounds import Comparison

_IDLE_LIMIT = 0.02
_MIB = 2**20


def print_works(found: Comparison, title: str) -> None:
  """Prints a row for each work: its time, spread and memory."""
  rounds = max(len(measured.seconds) for measured in found.works.values())
  table = rich_table.Table(
    title=f'{title}: {rounds} rounds', title_justify='left'
  )
  table.add_column('work')
  for name in ('median', 'p10 – p90', 'first run', 'peak memory'):
    table.add_column(name, justify='right')
  for name, measured in found.works.items():
    time = measured.time
    peak = f'{measured.peak_bytes / _MIB:,.0f} MiB' if measured.peaks else '–'
    table.add_row(
      name,
      seconds(time.median),
      f'{seconds(time.p10)} – {seconds(time.p90)}',
      seconds(measured.first_seconds),
      peak,
    )
  console = _console()
  console.print(table)
  if found.idle_share > _IDLE_LIMIT:
    console.print(
      f'Blocked sides used {found.idle_share:.0%} of the processor time of those'
      ' at work: read the figures with care.'
    )


def print_outcomes(outcomes: Sequence[Outcome], title: str = 'goals') -> None:
  """Prints a row for each goal."""
  table = rich_table.Table(title=title, title_justify='left')
  table.add_column('ratio', overflow='fold')
  for name in ('of medians', 'by round', 'goal', ''):
    table.add_column(name, justify='right', no_wrap=True)
  for outcome in outcomes:
    goal, ratio = outcome.goal, outcome.ratio
    sign = '≥' if goal.at_least else '≤'
    bound = '–' if goal.bound is None else f'{sign} {goal.bound:.2f}'
    if goal.stretch is not None:
      bound += f' ({goal.stretch:.2f})'
    suffix = '' if goal.of == 'seconds' else f', {goal.of}'
    table.add_row(
      f'{goal.over} / {goal.under}{suffix}',
      f'{ratio.of_medians:.3f}',
      f'{ratio.by_round:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]',
      bound,
      {None: '', True: 'met', False: 'missed'}[outcome.met],
    )
  _console().print(table)


def print_table(
  title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
  """Prints a table whose first column is text and whose others are numbers."""
  table = rich_table.Table(title=title, title_justify='left')
  for i, name in enumerate(columns):
    table.add_column(name, justify='right' if i else 'left')
  for row in rows:
    table.add_row(*row)
  _console().print(table)


def _console() -> rich_console.Console:
  """Returns the console; in a file, lines are long enough for the tables."""
  console = rich_console.Console()
  return console if console.is_terminal else rich_console.Console(width=120)


def seconds(value: float) -> str:
  """Returns a duration with its unit.

  >>> seconds(0.0213), seconds(1.4567)
  ('21.3 ms', '1.457 s')
  """
  return f'{value * 1e3:.1f} ms' if value < 0.9995 else f'{value:.3f} s'


def comparison_json(
  found: Comparison, outcomes: Sequence[Outcome] = ()
) -> dict[str, Any]:
  """Returns a comparison with everything that was measured."""
  return {
    'works': {
      name: {
        'seconds': dataclasses.asdict(measured.time),
        'rounds': measured.seconds,
        'parts': measured.part_medians(),
        'peak_bytes': measured.peaks,
        'resident_bytes': measured.resident,
        'first_seconds': measured.first_seconds,
      }
      for name, measured in found.works.items()
    },
    'facts': found.facts,
    'idle_share': found.idle_share,
    'ratios': [dataclasses.asdict(outcome) for outcome in outcomes],
  }


def write_json(path: str | None, content: Mapping[str, Any]) -> None:
  """Writes a benchmark's results, where a file is asked for."""
  if path:
    text = json.dumps(content, indent=2, default=_plain)
    pathlib.Path(path).write_text(text + '\n')


def _plain(value: Any) -> Any:
  """Returns what JSON holds of a NumPy number."""
  item: Callable[[], Any] = value.item
  return item()
