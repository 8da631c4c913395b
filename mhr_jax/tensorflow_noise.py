"""Keeps what TensorFlow's libraries log while they are imported off the screen.

They write some lines to standard error before any of their settings is looked
at, TF_CPP_MIN_LOG_LEVEL included, and a person's own mistake, reported in one
line, would stand behind six of theirs.
"""

from collections.abc import Iterator
import contextlib
import os
import re
import sys
import tempfile

_STDERR = 2
# The forms of absl's log, and its remark about itself.
_NOISE = re.compile(
  rb'[IWE]\d{4} \d\d|\d{4}-\d\d-\d\d [\d:.]+: [IWE] |'
  rb'WARNING: All log messages before absl|To enable the following instructions'
)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
  """Holds standard error back; passes on afterwards what is no such log.

  Where TensorFlow is imported already it does nothing.
  """
  if 'tensorflow' in sys.modules:
    yield
    return
  sys.stderr.flush()
  with tempfile.TemporaryFile() as held:
    kept = os.dup(_STDERR)
    os.dup2(held.fileno(), _STDERR)
    try:
      yield
    finally:
      sys.stderr.flush()
      os.dup2(kept, _STDERR)
      os.close(kept)
      held.seek(0)
      for line in held:
        if not _NOISE.match(line):
          os.write(_STDERR, line)
