"""One mistake: what is spoiled, what is typed, what the answer must name."""

from collections.abc import Callable
import dataclasses
import json
import pathlib

Spoil = Callable[[pathlib.Path], object]

_KNOWN = '("copy", "first", "upper")'  # to the workspace's run


def nothing(folder: pathlib.Path) -> None:
  """Spoils nothing: the command itself is the mistake."""
  del folder


@dataclasses.dataclass(frozen=True)
class Case:
  """A row of the table.

  Attributes:
    name: of the case, unique.
    argv: what follows `mhr-jax`, in the folder that `workspace` made.
    says: what standard error must name: the file, the line, the value, the
      remedy.
    spoil: does something wrong to that folder first.
    stdin: standard input.
    absent: packages that are not installed, for a process of its own.
    sample: among the few that the slow tests run as real processes.
  """

  name: str
  argv: tuple[str, ...]
  says: tuple[str, ...]
  spoil: Spoil = nothing
  stdin: str = ''
  absent: tuple[str, ...] = ()
  sample: bool = False


def write(path: str, content: str | bytes) -> Spoil:
  """Returns what writes a file; its folder is made."""

  def spoil(folder: pathlib.Path) -> None:
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    file.write_bytes(data)

  return spoil


def edit(path: str, change: Callable[[bytes], bytes]) -> Spoil:
  """Returns what changes the bytes of a file."""

  def spoil(folder: pathlib.Path) -> None:
    file = folder / path
    file.write_bytes(change(file.read_bytes()))

  return spoil


def cut(path: str, share: float = 0.5) -> Spoil:
  """Returns what leaves the first part of a file."""
  return edit(path, lambda data: data[: int(len(data) * share)])


def edit_json(path: str, **changes) -> Spoil:
  """Returns what sets keys of a JSON object; None takes one out."""

  def change(data: bytes) -> bytes:
    value = json.loads(data) | changes
    kept = {k: v for k, v in value.items() if v is not None}
    return json.dumps(kept, indent=1).encode()

  return edit(path, change)


def remove(path: str) -> Spoil:
  """Returns what removes a file, or the files of a pattern."""

  def spoil(folder: pathlib.Path) -> None:
    found = list(folder.glob(path))
    assert found, f'{path}: there is nothing to remove'
    for file in found:
      file.unlink()

  return spoil


def both(*spoils: Spoil) -> Spoil:
  """Returns what does one after the other."""

  def spoil(folder: pathlib.Path) -> None:
    for each in spoils:
      each(folder)

  return spoil


def gin_flags(**values: str) -> tuple[str, ...]:
  """Returns bindings; the values are gin's."""
  return tuple(f'--gin.{name}={value}' for name, value in values.items())


def train(*more: str, **values: str) -> tuple[str, ...]:
  """Returns a training on the workspace's data that works, with changes."""
  files = ('toy.gin', 'methods/mhr.gin', 'runs/multi_task.gin', 'sizes.gin')
  given = {'RUN_DIR': '"new"', 'BACKBONE_FROM': '"backbone"'} | values
  given = {'TASKS': '"both"'} | given
  flags = (f'--gin_file={file}' for file in files)
  return ('train', *flags, *gin_flags(**given), *more)


def evaluate(**values: str) -> tuple[str, ...]:
  """Returns an evaluation of the workspace's run that works, with changes."""
  given = {'RUN_DIR': '"run"', 'TASKS': _KNOWN, 'INPUT_LENGTH': '8'} | values
  return ('evaluate', '--gin_file=runs/evaluate.gin', *gin_flags(**given))


def align(**values: str) -> tuple[str, ...]:
  """Returns a measurement of alignment that works, with changes."""
  given = {'RUN_DIR': '"run"', 'TASKS': _KNOWN, 'INPUT_LENGTH': '8'} | values
  return ('align', '--gin_file=runs/align.gin', *gin_flags(**given))


def adapt(**values: str) -> tuple[str, ...]:
  """Returns an adaptation of the workspace's run that works, with changes."""
  given = {'RUN_DIR': '"run"', 'TASKS': '"new"', 'INPUT_LENGTH': '8'} | values
  files = ('methods/mhr.gin', 'runs/few_shot.gin')
  flags = (f'--gin_file={file}' for file in files)
  return ('adapt', *flags, *gin_flags(**given))


def prepare(module: str, name: str, **options: str) -> tuple[str, ...]:
  """Returns the preparing of tasks of a module of ours.

  Args:
    module: below `mhr_jax.tasks`.
    name: of the task or mixture.
    **options: of the module's `register`, as gin has them.
  """
  given = {'vocabulary': '"bytes"', **options}
  text = ', '.join(f'"{key}": {value}' for key, value in given.items())
  return (
    'prepare',
    name,
    *gin_flags(
      **{
        'TaskData.tasks': '()',
        'TaskData.modules': '(@TaskModule(),)',
        'TaskModule.name': f'"mhr_jax.tasks.{module}"',
        'TaskModule.options': f'{{{text}}}',
      }
    ),
  )
