"""One self-contained HTML file about a run or a study of several runs.

Reads the folder's own files (see `run_reading`): scores by method, learning
curves, gradient alignment, routing, few-shot adaptation, parameters,
configuration. Every text is escaped, every
figure is inline SVG, nothing is loaded from elsewhere.

`results.json` of a study:

    {"suite": "skills", "seeds": [0, 1], "untrained": 0.1, "methods": {
      "mhr": {"trainable_parameters": 10, "multi_task":
        {"mean": 96.0, "values": [95, 97]}, "zero_shot": null, …}}}

A cell may hold "tasks" {name: mean} and "gain" {"mean", "interval"} too.
Further keys that are shown: "metric" (a name), "untrained_by_phase" {phase:
cell}, "baselines" {name: {"mean", "tasks"}, or {phase: number}}, "notes".
"""

from collections.abc import Mapping, Sequence
import datetime
import importlib.resources
from typing import Any

from etils import epath
import jinja2
import markupsafe

from mhr_jax import run_files
from mhr_jax.analysis import (
  report_adaptation,
  report_routing,
  report_tables,
  report_training,
  run_reading,
  study_figures,
  study_tables,
)


def write_report(
  folder: epath.PathLike,
  *,
  output: epath.PathLike | None = None,
  heatmaps: Sequence[tuple[str, int]] = (),
) -> epath.Path:
  """Writes the report of a run folder or of a study.

  Args:
    folder: the run's or the study's.
    output: the file to write; `report.html` in `folder` by default.
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
    heatmaps=heatmaps,
  )
  output = epath.Path(output) if output else folder / run_files.REPORT_FILE
  run_files.write_text(output, page)
  return output


def render_report(
  title: str,
  runs: Sequence[run_reading.RunFacts],
  *,
  results: Mapping[str, Any] | None = None,
  adapted: Sequence[run_reading.AdaptedFacts] = (),
  heatmaps: Sequence[tuple[str, int]] = (),
) -> str:
  """Returns the page (see `write_report`)."""
  environment = jinja2.Environment(
    autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
  )
  template = importlib.resources.files('mhr_jax.analysis') / 'report.html'
  return environment.from_string(template.read_text()).render(
    title=title,
    summary=runs[0].facts.get('summary', '') if len(runs) == 1 else '',
    written=datetime.datetime.now().strftime('%Y-%m-%d %H:%M'),
    facts=_facts(runs, results),
    scores=_score_tables(runs, results),
    score_figures=study_figures.study_figures(results or {}),
    curves=report_training.curve_figures(runs),
    alignment=report_training.alignment_figures(runs),
    routing_curves=report_training.routing_curves(runs),
    routing=report_routing.routing_sections(runs, heatmaps),
    adaptation=report_adaptation.adaptation_figures(adapted),
    parameters=report_tables.parameter_tables(runs),
    configurations=_configurations(runs),
    settings=_settings_tables(runs),
    svg=lambda figure: markupsafe.Markup(figure.svg),
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
