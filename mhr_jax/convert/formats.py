"""Which format lies at a path: told from the files that are there.

Nobody names the format of what is read; a folder that is none of these, or
nothing at all, is an error that says what was found and what was looked for.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

from etils import epath

from mhr_jax import adapter_folder, checkpoints, frozen, run_folder
from mhr_jax.convert import hf_t5, mttl, peft_files, t5x
from mhr_jax.errors import UserError, nearest

Format = Literal['run', 'backbone', 'hf', 't5x', 'adapter', 'peft', 'mttl']

_SHOWN = 6
# How files of torch begin: as zip files, and in early versions as pickles.
_TORCH_BEGINS = (b'PK\x03\x04', b'\x80')


class Description(NamedTuple):
  """A format in words.

  Attributes:
    name: what it is.
    told_by: by which files it is recognised.
    holds: 'backbone', 'adapter' or both, as 'model'.
  """

  name: str
  told_by: str
  holds: Literal['backbone', 'adapter', 'model']


FORMATS: dict[Format, Description] = {
  'run': Description('a run folder', run_folder.MODEL_FILE, 'model'),
  'backbone': Description(
    'a native backbone folder', frozen.FROZEN_FILE, 'backbone'
  ),
  'adapter': Description(
    'a native adapter', adapter_folder.ADAPTER_FILE, 'adapter'
  ),
  'peft': Description('a PEFT adapter', peft_files.CONFIG_FILE, 'adapter'),
  't5x': Description(
    'a T5X checkpoint',
    'checkpoint_N, or checkpoint or state/ in it',
    'model',
  ),
  'hf': Description('a transformers folder', hf_t5.CONFIG_FILE, 'backbone'),
  'mttl': Description(
    'an mttl checkpoint', 'its file, or a folder of one', 'adapter'
  ),
}
"""Every format that is read, in the order in which it is looked for."""


def recognise(path: epath.PathLike) -> Format:
  """Returns the format of what lies at a path.

  Args:
    path: a folder, or an mttl checkpoint's file.

  Raises:
    UserError: there is nothing, or nothing that is read; the message says
      what lies there and what would have been recognised.
  """
  path = checkpoints.absolute(path)
  if not path.exists():
    raise UserError(f'There is nothing at {path}.{_neighbours(path)}')
  for name in FORMATS:
    if _TESTS[name](path):
      return name
  raise UserError(_unknown(path))


def _has(file: str) -> Callable[[epath.Path], bool]:
  return lambda path: (path / file).exists()


def _is_run(path: epath.Path) -> bool:
  """Whether a folder is a run of ours: T5X's has a `model.json`, too."""
  if not (path / run_folder.MODEL_FILE).exists():
    return False
  ours = (path / checkpoints.CHECKPOINTS_FOLDER).exists()
  return ours or not t5x.is_checkpoint(path)


def _is_mttl(path: epath.Path) -> bool:
  files = mttl.list_files(path)
  if path.is_dir() or not files:
    return bool(files)
  with path.open('rb') as file:
    begin = file.read(4)
  return path.suffix == '.safetensors' or begin.startswith(_TORCH_BEGINS)


_TESTS: dict[Format, Callable[[epath.Path], bool]] = {
  'run': _is_run,
  'backbone': _has(frozen.FROZEN_FILE),
  'adapter': _has(adapter_folder.ADAPTER_FILE),
  'peft': _has(peft_files.CONFIG_FILE),
  't5x': t5x.is_checkpoint,
  'hf': _has(hf_t5.CONFIG_FILE),
  'mttl': _is_mttl,
}


def _neighbours(path: epath.Path) -> str:
  parent = path.parent
  while not parent.is_dir() and parent != parent.parent:
    parent = parent.parent
  if parent != path.parent:
    return f' The nearest folder that exists is {parent}.'
  return nearest(path.name, [each.name for each in parent.iterdir()])


def _unknown(path: epath.Path) -> str:
  known = '; '.join(f'{x.name} ({x.told_by})' for x in FORMATS.values())
  if not path.is_dir():
    return (
      f'{path} is a file of no format that is read; name the folder that it'
      f' lies in, perhaps. Recognised would be {known}.'
    )
  there = sorted(path.iterdir())
  names = [each.name + '/' * each.is_dir() for each in there]
  more = ', …' if len(names) > _SHOWN else ''
  held = ', '.join(names[:_SHOWN]) + more if names else 'nothing'
  return (
    f'{path} is of no format that is read: it holds {held}.'
    f'{_one_level_down(there)} Recognised would be {known}.'
  )


def _one_level_down(there: list[epath.Path]) -> str:
  """Returns a hint to folders inside that would be recognised."""
  for each in there:
    if each.is_dir():
      for name in FORMATS:
        if name != 'mttl' and _TESTS[name](each):
          return f' {each.name} in it is {FORMATS[name].name}.'
  return ''
