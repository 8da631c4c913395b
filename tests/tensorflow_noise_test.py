"""What TensorFlow logs while it is imported is left out, nothing else."""

import subprocess
import sys

_LINES = (
  'WARNING: All log messages before absl::InitializeLog() is called are',
  'I0000 00:00:1796040933.830124   16830 port.cc:153] oneDNN operations',
  '2026-11-30 12:00:00.123456: I tensorflow/core/util/port.cc:153] oneDNN',
  'To enable the following instructions: AVX2 FMA, in other operations',
  'a warning of somebody else',
  'ValueError: I0000 is no name',
)


def test_other_lines_pass_in_order_also_when_the_import_fails():
  code = (
    'import os\nfrom mhr_jax import tensorflow_noise\n'
    'os.write(2, b"before\\n")\n'
    'try:\n  with tensorflow_noise.held_back():\n'
    f'    for line in {_LINES}: os.write(2, line.encode() + b"\\n")\n'
    '    raise ImportError\n'
    'except ImportError: os.write(2, b"after\\n")\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert done.stderr.splitlines() == ['before', *_LINES[4:], 'after']
