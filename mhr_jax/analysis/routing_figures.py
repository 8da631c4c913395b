"""Figures of what the routing learnt: heatmaps, likeness, use of the skills.

Matplotlib and SciPy are imported when the first figure is drawn.
"""

from collections.abc import Iterable, Mapping, Sequence

from jaxtyping import Float
import numpy as np

from mhr_jax.analysis import figures, routing

_MAX_LABELS = 60


def draw_routing(
  panels: Mapping[str, Float[np.ndarray, 'task split skill']],
  tasks: Sequence[str],
  *,
  title: str,
  name: str,
) -> figures.Figure:
  """Draws mixing weights as heatmaps: a row a task, a column a skill.

  Splits stand side by side, apart by a gap. All panels share one scale.

  Args:
    panels: {title of the panel: weights}.
    tasks: names of the rows.
    title: of the figure.
    name: prefix of the ids in the markup.
  """
  highest = max(float(w.max()) for w in panels.values())
  n_splits, n_skills = next(iter(panels.values())).shape[1:]
  named = len(tasks) <= _MAX_LABELS
  label_width = _label_width(tasks) if named else 0.3
  room = figures.PAGE_INCHES - label_width - 0.8
  n_cells = n_splits * (n_skills + 1)
  # Two panels abreast where their cells do not become too narrow for it.
  half = room / 2 - 0.25
  if 0.03 * n_cells <= half:
    width = max(_title_width(panels), min(0.05 * n_cells, half))
  else:
    width = min(0.035 * n_cells, room - 0.25)
  n_columns = min(len(panels), max(1, int(room / (width + 0.25))))
  n_rows = -(-len(panels) // n_columns)

  def draw(figure):
    grid = figure.subplots(n_rows, n_columns, sharey=True, squeeze=False)
    for panel, (label, weights) in zip(
      grid.ravel(), panels.items(), strict=False
    ):
      image = _draw_weights(panel, weights, highest)
      panel.set_title(label, loc='left', fontsize=8.5)
    for panel in grid.ravel()[len(panels) :]:
      panel.set_visible(False)
    for panel in grid[:, 0]:
      _label_tasks(panel, tasks, named)
    _draw_scale(figure, image, list(grid.ravel()), 'mixing weight')

  return figures.draw_figure(
    draw,
    size=(
      label_width + n_columns * (width + 0.25) + 0.8,
      n_rows * (0.8 + _rows_height(len(tasks))),
    ),
    title=title,
    name=name,
    caption='Each row is a task, each column a skill'
    + (', splits side by side' if n_splits > 1 else '')
    + f'; 1/{n_skills} = {1 / n_skills:.3g} is indifference. Tasks are in the'
    ' order of their likeness.',
  )


def _draw_weights(panel, weights, highest):
  _, n_splits, n_skills = weights.shape
  image = panel.imshow(
    _side_by_side(weights),
    aspect='auto',
    cmap='viridis',
    vmin=0.0,
    vmax=highest,
    interpolation='nearest',
  )
  _label_skills(panel, n_splits, n_skills)
  return image


def _label_skills(panel, n_splits: int, n_skills: int) -> None:
  """Labels columns that are skills, or splits of skills side by side."""
  if n_splits > 1:
    centres = np.arange(n_splits) * (n_skills + 1) + (n_skills - 1) / 2
    panel.set_xticks(centres, [str(split) for split in range(n_splits)])
    panel.set_xlabel('split (its skills side by side)')
  else:
    panel.set_xticks(range(n_skills))
    panel.set_xlabel('skill')
  panel.tick_params(length=0, labelsize=7.5)
  panel.spines[:].set_visible(False)


def _title_width(titles: Iterable[str]) -> float:
  """Inches that the longest title of a panel takes at 8.5 points."""
  return max(1.7, 0.062 * max(map(len, titles)))


def _rows_height(n: int) -> float:
  """Inches for rows of tasks: room for names where there are not too many."""
  return 0.16 * n if n <= _MAX_LABELS else min(0.04 * n, 4.5)


def _label_width(tasks: Sequence[str]) -> float:
  """Inches that the names take at 7 points."""
  return 0.3 + 0.062 * max(map(len, tasks))


def _label_tasks(panel, tasks, named):
  if named:
    panel.set_yticks(range(len(tasks)), tasks, fontsize=7)
  else:
    panel.set_yticks([])
    panel.set_ylabel(f'{len(tasks)} tasks')


def _draw_scale(figure, image, panels, label):
  height = 0.5 * figure.get_figheight()
  bar = figure.colorbar(
    image, ax=panels, shrink=0.5, pad=0.015, aspect=height / 0.12
  )
  bar.set_label(label)
  bar.outline.set_visible(False)


def _side_by_side(weights: np.ndarray) -> np.ndarray:
  """[task, split, skill] -> [task, columns], NaN between the splits."""
  n_tasks, n_splits, _ = weights.shape
  gap = np.full((n_tasks, n_splits, 1), np.nan)
  joined = np.concatenate([weights.astype(float), gap], axis=2)
  return joined.reshape(n_tasks, -1)[:, :-1]


def draw_similarity(
  similarity: Float[np.ndarray, 'task task'],
  tasks: Sequence[str],
  *,
  title: str,
  name: str,
) -> figures.Figure:
  """Draws how alike tasks are routed: a heatmap, and the tree of the tasks.

  Args:
    similarity: of the tasks, in any order.
    tasks: their names.
    title: of the figure.
    name: prefix of the ids in the markup.
  """
  order = routing.order_tasks(similarity)
  tree = routing.cluster_tasks(similarity)
  labels = [tasks[i] for i in order]
  named = len(tasks) <= _MAX_LABELS
  height = 1.2 + (0.15 * len(tasks) if named else min(0.03 * len(tasks), 7.0))
  label_width = _label_width(tasks) if named else 0.3
  room = figures.PAGE_INCHES - label_width - 0.9
  widths = (min(height, 0.78 * room), min(2.0, height / 2, 0.22 * room))

  def draw(figure):
    panel, branches = figure.subplots(1, 2, width_ratios=widths)
    image = panel.imshow(
      similarity[np.ix_(order, order)],
      aspect='auto',
      cmap='RdBu_r',
      vmin=-1,
      vmax=1,
      interpolation='nearest',
    )
    panel.spines[:].set_visible(False)
    panel.tick_params(length=0)
    panel.set_xticks([])
    panel.set_xlabel('tasks, in the same order')
    _label_tasks(panel, labels, named)
    _draw_tree(branches, tree, len(tasks))
    _draw_scale(figure, image, [panel, branches], 'likeness of routing')

  return figures.draw_figure(
    draw,
    size=(sum(widths) + label_width + 0.9, height),
    title=title,
    name=name,
    caption='Left: correlation of the tasks’ mixing weights over all linears,'
    ' the mean over tasks taken off. Right: tasks join where their mean'
    ' distance, 1 − likeness, stands (average linkage).',
  )


def _draw_tree(panel, tree, n_tasks: int) -> None:
  """Draws a tree whose leaves are the rows of a heatmap to the left of it."""
  panel.spines[['left', 'right', 'top']].set_visible(False)
  panel.set_yticks([])
  panel.set_ylim(n_tasks, 0)
  panel.set_xlabel('1 − likeness')
  if tree is None:
    panel.set_visible(False)
    return
  from scipy.cluster import hierarchy

  drawn = hierarchy.dendrogram(tree, no_plot=True)
  for across, along in zip(drawn['dcoord'], drawn['icoord'], strict=True):
    # SciPy puts leaves at 5, 15, 25 ….
    panel.plot(across, np.array(along) / 10, color=figures.INK, lw=0.8)
  panel.set_xlim(left=0)
  panel.tick_params(labelsize=7.5)


def draw_use(
  used: Mapping[str, Mapping[str, Float[np.ndarray, 'router skill']]],
  *,
  title: str,
  name: str,
) -> figures.Figure:
  """Draws how evenly the skills are used, from the most used one down.

  Args:
    used: {stack: {sublayer: each router's use of its skills}}, a router one
      of a linear, layer and split; shares sum to 1 over the skills.
    title: of the figure.
    name: prefix of the ids in the markup.
  """
  n_skills = next(iter(next(iter(used.values())).values())).shape[-1]
  groups = list(dict.fromkeys(group for of in used.values() for group in of))

  def draw(figure):
    panels = figure.subplots(1, len(used), sharey=True, squeeze=False)[0]
    for panel, (stack, by_group) in zip(panels, used.items(), strict=True):
      for group, shares in by_group.items():
        _draw_shares(panel, shares, groups.index(group))
      panel.axhline(1 / n_skills, color='#888888', ls='--', lw=1)
      panel.set_title(stack, loc='left')
      panel.set_xlabel('skills, from the most used one')
      panel.set_xticks(_ticks(n_skills))
      panel.grid(axis='y', color='#888888', alpha=0.25, lw=0.5)
    panels[0].set_ylabel('share of the weight')
    panels[0].set_ylim(bottom=0)
    figures.draw_legend(figure, groups)

  return figures.draw_figure(
    draw,
    size=(1.0 + 3.4 * len(used), 3.2),
    title=title,
    name=name,
    caption='The skills of every router (one a linear, layer and split),'
    ' sorted by their share of the mixing weight, the mean over all tasks.'
    ' Line: mean over the routers; band: from the least to the greatest.'
    f' Dashed: even use, 1/{n_skills}.',
  )


def _draw_shares(panel, shares, index):
  ranked = -np.sort(-shares, axis=-1)
  rank = np.arange(1, shares.shape[-1] + 1)
  colour = figures.COLOURS[index % len(figures.COLOURS)]
  panel.fill_between(
    rank, ranked.min(axis=0), ranked.max(axis=0), color=colour, alpha=0.15, lw=0
  )
  panel.plot(rank, ranked.mean(axis=0), color=colour, lw=1.4, marker='.')


def _ticks(n: int) -> list[int]:
  step = max(1, -(-n // 8))
  return list(range(1, n + 1, step))


def draw_skill_similarity(
  panels: Mapping[str, Float[np.ndarray, 'split skill skill']],
  *,
  title: str,
  name: str,
) -> figures.Figure:
  """Draws how alike the skills of an inventory are, one panel a layer.

  Args:
    panels: {title of the panel: cosines between skills}.
    title: of the figure.
    name: prefix of the ids in the markup.
  """
  n_splits, n_skills = next(iter(panels.values())).shape[:2]
  n_cells = n_splits * (n_skills + 1)
  room = figures.PAGE_INCHES - 1.2
  width = min(max(_title_width(panels), 0.12 * n_cells), room)
  n_columns = min(len(panels), max(1, int(room / (width + 0.3))))
  n_rows = -(-len(panels) // n_columns)

  def draw(figure):
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    for panel, (label, cosines) in zip(
      grid.ravel(), panels.items(), strict=False
    ):
      image = panel.imshow(
        _side_by_side(np.moveaxis(cosines, 1, 0)),
        aspect='auto',
        cmap='RdBu_r',
        vmin=-1,
        vmax=1,
        interpolation='nearest',
      )
      panel.set_title(label, loc='left', fontsize=8.5)
      _label_skills(panel, n_splits, n_skills)
    for panel in grid.ravel()[len(panels) :]:
      panel.set_visible(False)
    for panel in grid[:, 0]:
      panel.set_ylabel('skill')
    _draw_scale(figure, image, list(grid.ravel()), 'cosine of skills')

  return figures.draw_figure(
    draw,
    size=(n_columns * (width + 0.3) + 1.2, n_rows * (0.7 + 0.16 * n_skills)),
    title=title,
    name=name,
    caption='Cosine between what two skills of one inventory add to the'
    ' linear: their products a·b (for (IA)³, scale − 1) on the features of a'
    ' split.' + (' Splits stand side by side.' if n_splits > 1 else ''),
  )
