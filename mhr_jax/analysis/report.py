"""One self-contained HTML file about a run or a study of several runs.

Reads the folder's own files (see `run_reading`): scores by method, learning
curves, gradient alignment, routing, few-shot adaptation, parameters,
configuration. Of several folders, also the settings that differ, their scores
side by side and their curves over each other (see `comparison`).

Every text is escaped, every figure is inline SVG, and the page's own policy
lets a browser load nothing from elsewhere and run one script: `report.js`,
which sorts tables and switches the theme, and without which all is readable.

`results.json` of a study:

    {"suite": "skills", "seeds": [0, 1], "untrained": 0.1, "methods": {
      "mhr": {"trainable_parameters": 10, "multi_task":
        {"mean": 96.0, "values": [95, 97]}, "zero_shot": null, …}}}

A cell may hold "tasks" {name: mean} and "gain" {"mean", "interval"} too.
Further keys that are shown: "metric" (a name), "untrained_by_phase" {phase:
cell}, "baselines" {name: {"mean", "tasks"}, or {phase: number}}, "notes".
"""

import base64
from collections.abc import Mapping, Sequence
import datetime
import hashlib
import importlib.resources
import itertools
from typing import Any

from etils import epath
import jinja2
import markupsafe

from mhr_jax import run_files
from mhr_jax.analysis import (
  comparison,
  figures,
  report_adaptation,
  report_routing,
  report_tables,
  report_training,
  run_reading,
  study_figures,
  study_tables,
)

COMPARISON_FILE = 'comparison.html'


def write_report(
  folder: epath.PathLike,
  *,
  output: epath.PathLike | None = None,
  figures_folder: epath.PathLike | None = None,
  heatmaps: Sequence[tuple[str, int]] = (),
) -> epath.Path:
  """Writes the report of a run folder or of a study.

  Args:
    folder: the run's or the study's.
    output: the file to write; `report.html` in `folder` by default.
    figures_folder: for each figure as a PNG file, too; None for none.
    heatmaps: which routers to draw, as (path of a linear, layer); by default
      those whose weights differ most between tasks.

  Returns:
    Where the report is.

  Raises:
    UserError: there is no such folder, or a file in it cannot be read.
  """
  folder = epath.Path(folder)
  runs = run_reading.read_runs(folder)
  results = run_reading.read_object(folder / run_files.RESULTS_FILE)
  if 'methods' not in results:  # Those of something else, such as one `adapt`.
    results = None
  page = render_report(
    folder.absolute().name,
    runs,
    results=results,
    adapted=run_reading.read_adapted(folder),
    figures_folder=figures_folder,
    heatmaps=heatmaps,
  )
  output = epath.Path(output) if output else folder / run_files.REPORT_FILE
  run_files.write_text(output, page)
  return output


def write_comparison(
  folders: Sequence[epath.PathLike],
  *,
  output: epath.PathLike | None = None,
  figures_folder: epath.PathLike | None = None,
  heatmaps: Sequence[tuple[str, int]] = (),
) -> epath.Path:
  """Writes a report of several runs or studies, against each other.

  Args:
    folders: at least two.
    output: the file to write; by default `comparison.html` in the working
      directory.
    figures_folder: see `write_report`.
    heatmaps: see `write_report`.

  Returns:
    Where the report is.

  Raises:
    UserError: there is no such folder, or one is named twice.
  """
  compared = comparison.read_compared(folders)
  page = render_report(
    ' – '.join(one.label for one in compared),
    [run for one in compared for run in one.runs],
    differences=comparison.differences(compared),
    scores=comparison.scores(compared),
    adapted=[cell for one in compared for cell in one.adapted],
    figures_folder=figures_folder,
    heatmaps=heatmaps,
  )
  output = epath.Path(output or COMPARISON_FILE)
  run_files.write_text(output, page)
  return output


def render_report(
  title: str,
  runs: Sequence[run_reading.RunFacts],
  *,
  results: Mapping[str, Any] | None = None,
  differences: Sequence[report_tables.Table] = (),
  scores: Sequence[report_tables.Table] | None = None,
  adapted: Sequence[run_reading.AdaptedFacts] = (),
  figures_folder: epath.PathLike | None = None,
  heatmaps: Sequence[tuple[str, int]] = (),
) -> str:
  """Returns the page.

  Args:
    title: of the page.
    runs: what is known of each.
    results: of a study.
    differences: between the settings of several runs.
    scores: tables of them; by default those of `results` or of the runs.
    adapted: what few-shot adaptation moved.
    figures_folder: see `write_report`.
    heatmaps: see `write_report`.
  """
  environment = jinja2.Environment(
    autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
  )
  script = _read('report.js')
  drawn = {
    'score_figures': study_figures.study_figures(results or {}),
    'curves': report_training.curve_figures(runs),
    'alignment': report_training.alignment_figures(runs),
    'routing_curves': report_training.routing_curves(runs),
    'adaptation': report_adaptation.adaptation_figures(adapted),
  }
  sections = report_routing.routing_sections(runs, heatmaps)
  if figures_folder is not None:
    of_sections = [figure for of in sections for figure in of.figures]
    found = [*itertools.chain(*drawn.values()), *of_sections]
    figures.write_pngs(figures_folder, found)
  return environment.from_string(_read('report.html')).render(
    title=title,
    policy=_policy(script),
    style=markupsafe.Markup(_read('report.css')),
    script=markupsafe.Markup(script),
    differences=differences,
    summary=runs[0].facts.get('summary', '') if len(runs) == 1 else '',
    written=datetime.datetime.now().strftime('%Y-%m-%d %H:%M'),
    facts=_facts(runs, results),
    scores=_score_tables(runs, results) if scores is None else scores,
    **drawn,
    routing=sections,
    parameters=report_tables.parameter_tables(runs),
    configurations=_configurations(runs),
    settings=_settings_tables(runs),
    svg=lambda figure: markupsafe.Markup(figure.svg),
  )


def _read(name: str) -> str:
  """Returns a file of the page that lies beside this module."""
  return (importlib.resources.files('mhr_jax.analysis') / name).read_text()


def _policy(script: str) -> str:
  """Returns what a browser may do with the page: inline only, our script."""
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  return (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:;"
    f" script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
  )


def _facts(runs, results) -> list[tuple[str, str]]:
  """What stands at the head of the page."""
  found: list[tuple[str, Any]] = []
  if results:
    found += [
      ('suite', results.get('suite', '')),
      ('metric', report_tables.metric_of(results)),
      ('seeds', ', '.join(map(str, results.get('seeds', ())))),
    ]
  if len(runs) == 1:
    facts = runs[0].facts
    found += [
      ('method', facts.get('method', '')),
      ('tasks', facts.get('n_tasks')),
      ('command', facts.get('command', '')),
    ]
  elif runs:
    found.append(('runs', len(runs)))
  return [
    (name, str(value)) for name, value in found if value not in ('', None)
  ]


def _score_tables(runs, results) -> list[report_tables.Table]:
  tables = report_tables.score_tables(runs, results)
  return tables + (study_tables.comparison_tables(results) if results else [])


def _settings_tables(runs) -> list[report_tables.Table]:
  """One a group of runs: its seeds differ in nothing else."""
  first: dict[str, Any] = {}
  for run in runs:
    first.setdefault(run.group, report_tables.settings_table(run))
  return [table for table in first.values() if table is not None]


def _configurations(runs) -> list[tuple[str, str]]:
  return [(run.name, run.config_text) for run in runs if run.config_text]
