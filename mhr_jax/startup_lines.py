"""Keeps TensorFlow's first lines off the terminal.

Its native code says which instructions it uses and that there is no CUDA before
it reads any setting, TF_CPP_MIN_LOG_LEVEL included. Here TensorFlow only reads
data, so both are of no use to anyone.
"""

from collections.abc import Iterator
import contextlib
import os
import re
import sys
import tempfile

_LINE = re.compile(
  rb'^(I\d{4} .*(port|cudart_stub|cpu_feature_guard)\.cc|'
  rb'To enable the following instructions|'
  rb'WARNING: All log messages before absl::InitializeLog)'
)


@contextlib.contextmanager
def without_startup_lines() -> Iterator[None]:
  """Holds back what native code writes to standard error, but for the rest.

  Around an import of TensorFlow or of what imports it. Other lines come out at
  the end of the block. Without effect once TensorFlow is there.
  """
  if 'tensorflow' in sys.modules:
    yield
    return
  sys.stderr.flush()
  terminal = os.dup(2)
  with tempfile.TemporaryFile() as held:
    os.dup2(held.fileno(), 2)
    try:
      yield
    finally:
      sys.stderr.flush()
      os.dup2(terminal, 2)
      held.seek(0)
      for line in held:
        if not _LINE.match(line):
          os.write(2, line)
      os.close(terminal)
