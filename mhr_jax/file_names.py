"""Names from data as parts of paths: never out of the folder they belong to."""

import re

from etils import epath

from mhr_jax.errors import UserError

_UNSAFE = re.compile(r'[/\\%\x00-\x1f]|^\.')


def as_file_name(name: str) -> str:
  """Returns a name that is one part of a path; different names stay different.

  Args:
    name: of a task or a mixture, whoever chose it.

  >>> as_file_name('ni:task1_x')
  'ni:task1_x'
  >>> as_file_name('../a/b')
  '%2E.%2Fa%2Fb'
  """
  return _UNSAFE.sub(lambda found: f'%{ord(found[0]):02X}', name)


def path_inside(
  folder: epath.PathLike, name: object, *, where: str
) -> epath.Path:
  """Returns the path of a file of `folder` that another file of it names.

  Args:
    folder: which must hold it.
    name: what the other file says.
    where: the other file, for the message.

  Raises:
    UserError: the name is no plain file name, so that it may lead elsewhere.
  """
  if not isinstance(name, str) or not name or as_file_name(name) != name:
    raise UserError(
      f'{where} names the file {name!r}; a file beside it, by its name alone, is'
      ' wanted: it was not written by what it claims, or altered.'
    )
  return epath.Path(folder) / name
