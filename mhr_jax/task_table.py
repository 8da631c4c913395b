"""The table of tasks: which `task_id` is which task.

Saved with every checkpoint, so that names and not bare numbers choose rows of
the routing logits.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import functools
import json
from typing import Any

import numpy as np

from mhr_jax import json_text
from mhr_jax.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class TaskTable:
  """An ordered set of task names; a task's id is its position.

  Attributes:
    names: unique task names in the order of their ids.

  Raises:
    UserError: a name is no text, or is listed twice.
  """

  names: tuple[str, ...]

  def __post_init__(self):
    object.__setattr__(self, 'names', tuple(self.names))
    seen = set()
    for name in self.names:
      if not isinstance(name, str):
        raise UserError(f'The name of a task is a text, not {name!r}.')
      if name in seen:
        raise UserError(f'Task {name!r} is listed twice in the task table.')
      seen.add(name)

  def __len__(self) -> int:
    return len(self.names)

  @functools.cached_property
  def _positions(self) -> dict[str, int]:
    return {name: i for i, name in enumerate(self.names)}

  def id_of(self, task: str | int) -> int:
    """Returns the id of a task given by name or by id.

    Raises:
      UserError: the name is unknown or the id is out of range.
    """
    if isinstance(task, str):
      if task not in self._positions:
        raise UserError(
          f'There is no task {task!r}.{nearest(task, self.names)}'
        )
      return self._positions[task]
    if not 0 <= task < len(self.names):
      raise UserError(
        f'Task id {task} is out of range: there are {len(self.names)} tasks,'
        f' 0 to {len(self.names) - 1}.'
      )
    return int(task)

  def ids(self, tasks: Iterable[str | int]) -> np.ndarray:
    """Returns int32 ids, one a task, checked on the host."""
    return np.array([self.id_of(task) for task in tasks], np.int32)

  def to_json(self) -> str:
    """Returns the names as a JSON list, in the order of their ids."""
    return json.dumps(list(self.names), indent=1)

  @classmethod
  def from_json(cls, text: str) -> 'TaskTable':
    """Reads what `to_json` wrote."""
    return cls.from_names(json_text.parse(text))

  @classmethod
  def from_names(cls, names: Any) -> 'TaskTable':
    """Makes a table of what a person or a file says are the names.

    Raises:
      UserError: it is no list of different texts.
    """
    if isinstance(names, str | Mapping) or not isinstance(names, Iterable):
      raise UserError(
        f'Tasks are named by a list, such as ["copy"], not by {names!r}.'
      )
    return cls(tuple(names))
