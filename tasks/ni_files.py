"""The files of Super-NaturalInstructions' repository: reading and checking.

<folder>/tasks/<task>.json                  Definition, Positive Examples,
                                            Instances, Categories, …
<folder>/splits/<track>/{train,test}_tasks.txt      one task's name a line
<folder>/eval/test_references.jsonl         of the test tasks, if present:
                                            id, references, task_id,
                                            task_category, track
"""

from collections.abc import Iterator, Mapping
import dataclasses
import functools
import json
from typing import Any, Literal, get_args

from etils import epath

from mhr_jax import json_text
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
  text = read_text(path)
  try:
    task = json_text.parse(text)
  except json.JSONDecodeError as e:
    raise UserError(f'{path}:{e.lineno}: not JSON: {e.msg}.') from None
  if not isinstance(task, dict):
    raise UserError(f'{path}:1: a task file is a JSON object.')
  for key in ('Definition', 'Instances'):
    if not task.get(key):
      raise UserError(
        f'{path}:1: there is no {key!r}, or it is empty.{nearest(key, task)}'
      )
  for key, problem in _problems(task):
    line = text.count('\n', 0, max(0, text.find(f'"{key}"'))) + 1
    raise UserError(f'{path}:{line}: {key!r} {problem}.')
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


def read_text(path: epath.Path) -> str:
  """Returns the text of a file; its lines end in \\n, whatever ended them.

  Raises:
    UserError: it is not UTF-8; the message names the file and the line.
  """
  content = path.read_bytes()
  try:
    return content.decode('utf-8').replace('\r\n', '\n')
  except UnicodeDecodeError as error:
    line = content.count(b'\n', 0, error.start) + 1
    raise UserError(
      f'{path}:{line}: no text in UTF-8: {error.reason} at byte'
      f' {error.start}. Write the file again as UTF-8.'
    ) from None


def _problems(task: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
  """Yields which of a task's values are of the wrong kind, and of which."""
  if not _is_text(task['Definition']) and not _are_texts(task['Definition']):
    yield 'Definition', 'is a text or a list of texts'
  if not isinstance(task['Instances'], list):
    found = type(task['Instances']).__name__
    yield 'Instances', f'is a list of JSON objects, not {found}'
  for key in ('Categories', *_LANGUAGES):
    if not _are_texts(task.get(key, [])):
      yield key, f'is a list of texts, not {task[key]!r}'
  examples = task.get('Positive Examples', [])
  if not isinstance(examples, list):
    yield 'Positive Examples', 'is a list of JSON objects'
    return
  for number, example in enumerate(examples):
    problem = _problem({'id': '', **example} if _is_object(example) else None)
    if problem:
      yield 'Positive Examples', f'are not well-formed: {number} {problem}'


def _problem(instance: Any) -> str | None:
  """Says what an instance lacks, or has of another kind."""
  if not _is_object(instance):
    return 'is not a JSON object'
  for key in ('id', 'input', 'output'):
    if key not in instance:
      return f'has no {key!r}'
  output = instance['output']
  if output == '' or output == []:
    return 'has no reference: its output is empty'
  if not _is_text(output) and not _are_texts(output):
    return f'has an output that is not text or a list of texts: {output!r}'
  for key in ('input', 'id'):
    if not _is_text(instance[key]):
      return f'has an {key!r} that is not text: {instance[key]!r}'
  return None


def _is_object(value: Any) -> bool:
  return isinstance(value, dict)


def _is_text(value: Any) -> bool:
  return isinstance(value, str)


def _are_texts(value: Any) -> bool:
  return isinstance(value, list) and all(map(_is_text, value))


def _line_of_instance(text: str, instance: Any, number: int) -> int:
  """The line of an instance: by its id, or by counting from `Instances`."""
  at = text.find('"Instances"')
  if isinstance(instance, dict) and _is_text(instance.get('id')):
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
  for line, name in enumerate(read_text(path).splitlines(), 1):
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
  text = read_text(epath.Path(path))
  for number, line in enumerate(text.split('\n'), 1):
    if not line.strip():
      continue
    try:
      one = json_text.parse(line)
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
