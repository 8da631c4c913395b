"""What `mhr-jax adapt` and `mhr-jax evaluate` would do, on abstract values.

No parameter is read or drawn, nothing trains or decodes, nothing is written
but prepared data where it is missing. Whatever is wrong with the run, the
tasks, the splits or the shots is an error, as without a dry run.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import math
from typing import Any

from etils import epath
import jax
import numpy as np

from mhr_jax import adaptation, dry_run, few_shot, run_folder, side_by_side
from mhr_jax.adaptation import AdaptationSettings
from mhr_jax.errors import UserError
from mhr_jax.evaluation import EvaluationSettings
from mhr_jax.few_shot import Cell, FewShotSettings, FewShotTask
from mhr_jax.methods import Method
from mhr_jax.model import RoutedT5

_TASKS_SHOWN = 4


def describe_adaptation(
  run: run_folder.Run,
  method: Method,
  tasks: Sequence[FewShotTask],
  settings: FewShotSettings,
  adapt: AdaptationSettings,
  evaluate: EvaluationSettings,
  *,
  splits: tuple[str, str],
  folder: epath.Path,
) -> str:
  """Returns what an adaptation would do, as text.

  Args:
    run: the pre-trained run, of shapes (`run_folder.open_run`).
    method: what adapts.
    tasks: the new tasks.
    settings: shots, seeds, steps, lengths.
    adapt: how it would train.
    evaluate: how it would be scored.
    splits: what shots are drawn from, and what is tested on.
    folder: where results would go.

  Raises:
    UserError: a task has too few examples, or the method or the loss does not
      fit the run or the shots.
  """
  # One step lays out what all steps are shaped like.
  cells = few_shot.build_cells(tasks, dataclasses.replace(settings, steps=1))
  adaptation.check_choices(cells, adapt.loss)
  model, start = _abstract_start(run, method, adapt)
  n_cells = len(adaptation.split_groups(cells, adapt.side_by_side)[0])
  lines = [
    f'{method.name}: {method.summary}\n',
    _run_line(run),
    _tasks_line([task.name for task in tasks]),
    *_cell_lines(cells, settings, n_cells, splits),
    _trains_line(start, method.adapt_trains),
    _answers_line(evaluate),
  ]
  compiled = side_by_side.compile_training(
    model,
    start,
    _widest_batch(cells),
    n_cells=n_cells,
    n_steps=settings.steps,
    trains=method.adapt_trains,
    optimizer=adapt.optimizer,
    loss=adapt.loss,
  )
  lines += [
    dry_run.memory_line(compiled),
    '             to train; what the answers take is not estimated',
    f'writes       {folder}',
  ]
  return '\n'.join(lines)


def describe_evaluation(
  run: run_folder.Run,
  evaluate: EvaluationSettings,
  *,
  tasks: Sequence[str],
  instances: str,
  batches: int,
  batch: tuple[int, int, int],
  folder: epath.Path,
) -> str:
  """Returns what an evaluation would do, as text.

  Args:
    run: the run, of shapes (`run_folder.open_run`).
    evaluate: how it would be scored.
    tasks: their names.
    instances: how many, of what.
    batches: how many.
    batch: rows, and tokens of an input and of a target.
    folder: where results would go.
  """
  rows, inputs, targets = batch
  served = {
    'task': "each task's own adapter",
    'average': 'the average adapter for all tasks',
  }[evaluate.adapter]
  adapters = served if run.model.adapters is not None else 'no adapters'
  size = sum(
    math.prod(leaf.shape) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(run.params)
  )
  return '\n'.join(
    [
      _run_line(run),
      f'adapter      {adapters}; {evaluate.task_ids} task ids',
      _tasks_line(tasks),
      f'instances    {instances}, {batches:,} batches',
      f'batch        {rows} rows × ({inputs} + {targets}) tokens',
      f'parameters   {_count(run.params):,}; nothing trains',
      _answers_line(evaluate),
      f'memory       {dry_run.gib(size)} of parameters over all devices; what'
      ' the answers take is not estimated',
      f'writes       {folder}',
    ]
  )


def _abstract_start(
  run: run_folder.Run, method: Method, settings: AdaptationSettings
) -> tuple[RoutedT5, dict[str, Any]]:
  """Returns the model of one cell and the shapes of what it starts from."""
  shares = None
  if method.adapt_from == 'soup':
    if run.task_table is None:
      raise UserError('The run has no table of tasks to choose soups from.')
    shares = np.ones(len(run.task_table), np.float32)
  models = []

  def start(params):
    model, started = adaptation.adaptation_start(
      run.model,
      params,
      method,
      key=jax.random.key(0),
      rows=settings.rows,
      shares=shares,
    )
    models.append(model)
    return started

  shapes = jax.eval_shape(start, run.params)
  return models[-1], shapes


def _widest_batch(cells: Sequence[Cell]) -> Mapping[str, jax.ShapeDtypeStruct]:
  """Returns the shapes of a step's arrays, as wide as any cell needs."""
  names = set.intersection(*(set(cell.batches) for cell in cells))
  return {
    name: jax.ShapeDtypeStruct(
      tuple(np.max([cell.batches[name].shape[1:] for cell in cells], axis=0)),
      cells[0].batches[name].dtype,
    )
    for name in sorted(names)
  }


def _run_line(run: run_folder.Run) -> str:
  known = f', {len(run.task_table)} tasks' if run.task_table else ''
  return (
    f'run          step {run.step}{known}, {_count(run.params):,} parameters'
  )


def _tasks_line(names: Sequence[str]) -> str:
  more = len(names) - _TASKS_SHOWN
  shown = ', '.join(names[:_TASKS_SHOWN])
  return f'tasks        {len(names)}: {shown}' + (
    f' and {more} more' if more > 0 else ''
  )


def _cell_lines(
  cells: Sequence[Cell],
  settings: FewShotSettings,
  n_cells: int,
  splits: tuple[str, str],
) -> Iterator[str]:
  seeds = ', '.join(map(str, settings.seeds))
  n_tasks = len(cells) // len(settings.seeds)
  sizes = sorted({len(cell.indices) for cell in cells})
  shots = f'{sizes[0]} to {sizes[-1]}' if len(sizes) > 1 else str(sizes[0])
  tested = {
    cell.task: sum(len(batch.records) for batch in cell.test) for cell in cells
  }
  yield (
    f'cells        {len(cells)}: {n_tasks} tasks × seeds {seeds};'
    f' {n_cells} side by side'
  )
  yield (
    f'shots        {shots} a cell of split {splits[0]!r}, {settings.held_back}'
    ' of them held back'
  )
  yield (
    f'instances    {sum(tested.values()):,} of split {splits[1]!r}, answered'
    ' once a seed'
  )
  yield (
    f'step         {settings.batch_size} rows × ({settings.input_length} +'
    f' {settings.target_length}) tokens; {settings.steps:,} steps a cell'
  )


def _trains_line(start: Mapping[str, Any], trains: Sequence[str]) -> str:
  own = ', '.join(f'{_count(start[label]):,} of {label}' for label in trains)
  return f'trains       {own}, of {_count(start):,} parameters a cell'


def _answers_line(evaluate: EvaluationSettings) -> str:
  how = 'answer choices are ranked'
  if not evaluate.ranks and evaluate.decoding is not None:
    how = (
      f'texts of at most {evaluate.decoding.max_new_tokens} tokens,'
      f' {evaluate.decoding.num_beams} beams'
    )
  return f'answers      {how}; {", ".join(evaluate.metrics)}'


def _count(tree: Any) -> int:
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
