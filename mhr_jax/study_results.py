"""What the cells of a study amount to: the content of `results.json`.

    {"suite": "skills", "metric": "exact_match", "seeds": [0, 1, 2],
     "mean_over": "instances",
     "untrained": x, "untrained_by_phase": {"multi_task": {"mean": x, …}, …},
     "baselines": {"copy": {"zero_shot": {"mean": x, "tasks": {…}}, …}},
     "methods": {"mhr": {"trainable_parameters": n,
       "multi_task": {"mean": x, "median": x, "values": [x, …], "sd": x,
         "interval": [x, x], "bootstrap": [x, x], "values_over": "seeds",
         "gain": {…}, "over_shuffled": {…}, "mean_over_tasks": x,
         "categories": {…}, "mean_over_categories": x, "others": {…},
         "median_then_mean": {"mean": x, "sd": x, "medians": {…}},
         "tasks": {…}},
       "zero_shot": …, "few_shot": …,
       "alignment": {"effective/last": {"mean": x, …}, …}}},
     "comparisons": [{"claim": "…", "left": "mhr", "right": "poly",
       "phase": "few_shot", "over_seeds": {…}, "over_seeds_and_tasks": {…}}],
     "untested": ["a claim that nothing was measured for", …]}

Scores are from 0 to 100. What is undefined for a method is null, never a
number copied from another one. `untrained` is the backbone alone on the
few-shot test set; `trainable_parameters` are those that few-shot adaptation
trains. `gain` is over the backbone alone, with its 95 % interval over seeds
(of one backbone); `over_shuffled` over the same runs with shuffled task ids.
`values` are one a pre-training; where there is one pre-training and several
draws of few-shot examples, one a draw, and `values_over` says so.
"""

from collections.abc import Mapping, Sequence
import itertools
from typing import Any

import numpy as np

from mhr_jax import aggregation, methods, run_files
from mhr_jax.study_cells import Cells, CellScores
from mhr_jax.study_settings import (
  PHASES,
  SHUFFLED,
  UNTRAINED,
  Comparison,
  Study,
  alignment_phases,
)

_ALIGNMENT = 'alignment/'
_COUNTS = ('tasks', 'zero_gradients')  # Measured beside alignment.


def to_results(study: Study, cells: Cells) -> dict[str, Any]:
  """Returns the content of `results.json`, of the cells that were run."""
  found = _Results(study, cells)
  untrained = {phase: found.untrained(phase) for phase in PHASES}
  results = {
    'suite': study.suite,
    'metric': study.metric,
    'seeds': study.seeds,
    'mean_over': study.mean_over,
    'untrained': untrained['few_shot']['mean'],
    'untrained_by_phase': untrained,
    'baselines': _baselines(study),
    'methods': {row: found.row(row) for row in found.rows()},
    'comparisons': [found.compare(one) for one in found.comparisons()],
    'untested': [one.claim for one in found.untested()],
  }
  return run_files.to_json_value(results)


def _baselines(study: Study) -> dict[str, Any]:
  return {
    name: {
      phase: {'mean': float(np.mean(list(tasks.values()))), 'tasks': tasks}
      for phase, tasks in phases.items()
    }
    for name, phases in study.baselines.items()
  }


class _Results:
  """The cells of a study, by row and phase."""

  def __init__(self, study: Study, cells: Cells):
    self._study = study
    self._cells = cells.scores
    self._alignment = cells.alignment

  def rows(self) -> list[str]:
    """Returns the rows: methods, each followed by its shuffled form.

    A pre-training that is no method of the study stands before the first one
    that starts from it.
    """
    found = {row for row, _, _ in self._cells} - {UNTRAINED}
    ordered: dict[str, None] = {}
    for method in map(methods.get_method, self._study.methods):
      names = [method.name]
      if method.pretrain_as not in self._study.methods:
        names.insert(0, method.pretrain_as)
      for name in names:
        ordered |= dict.fromkeys([name, f'{name}{SHUFFLED}'])
    return [row for row in ordered if row in found]

  def untrained(self, phase: str) -> dict[str, Any]:
    """Returns the backbone's score in a phase."""
    cell = self._cells[UNTRAINED, phase, self._study.seeds[0]]
    return {'mean': self._score(cell), 'tasks': cell.tasks}

  def row(self, row: str) -> dict[str, Any]:
    """Returns all that is known of a row."""
    counts = {
      cell.trainable_parameters
      for key, cell in self._cells.items()
      if key[0] == row and cell.trainable_parameters is not None
    }
    found: dict[str, Any] = {'trainable_parameters': max(counts, default=None)}
    found |= {phase: self._summary(row, phase) for phase in PHASES}
    alignment = {
      phase.removeprefix(_ALIGNMENT): _spread(self.scores(row, phase))
      for phase in self._alignment_phases(row)
    }
    return found | ({'alignment': alignment} if alignment else {})

  def _alignment_phases(self, row: str) -> list[str]:
    """Returns what was measured of a row's gradients, in all seeds."""
    names = [
      set(of) for (name, _), of in self._alignment.items() if name == row
    ]
    common = set.intersection(*names) if names else set()
    return [
      f'{_ALIGNMENT}{name}'
      for name in sorted(common)
      if name.partition('/')[0] not in _COUNTS
    ]

  def of_seeds(self, row: str, phase: str) -> dict[int, CellScores]:
    """Returns the cells of a row and phase, by pre-training seed."""
    if row == UNTRAINED:
      cell = self._cells.get((row, phase, self._study.seeds[0]))
      return {} if cell is None else dict.fromkeys(self._study.seeds, cell)
    return {
      seed: self._cells[row, phase, seed]
      for seed in self._study.seeds
      if (row, phase, seed) in self._cells
    }

  def units(self, row: str, phase: str) -> dict[Any, CellScores]:
    """Returns what intervals are over: pre-trainings, or one's draws."""
    cells = self.of_seeds(row, phase)
    if len(self._study.seeds) == 1 and cells and self._has_draws(phase):
      cell = next(iter(cells.values()))
      draws = self._study.few_shot.draws
      return cell.by_draw() or {str(draw): cell for draw in draws}
    return dict(cells)

  def _has_draws(self, phase: str) -> bool:
    return phase == 'few_shot' and len(self._study.few_shot.draws) > 1

  def scores(self, row: str, phase: str) -> dict[Any, float]:
    """Returns one number a seed (or draw), of scores or of alignment."""
    if phase.startswith(_ALIGNMENT):
      name = phase.removeprefix(_ALIGNMENT)
      return {
        seed: self._alignment[row, seed][name]
        for seed in self._study.seeds
        if name in self._alignment.get((row, seed), {})
      }
    return {
      unit: self._score(cell) for unit, cell in self.units(row, phase).items()
    }

  def _score(self, cell: CellScores) -> float:
    return cell.mean_over(self._study.mean_over)

  def _summary(self, row: str, phase: str) -> dict[str, Any] | None:
    units = self.units(row, phase)
    if not units:
      return None
    scores = self.scores(row, phase)
    untrained = self.untrained(phase)['mean']
    found = _spread(scores) | {
      'values_over': 'seeds'
      if set(units) <= set(self._study.seeds)
      else 'draws',
      'gain': _gain(scores, dict.fromkeys(scores, untrained)),
    }
    shuffled = self.scores(f'{row}{SHUFFLED}', phase)
    if shuffled:
      found['over_shuffled'] = _gain(scores, shuffled)
    return found | _by_task(list(units.values())) | self._protocol(row, phase)

  def _protocol(self, row: str, phase: str) -> dict[str, Any]:
    """The authors' way to one number: over runs first, then over data sets."""
    runs = {
      (seed, draw): aggregation.mean_by_group(cell.tasks, cell.categories)
      for seed, of in self.of_seeds(row, phase).items()
      for draw, cell in (of.by_draw() or {'': of}).items()
    }
    return {'median_then_mean': aggregation.median_then_mean(runs)}

  def comparisons(self) -> list[Comparison]:
    """Returns the claims that can be tested, or all pairs of methods."""
    chosen = list(self._study.chosen_comparisons())
    if self._study.comparisons == 'all':
      rows = [row for row in self.rows() if SHUFFLED not in row]
      chosen = [
        Comparison('', left, right, phase)
        for phase in (*PHASES, *alignment_phases())
        for right, left in itertools.combinations(rows, 2)
      ]
    return [one for one in chosen if self._sides(one)[0]]

  def untested(self) -> list[Comparison]:
    """Returns the study's own claims that nothing was measured for."""
    return [
      one for one in self._study.chosen_comparisons() if not self._sides(one)[0]
    ]

  def _sides(self, one: Comparison) -> list[dict[Any, float]]:
    """Returns the scores of both rows where both have some."""
    sides = [self.scores(row, one.phase) for row in (one.left, one.right)]
    common = [unit for unit in sides[0] if unit in sides[1]]
    return [{unit: of[unit] for unit in common} for of in sides]

  def compare(self, one: Comparison) -> dict[str, Any]:
    """Returns a comparison and what came of it."""
    sides = self._sides(one)
    found: dict[str, Any] = {
      'claim': one.claim,
      'left': one.left,
      'right': one.right,
      'phase': one.phase,
      'over_seeds': aggregation.compare(*sides),
      'over_seeds_and_tasks': None,
    }
    if not one.phase.startswith(_ALIGNMENT):
      tasks = [
        {
          unit: cell.tasks
          for unit, cell in self.units(row, one.phase).items()
          if unit in sides[0]
        }
        for row in (one.left, one.right)
      ]
      found['over_seeds_and_tasks'] = aggregation.compare_crossed(*tasks)
    return found


def _spread(scores: Mapping[Any, float]) -> dict[str, Any]:
  values = list(scores.values())
  t = aggregation.summarise(values)
  bootstrap = aggregation.summarise(values, interval='bootstrap')
  return {
    'mean': t.mean,
    'median': t.median,
    'values': t.values,
    'sd': t.sd,
    'interval': [t.low, t.high],
    'bootstrap': [bootstrap.low, bootstrap.high],
  }


def _gain(
  scores: Mapping[Any, float], baseline: Mapping[Any, float]
) -> dict[str, Any]:
  found = aggregation.paired_differences(scores, baseline)
  return {'mean': found.mean, 'interval': [found.low, found.high]}


def _by_task(cells: Sequence[CellScores]) -> dict[str, Any]:
  """Means over seeds by task and by category, and of the other metrics."""
  tasks = _mean_over([cell.tasks for cell in cells])
  found: dict[str, Any] = {
    'mean_over_tasks': float(np.mean(list(tasks.values())))
  }
  if cells[0].categories:
    means = aggregation.mean_by_group(tasks, cells[0].categories)
    found['categories'] = means
    found['mean_over_categories'] = float(np.mean(list(means.values())))
  others = {
    name: _mean_over([cell.others[name] for cell in cells])
    for name in cells[0].others
  }
  found['others'] = {
    name: {'mean_over_tasks': float(np.mean(list(of.values()))), 'tasks': of}
    for name, of in others.items()
  }
  return found | {'tasks': tasks}


def _mean_over(cells: Sequence[Mapping[str, float]]) -> dict[str, float]:
  return {task: float(np.mean([of[task] for of in cells])) for task in cells[0]}
