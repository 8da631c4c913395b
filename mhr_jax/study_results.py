"""The results of a study: one file a cell, `results.json`, a table.

`results.json`:

    {"suite": "skills", "metric": "exact_match", "seeds": [0, 1, 2],
     "untrained": x, "untrained_by_phase": {"multi_task": x, …},
     "baselines": {"copy": {"zero_shot": {"mean": x, "tasks": {…}}, …}},
     "methods": {"mhr": {"trainable_parameters": n,
       "multi_task": {"mean": x, "values": [x, …], "sd": x,
         "interval": [x, x], "gain": {…}, "over_shuffled": {…},
         "tasks": {…}},
       "zero_shot": …, "few_shot": …}}}

Scores are from 0 to 100. A cell that is undefined for a method is null, never
a number copied from another one. `untrained` is the backbone alone on the
few-shot test set; `trainable_parameters` are those that few-shot adaptation
trains. `gain` is over the backbone alone, with its 95 % interval over seeds
(of one backbone); `over_shuffled` over the same runs with shuffled task ids.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from etils import epath
import numpy as np
from rich import console as rich_console
from rich import table as rich_table

from mhr_jax import aggregation, run_files
from mhr_jax.analysis import report_tables
from mhr_jax.scores import Scores

SHUFFLED = ', shuffled task ids'
PHASES = ('multi_task', 'zero_shot', 'few_shot')
CELLS_FOLDER = 'cells'

Baseline = Mapping[str, Mapping[str, float]]  # phase, task
Key = tuple[str, str, int]  # method (a row of the table), phase, seed


@dataclasses.dataclass(frozen=True)
class CellScores:
  """What one cell came to.

  Attributes:
    score: the metric's mean over all instances.
    tasks: its mean by task.
    trainable_parameters: of few-shot adaptation; None elsewhere.
  """

  score: float
  tasks: Mapping[str, float]
  trainable_parameters: int | None = None

  @classmethod
  def of(cls, found: Scores, metric: str) -> 'CellScores':
    """Takes one metric out of the scores of an evaluation."""
    return cls(found.overall[metric], found.of_tasks(metric))

  @classmethod
  def of_tasks(
    cls,
    overall: Mapping[str, Mapping[str, float]],
    metric: str,
    *,
    trainable_parameters: int,
  ) -> 'CellScores':
    """Joins tasks that were evaluated apart, by the number of instances."""
    weights = [of['instances'] for of in overall.values()]
    tasks = {task: of[metric] for task, of in overall.items()}
    score = float(np.average(list(tasks.values()), weights=weights))
    return cls(score, tasks, trainable_parameters)


class StudyResults:
  """Cells as they come in, and what they amount to."""

  def __init__(
    self,
    run_dir: epath.PathLike,
    *,
    suite: str,
    metric: str,
    seeds: tuple[int, ...],
    methods: tuple[str, ...],
    baselines: Mapping[str, Baseline],
    console: rich_console.Console | None = None,
  ):
    """Starts with no cells; those on disk are read when they are asked for.

    Args:
      run_dir: the study's folder.
      suite: its name.
      metric: what the scores are.
      seeds: in the order of the values.
      methods: in the order of the rows.
      baselines: scores of something else, by name, phase and task.
      console: where to print.
    """
    self._run_dir = epath.Path(run_dir)
    self._facts = {'suite': suite, 'metric': metric, 'seeds': list(seeds)}
    self._seeds = seeds
    self._methods = methods
    self._baselines = baselines
    self._console = console or rich_console.Console()
    self._cells: dict[Key, CellScores] = {}

  def say(self, text: str) -> None:
    """Prints a line for people."""
    self._console.print(text, markup=False, highlight=False)

  def run(self, key: Key, cell: Callable[[], CellScores]) -> None:
    """Runs a cell unless its result is on disk; keeps the result there."""
    row, phase, seed = key
    name = f'{row}-{phase}-seed{seed}.json'.replace(', ', '-').replace(' ', '_')
    path = self._run_dir / CELLS_FOLDER / name
    if path.exists():
      self._cells[key] = CellScores(**run_files.read_json(path))
      return
    self._cells[key] = cell()
    run_files.write_json(path, self._cells[key])
    self.say(f'{row}, {phase}, seed {seed}: {self._cells[key].score:.1f}')

  def to_json(self) -> dict[str, Any]:
    """Returns the content of `results.json`."""
    untrained = {
      phase: self._cells['untrained', phase, self._seeds[0]] for phase in PHASES
    }
    baselines = {
      name: {
        phase: {'mean': float(np.mean(list(tasks.values()))), 'tasks': tasks}
        for phase, tasks in phases.items()
      }
      for name, phases in self._baselines.items()
    }
    return {
      **self._facts,
      'untrained': untrained['few_shot'].score,
      'untrained_by_phase': {
        phase: {'mean': cell.score, 'tasks': cell.tasks}
        for phase, cell in untrained.items()
      },
      'baselines': baselines,
      'methods': {row: self._row(row, untrained) for row in self._rows()},
    }

  def _rows(self) -> list[str]:
    """Returns the rows: methods, each followed by its shuffled form."""
    found = {row for row, _, _ in self._cells} - {'untrained'}
    ordered = []
    for method in self._methods:
      ordered += [r for r in (method, f'{method}{SHUFFLED}') if r in found]
    return ordered

  def _row(
    self, row: str, untrained: Mapping[str, CellScores]
  ) -> dict[str, Any]:
    counts = {
      cell.trainable_parameters
      for key, cell in self._cells.items()
      if key[0] == row and cell.trainable_parameters is not None
    }
    return {
      'trainable_parameters': max(counts, default=None),
      **{
        phase: self._summary(row, phase, untrained[phase]) for phase in PHASES
      },
    }

  def _summary(
    self, row: str, phase: str, untrained: CellScores
  ) -> dict[str, Any] | None:
    cells = self._of_seeds(row, phase)
    if not cells:
      return None
    scores = {seed: cell.score for seed, cell in cells.items()}
    summary = aggregation.summarise(list(scores.values()))
    found = {
      'mean': summary.mean,
      'values': summary.values,
      'sd': summary.sd,
      'interval': [summary.low, summary.high],
      'gain': _difference(scores, dict.fromkeys(scores, untrained.score)),
    }
    shuffled = self._of_seeds(f'{row}{SHUFFLED}', phase)
    if shuffled:
      without = {seed: cell.score for seed, cell in shuffled.items()}
      found['over_shuffled'] = _difference(scores, without)
    found['tasks'] = {
      task: float(np.mean([cell.tasks[task] for cell in cells.values()]))
      for task in next(iter(cells.values())).tasks
    }
    return found

  def _of_seeds(self, row: str, phase: str) -> dict[int, CellScores]:
    return {
      seed: self._cells[row, phase, seed]
      for seed in self._seeds
      if (row, phase, seed) in self._cells
    }

  def write(self) -> epath.Path:
    """Writes `results.json` and returns its path."""
    path = self._run_dir / run_files.RESULTS_FILE
    run_files.write_json(path, self.to_json())
    return path

  def print_tables(self) -> None:
    """Prints the report's tables of scores, the long ones left out."""
    for table in report_tables.score_tables([], self.to_json()):
      if not table.folded:
        self._console.print(_to_rich(table))


def _difference(
  scores: Mapping[int, float], baseline: Mapping[int, float]
) -> dict[str, Any]:
  found = aggregation.paired_differences(scores, baseline)
  return {'mean': found.mean, 'interval': [found.low, found.high]}


def _to_rich(table: report_tables.Table) -> rich_table.Table:
  shown = rich_table.Table(
    title=table.title, caption=table.note, title_justify='left'
  )
  for i, name in enumerate(table.header):
    shown.add_column(name, justify='left' if i == 0 else 'right')
  for row in table.rows:
    shown.add_row(*row)
  return shown
