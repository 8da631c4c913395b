"""The report's section on routing: figures and a table, one run a method."""

from collections.abc import Mapping, Sequence
import dataclasses

import numpy as np

from mhr_jax.analysis import (
  figures,
  report_tables,
  routing,
  routing_figures,
  run_reading,
  skills,
)

Heatmaps = Sequence[tuple[str, int]]  # path of a linear, layer

_MAX_HEATMAPS = 4
_MAX_RUNS = 4


@dataclasses.dataclass(frozen=True)
class RoutingSection:
  """What the report shows of one run.

  Attributes:
    name: of the run.
    figures: in their order.
    table: numbers by linear.
  """

  name: str
  figures: list[figures.Figure]
  table: report_tables.Table


def routing_sections(
  runs: Sequence[run_reading.RunFacts], heatmaps: Heatmaps
) -> list[RoutingSection]:
  """Returns a section a method, of its first run that routes.

  Args:
    runs: of the report.
    heatmaps: which routers to draw; by default those whose weights differ most
      between tasks.
  """
  first: dict[str, run_reading.RunFacts] = {}
  for run in runs:
    if run.weights and any(w.shape[-1] > 1 for w in run.weights.values()):
      first.setdefault(run.group, run)
  return [
    _section(run, f'routing{index}', heatmaps)
    for index, run in enumerate(list(first.values())[:_MAX_RUNS])
  ]


def _section(run, name: str, heatmaps: Heatmaps) -> RoutingSection:
  similarity = routing.task_similarity(run.weights)
  order = routing.order_tasks(similarity)
  chosen = heatmaps or _most_varied(run.weights)
  drawn = [
    routing_figures.draw_routing(
      panels,
      [run.tasks.names[i] for i in order],
      title=f'Routing of {run.name}',
      name=name,
    )
    for panels in [_chosen(run.weights, chosen, lambda w: w[order])]
    if panels
  ]
  drawn.append(
    routing_figures.draw_use(
      routing.shares_of_use(run.weights),
      title=f'Use of the skills of {run.name}',
      name=f'{name}u',
    )
  )
  drawn.append(
    routing_figures.draw_similarity(
      similarity,
      run.tasks.names,
      title=f'Likeness of tasks under {run.name}',
      name=f'{name}s',
    )
  )
  alike = _chosen(run.skills or {}, chosen, lambda cosines: cosines)
  if alike:
    drawn.append(
      routing_figures.draw_skill_similarity(
        alike, title=f'Likeness of skills of {run.name}', name=f'{name}k'
      )
    )
  return RoutingSection(run.name, drawn, _table(run))


def _chosen(of_linears: Mapping[str, np.ndarray], chosen: Heatmaps, pick):
  """Returns {title of a panel: what `pick` takes of one linear and layer}."""
  return {
    f'{path}, layer {layer}': pick(of_linears[path][layer])
    for path, layer in chosen
    if path in of_linears and layer < len(of_linears[path])
  }


def _most_varied(weights: routing.Weights) -> Heatmaps:
  """The routers whose weights differ most between tasks."""
  spread = {
    (path, layer): float(of_layer.std(axis=0).mean())
    for path, w in weights.items()
    for layer, of_layer in enumerate(w)
  }
  ranked = sorted(spread, key=lambda key: -spread[key])[:_MAX_HEATMAPS]
  return [key for key in spread if key in ranked]


def _table(run) -> report_tables.Table:
  alike = run.skills or {}
  rows = [
    [
      path,
      f'{routing.entropy(w).mean():.3f}',
      f'{w.std(axis=1).mean():.3f}',
      f'{routing.usage(w).min():.3f} to {routing.usage(w).max():.3f}',
      f'{skills.mean_cosine(alike[path]).mean():.3f}' if path in alike else '–',
    ]
    for path, w in run.weights.items()
  ]
  return report_tables.Table(
    title=f'Routing of {run.name} by linear',
    header=(
      'linear',
      'entropy',
      'spread over tasks',
      'use of a skill',
      'cosine of skills',
    ),
    rows=rows,
    note='Entropy over skills, over layers, tasks and splits: 1 is'
    ' indifference, 0 one skill. Spread: standard deviation of a weight over'
    ' tasks. Use: least and greatest mean weight of a skill. Cosine: mean over'
    ' pairs of skills of an inventory, see the likeness of skills.',
  )
