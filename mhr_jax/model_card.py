"""The model card: what a run is, for people, as the README of its folder."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import re
from typing import Any

import jax

from mhr_jax.task_table import TaskTable


@dataclasses.dataclass(frozen=True)
class ParameterRow:
  """One row of the parameter table: all leaves under one label and group.

  Attributes:
    label: 'backbone', 'adapters' or 'routers'.
    group: first part of the path below the label, e.g. 'encoder'.
    leaves: number of arrays.
    parameters: number of numbers in them.
    dtype: of the leaves, several joined by a comma.
    trains: whether this run changes them.
  """

  label: str
  group: str
  leaves: int
  parameters: int
  dtype: str
  trains: bool


def parameter_rows(
  params: Mapping[str, Any], *, trains: Sequence[str] = ()
) -> list[ParameterRow]:
  """Counts parameters by label and by the first part of the path below it.

  Args:
    params: {label: tree} of arrays or of `jax.ShapeDtypeStruct`.
    trains: the labels that train.
  """
  rows = []
  for label, tree in params.items():
    for group, subtree in tree.items():
      leaves = jax.tree.leaves(subtree)
      dtypes = sorted({str(leaf.dtype) for leaf in leaves})
      rows.append(
        ParameterRow(
          label=label,
          group=group,
          leaves=len(leaves),
          parameters=sum(math.prod(leaf.shape) for leaf in leaves),
          dtype=', '.join(dtypes),
          trains=label in trains,
        )
      )
  return rows


@dataclasses.dataclass(frozen=True)
class RunDescription:
  """What a run is; everything in its model card.

  Attributes:
    name: a short name, the title of the card.
    summary: one or two sentences: what was trained on what.
    method: name of the row of the table of methods; '' for a bare backbone.
    tasks: the task table of the run, or None where there are no tasks.
    parameters: the parameter table.
    settings: facts to show, by name: steps, batch size, optimizer, …
    command: what started the run.
    config_text: the resolved configuration.
  """

  name: str
  summary: str
  method: str = ''
  tasks: TaskTable | None = None
  parameters: Sequence[ParameterRow] = ()
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  command: str = ''
  config_text: str = ''


_HOW_TO_LOAD = """```python
import mhr_jax

model = mhr_jax.load({path!r})
model.generate('a text', task={task!r})
```"""


def model_card(
  description: RunDescription, *, path: str, use: str = _HOW_TO_LOAD
) -> str:
  """Returns the card as Markdown.

  Args:
    description: what the run is.
    path: the folder, for the lines that load it.
    use: how to load it, with {path!r} and {task!r} where they belong; by
      default as a run folder.
  """
  parts = [f'# {description.name}', description.summary]
  if description.parameters:
    parts += ['## Parameters', _parameter_table(description.parameters)]
  if description.settings:
    rows = [(_code(k), _code(v)) for k, v in description.settings.items()]
    parts += ['## Settings', _markdown_table(('setting', 'value'), rows)]
  if description.tasks is not None:
    parts += [f'## Tasks ({len(description.tasks)})', _task_list(description)]
  tasks = description.tasks
  first = tasks.names[0] if tasks is not None and len(tasks) else 'a_task'
  parts += ['## Use', use.format(path=path, task=first)]
  if description.command:
    fence = _longer_than_within(description.command, at_least=3)
    parts += ['## Made with', f'{fence}\n{description.command}\n{fence}']
  return '\n\n'.join(parts) + '\n'


def _code(value: Any) -> str:
  """Returns a text as Markdown shows it letter by letter."""
  text = str(value)
  fence = _longer_than_within(text, at_least=1)
  space = ' ' if '`' in text else ''
  return f'{fence}{space}{text}{space}{fence}'


def _longer_than_within(text: str, *, at_least: int) -> str:
  """Returns more backticks than the text has anywhere in a row."""
  longest = max(map(len, re.findall('`+', text)), default=0)
  return '`' * max(at_least, longest + 1)


def _parameter_table(rows: Sequence[ParameterRow]) -> str:
  total = sum(row.parameters for row in rows) or 1
  trained = sum(row.parameters for row in rows if row.trains)
  cells = [
    (
      f'{row.label}/{row.group}',
      f'{row.parameters:,}',
      f'{row.parameters / total:.2%}',
      row.dtype,
      'yes' if row.trains else 'no',
    )
    for row in rows
  ]
  cells.append(('all', f'{total:,}', '100 %', '', f'{trained:,}'))
  header = ('part', 'parameters', 'share', 'dtype', 'trained')
  return _markdown_table(header, cells)


def _task_list(description: RunDescription, limit: int = 20) -> str:
  names = [] if description.tasks is None else list(description.tasks.names)
  rows = [(str(i), _code(name)) for i, name in enumerate(names[:limit])]
  if len(names) > limit:
    rows.append(('…', f'{len(names) - limit} more, in `tasks.json`'))
  return _markdown_table(('id', 'task'), rows)


def _markdown_table(
  header: Sequence[str], rows: Sequence[Sequence[str]]
) -> str:
  def line(cells: Sequence[str]) -> str:
    escaped = (cell.replace('|', '\\|').replace('\n', ' ') for cell in cells)
    return '| ' + ' | '.join(escaped) + ' |'

  return '\n'.join(
    [line(header), line(['---'] * len(header)), *map(line, rows)]
  )
