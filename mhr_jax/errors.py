"""Errors that a person caused and can mend.

The command line prints a `UserError` as one short message and exits with
code 2; every other exception is a bug of ours and keeps its traceback.
"""

from collections.abc import Iterable, Iterator
import contextlib
import difflib

_SAID = 200


class UserError(ValueError):
  """Something in the input is wrong; the message says what and the remedy."""


def nearest(name: str, known: Iterable[str], *, limit: int = 8) -> str:
  """Returns a hint that names what `name` was probably meant to be.

  Args:
    name: what was asked for.
    known: the names there are.
    limit: how many known names to list when none is near.

  Returns:
    A sentence with a leading space, to append to an error message.

  >>> nearest('mhrz', ['mhr', 'mhr_z', 'poly'])
  " Did you mean 'mhr_z'?"
  >>> nearest('x', ['poly', 'mhr'])
  ' There are: mhr, poly.'
  """
  names = sorted(known)
  close = difflib.get_close_matches(name, names, n=1)
  if close:
    return f' Did you mean {close[0]!r}?'
  if not names:
    return ' There are none.'
  more = f', … ({len(names)} in all)' if len(names) > limit else ''
  return f' There are: {", ".join(names[:limit])}{more}.'


@contextlib.contextmanager
def blaming(where: object, form: str) -> Iterator[None]:
  """Blames a file where taking it apart fails, instead of our code.

  For files of others, whose parts may be anything: only around what reads
  them.

  Args:
    where: the file or folder.
    form: what it should have been, such as 'a tokenizer of transformers'.

  Raises:
    UserError: a part is absent or of another kind; names it as Python does.
  """
  try:
    yield
  except UserError:
    raise
  except (
    AttributeError,
    IndexError,
    KeyError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
  ) as error:
    said = ' '.join(str(error).split())[:_SAID]
    raise UserError(
      f'{where} is not {form}: {type(error).__name__}: {said}. It was altered,'
      ' or something else wrote it.'
    ) from error


def shorten(message: str, *, most: int = 5) -> str:
  """Returns at most so many lines of a message; the last has the remedy.

  >>> shorten('a\\nb\\nc\\nd\\ne\\nf\\ng').splitlines()
  ['a', 'b', 'c', '… (3 lines more)', 'g']
  """
  lines = message.splitlines()
  if len(lines) > most:
    left = len(lines) - most + 1
    lines = [*lines[: most - 2], f'… ({left} lines more)', lines[-1]]
  return '\n'.join(lines)
