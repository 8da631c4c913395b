"""Predictions, their scores, and the files both are written to.

Scores stand beside the predictions they are of, and every number can be
computed again from `predictions.jsonl` alone.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
from typing import Any

from etils import epath
import numpy as np

from mhr_jax import metrics as metrics_lib
from mhr_jax import run_files
from mhr_jax.errors import UserError, nearest

METRICS = ('exact_match', 'rouge_l')

# Line breaks to `str.splitlines`, though not to JSON: written as escapes.
_LINE_BREAKS = str.maketrans(
  {c: f'\\u{ord(c):04x}' for c in '\x85\u2028\u2029'}
)


@dataclasses.dataclass(frozen=True)
class Prediction:
  """One instance and what the model made of it.

  Attributes:
    example_id: of the instance within its task.
    task: name of its task.
    category: what the task is counted under, if anything.
    input: the text that was read.
    prediction: the text that was written.
    references: all acceptable texts.
  """

  example_id: str
  task: str
  category: str | None
  input: str
  prediction: str
  references: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Scores:
  """Scores of a set of predictions, each from 0 to 100.

  Attributes:
    overall: the mean over all instances, by metric, and `instances`.
    mean_over_tasks: the mean of the tasks' means, by metric.
    tasks: as `overall`, by task.
    categories: as `overall`, by category; tasks without one are left out.
  """

  overall: Mapping[str, float]
  mean_over_tasks: Mapping[str, float]
  tasks: Mapping[str, Mapping[str, float]]
  categories: Mapping[str, Mapping[str, float]]

  def of_tasks(self, metric: str) -> dict[str, float]:
    """Returns one metric by task."""
    return {task: values[metric] for task, values in self.tasks.items()}


def score_predictions(
  predictions: Sequence[Prediction], *, metrics: Sequence[str] = METRICS
) -> tuple[Scores, dict[str, np.ndarray]]:
  """Scores predictions by instance, task, category and over all.

  Args:
    predictions: at least one.
    metrics: names of `metrics.METRICS`.

  Returns:
    The scores, and by metric one number an instance.

  Raises:
    UserError: there are no predictions, or a metric is unknown.
  """
  if not predictions:
    raise UserError('There is nothing to score: no instance was evaluated.')
  for name in metrics:
    if name not in metrics_lib.METRICS:
      hint = nearest(name, metrics_lib.METRICS)
      raise UserError(f'There is no metric {name!r}.{hint}')
  texts = [p.prediction for p in predictions]
  references = [p.references for p in predictions]
  values = {
    name: metrics_lib.METRICS[name](texts, references) for name in metrics
  }
  tasks = _by_group(values, [p.task for p in predictions])
  categories = _by_group(values, [p.category for p in predictions])
  categories.pop(None, None)
  scores = Scores(
    overall=_means(values, np.arange(len(predictions))),
    mean_over_tasks={
      name: float(np.mean([of[name] for of in tasks.values()]))
      for name in metrics
    },
    tasks=tasks,
    categories=categories,
  )
  return scores, values


def _by_group(
  values: Mapping[str, np.ndarray], groups: Sequence[Any]
) -> dict[Any, dict[str, float]]:
  members: dict[Any, list[int]] = {}
  for index, group in enumerate(groups):
    members.setdefault(group, []).append(index)
  return {
    group: _means(values, np.array(indices))
    for group, indices in members.items()
  }


def _means(
  values: Mapping[str, np.ndarray], indices: np.ndarray
) -> dict[str, float]:
  means = {name: float(v[indices].mean()) for name, v in values.items()}
  return {'instances': len(indices), **means}


def write_scores(
  folder: epath.PathLike,
  scores: Scores,
  predictions: Sequence[Prediction],
  values: Mapping[str, np.ndarray],
) -> None:
  """Writes `predictions.jsonl`, one instance a line, and `scores.json`."""
  folder = epath.Path(folder)
  lines = []
  for index, prediction in enumerate(predictions):
    line = dataclasses.asdict(prediction)
    line = {'id': line.pop('example_id'), **line}
    line |= {name: float(of[index]) for name, of in values.items()}
    text = json.dumps(run_files.to_json_value(line), ensure_ascii=False)
    lines.append(text.translate(_LINE_BREAKS))
  run_files.write_text(
    folder / run_files.PREDICTIONS_FILE, ''.join(f'{x}\n' for x in lines)
  )
  run_files.write_json(folder / run_files.SCORES_FILE, scores)


def read_predictions(folder: epath.PathLike) -> list[Prediction]:
  """Reads the `predictions.jsonl` of a folder."""
  path = epath.Path(folder) / run_files.PREDICTIONS_FILE
  return [
    Prediction(
      example_id=line['id'],
      task=line['task'],
      category=line['category'],
      input=line['input'],
      prediction=line['prediction'],
      references=tuple(line['references']),
    )
    for line in map(json.loads, path.read_text().splitlines())
  ]
