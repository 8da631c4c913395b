"""Tables of a study beyond its scores: spread, comparisons, alignment.

All are made from `results.json` alone (see `study_results`), so that the
report of a folder and the files written beside it say the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mhr_jax.analysis.report_tables import PHASES, Table, metric_of

_NUMBERS = ('mean', 'median', 'sd', 'interval', 'bootstrap')
_ALIGNMENT = 'alignment/'
_WITH_RESPECT_TO = ('inventories', 'effective')


def comparison_tables(results: Mapping[str, Any]) -> list[Table]:
  """Returns claims, the other comparisons, and the gradients' alignment."""
  found = [
    _claims(results),
    _pairs(results),
    _alignment(results),
  ]
  return [table for table in found if table.rows]


def spread_tables(results: Mapping[str, Any]) -> list[Table]:
  """Returns, by phase, every way to one number that a study has."""
  tables = [_spread(results, phase) for phase in PHASES]
  tables += [_categories(results, phase) for phase in PHASES]
  return [table for table in tables if table.rows]


def verdict(comparison: Mapping[str, Any]) -> str:
  """Says in a few words what the interval over seeds leaves open."""
  low, high = comparison['over_seeds']['t']
  if low is None:
    return 'one pair: no interval'
  if low > 0:
    return f'{comparison["left"]} higher'
  if high < 0:
    return f'{comparison["right"]} higher'
  return 'undecided'


def phase_title(phase: str) -> str:
  """Returns a phase as people read it."""
  if phase.startswith(_ALIGNMENT):
    of, _, when = phase.removeprefix(_ALIGNMENT).partition('/')
    shown = {'last': 'last', 'mean': 'mean along training'}
    return f'alignment, {of}, {shown[when]}'
  return PHASES[phase]


def format_number(value: float | None, phase: str, *, sign: str = '') -> str:
  """Returns a score with one decimal, an alignment with three; – for None."""
  if value is None:
    return '–'
  digits = 3 if phase.startswith(_ALIGNMENT) else 1
  return f'{value:{sign}.{digits}f}'


def _range(
  pair: Sequence[float | None] | None, phase: str, *, sign: str = ''
) -> str:
  if pair is None or pair[0] is None:
    return '–'
  low, high = (format_number(end, phase, sign=sign) for end in pair)
  return f'{low} to {high}'


def _claims(results) -> Table:
  chosen = [one for one in results.get('comparisons', ()) if one['claim']]
  return Table(
    title=f'Claims ({metric_of(results)})',
    header=('claim', 'phase', 'left − right', *_DIFFERENCES, 'verdict'),
    rows=[
      [
        one['claim'],
        phase_title(one['phase']),
        f'{one["left"]} − {one["right"]}',
        *_difference(one),
        verdict(one),
      ]
      for one in chosen
    ],
    note=_NOTE + ' Verdict: by the t interval over seeds; “undecided” where it'
    ' holds 0. Several claims are tested at once, without a correction.',
  )


def _pairs(results) -> Table:
  others = [one for one in results.get('comparisons', ()) if not one['claim']]
  return Table(
    title=f'Paired differences ({metric_of(results)})',
    header=('left − right', 'phase', *_DIFFERENCES),
    rows=[
      [
        f'{one["left"]} − {one["right"]}',
        phase_title(one['phase']),
        *_difference(one),
      ]
      for one in others
    ],
    note=_NOTE + ' All pairs are shown, without a correction for their number.',
    folded=len(others) > 12,
  )


_DIFFERENCES = (
  'difference',
  't, seeds',
  'bootstrap, seeds',
  'wins, seeds',
  'bootstrap, seeds × tasks',
  'wins, seeds × tasks',
)
_NOTE = (
  'Mean of the paired differences over pre-training seeds with its 95 %'
  ' intervals: Student’s t, and percentiles of 10,000 bootstrap means (too'
  ' narrow for few seeds). Over seeds × tasks both are resampled apart. Wins:'
  ' pairs of which the left is higher, of all; ties in brackets.'
)


def _difference(one: Mapping[str, Any]) -> list[str]:
  phase, seeds = one['phase'], one['over_seeds']
  crossed = one['over_seeds_and_tasks']
  return [
    format_number(seeds['mean'], phase, sign='+'),
    _range(seeds['t'], phase, sign='+'),
    _range(seeds['bootstrap'], phase, sign='+'),
    _wins(seeds),
    _range(crossed and crossed['bootstrap'], phase, sign='+'),
    _wins(crossed),
  ]


def _wins(found: Mapping[str, Any] | None) -> str:
  if found is None:
    return '–'
  ties = f' ({found["ties"]})' if found['ties'] else ''
  return f'{found["wins"]}/{found["pairs"]}{ties}'


def _spread(results, phase: str) -> Table:
  rows = []
  for name, method in results.get('methods', {}).items():
    cell = method.get(phase)
    if not cell or 'median' not in cell:
      continue
    protocol = cell['median_then_mean']
    rows.append(
      [
        name,
        *(format_number(cell[of], phase) for of in _NUMBERS[:3]),
        *(_range(cell[of], phase) for of in _NUMBERS[3:]),
        format_number(cell['mean_over_tasks'], phase),
        format_number(cell.get('mean_over_categories'), phase),
        format_number(protocol['mean'], phase),
      ]
    )
  mean_over = results.get('mean_over', 'instances')
  return Table(
    title=f'Mean, median and spread, {PHASES[phase]} ({metric_of(results)})',
    header=(
      'method',
      'mean',
      'median',
      'sd',
      't interval',
      'bootstrap interval',
      'mean over tasks',
      'over categories',
      'median, then mean',
    ),
    rows=rows,
    note=f'Over seeds, of means over {mean_over}. “Median, then mean”: the'
    ' median over runs of each data set (a category; else a task), then the'
    ' mean over data sets, as the authors aggregate.',
    folded=True,
  )


def _categories(results, phase: str) -> Table:
  cells = {
    name: method[phase]['categories']
    for name, method in results.get('methods', {}).items()
    if (method.get(phase) or {}).get('categories')
  }
  names = list(dict.fromkeys(name for of in cells.values() for name in of))
  return Table(
    title=f'By category, {PHASES[phase]} ({metric_of(results)})',
    header=('category', *cells),
    rows=[
      [name, *(format_number(of.get(name), phase) for of in cells.values())]
      for name in names
    ],
    note='Mean over seeds of the mean over the category’s tasks.',
    folded=len(names) > 12,
  )


def _alignment(results) -> Table:
  rows = [
    [
      name,
      phase_title(f'{_ALIGNMENT}{part}').removeprefix('alignment, '),
      format_number(cell['mean'], _ALIGNMENT),
      _range(cell['interval'], _ALIGNMENT),
      '  '.join(format_number(value, _ALIGNMENT) for value in cell['values']),
    ]
    for name, method in results.get('methods', {}).items()
    for part, cell in method.get('alignment', {}).items()
    if part.partition('/')[0] in _WITH_RESPECT_TO and part.count('/') == 1
  ]
  return Table(
    title='Alignment of the tasks’ gradients in pre-training',
    header=('method', 'gradients of', 'mean', 't interval', 'by seed'),
    rows=rows,
    note='Mean over pairs of training tasks of the cosine of their gradients,'
    ' with respect to the inventories, and to each task’s effective adapter;'
    ' mean over seeds with its 95 % interval.',
  )
