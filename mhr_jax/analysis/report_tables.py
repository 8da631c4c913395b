"""The report's tables: scores by method and task, parameters."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any

from mhr_jax import aggregation
from mhr_jax.analysis import run_reading

PHASES = {
  'multi_task': 'multi-task',
  'zero_shot': 'zero-shot',
  'few_shot': 'few-shot',
}


@dataclasses.dataclass(frozen=True)
class Table:
  """A table of texts.

  Attributes:
    title: above it.
    header: names of the columns.
    rows: one text a column; a text of several lines keeps its breaks.
    note: below it.
  """

  title: str
  header: Sequence[str]
  rows: Sequence[Sequence[str]]
  note: str = ''


def metric_of(results: Mapping[str, Any]) -> str:
  """Returns the name of the number in a study's cells."""
  return results.get('metric', 'exact match × 100')


def score_tables(
  runs: Sequence[run_reading.RunFacts], results: Mapping[str, Any] | None
) -> list[Table]:
  """Of a study, scores by method and by task; else of each run's scores."""
  if results:
    return [_method_table(results), *_task_tables(results)]
  return [_run_scores(run) for run in runs if run.scores]


def _method_table(results) -> Table:
  untrained = by_phase(results.get('untrained'))
  rows = [
    _baseline_row('untrained', untrained),
    *(
      _baseline_row(name, by_phase(value))
      for name, value in results.get('baselines', {}).items()
    ),
    *(
      [
        name,
        _count(method.get('trainable_parameters')),
        *(_cell(method.get(phase)) for phase in PHASES),
      ]
      for name, method in results.get('methods', {}).items()
    ),
  ]
  return Table(
    title=f'Scores by method ({metric_of(results)})',
    header=('method', 'trained parameters', *PHASES.values()),
    rows=rows,
    note='Mean ± sample standard deviation over seeds, the 95 % interval of'
    ' the mean (Student’s t) in brackets, and each seed’s value.'
    ' – : undefined for that method.'
    + ''.join(f' {note}' for note in results.get('notes', ())),
  )


def by_phase(value: Any) -> dict[str, float | None]:
  """Returns one number a phase, of one number or of one a phase."""
  if isinstance(value, Mapping):
    return {phase: _mean_of(value.get(phase)) for phase in PHASES}
  return dict.fromkeys(PHASES, value)


def _mean_of(cell):
  return cell.get('mean') if isinstance(cell, Mapping) else cell


def _baseline_row(name, numbers):
  return [name, '–', *(_number(numbers[phase]) for phase in PHASES)]


def _cell(cell) -> str:
  """'96.0 ± 0.7 [94.3, 97.7]' above the values of the seeds."""
  if not cell or not cell.get('values'):
    return _number(_mean_of(cell))
  summary = aggregation.summarise(cell['values'])
  text = _number(summary.mean)
  if len(summary.values) > 1:
    text += f' ± {_number(summary.sd)}'
    text += f' [{_number(summary.low)}, {_number(summary.high)}]'
  return f'{text}\n{"  ".join(_number(v) for v in summary.values)}'


def _number(value) -> str:
  if value is None or not math.isfinite(value):
    return '–'
  return f'{value:.1f}' if abs(value) >= 0.95 else f'{value:.2f}'


def _count(value) -> str:
  return '–' if value is None else f'{value:,}'


def _task_tables(results) -> list[Table]:
  tables = []
  for phase, title in PHASES.items():
    cells = {
      name: method[phase]['tasks']
      for name, method in results.get('methods', {}).items()
      if (method.get(phase) or {}).get('tasks')
    }
    if not cells:
      continue
    tasks = dict.fromkeys(task for of in cells.values() for task in of)
    rows = [
      [task, *(_number(of.get(task)) for of in cells.values())]
      for task in tasks
    ]
    tables.append(
      Table(
        title=f'By task, {title} ({metric_of(results)}, mean over seeds)',
        header=('task', *cells),
        rows=rows,
      )
    )
  return tables


def _run_scores(run) -> Table:
  """Of one run: all numbers of `scores.json`, by task and over all."""
  scores = run.scores
  metrics = [name for name in scores['overall'] if name != 'instances']
  parts = [
    ('all instances', scores['overall']),
    ('mean over tasks', scores.get('mean_over_tasks', {})),
    *((f'category {k}', v) for k, v in scores.get('categories', {}).items()),
    *scores.get('tasks', {}).items(),
  ]
  rows = [
    [
      name,
      _count(part.get('instances')),
      *(_number(part.get(metric)) for metric in metrics),
    ]
    for name, part in parts
    if part
  ]
  return Table(
    title=f'Scores of {run.name}',
    header=('', 'instances', *(to_words(metric) for metric in metrics)),
    rows=rows,
  )


def to_words(name: str) -> str:
  """Returns a name as people write it: 'rouge_l' is 'rouge l'."""
  return name.replace('_', ' ')


def parameter_tables(runs: Sequence[run_reading.RunFacts]) -> list[Table]:
  """Returns one table a method: seeds have the same shapes."""
  first: dict[str, Any] = {}
  for run in runs:
    if run.facts.get('parameters'):
      first.setdefault(run.group, run)
  return [_parameter_table(run) for run in first.values()]


def _parameter_table(run) -> Table:
  parts = run.facts['parameters']
  total = sum(part['parameters'] for part in parts) or 1
  rows = [
    [
      f'{part["label"]}/{part["group"]}',
      _count(part['parameters']),
      f'{part["parameters"] / total:.2%}',
      part['dtype'],
      'yes' if part['trains'] else 'no',
    ]
    for part in parts
  ]
  trained = sum(part['parameters'] for part in parts if part['trains'])
  rows.append(['all', _count(total), '', '', f'{_count(trained)} trained'])
  return Table(
    title=f'Parameters of {run.group}',
    header=('part', 'parameters', 'share', 'dtype', 'trained'),
    rows=rows,
  )
