"""Figures of a study, made from `results.json`: scores, differences, sizes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mhr_jax import aggregation
from mhr_jax.analysis import figures, report_tables

_MAX_DIFFERENCES = 40


def study_figures(results: Mapping[str, Any]) -> list[figures.Figure]:
  """Returns the figures that a study's results allow."""
  found = _scores(results)
  comparisons = _drawable(results)
  if comparisons:
    metric = report_tables.metric_of(results)
    found.append(draw_differences(comparisons, metric=metric))
  points = _points(results)
  if len(points) > 1:
    found.append(
      draw_by_parameters(
        points,
        metric=report_tables.metric_of(results),
        order=list(results['methods']),
      )
    )
  return found


def _scores(results: Mapping[str, Any]) -> list[figures.Figure]:
  methods = results.get('methods', {})
  scores = {
    title: {
      name: (method.get(phase) or {}).get('values')
      for name, method in methods.items()
    }
    for phase, title in report_tables.PHASES.items()
    if any(
      (method.get(phase) or {}).get('values') for method in methods.values()
    )
  }
  if not scores:
    return []
  untrained = report_tables.untrained_by_phase(results)
  baseline = {
    report_tables.PHASES[phase]: value
    for phase, value in untrained.items()
    if value is not None
  }
  return [
    figures.draw_scores(
      scores,
      metric=report_tables.metric_of(results),
      intervals=_interval_of,
      baseline=baseline,
    )
  ]


def _interval_of(values: Sequence[float]) -> tuple[float, float]:
  summary = aggregation.summarise(values)
  return summary.low, summary.high


def _drawable(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
  """Claims of scores; without any, the first pairs that are few enough."""
  scores = [
    one
    for one in results.get('comparisons', ())
    if one['phase'] in report_tables.PHASES
  ]
  claims = [one for one in scores if one['claim']]
  return (claims or scores)[:_MAX_DIFFERENCES]


def _points(results: Mapping[str, Any]) -> dict[str, tuple[int, Any]]:
  """Few-shot scores by method, with the parameters that train."""
  return {
    name: (method['trainable_parameters'], method['few_shot'])
    for name, method in results.get('methods', {}).items()
    if (method.get('few_shot') or {}).get('values')
    and method.get('trainable_parameters')
  }


def draw_differences(
  comparisons: Sequence[Mapping[str, Any]],
  *,
  metric: str,
  name: str = 'differences',
) -> figures.Figure:
  """Draws paired differences with their intervals, one row a comparison.

  Args:
    comparisons: of `results.json`, of phases with scores.
    metric: what the scores are.
    name: prefix of the ids in the markup.
  """
  labels = [
    f'{one["left"]} − {one["right"]}, {report_tables.PHASES[one["phase"]]}'
    for one in comparisons
  ]

  def draw(figure):
    panel = figure.subplots()
    panel.axvline(0, color='#888888', ls='--', lw=1)
    for row, one in enumerate(comparisons):
      _draw_difference(panel, row, one)
    panel.set_yticks(range(len(labels)), labels)
    panel.set_ylim(len(labels) - 0.5, -0.5)
    panel.set_xlabel(f'difference, {metric}')
    panel.grid(axis='x', color='#888888', alpha=0.25, lw=0.5)

  return figures.draw_figure(
    draw,
    size=(8.0, 0.9 + 0.34 * len(labels)),
    title='Paired differences',
    name=name,
    caption='Dot and upper line: the mean difference over pre-training seeds'
    ' and its 95 % interval (Student’s t). Lower, thin line: the 95 % bootstrap'
    ' interval over seeds × tasks. Right of the dashed line the left is better.',
  )


def _draw_difference(panel, row: int, one: Mapping[str, Any]) -> None:
  seeds, crossed = one['over_seeds'], one['over_seeds_and_tasks']
  colour = figures.COLOURS[
    list(report_tables.PHASES).index(one['phase']) % len(figures.COLOURS)
  ]
  if seeds['t'][0] is not None:
    panel.plot(seeds['t'], [row - 0.08] * 2, color=colour, lw=2.2)
  if crossed and crossed['bootstrap'][0] is not None:
    panel.plot(crossed['bootstrap'], [row + 0.22] * 2, color=colour, lw=0.9)
  panel.plot([seeds['mean']], [row - 0.08], 'o', color=colour, ms=6)


def draw_by_parameters(
  points: Mapping[str, tuple[int, Mapping[str, Any]]],
  *,
  metric: str,
  order: Sequence[str],
  name: str = 'parameters',
) -> figures.Figure:
  """Draws few-shot scores over the number of parameters that train.

  Args:
    points: {method: (parameters, its few-shot cell of `results.json`)}.
    metric: what the scores are.
    order: of all methods, which decides their colours as in `draw_scores`.
    name: prefix of the ids in the markup.
  """

  def draw(figure):
    panel = figure.subplots()
    panel.set_xscale('log')
    for method, (count, cell) in points.items():
      colour = figures.COLOURS[order.index(method) % len(figures.COLOURS)]
      place, label_at = places[method]
      low, high = _interval_of(cell['values'])
      if np.isfinite(low):
        panel.plot([place, place], [low, high], color=colour, lw=1.4)
      panel.plot([place], [cell['mean']], 'o', color=colour, ms=6)
      panel.annotate(
        f'{method} ({count:,})',
        (place, label_at),
        xytext=(9, 0),
        textcoords='offset points',
        fontsize=8,
        va='center',
      )
    panel.xaxis.set_major_formatter(lambda x, _: f'{x:,.0f}')
    panel.set_xlabel('parameters that train in few-shot adaptation')
    panel.set_ylabel(f'few-shot, {metric}')
    panel.margins(x=0.3)
    panel.grid(color='#888888', alpha=0.25, lw=0.5)

  places = _spread_out({m: (n, of['mean']) for m, (n, of) in points.items()})
  return figures.draw_figure(
    draw,
    size=(8.0, 4.6),
    title='Few-shot scores by trained parameters',
    name=name,
    caption='Mean over seeds and its 95 % interval (Student’s t). Methods of'
    ' about one size stand side by side; the number is in brackets.',
  )


def _spread_out(
  points: Mapping[str, tuple[int, float]],
) -> dict[str, tuple[float, float]]:
  """Returns where to draw each point, and how high its label stands.

  Points of about one size stand side by side, their labels one above another.
  """
  heights = [height for _, height in points.values()]
  step = 0.05 * (max(heights) - min(heights) or 1.0)
  found: dict[str, tuple[float, float]] = {}
  groups: dict[int, list[float]] = {}
  for name in sorted(points, key=lambda name: points[name][1]):
    count, height = points[name]
    labels = groups.setdefault(round(5 * np.log10(count)), [])
    labels.append(max([height, *(label + step for label in labels[-1:])]))
    found[name] = (count * 1.08 ** (len(labels) - 1), labels[-1])
  return found
