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
from mhr_jax.errors import UserError

METRICS = ('exact_match', 'rouge_l')
OWN_METRIC = 'own_metric'
"""Scores each task by the metric that it names as its own."""
ACCURACY = 'accuracy'
"""The metric of ranked answer choices; with it come `BASELINES`."""
BASELINES = ('chance', 'majority')
"""Who guesses evenly among the choices, and who always takes the label that
is right most often in the task."""

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
    prediction: the text that was written, or the choice that was taken.
    references: all acceptable texts.
    metric: the task's own, of `metrics`; None where it names none.
    choices: the texts that were ranked; () where a text was written.
    choice_scores: of each choice; the highest was taken, of equal ones the
      first.
    label: index of the right choice; None without choices.
  """

  example_id: str
  task: str
  category: str | None
  input: str
  prediction: str
  references: tuple[str, ...]
  metric: str | None = None
  choices: tuple[str, ...] = ()
  choice_scores: tuple[float, ...] = ()
  label: int | None = None


@dataclasses.dataclass(frozen=True)
class Spread:
  """How a metric differs over the tasks of a category.

  Attributes:
    tasks: how many there are.
    mean: over the tasks' scores.
    median: likewise.
    interquartile_range: the 75 % quantile minus the 25 % quantile, between
      scores by straight lines.
  """

  tasks: int
  mean: float
  median: float
  interquartile_range: float


@dataclasses.dataclass(frozen=True)
class Scores:
  """Scores of a set of predictions, each from 0 to 100.

  A metric of sets (`metrics.SET_METRICS`), and a task's own metric, are taken
  over each task; over more than one task they are the mean over tasks, in
  which a correlation that is not defined (NaN) counts as 0. Every other
  metric is the mean over instances.

  Attributes:
    overall: of everything, by metric, and the number of `instances`.
    mean_over_tasks: the mean of the tasks' scores, by metric.
    tasks: as `overall`, by task.
    categories: as `overall`, by category; tasks without one are left out.
    own_metrics: which metric `own_metric` is, by task; only where asked for.
    category_spread: over the tasks of each category, by metric. Where a
      category is a data set and a task one template, over templates.
  """

  overall: Mapping[str, float]
  mean_over_tasks: Mapping[str, float]
  tasks: Mapping[str, Mapping[str, float]]
  categories: Mapping[str, Mapping[str, float]]
  own_metrics: Mapping[str, str] = dataclasses.field(default_factory=dict)
  category_spread: Mapping[str, Mapping[str, Spread]] = dataclasses.field(
    default_factory=dict
  )

  @property
  def metrics(self) -> tuple[str, ...]:
    """What was asked for, without the baselines that come along."""
    return tuple(n for n in self.mean_over_tasks if n not in BASELINES)

  def of_tasks(self, metric: str) -> dict[str, float]:
    """Returns one metric by task."""
    return {task: values[metric] for task, values in self.tasks.items()}


def score_predictions(
  predictions: Sequence[Prediction], *, metrics: Sequence[str] = METRICS
) -> tuple[Scores, dict[str, np.ndarray]]:
  """Scores predictions by instance, task, category and over all.

  Args:
    predictions: at least one.
    metrics: names of `metrics.METRICS` and `metrics.SET_METRICS`, and
      `own_metric`. 'accuracy' counts the labels of ranked choices, and brings
      'chance' and 'majority' with it; as a task's own metric it compares
      texts letter for letter (`metrics.accuracy`) where none were ranked.

  Returns:
    The scores, and by metric one number an instance, where the metric has
    any; NaN for the instances of tasks whose own metric has none.

  Raises:
    UserError: there are no predictions, a metric is unknown, a task names no
      metric of its own, or has no ranked choices.
  """
  if not predictions:
    raise UserError('There is nothing to score: no instance was evaluated.')
  members = _members([p.task for p in predictions])
  if ACCURACY in metrics:
    metrics = (*metrics, *BASELINES)
  measured = {name: _measure(name, predictions, members) for name in metrics}

  def numbers(of: Sequence[Any]) -> dict[Any, dict[str, float]]:
    return {
      group: {'instances': len(rows)}
      | {name: one.over(rows) for name, one in measured.items()}
      for group, rows in _members(of).items()
    }

  categories = numbers([p.category for p in predictions])
  categories.pop(None, None)
  scores = Scores(
    overall=numbers([''] * len(predictions))[''],
    mean_over_tasks={
      name: float(np.nan_to_num(list(one.tasks.values())).mean())
      for name, one in measured.items()
    },
    tasks={
      task: {'instances': len(rows)}
      | {name: one.tasks[task] for name, one in measured.items()}
      for task, rows in members.items()
    },
    categories=categories,
    own_metrics=_own_metrics(predictions) if OWN_METRIC in metrics else {},
    category_spread=_spread(predictions, measured),
  )
  values = {
    name: one.values
    for name, one in measured.items()
    if name not in BASELINES and not np.isnan(one.values).all()
  }
  return scores, values


@dataclasses.dataclass(frozen=True)
class _Measured:
  """One metric over all predictions.

  Attributes:
    tasks: the score of each task.
    values: one number an instance, NaN where there is none.
    of: the task of each instance.
    pooled: whether several tasks' score is the mean over their instances.
  """

  tasks: Mapping[str, float]
  values: np.ndarray
  of: Sequence[str]
  pooled: bool

  def over(self, rows: np.ndarray) -> float:
    """Returns the score of some instances, which are all of their tasks."""
    if self.pooled:
      return float(self.values[rows].mean())
    tasks = dict.fromkeys(self.of[row] for row in rows)
    return float(np.nan_to_num([self.tasks[task] for task in tasks]).mean())


def _measure(
  name: str,
  predictions: Sequence[Prediction],
  members: Mapping[str, np.ndarray],
) -> _Measured:
  """Scores every task by a metric, or by its own."""
  own = _own_metrics(predictions) if name == OWN_METRIC else {}
  values = np.full(len(predictions), np.nan)
  tasks = {}
  for task, rows in members.items():
    metric = own.get(task, name)
    # A task's own 'accuracy' is that of texts where no choices were ranked.
    own_text = name == OWN_METRIC and not any(
      predictions[row].choice_scores for row in rows
    )
    if metric in (ACCURACY, *BASELINES) and not own_text:
      values[rows] = _rank([predictions[row] for row in rows], metric)
      tasks[task] = float(values[rows].mean())
      continue
    metrics_lib.check_name(metric)
    texts = [predictions[row].prediction for row in rows]
    references = [predictions[row].references for row in rows]
    if metric in metrics_lib.SET_METRICS:
      tasks[task] = metrics_lib.SET_METRICS[metric](texts, references)
    else:
      values[rows] = metrics_lib.METRICS[metric](texts, references)
      tasks[task] = float(values[rows].mean())
  pooled = name in metrics_lib.METRICS or name in BASELINES
  return _Measured(tasks, values, [p.task for p in predictions], pooled)


def _rank(predictions: Sequence[Prediction], metric: str) -> np.ndarray:
  """Returns what a task's ranked choices give, one number an instance."""
  for prediction in predictions:
    if not prediction.choice_scores or prediction.label is None:
      raise UserError(
        f'{ACCURACY!r} scores ranked answer choices, but example'
        f' {prediction.example_id!r} of task {prediction.task!r} has none: put'
        f' {ACCURACY!r} into EvaluationSettings.metrics when the task is'
        ' evaluated, so that its choices are ranked.'
      )
  if metric == 'chance':
    return np.array([100.0 / len(p.choices) for p in predictions])
  labels = np.array([p.label for p in predictions])
  if metric == 'majority':
    return 100.0 * (labels == np.bincount(labels).argmax())
  return 100.0 * (labels == [np.argmax(p.choice_scores) for p in predictions])


def _spread(
  predictions: Sequence[Prediction], measured: Mapping[str, _Measured]
) -> dict[str, dict[str, Spread]]:
  """Returns how each metric differs over the tasks of each category."""
  tasks: dict[str, list[str]] = {}
  for p in predictions:
    if p.category is not None and p.task not in tasks.get(p.category, ()):
      tasks.setdefault(p.category, []).append(p.task)
  found = {}
  for category, names in tasks.items():
    found[category] = {}
    for metric, one in measured.items():
      scores = np.nan_to_num([one.tasks[name] for name in names])
      low, median, high = np.quantile(scores, (0.25, 0.5, 0.75))
      found[category][metric] = Spread(
        len(names), float(scores.mean()), float(median), float(high - low)
      )
  return found


def _own_metrics(predictions: Sequence[Prediction]) -> dict[str, str]:
  """Returns the metric that each task names.

  Raises:
    UserError: a task names none.
  """
  found = {}
  for prediction in predictions:
    if prediction.metric is None:
      raise UserError(
        f'Task {prediction.task!r} names no metric of its own, which'
        f' {OWN_METRIC!r} asks for: choose metrics by name'
        " (EvaluationSettings.metrics = ('exact_match', 'rouge_l')), or"
        ' prepare the task again with one.'
      )
    found[prediction.task] = prediction.metric
  return found


def _members(groups: Sequence[Any]) -> dict[Any, np.ndarray]:
  """Returns the instances of each group, in the order of appearance."""
  members: dict[Any, list[int]] = {}
  for index, group in enumerate(groups):
    members.setdefault(group, []).append(index)
  return {group: np.array(rows) for group, rows in members.items()}


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
    line: dict[str, Any] = dataclasses.asdict(prediction)
    line = {'id': line.pop('example_id'), **line}
    if not prediction.choices:
      del line['choices'], line['choice_scores'], line['label']
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
      metric=line.get('metric'),
      choices=tuple(line.get('choices', ())),
      choice_scores=tuple(line.get('choice_scores', ())),
      label=line.get('label'),
    )
    for line in map(json.loads, path.read_text().splitlines())
  ]
