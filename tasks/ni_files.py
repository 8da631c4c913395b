"""The files of Super-NaturalInstructions' repository: reading and checking.

<folder>/tasks/<task>.json                  Definition, Positive Examples,
                                            Instances, Categories, …
<folder>/splits/<track>/{train,test}_tasks.txt      one task's name a line
<folder>/eval/test_references.jsonl         of the test tasks, if present:
                                            id, references, task_id,
                                            task_category, track
"""

from collections.abc import Mapping
import dataclasses
import functools
import json
from typing import Any, Literal, get_args

from etils import epath

from mhr_jax.errors import UserError, nearest

Role = Literal['train', 'test']
Track = Literal['default', 'xlingual']

REFERENCES = 'eval/test_references.jsonl'
OFFICIAL_TEST = 100
"""The official evaluation takes the first so many instances of a test task."""

_LANGUAGES = ('Input_language', 'Output_language', 'Instruction_language')


@dataclasses.dataclass(frozen=True)
class Reference:
  """One line of the references' file.

  Attributes:
    references: all acceptable outputs of the instance.
    task: the task file's name without `.json`.
    category: the task's first category; None where the line has none.
    track: 'default' where the line has none.
    line: where it stands.
  """

  references: tuple[str, ...]
  task: str | None
  category: str | None
  track: str
  line: int


def read_task_file(path: epath.PathLike) -> dict[str, Any]:
  """Reads and checks one task file.

  Raises:
    UserError: it is not JSON, or lacks what a task needs; the message names
      the file and the line.
  """
  path = epath.Path(path)
  text = path.read_text()
  try:
    task = json.loads(text)
  except json.JSONDecodeError as e:
    raise UserError(f'{path}:{e.lineno}: not JSON: {e.msg}.') from None
  if not isinstance(task, dict):
    raise UserError(f'{path}:1: a task file is a JSON object.')
  for key in ('Definition', 'Instances'):
    if not task.get(key):
      raise UserError(
        f'{path}:1: there is no {key!r}, or it is empty.{nearest(key, task)}'
      )
  for number, instance in enumerate(task['Instances']):
    problem = _problem(instance)
    if problem:
      line = _line_of_instance(text, instance, number)
      raise UserError(f'{path}:{line}: instance {number} {problem}.')
  ids = [instance['id'] for instance in task['Instances']]
  if len(set(ids)) < len(ids):
    twice = next(one for i, one in enumerate(ids) if one in ids[:i])
    raise UserError(f'{path}: two instances have the id {twice!r}.')
  return task


def _problem(instance: Any) -> str | None:
  """Says what an instance lacks."""
  if not isinstance(instance, dict):
    return 'is not a JSON object'
  for key in ('id', 'input', 'output'):
    if key not in instance:
      return f'has no {key!r}'
  if not references_of(instance):
    return 'has no reference: its output is empty'
  if not all(isinstance(one, str) for one in references_of(instance)):
    return 'has an output that is not text'
  return None


def _line_of_instance(text: str, instance: Any, number: int) -> int:
  """The line of an instance: by its id, or by counting from `Instances`."""
  at = text.find('"Instances"')
  if isinstance(instance, dict) and 'id' in instance:
    at = text.find(json.dumps(instance['id'], ensure_ascii=False), at)
  else:
    decoder, at = json.JSONDecoder(), _next_value(text, text.index('[', at) + 1)
    for _ in range(number):
      at = _next_value(text, decoder.raw_decode(text, at)[1])
  return text.count('\n', 0, at) + 1


def _next_value(text: str, at: int) -> int:
  return len(text) - len(text[at:].lstrip(' \t\r\n,'))


def list_tasks(
  folder: epath.Path, role: Role, track: Track = 'default'
) -> list[epath.Path]:
  """Returns the files of the tasks that a track's list names, in its order.

  Raises:
    UserError: there is no such list, or it names a task that is not there.
  """
  if track not in get_args(Track):
    hint = nearest(str(track), get_args(Track))
    raise UserError(f'There is no track {track!r}.{hint}')
  path = folder / 'splits' / track / f'{role}_tasks.txt'
  if not path.exists():
    raise UserError(
      f'There is no {path}: a folder in the official form has tasks/*.json and'
      f' splits/{track}/{{train,test}}_tasks.txt.'
    )
  there = {each.stem: each for each in (folder / 'tasks').glob('*.json')}
  found = []
  for line, name in enumerate(path.read_text().splitlines(), 1):
    name = name.strip()
    if name and name not in there:
      raise UserError(
        f'{path}:{line}: there is no task file tasks/{name}.json.'
        f'{nearest(name, there)}'
      )
    if name:
      found.append(there[name])
  return found


def track_of(task: Mapping[str, Any]) -> Track:
  """Returns 'default' where a task file names no language but English."""
  named = {each for key in _LANGUAGES for each in task.get(key, ())}
  return 'default' if named <= {'English'} else 'xlingual'


def category_of(task: Mapping[str, Any]) -> str | None:
  """Returns a task's first category, which it is evaluated under."""
  return (task.get('Categories') or [None])[0]


def references_of(instance: Mapping[str, Any]) -> tuple[str, ...]:
  """Returns all acceptable outputs of an instance."""
  output = instance['output']
  return (output,) if isinstance(output, str) else tuple(output)


def read_references(folder: epath.PathLike) -> dict[str, Reference] | None:
  """Reads the file of references by instance id; None where there is none.

  Raises:
    UserError: a line is not as it should be; the message names it.
  """
  path = epath.Path(folder) / REFERENCES
  if not path.exists():
    return None
  return _read_references(str(path), path.stat().mtime)


@functools.lru_cache(maxsize=4)
def _read_references(path: str, changed: float) -> dict[str, Reference]:
  del changed  # Reads the file again where it was written since.
  found = {}
  text = epath.Path(path).read_text()
  for number, line in enumerate(text.split('\n'), 1):
    if not line.strip():
      continue
    try:
      one = json.loads(line)
      found[one['id']] = Reference(
        tuple(one['references']),
        one.get('task_id'),
        one.get('task_category'),
        one.get('track', 'default'),
        number,
      )
    except (json.JSONDecodeError, KeyError, TypeError) as error:
      raise UserError(
        f'{path}:{number}: a line has an id and a list of references, as JSON'
        f' ({type(error).__name__}: {error}).'
      ) from None
  return found


def check_references(
  folder: epath.Path, path: epath.Path, task: Mapping[str, Any]
) -> None:
  """Compares a test task with the file of references, where there is one.

  Args:
    folder: the repository.
    path: of the task file.
    task: its contents.

  Raises:
    UserError: an instance that the official evaluation scores is not in that
      file, or has other references or another category there.
  """
  listed = read_references(folder)
  if listed is None:
    return
  for instance in task['Instances'][:OFFICIAL_TEST]:
    found = listed.get(instance['id'])
    if found is None:
      raise UserError(
        f'{path}: instance {instance["id"]} is not in {folder / REFERENCES}:'
        ' the two are of different versions.'
      )
    pairs = {
      'references': (references_of(instance), found.references),
      'category': (category_of(task), found.category or category_of(task)),
    }
    for what, (mine, theirs) in pairs.items():
      if mine != theirs:
        raise UserError(
          f'{path}: instance {instance["id"]} has the {what} {mine!r}, but'
          f' {theirs!r} in {folder / REFERENCES}:{found.line}: the two are of'
          ' different versions.'
        )


def absolute(folder: epath.PathLike) -> epath.Path:
  """Returns a local folder's full path; others as they are."""
  folder = epath.Path(folder).expanduser()
  return folder if '://' in str(folder) else folder.resolve()
