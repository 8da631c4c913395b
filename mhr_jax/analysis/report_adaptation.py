"""The report's figure of what few-shot adaptation moved (`movement`)."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from mhr_jax import movement
from mhr_jax.analysis import figures, run_reading


@dataclasses.dataclass(frozen=True)
class _Panel:
  """One panel: {group of layers: {method: a value a cell}}."""

  title: str
  xlabel: str
  values: Mapping[str, Mapping[str, Sequence[float]]]


def adaptation_figures(
  cells: Sequence[run_reading.AdaptedFacts],
) -> list[figures.Figure]:
  """Returns the figure, where some cell says what it moved."""
  panels = [
    _Panel(
      'adapters',
      'change / norm before',
      _collect(cells, 'adapters', _relative_change),
    ),
    _Panel(
      'backbone',
      'change / norm before',
      _collect(cells, 'backbone', _relative_change),
    ),
    _Panel(
      'mixing weights',
      'share that went to other skills',
      _collect(cells, movement.ROUTING, lambda of: of.get('change')),
    ),
    _Panel(
      'entropy of the weights',
      'after adaptation (before: |)',
      _collect(cells, movement.ROUTING, lambda of: of.get('entropy_end')),
    ),
  ]
  panels = [panel for panel in panels if panel.values]
  if not panels:
    return []
  before = _collect(cells, movement.ROUTING, lambda of: of.get('entropy_start'))
  return [_draw(panels, before, sorted({cell.method for cell in cells}))]


def _relative_change(of: Mapping[str, float]) -> float | None:
  return of['change'] / of['start'] if of.get('start') else None


def _collect(
  cells: Iterable[run_reading.AdaptedFacts], label: str, value_of: Any
) -> dict[str, dict[str, list[float]]]:
  found: dict[str, dict[str, list[float]]] = {}
  for cell in cells:
    for group, of in cell.moved.get(label, {}).items():
      value = value_of(of)
      if value is not None:
        by_method = found.setdefault(group, {})
        by_method.setdefault(cell.method, []).append(value)
  return found


def _draw(
  panels: Sequence[_Panel],
  before: Mapping[str, Mapping[str, Sequence[float]]],
  methods: Sequence[str],
) -> figures.Figure:
  groups = figures.encoder_first(
    dict.fromkeys(g for panel in panels for g in panel.values)
  )

  def draw(figure):
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
      marks = before if panel.title.startswith('entropy') else {}
      for row, group in enumerate(groups):
        for index, method in enumerate(methods):
          y = row + _offset(index, len(methods))
          _draw_cells(axis, panel.values.get(group, {}).get(method), y, index)
          start = marks.get(group, {}).get(method)
          if start:
            colour = figures.COLOURS[index % len(figures.COLOURS)]
            axis.plot([np.mean(start)], [y], '|', color=colour, ms=9)
      axis.set_title(panel.title, loc='left')
      axis.set_xlabel(panel.xlabel)
      axis.grid(axis='x', color='#888888', alpha=0.25, lw=0.5)
      axis.set_xlim(0, 1.03 * axis.get_xlim()[1])
    axes[0].set_yticks(range(len(groups)), groups)
    axes[0].set_ylim(len(groups) - 0.5, -0.5)
    figures.draw_legend(figure, methods)

  height = max(0.34, 0.13 * len(methods)) * len(groups)
  return figures.draw_figure(
    draw,
    size=(2.2 + 2.6 * len(panels), 1.2 + height),
    title='What few-shot adaptation moved',
    name='moved',
    caption='Large dot: mean over tasks and seeds; small dots: each of them.'
    ' Change: norm of the difference over the norm before, by group of layers.'
    ' Share that went to other skills: half of the sum of what the weights of a'
    ' router moved by. A method is missing where it trains no such part.',
  )


def _offset(index: int, n: int) -> float:
  """Places methods side by side within a row."""
  return 0.0 if n == 1 else 0.6 * (index / (n - 1) - 0.5)


def _draw_cells(axis, values, y: float, index: int) -> None:
  if not values:
    return
  colour = figures.COLOURS[index % len(figures.COLOURS)]
  axis.plot(values, [y] * len(values), '.', color=colour, alpha=0.45, ms=4)
  axis.plot([np.mean(values)], [y], 'o', color=colour, ms=6)
