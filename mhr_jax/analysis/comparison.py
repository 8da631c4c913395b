"""Several runs against each other: what differs, and how they score.

Each folder, a run or a study, gets the shortest end of its path as a label
that tells it from the others. Runs of a study keep their names behind it.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
from typing import Any

from etils import epath
import numpy as np

from mhr_jax import run_files
from mhr_jax.analysis import report_tables, run_reading
from mhr_jax.errors import UserError

# {name of a row: {group of runs: a value a run}}
Grid = dict[str, dict[str, list[float]]]

_UNSET = '–'
_MANY = 20


@dataclasses.dataclass(frozen=True)
class Compared:
  """One of the folders.

  Attributes:
    label: tells it from the others.
    runs: in it, named by the label.
    results: of a study; {} of a run.
    adapted: what few-shot adaptation moved, methods named by the label.
  """

  label: str
  runs: Sequence[run_reading.RunFacts]
  results: Mapping[str, Any]
  adapted: Sequence[run_reading.AdaptedFacts]


def read_compared(folders: Sequence[epath.PathLike]) -> list[Compared]:
  """Reads runs or studies.

  Raises:
    UserError: there is no such folder, it holds no run, or it is named twice.
  """
  labels = label_folders(folders)
  return [
    _read(folder, label) for folder, label in zip(folders, labels, strict=True)
  ]


def label_folders(folders: Sequence[epath.PathLike]) -> list[str]:
  """Returns the shortest ends of paths that tell folders apart.

  >>> label_folders(['runs/a/seed0', 'runs/b/seed0'])
  ['a/seed0', 'b/seed0']

  Raises:
    UserError: a folder is named twice.
  """
  paths = [epath.Path(folder).absolute() for folder in folders]
  for path in paths:
    if paths.count(path) > 1:
      raise UserError(f'{path} is named twice: there is nothing to compare.')
  longest = max(len(path.parts) for path in paths)
  for length in range(1, longest + 1):
    labels = ['/'.join(path.parts[-length:]) for path in paths]
    if len(set(labels)) == len(labels):
      break
  return labels


def _read(folder: epath.PathLike, label: str) -> Compared:
  folder = epath.Path(folder)
  results = run_reading.read_object(folder / run_files.RESULTS_FILE)
  results = results if 'methods' in results else {}
  runs = [
    _rename(run, label, is_own=index == 0 and run_reading.is_run(folder))
    for index, run in enumerate(run_reading.read_runs(folder))
  ]
  if not runs and not results:
    raise UserError(f'{folder} holds no run and no study.')
  adapted = [
    dataclasses.replace(cell, method=f'{label}: {cell.method}')
    for cell in run_reading.read_adapted(folder)
  ]
  return Compared(label, runs, results, adapted)


def _rename(
  run: run_reading.RunFacts, label: str, *, is_own: bool
) -> run_reading.RunFacts:
  """Names a run by the label of its folder; so is its group."""
  if is_own:
    return dataclasses.replace(run, name=label, group_name=label)
  return dataclasses.replace(
    run, name=f'{label}/{run.name}', group_name=f'{label}/{run.group}'
  )


def differences(
  compared: Sequence[Compared],
) -> list[report_tables.Table]:
  """Returns the table of the settings in which runs differ.

  One column a group of runs: the seeds of a group differ in nothing else.
  """
  first: dict[str, run_reading.RunFacts] = {}
  for run in _all_runs(compared):
    first.setdefault(run.group, run)
  facts = {group: _facts_of(run) for group, run in first.items()}
  facts = {group: of for group, of in facts.items() if of}
  if len(facts) < 2:
    return []
  names = dict.fromkeys(name for of in facts.values() for name in of)
  rows = [
    [name, *(of.get(name, _UNSET) for of in facts.values())]
    for name in names
    if len({of.get(name) for of in facts.values()}) > 1
  ]
  return [
    report_tables.Table(
      title='Settings that differ' if rows else 'No setting differs',
      header=('setting', *facts),
      rows=rows,
      note=f'{len(names) - len(rows)} other settings are the same. {_UNSET}: a'
      ' run that does not have the setting.',
      words=True,
    )
  ]


def _all_runs(compared: Iterable[Compared]) -> list[run_reading.RunFacts]:
  return [run for one in compared for run in one.runs]


def _facts_of(run: run_reading.RunFacts) -> dict[str, str]:
  """Returns a run's settings as text, and what it trains."""
  found = {'method': run.facts.get('method'), 'tasks': run.facts.get('n_tasks')}
  found = {name: str(value) for name, value in found.items() if value}
  trained = sum(
    part['parameters']
    for part in run.facts.get('parameters', ())
    if part['trains']
  )
  if trained:
    found['trained parameters'] = f'{trained:,}'
  settings = run.facts.get('settings') or {}
  return found | {name: str(value) for name, value in settings.items()}


def scores(compared: Sequence[Compared]) -> list[report_tables.Table]:
  """Returns the runs' scores side by side, then those of each study."""
  tables = _run_tables(_all_runs(compared))
  for one in compared:
    if one.results:
      table = report_tables.score_tables([], one.results)[0]
      tables.append(
        dataclasses.replace(table, title=f'{one.label}: {table.title}')
      )
  return tables


def _run_tables(
  runs: Sequence[run_reading.RunFacts],
) -> list[report_tables.Table]:
  """One table over all instances; one by task where several groups have it."""
  overall: Grid = {}
  by_task: dict[str, Grid] = {}
  for run in runs:
    for name, found in run.scores.items():
      for metric, value in _numbers(found.get('overall', {})):
        _add(overall, _title(name, metric), run.group, value)
      for task, of in found.get('tasks', {}).items():
        for metric, value in _numbers(of):
          grid = by_task.setdefault(_title(name, metric), {})
          _add(grid, task, run.group, value)
  tables = [_table('Scores of the runs', 'score', overall)]
  tables += [
    _table(f'By task, {title}', 'task', grid)
    for title, grid in by_task.items()
    if len({group for row in grid.values() for group in row}) > 1
  ]
  return [table for table in tables if table.rows]


def _numbers(of: Mapping[str, float | None]) -> list[tuple[str, float]]:
  return [
    (metric, value)
    for metric, value in of.items()
    if metric != 'instances' and value is not None
  ]


def _title(evaluation: str, metric: str) -> str:
  words = report_tables.to_words(metric)
  return f'{evaluation}: {words}' if evaluation else words


def _add(grid: Grid, row: str, group: str, value: float) -> None:
  grid.setdefault(row, {}).setdefault(group, []).append(value)


def _table(title: str, first: str, grid: Grid) -> report_tables.Table:
  """Returns the means of a grid: a row a name, a column a group of runs."""
  groups = dict.fromkeys(group for row in grid.values() for group in row)
  return report_tables.Table(
    title=title,
    header=(first, *groups),
    rows=[
      [name, *(_mean(row.get(g)) for g in groups)] for name, row in grid.items()
    ],
    note='Over all instances of an evaluation; a study’s runs of one method'
    ' are averaged.'
    if first == 'score'
    else '',
    folded=len(grid) > _MANY,
  )


def _mean(values: Sequence[float] | None) -> str:
  return report_tables.format_score(float(np.mean(values)) if values else None)
