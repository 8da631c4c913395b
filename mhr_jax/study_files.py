"""Writes what a study came to: JSON, CSV, Markdown, figures; prints tables.

`results.csv` has one number a line, in the long form that statistics programs
want: method, phase, seed, draw, task, metric, value. Without a task the value
is of the phase as a whole; without a draw it is the mean over them.
"""

from collections.abc import Iterator, Mapping
import csv
import io
from typing import Any

from etils import epath
from rich import console as rich_console
from rich import table as rich_table

from mhr_jax import run_files
from mhr_jax.analysis import report_tables, study_figures, study_tables
from mhr_jax.study_cells import ALIGNMENT, Cells, CellScores
from mhr_jax.study_settings import Study

CSV_FILE = 'results.csv'
MARKDOWN_FILE = 'results.md'
FIGURES_FOLDER = 'figures'
_COLUMNS = ('method', 'phase', 'seed', 'draw', 'task', 'metric', 'value')

Row = tuple[str, str, int, str, str, str, float]


def write_results(
  run_dir: epath.PathLike,
  results: Mapping[str, Any],
  study: Study,
  cells: Cells,
) -> list[epath.Path]:
  """Writes all files but the report and returns their paths.

  Args:
    run_dir: the study's folder.
    results: what `to_results` made.
    study: its settings.
    cells: what `results` is of.
  """
  run_dir = epath.Path(run_dir)
  paths = [
    run_dir / name for name in (run_files.RESULTS_FILE, CSV_FILE, MARKDOWN_FILE)
  ]
  run_files.write_json(paths[0], results)
  run_files.write_text(paths[1], to_csv(study, cells))
  run_files.write_text(paths[2], to_markdown(results))
  return paths + write_figures(run_dir / FIGURES_FOLDER, results)


def to_csv(study: Study, cells: Cells) -> str:
  """Returns `results.csv`."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(_COLUMNS)
  writer.writerows(_rows(study, cells))
  return text.getvalue()


def _rows(study: Study, cells: Cells) -> Iterator[Row]:
  for (row, phase, seed), cell in cells.scores.items():
    head = (row, phase, seed)
    if cell.trainable_parameters is not None:
      count = cell.trainable_parameters
      yield (*head, '', '', 'trainable_parameters', count)
    yield (*head, '', '', study.metric, cell.mean_over(study.mean_over))
    for draw, of in {'': cell, **cell.by_draw()}.items():
      for metric, tasks in _by_metric(of, study.metric).items():
        for task, value in tasks.items():
          yield (*head, draw, task, metric, value)
  for (row, seed), numbers in cells.alignment.items():
    for name, value in numbers.items():
      yield (row, ALIGNMENT, seed, '', '', name, value)


def _by_metric(cell: CellScores, metric: str) -> dict[str, Mapping[str, float]]:
  return {metric: cell.tasks, **cell.others}


def to_markdown(results: Mapping[str, Any]) -> str:
  """Returns `results.md`: every table of the results."""
  seeds = ', '.join(map(str, results['seeds']))
  head = (
    f'# {results["suite"]}\n\n{report_tables.metric_of(results)}, mean over'
    f' {results["mean_over"]}; pre-training seeds {seeds}.\n'
  )
  tables = [
    *study_tables.comparison_tables(results),
    *report_tables.score_tables([], results),
    *study_tables.spread_tables(results),
  ]
  return '\n'.join([head, *map(_table, _claims_after_scores(tables))])


def _claims_after_scores(
  tables: list[report_tables.Table],
) -> list[report_tables.Table]:
  """Puts the scores by method first: all else is about them."""
  return sorted(tables, key=lambda table: not table.title.startswith('Scores'))


def _table(table: report_tables.Table) -> str:
  rows = [
    table.header,
    ['---', *['---:'] * (len(table.header) - 1)],
    *table.rows,
  ]
  lines = ['| ' + ' | '.join(map(_escape, row)) + ' |' for row in rows]
  note = f'\n{table.note}\n' if table.note else ''
  return f'## {table.title}\n\n' + '\n'.join(lines) + '\n' + note


def _escape(text: str) -> str:
  return text.replace('|', '\\|').replace('\n', '<br>')


def write_figures(
  folder: epath.PathLike, results: Mapping[str, Any]
) -> list[epath.Path]:
  """Writes every figure of the results as SVG and as PNG; returns the SVGs."""
  paths = []
  for figure in study_figures.study_figures(results):
    path = epath.Path(folder) / figure.title.lower().replace(' ', '_')
    run_files.write_text(f'{path}.svg', figure.svg)
    assert figure.to_png is not None
    run_files.write_bytes(f'{path}.png', figure.to_png())
    paths.append(epath.Path(f'{path}.svg'))
  return paths


def print_tables(
  results: Mapping[str, Any], console: rich_console.Console
) -> None:
  """Prints the tables of scores and claims, the long ones left out."""
  tables = [
    *report_tables.score_tables([], results),
    *study_tables.comparison_tables(results),
  ]
  for table in tables:
    if not table.folded:
      console.print(_to_rich(table))


def _to_rich(table: report_tables.Table) -> rich_table.Table:
  shown = rich_table.Table(
    title=table.title, caption=table.note, title_justify='left'
  )
  for i, name in enumerate(table.header):
    shown.add_column(name, justify='left' if i == 0 else 'right')
  for row in table.rows:
    shown.add_row(*row)
  return shown
