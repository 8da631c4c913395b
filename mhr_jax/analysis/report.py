"""One self-contained HTML file about a run or a study of several runs.

Reads the folder's own files (see `run_reading`): scores by method, learning
curves, routing, parameters, configuration. Every text is escaped, every
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
import numpy as np

from mhr_jax import run_files
from mhr_jax.analysis import (
  figures,
  report_tables,
  routing,
  run_reading,
  study_figures,
  study_tables,
)

_CURVES_FIRST = ('loss', 'exact_match', 'rouge_l', 'learning_rate', 'grad_norm')
# Written for programs: they follow from other numbers, or say nothing here.
_CURVES_LEFT_OUT = ('examples', 'tokens', 'seconds_left', 'seconds_per_step')
_MAX_PANELS = 6
_MAX_HEATMAPS = 4
_MAX_ROUTED_RUNS = 4


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
    folder.absolute().name, runs, results=results, heatmaps=heatmaps
  )
  output = epath.Path(output) if output else folder / run_files.REPORT_FILE
  run_files.write_text(output, page)
  return output


def render_report(
  title: str,
  runs: Sequence[run_reading.RunFacts],
  *,
  results: Mapping[str, Any] | None = None,
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
    curves=_curve_figures(runs),
    routing=_routing_sections(runs, heatmaps),
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


# Learning curves


def _curve_figures(runs) -> list[figures.Figure]:
  """One figure of the runs over a frozen backbone, one of the others."""
  routed = [run for run in runs if not run.trains_backbone]
  others = [run for run in runs if run.trains_backbone]
  drawn = []
  for index, of in enumerate((routed, others)):
    panels = _panels(of)
    if panels:
      title = 'Learning curves: ' + ', '.join(
        dict.fromkeys(run.group for run in of)
      )
      drawn.append(
        figures.draw_curves(panels, title=title, name=f'curves{index}')
      )
  return drawn


def _panels(runs) -> dict[str, list[figures.Curve]]:
  """Curves by name of the number: 'train/loss' is part 'train' of 'loss'."""
  found: dict[str, list[figures.Curve]] = {}
  for run in runs:
    points: dict[str, list[tuple[float, float]]] = {}
    for line in run.metrics:
      for key, value in line.items():
        plain = key.count('/') == 1 and isinstance(value, (int, float))
        if plain and not isinstance(value, bool):
          points.setdefault(key, []).append((line['step'], value))
    for key, pairs in points.items():
      part, _, number = key.partition('/')
      steps, values = zip(*pairs, strict=True)
      found.setdefault(number, []).append(
        figures.Curve(steps, values, group=run.group, part=part)
      )
  if _same_curves(found.get('nll'), found.get('loss')):
    del found['nll']  # No smoothing and no z-loss.
  shown = [number for number in found if number not in _CURVES_LEFT_OUT]
  order = sorted(shown, key=lambda n: (_rank(n), n))[:_MAX_PANELS]
  return {report_tables.to_words(number): found[number] for number in order}


def _same_curves(some, others) -> bool:
  if not some or not others:
    return False
  trained = [curve.values for curve in others if curve.part == 'train']
  return [curve.values for curve in some] == trained


def _rank(number: str) -> int:
  if number in _CURVES_FIRST:
    return _CURVES_FIRST.index(number)
  return len(_CURVES_FIRST)


# Routing


def _routing_sections(runs, heatmaps):
  """(name of the run, its figures, its table), one run a method."""
  first: dict[str, Any] = {}
  for run in runs:
    if run.weights and _is_routed(run.weights):
      first.setdefault(run.group, run)
  return [
    (run.name, *_routing_of(run, f'routing{index}', heatmaps))
    for index, run in enumerate(list(first.values())[:_MAX_ROUTED_RUNS])
  ]


def _is_routed(weights) -> bool:
  return any(w.shape[-1] > 1 for w in weights.values())


def _routing_of(run, name, heatmaps):
  similarity = routing.task_similarity(run.weights)
  order = routing.order_tasks(similarity)
  tasks = [run.tasks.names[i] for i in order]
  chosen = heatmaps or _most_varied(run.weights)
  panels = {
    f'{path}, layer {layer}': run.weights[path][layer][order]
    for path, layer in chosen
    if path in run.weights and layer < len(run.weights[path])
  }
  drawn = []
  if panels:
    drawn.append(
      figures.draw_routing(
        panels, tasks, title=f'Routing of {run.name}', name=name
      )
    )
  drawn.append(
    figures.draw_similarity(
      similarity[np.ix_(order, order)],
      tasks,
      title=f'Likeness of tasks under {run.name}',
      name=f'{name}s',
    )
  )
  return drawn, _entropy_table(run)


def _most_varied(weights) -> list[tuple[str, int]]:
  """The routers whose weights differ most between tasks."""
  spread = {
    (path, layer): float(of_layer.std(axis=0).mean())
    for path, w in weights.items()
    for layer, of_layer in enumerate(w)
  }
  ranked = sorted(spread, key=lambda key: -spread[key])[:_MAX_HEATMAPS]
  return [key for key in spread if key in ranked]


def _entropy_table(run) -> report_tables.Table:
  rows = [
    [
      path,
      f'{routing.entropy(w).mean():.3f}',
      f'{w.std(axis=1).mean():.3f}',
      f'{routing.usage(w).min():.3f} to {routing.usage(w).max():.3f}',
    ]
    for path, w in run.weights.items()
  ]
  return report_tables.Table(
    title=f'Routing of {run.name} by linear',
    header=('linear', 'entropy', 'spread over tasks', 'use of a skill'),
    rows=rows,
    note='Entropy over skills, over layers, tasks and splits: 1 is'
    ' indifference, 0 one skill. Spread: standard deviation of a weight over'
    ' tasks. Use: least and greatest mean weight of a skill.',
  )


def _settings_tables(runs) -> list[report_tables.Table]:
  """One a group of runs: its seeds differ in nothing else."""
  first: dict[str, Any] = {}
  for run in runs:
    first.setdefault(run.group, report_tables.settings_table(run))
  return [table for table in first.values() if table is not None]


def _configurations(runs) -> list[tuple[str, str]]:
  return [(run.name, run.config_text) for run in runs if run.config_text]
