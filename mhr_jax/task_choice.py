"""Which task is whose: from names and ids to the task ids of a batch.

On the host and checked: inside jit a wrong task id would be a silent NaN.

'average' is the average adapter, unless the table has a task of that name: what
a model calls its tasks goes first, as a name of digits goes before an id.
"""

from collections.abc import Sequence
from typing import Any, Literal

from jaxtyping import Int32
import numpy as np

from mhr_jax.errors import UserError
from mhr_jax.model import RoutedT5
from mhr_jax.task_table import TaskTable

AVERAGE = 'average'
Tasks = str | int | Sequence[str | int] | np.ndarray
"""One task for all rows, or one a row; by name or by id."""
TaskRows = Int32[np.ndarray, 'row'] | Literal['average'] | None
"""The task id of each row, the average adapter, or no matter."""

_TASKS_SHOWN = 8


def routes(model: RoutedT5) -> bool:
  """Whether the adapters of a model differ from task to task."""
  added = model.adapters
  return added is not None and added.mixing != 'uniform' and added.n_tasks > 1


def known_tasks(model: RoutedT5, table: TaskTable | None) -> TaskTable | None:
  """Returns the table of tasks; '0', '1', … where routing has no names.

  Args:
    model: the model.
    table: saved with it, if one was.

  Returns:
    None where a model has neither a table nor routing.
  """
  if table is not None or model.adapters is None:
    return table
  return TaskTable(tuple(map(str, range(model.adapters.n_tasks))))


def choose_tasks(
  tasks: Tasks | None, rows: int, model: RoutedT5, table: TaskTable | None
) -> TaskRows:
  """Returns the task ids of the rows of a batch.

  Args:
    tasks: one task for all rows or one a row, names and ids alike; 'average'
      for the average adapter, unless a task is called so.
    rows: of the batch.
    model: the model.
    table: what `known_tasks` returned.

  Returns:
    None where the task makes no difference.

  Raises:
    UserError: the tasks differ and none is chosen, there is no such task, or
      the number of tasks is not that of the rows.
  """
  if tasks is None:
    if not routes(model):
      return None
    raise UserError(f'Which task? The model knows {_listed(table)}.')
  if isinstance(tasks, str) and tasks == AVERAGE and not _names_average(table):
    return AVERAGE
  if table is None:
    raise UserError('The model has no adapters, so no tasks: leave task out.')
  if isinstance(tasks, str) or _dimensions(tasks) == 0:
    return np.full(rows, _id_of(tasks, table), np.int32)
  found = [_id_of(task, table) for task in _items(tasks)]
  ids = np.array(found, np.int32)
  if len(ids) != rows:
    raise UserError(
      f'There are {len(ids)} tasks for {rows} rows: give one for all, or one'
      ' a row.'
    )
  return ids


def choose_one_task(
  task: str | int | None, model: RoutedT5, table: TaskTable | None
) -> int | Literal['average']:
  """Returns the id of one task, or 'average'; 0 where there is no other.

  Raises:
    UserError: see `choose_tasks`.
  """
  chosen = choose_tasks(task, 1, model, table)
  if isinstance(chosen, str):
    return 'average'
  return 0 if chosen is None else int(chosen[0])


def parse_task(text: str | None, names: Sequence[str]) -> str | int | None:
  """Returns a task given on a command line: a name, or an id in digits.

  >>> parse_task('1', ['add', 'copy'])
  1
  """
  if text is None or text in names or not text.isdecimal():
    return text
  return int(text)


def rows_of(tasks: TaskRows, piece: slice, n_rows: int) -> TaskRows:
  """Returns the task ids of some rows, as many as `n_rows`; 0 beyond them."""
  if not isinstance(tasks, np.ndarray):
    return tasks
  found = tasks[piece]
  return np.pad(found, (0, n_rows - len(found)))


def _names_average(table: TaskTable | None) -> bool:
  return table is not None and AVERAGE in table.names


def _dimensions(tasks: Any) -> int:
  try:
    return np.ndim(tasks)
  except ValueError:  # of NumPy's, about rows of different lengths
    raise UserError(
      'Tasks come as one for all rows or as a list, one a row, not as lists of'
      ' different lengths.'
    ) from None


def _items(tasks: Any) -> list[Any]:
  if _dimensions(tasks) != 1:
    raise UserError(
      f'Tasks come as one for all rows or as a list, one a row, not with shape'
      f' {np.shape(tasks)}.'
    )
  return list(tasks)


def _id_of(task: Any, table: TaskTable) -> int:
  if isinstance(task, str):
    if task == AVERAGE and not _names_average(table):
      raise UserError(
        "'average' is for a whole batch: ask for it by itself, apart from rows"
        ' of a task.'
      )
    return table.id_of(task)
  # Arrays without axes are numbers, too; to NumPy, a bool is no integer.
  if _dimensions(task) == 0 and np.issubdtype(
    np.asarray(task).dtype, np.integer
  ):
    return table.id_of(int(task))
  raise UserError(f'A task is a name or a whole number, not {task!r}.')


def _listed(table: TaskTable | None) -> str:
  names = () if table is None else table.names
  shown = ', '.join(names[:_TASKS_SHOWN])
  more = ', …' if len(names) > _TASKS_SHOWN else ''
  average = '' if _names_average(table) else "; or 'average'"
  return f'{len(names)}: {shown}{more}{average}'
