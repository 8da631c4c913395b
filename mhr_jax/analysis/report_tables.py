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


_METRICS = {
  'accuracy': 'accuracy × 100',
  'exact_match': 'exact match × 100',
  'rouge_l': 'ROUGE-L × 100',
}
_FOLD = 12


@dataclasses.dataclass(frozen=True)
class Table:
  """A table of texts.

  Attributes:
    title: above it.
    header: names of the columns.
    rows: one text a column; a text of several lines keeps its breaks.
    note: below it.
    folded: whether only its title shows before a click.
    footer: a last row, of totals, which sorting leaves where it is.
    words: whether cells are words, which wrap, and not numbers.
  """

  title: str
  header: Sequence[str]
  rows: Sequence[Sequence[str]]
  note: str = ''
  folded: bool = False
  footer: Sequence[str] = ()
  words: bool = False


def metric_of(results: Mapping[str, Any]) -> str:
  """Returns the name of the number in a study's cells."""
  name = results.get('metric', 'exact_match')
  return _METRICS.get(name, name)


def score_tables(
  runs: Sequence[run_reading.RunFacts], results: Mapping[str, Any] | None
) -> list[Table]:
  """Of a study, scores by method and by task; else of each run's scores."""
  if results:
    tables = [_method_table(results), _gain_table(results)]
    return [table for table in tables if table.rows] + _task_tables(results)
  return [
    _run_scores(_evaluation_title(run.name, name, len(runs)), found)
    for run in runs
    for name, found in run.scores.items()
  ]


def _method_table(results) -> Table:
  baselines = [_baseline_row('untrained', untrained_by_phase(results))] + [
    _baseline_row(name, by_phase(baseline))
    for name, baseline in results.get('baselines', {}).items()
  ]
  methods = [
    [
      name,
      _count(method.get('trainable_parameters')),
      *(_cell(method.get(phase)) for phase in PHASES),
    ]
    for name, method in results.get('methods', {}).items()
  ]
  return Table(
    title=f'Scores by method ({metric_of(results)})',
    header=('method', 'trained, few-shot', *PHASES.values()),
    rows=baselines + methods,
    note='Mean ± sample standard deviation over seeds, the 95 % interval of'
    ' the mean (Student’s t) in brackets, and below them each seed’s value.'
    ' “trained, few-shot”: parameters that few-shot adaptation trains.'
    ' –: undefined for that row.'
    + ''.join(f' {note}' for note in results.get('notes', ())),
  )


def untrained_by_phase(results: Mapping[str, Any]) -> dict[str, float | None]:
  """Returns the untrained model's score in each phase, None where unknown."""
  found = results.get('untrained_by_phase', results.get('untrained'))
  return by_phase(found)


def by_phase(value: Any) -> dict[str, float | None]:
  """Returns one number a phase, of one number or of one a phase."""
  if isinstance(value, Mapping):
    return {phase: _mean_of(value.get(phase)) for phase in PHASES}
  return dict.fromkeys(PHASES, value)


def _tasks_of(results, phase) -> list[str]:
  """Returns the tasks of a phase, in the order of the first row's."""
  names: dict[str, None] = {}
  for method in results.get('methods', {}).values():
    names |= dict.fromkeys((method.get(phase) or {}).get('tasks', ()))
  return list(names)


def _gain_table(results) -> Table:
  rows = _gain_rows(results, 'gain', '')
  rows += _gain_rows(results, 'over_shuffled', ', over shuffled task ids')
  return Table(
    title=f'Gain over the untrained model ({metric_of(results)})',
    header=('method', *PHASES.values()),
    rows=rows,
    note='Mean of the paired differences over seeds and its 95 % interval'
    ' (Student’s t); the backbone is one and the same.',
  )


def _gain_rows(results, key, suffix) -> list[list[str]]:
  gains = {
    name: [(method.get(phase) or {}).get(key) for phase in PHASES]
    for name, method in results.get('methods', {}).items()
  }
  return [
    [f'{name}{suffix}', *map(_gain, row)]
    for name, row in gains.items()
    if any(row)
  ]


def _gain(gain) -> str:
  if not gain:
    return '–'
  low, high = gain.get('interval', (None, None))
  text = f'{gain["mean"]:+.1f}'
  return text if low is None else f'{text} [{low:+.1f}, {high:+.1f}]'


def _mean_of(cell):
  return cell.get('mean') if isinstance(cell, Mapping) else cell


def _baseline_row(name, numbers):
  return [name, '–', *(format_score(numbers[phase]) for phase in PHASES)]


def _cell(cell) -> str:
  """'96.0 ± 0.7 [94.3, 97.7]' above the values of the seeds."""
  if not cell or not cell.get('values'):
    return format_score(_mean_of(cell))
  summary = aggregation.summarise(cell['values'])
  text = format_score(summary.mean)
  if len(summary.values) == 1:
    return text
  text += f' ± {format_score(summary.sd)}'
  text += f' [{format_score(summary.low)}, {format_score(summary.high)}]'
  return f'{text}\n{"  ".join(format_score(v) for v in summary.values)}'


def format_score(value: float | None) -> str:
  """Returns one decimal, two below 1, and – where there is no number."""
  if value is None or not math.isfinite(value):
    return '–'
  return f'{value:.1f}' if abs(value) >= 0.95 else f'{value:.2f}'


def _count(value) -> str:
  return '–' if value is None else f'{value:,}'


def _task_tables(results) -> list[Table]:
  tables = []
  for phase, title in PHASES.items():
    tasks = _tasks_of(results, phase)
    if not tasks:
      continue
    columns = _task_columns(results, phase, tasks)
    rows = [
      [task, *(format_score(of.get(task)) for of in columns.values())]
      for task in tasks
    ]
    tables.append(
      Table(
        title=f'By task, {title} ({metric_of(results)}, mean over seeds)',
        header=('task', *columns),
        rows=rows,
        folded=len(rows) > _FOLD,
      )
    )
  return tables


def _task_columns(results, phase, tasks) -> dict[str, Mapping[str, float]]:
  """Returns scores by task of the untrained, baselines and methods."""
  untrained = results.get('untrained_by_phase', {}).get(phase) or {}
  cells = {
    'untrained': untrained,
    **{
      name: baseline.get(phase) or {}
      for name, baseline in results.get('baselines', {}).items()
      if isinstance(baseline, Mapping)
    },
    **{
      name: method.get(phase) or {}
      for name, method in results.get('methods', {}).items()
    },
  }
  found = {
    name: cell['tasks']
    for name, cell in cells.items()
    if isinstance(cell, Mapping) and cell.get('tasks')
  }
  return {name: of for name, of in found.items() if set(of) & set(tasks)}


def _evaluation_title(run: str, evaluation: str, n_runs: int) -> str:
  """Names an evaluation; by its run too where there are several."""
  if evaluation and n_runs > 1:
    return f'{run}, {evaluation}'
  return evaluation or run


def _run_scores(name: str, scores: Mapping[str, Any]) -> Table:
  """All numbers of a `scores.json`, by task and over all."""
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
      *(format_score(part.get(metric)) for metric in metrics),
    ]
    for name, part in parts
    if part
  ]
  return Table(
    title=f'Scores: {name}',
    header=('part', 'instances', *(to_words(metric) for metric in metrics)),
    rows=rows,
    folded=len(rows) > 2 * _FOLD,
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


def settings_table(run: run_reading.RunFacts) -> Table | None:
  """Returns a run's settings; None where it says nothing of them."""
  settings = run.facts.get('settings')
  if not settings:
    return None
  return Table(
    title=f'Settings of {run.name}',
    header=('setting', 'value'),
    rows=[(name, str(value)) for name, value in settings.items()],
    folded=True,
    words=True,
  )


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
  return Table(
    title=f'Parameters of {run.group}',
    header=('part', 'parameters', 'share', 'dtype', 'trained'),
    rows=rows,
    footer=('all', _count(total), '', '', f'{_count(trained)} trained'),
  )
