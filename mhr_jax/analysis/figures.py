"""Figures as SVG markup that takes its colours from the page around it.

Axes and text are drawn in one marker colour, which becomes `currentColor`:
the same figure reads on a light and on a dark page. Text stays text, so it
can be searched and copied. Matplotlib is imported when the first figure is
drawn.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import contextlib
import dataclasses
import functools
import io
import re
from typing import Any, Literal

from etils import epath
import numpy as np

from mhr_jax import run_files

# Paul Tol's bright scheme: told apart by the colour-blind, readable on both
# white and black.
COLOURS = (
  '#4477AA',
  '#EE6677',
  '#228833',
  '#CCBB44',
  '#66CCEE',
  '#AA3377',
  '#BB7744',
  '#888888',
)
INK = '#010203'
_STYLE = {
  'svg.fonttype': 'none',
  'svg.hashsalt': 'mhr_jax',
  'text.parse_math': False,
  'font.family': 'sans-serif',
  'font.size': 9.0,
  'axes.titlesize': 10.0,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.linewidth': 0.6,
  'axes.grid': False,
  'legend.frameon': False,
  **dict.fromkeys(
    (
      'text.color',
      'axes.labelcolor',
      'axes.edgecolor',
      'xtick.color',
      'ytick.color',
    ),
    INK,
  ),
}
_MAX_POINTS = 300
PAGE_INCHES = 11.0  # the page is 70rem wide; a figure's inch is 96 pixels


@dataclasses.dataclass(frozen=True)
class Figure:
  """A drawn figure.

  Attributes:
    svg: the markup of one <svg> element.
    title: what it shows; also its accessible name.
    caption: how to read it.
    to_png: draws it once more, as a file for where SVG is not shown.
  """

  svg: str
  title: str
  caption: str = ''
  to_png: Callable[[], bytes] | None = None


@dataclasses.dataclass(frozen=True)
class Curve:
  """One line of a learning curve.

  Attributes:
    steps: x.
    values: y, as long.
    group: what decides the colour, such as a method.
    part: what decides the dashes, such as 'train' or 'heldback'.
  """

  steps: Sequence[float]
  values: Sequence[float]
  group: str
  part: str


def draw_figure(
  draw: Callable[[Any], None],
  *,
  size: tuple[float, float],
  title: str,
  name: str,
  caption: str = '',
) -> Figure:
  """Runs `draw(figure)` and returns its SVG with names made unique.

  Args:
    draw: puts what is to be seen into a matplotlib figure.
    size: inches across and down.
    title: see `Figure`.
    name: prefix of the ids in the markup.
    caption: see `Figure`.
  """
  svg = _render(draw, size, 'svg').decode()
  svg = svg[svg.index('<svg') :].replace(INK, 'currentColor')
  svg = re.sub(r'\b(id="|href="#|url\(#)', rf'\g<1>{name}-', svg)
  # A <style> here would hold for the whole page.
  svg = re.sub(r'<(metadata|style)\b.*?</\1>', '', svg, flags=re.DOTALL)
  png = functools.partial(_render, draw, size, 'png')
  return Figure(svg=svg, title=title, caption=caption, to_png=png)


def _render(
  draw: Callable[[Any], None],
  size: tuple[float, float],
  kind: Literal['svg', 'png'],
) -> bytes:
  """Returns a file: see-through where it is SVG, on white where it is PNG."""
  import matplotlib
  from matplotlib import figure as mpl_figure

  with matplotlib.rc_context(_STYLE), _no_glyph_warnings():
    figure = mpl_figure.Figure(figsize=size, layout='constrained')
    draw(figure)
    buffer = io.BytesIO()
    # Without what would differ from one time to the next.
    metadata: dict[str, Any] = {
      'svg': {'Date': None},
      'png': {'Software': None},
    }
    figure.savefig(
      buffer,
      format=kind,
      transparent=kind == 'svg',
      dpi=160 if kind == 'png' else 'figure',
      metadata=metadata[kind],
    )
  return buffer.getvalue()


@contextlib.contextmanager
def _no_glyph_warnings():
  """The browser has the fonts: glyphs that matplotlib lacks do not matter."""
  import warnings

  with warnings.catch_warnings():
    warnings.filterwarnings('ignore', message='Glyph .* missing')
    yield


def write_pngs(folder: epath.PathLike, drawn: Iterable[Figure]) -> None:
  """Writes figures as PNG files that are named by their titles."""
  for figure in drawn:
    if figure.to_png is not None:
      name = re.sub(r'\W+', '_', figure.title.lower()).strip('_')
      path = epath.Path(folder) / f'{name}.png'
      run_files.write_bytes(path, figure.to_png())


def draw_scores(
  scores: Mapping[str, Mapping[str, Sequence[float] | None]],
  *,
  metric: str,
  intervals: Callable[[Sequence[float]], tuple[float, float]],
  baseline: Mapping[str, float] | None = None,
  name: str = 'scores',
) -> Figure:
  """Draws each method's seeds, mean and interval, one panel a phase.

  Args:
    scores: {phase: {method: values, one a seed; None where undefined}}.
    metric: label of the x axis.
    intervals: ends of the interval of some values; NaN for none.
    baseline: by phase, a dashed line.
    name: prefix of the ids in the markup.
  """
  methods = list(dict.fromkeys(m for of in scores.values() for m in of))

  def draw(figure):
    panels = figure.subplots(1, len(scores), sharey=True, squeeze=False)[0]
    for panel, (phase, of_phase) in zip(panels, scores.items(), strict=True):
      _draw_phase(panel, methods, of_phase, intervals)
      panel.set_title(phase, loc='left')
      panel.set_xlabel(metric)
      if baseline and phase in baseline:
        panel.axvline(baseline[phase], color='#888888', ls='--', lw=1)
    panels[0].set_yticks(range(len(methods)), methods)
    panels[0].set_ylim(len(methods) - 0.5, -0.5)

  return draw_figure(
    draw,
    size=(1.8 + 2.6 * len(scores), 1.1 + 0.32 * len(methods)),
    title='Scores by method',
    name=name,
    caption='Large dot and line: the mean and its'
    ' 95 % interval (Student’s t over seeds); small dots below: the'
    ' seeds. Dashed: the untrained model.',
  )


def _draw_phase(panel, methods, values_of, intervals):
  for row, method in enumerate(methods):
    values = values_of.get(method)
    if not values:
      continue
    colour = COLOURS[row % len(COLOURS)]
    mean = float(np.mean(values))
    low, high = intervals(values)
    if np.isfinite(low):
      panel.plot([low, high], [row, row], color=colour, lw=1.6)
    below = [row + 0.24] * len(values)
    panel.plot(values, below, '.', color=colour, alpha=0.7, ms=4)
    panel.plot([mean], [row], 'o', color=colour, ms=7)
  panel.grid(axis='x', color='#888888', alpha=0.25, lw=0.5)


def draw_curves(
  panels: Mapping[str, Sequence[Curve]],
  *,
  title: str = 'Learning curves',
  name: str = 'curves',
  ylabel: str = '',
  caption: str = '',
) -> Figure:
  """Draws one panel a number: colours by group, dashes by part.

  Args:
    panels: {name of the number: its curves}.
    title: of the figure.
    name: prefix of the ids in the markup.
    ylabel: of the panels at the left, where all are of one kind.
    caption: what the numbers are, before how to read the figure.
  """
  curves = [curve for of in panels.values() for curve in of]
  groups = list(dict.fromkeys(curve.group for curve in curves))
  parts = list(dict.fromkeys(curve.part for curve in curves))
  n_columns = 2 if len(panels) == 4 else min(len(panels), 3)
  n_rows = -(-len(panels) // n_columns)

  def draw(figure):
    axes = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for panel, (number, of) in zip(axes, panels.items(), strict=False):
      for curve in of:
        _draw_curve(panel, curve, groups, parts)
      panel.set_title(number, loc='left')
      panel.set_xlabel('step')
      panel.grid(color='#888888', alpha=0.25, lw=0.5)
    for panel in axes[len(panels) :]:
      panel.set_visible(False)
    for panel in axes[::n_columns]:
      panel.set_ylabel(ylabel)
    draw_legend(figure, groups, parts)

  return draw_figure(
    draw,
    size=(3.2 * n_columns, 2.4 * n_rows + 0.5),
    title=title,
    name=name,
    caption=f'{caption} One line a run; runs of one method share a'
    ' colour.'.strip(),
  )


def _draw_curve(panel, curve, groups, parts):
  steps, values = thin(curve.steps, curve.values, _MAX_POINTS)
  panel.plot(
    steps,
    values,
    color=COLOURS[groups.index(curve.group) % len(COLOURS)],
    ls=_dashes(parts.index(curve.part)),
    lw=1.1,
    marker='.' if len(steps) == 1 else None,
  )


def _dashes(index: int) -> str:
  return ('-', '--', ':', '-.')[index % 4]


def draw_legend(
  figure: Any, groups: Sequence[str], parts: Sequence[str] = ()
) -> None:
  """Draws what colours (groups) and dashes (parts) mean, below the panels."""
  from matplotlib import lines

  handles = [
    lines.Line2D([], [], color=COLOURS[i % len(COLOURS)], label=group)
    for i, group in enumerate(groups)
  ]
  if len(parts) > 1:
    handles += [
      lines.Line2D([], [], color='#888888', ls=_dashes(i), label=part)
      for i, part in enumerate(parts)
    ]
  figure.legend(
    handles=handles, loc='outside lower left', ncols=min(len(handles), 8)
  )


def encoder_first(names: Iterable[str]) -> list[str]:
  """Returns names of stacks or parts of stacks, the encoder's first.

  >>> encoder_first(['decoder/mlp', 'encoder/mlp', 'decoder/self_attention'])
  ['encoder/mlp', 'decoder/mlp', 'decoder/self_attention']
  """
  return sorted(names, key=lambda name: name.partition('/')[0] != 'encoder')


def thin(
  steps: Sequence[float], values: Sequence[float], limit: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns at most `limit` points: means of neighbours, none left out.

  >>> [part.tolist() for part in thin([1, 2, 3, 4], [0, 2, 4, 6], 2)]
  [[1.5, 3.5], [1.0, 5.0]]
  """
  x, y = np.asarray(steps, float), np.asarray(values, float)
  if len(x) <= limit:
    return x, y
  pieces = np.array_split(np.arange(len(x)), limit)
  return (
    np.array([x[piece].mean() for piece in pieces]),
    np.array([y[piece].mean() for piece in pieces]),
  )
