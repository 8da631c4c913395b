"""The cells of a study: one result each, kept as one file each.

A cell is a row of the table (a method), a phase and a pre-training seed. A
study that is started again reads those that are there and runs the others, so
a file is written only when its cell is whole. A long cell is made of parts,
which are kept the same way.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
from typing import Any

from etils import epath
import numpy as np
from rich import console as rich_console

from mhr_jax import aggregation, metrics, run_files
from mhr_jax.scores import OWN_METRIC, Scores

CELLS_FOLDER = 'cells'
ALIGNMENT = 'alignment'

Key = tuple[str, str, int]  # row of the table, phase, seed
ByTask = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class CellScores:
  """What one cell came to.

  Attributes:
    score: the study's metric, its mean over all instances.
    tasks: its mean by task.
    others: the other metrics by task.
    categories: of the tasks that have one.
    trainable_parameters: of few-shot adaptation; None elsewhere.
    draws: of few-shot adaptation to several draws of examples, whose mean the
      cell is, by the draw's seed: `score`, `tasks` and `others` of each.
  """

  score: float
  tasks: ByTask
  others: Mapping[str, ByTask] = dataclasses.field(default_factory=dict)
  categories: Mapping[str, str] = dataclasses.field(default_factory=dict)
  trainable_parameters: int | None = None
  draws: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @classmethod
  def of(
    cls, found: Scores, metric: str, categories: Mapping[str, str]
  ) -> 'CellScores':
    """Takes the scores of an evaluation."""
    tasks = {
      name: {t: _defined(x) for t, x in found.of_tasks(name).items()}
      for name in found.mean_over_tasks
    }
    score = _defined(found.overall[metric])
    return cls(score, tasks.pop(metric), tasks, categories)

  @classmethod
  def of_parts(
    cls,
    parts: Sequence[Mapping[str, Any]],
    metric: str,
    categories: Mapping[str, str],
  ) -> 'CellScores':
    """Joins tasks and draws that were evaluated apart, by their instances.

    Args:
      parts: at least one, with 'draw', 'tasks' (of each the metrics and
        'instances') and 'trainable_parameters'.
      metric: the study's.
      categories: of the tasks that have one.
    """
    draws: dict[str, list[Mapping[str, Any]]] = {}
    for part in parts:
      draws.setdefault(str(part['draw']), []).append(part)
    by_draw = {draw: _join(of, metric) for draw, of in draws.items()}
    return cls(
      **_join(parts, metric),
      categories=categories,
      trainable_parameters=parts[0]['trainable_parameters'],
      draws=by_draw if len(by_draw) > 1 else {},
    )

  def by_draw(self) -> dict[str, 'CellScores']:
    """Returns a cell a draw; {} where there was one only."""
    return {
      draw: dataclasses.replace(self, **numbers, draws={})
      for draw, numbers in self.draws.items()
    }

  def mean_over(self, what: str) -> float:
    """Returns the score as the study counts it; see `Study.mean_over`."""
    if what == 'instances':
      return self.score
    groups = self.categories if what == 'categories' else {}
    means = aggregation.mean_by_group(self.tasks, groups)
    return float(np.mean(list(means.values())))


def _join(parts: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Any]:
  """Returns `score`, `tasks` and `others` of parts, means over their draws."""
  pairs = [pair for part in parts for pair in part['tasks'].items()]
  weights = [numbers['instances'] for _, numbers in pairs]
  scores = [_defined(numbers[metric]) for _, numbers in pairs]
  tasks: dict[str, dict[str, float]] = {}
  for name in pairs[0][1]:
    values: dict[str, list[float]] = {}
    for task, numbers in pairs:
      values.setdefault(task, []).append(_defined(numbers[name]))
    tasks[name] = {task: float(np.mean(of)) for task, of in values.items()}
  tasks.pop('instances')
  # A metric of whole tasks is counted by task, as in all other phases.
  pooled = metric not in (*metrics.SET_METRICS, OWN_METRIC)
  return {
    'score': float(np.average(scores, weights=weights if pooled else None)),
    'tasks': tasks.pop(metric),
    'others': tasks,
  }


def _defined(score: float | None) -> float:
  """Counts a correlation that is not defined as 0, as `scores` does."""
  return 0.0 if score is None or math.isnan(score) else score


class Cells:
  """The files of a study's cells, and those that were read or run."""

  def __init__(
    self,
    run_dir: epath.PathLike,
    *,
    console: rich_console.Console | None = None,
  ):
    """Starts with no cells; those on disk are read when they are asked for.

    Args:
      run_dir: the study's folder.
      console: where to print.
    """
    self.console = console or rich_console.Console()
    self._folder = epath.Path(run_dir) / CELLS_FOLDER
    self.scores: dict[Key, CellScores] = {}
    self.alignment: dict[tuple[str, int], Mapping[str, float]] = {}

  def say(self, text: str) -> None:
    """Prints a line for people."""
    self.console.print(text, markup=False, highlight=False)

  def run(self, key: Key, cell: Callable[[], CellScores]) -> None:
    """Runs a cell unless its result is on disk; keeps the result there."""
    row, phase, seed = key
    found, is_new = self._kept(f'{cell_name(key)}.json', cell)
    self.scores[key] = CellScores(**found)
    if is_new:
      self.say(f'{row}, {phase}, seed {seed}: {self.scores[key].score:.1f}')

  def run_alignment(
    self, row: str, seed: int, cell: Callable[[], Mapping[str, float]]
  ) -> None:
    """As `run`, of the numbers of a pre-training's gradients."""
    name = f'{cell_name((row, ALIGNMENT, seed))}.json'
    self.alignment[row, seed] = self._kept(name, cell)[0]

  def run_part(
    self, key: Key, index: int, part: Callable[[], list[dict[str, Any]]]
  ) -> list[dict[str, Any]]:
    """Runs a part of a cell unless its result is on disk; returns it."""
    name = f'{cell_name(key)}/part{index}.json'
    return self._kept(name, lambda: {'parts': part()})[0]['parts']

  def _kept(
    self, name: str, make: Callable[[], Any]
  ) -> tuple[dict[str, Any], bool]:
    """Returns what a file holds, made first where it is absent; and whether."""
    path = self._folder / name
    if path.exists():
      return run_files.read_json(path), False
    value = run_files.to_json_value(make())
    run_files.write_json(path, value)
    return value, True


def cell_name(key: Key) -> str:
  """Returns the name of a cell's file, without its ending."""
  row, phase, seed = key
  return f'{row}-{phase}-seed{seed}'.replace(', ', '-').replace(' ', '_')
