"""The memory of this process, as Linux counts it."""

import contextlib
import ctypes
import gc
import pathlib

_PROC = pathlib.Path('/proc/self')


def give_back() -> None:
  """Gives back what start-up freed and the C library kept.

  Not to be called between runs that are timed: the next one would fetch it all
  again.
  """
  gc.collect()
  with contextlib.suppress(AttributeError, OSError):  # another C library
    ctypes.CDLL('libc.so.6').malloc_trim(0)


def reset_peak() -> None:
  """Makes the peak start again at what is resident now.

  Where the kernel does not allow it, it stays that of the process's life.
  """
  with contextlib.suppress(OSError):
    (_PROC / 'clear_refs').write_text('5')


def resident_bytes() -> dict[str, int]:
  """Returns the resident bytes now and at their peak; {} without /proc."""
  try:
    lines = (_PROC / 'status').read_text().splitlines()
  except OSError:
    return {}
  fields = dict(line.split(':', 1) for line in lines if ':' in line)
  names = {'resident': 'VmRSS', 'peak': 'VmHWM'}
  return {
    name: int(fields[field].split()[0]) * 1024
    for name, field in names.items()
    if field in fields
  }
