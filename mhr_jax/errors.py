"""Errors that a person caused and can mend.

The command line prints a `UserError` as one short message and exits with
code 2; every other exception is a bug of ours and keeps its traceback.
"""

from collections.abc import Iterable
import difflib


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
