"""Only TensorFlow's own first lines are held back."""

import subprocess
import sys

import pytest

_CODE = """
import os, sys
from mhr_jax.startup_lines import without_startup_lines
with without_startup_lines():
  os.write(2, b'I0000 00:00:1796 1 port.cc:153] oneDNN custom operations\\n')
  os.write(2, b'a mistake\\n')
  print('by Python', file=sys.stderr)
print('after', file=sys.stderr)
"""


def _stderr(code: str) -> list[str]:
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  return done.stderr.splitlines()


def test_other_lines_come_out():
  assert _stderr(_CODE) == ['a mistake', 'by Python', 'after']


def test_an_error_inside_does_not_lose_them():
  code = _CODE.replace("print('by", "raise SystemExit(0)\n  print('by")
  assert _stderr(code) == ['a mistake']


@pytest.mark.slow
def test_registering_tasks_is_silent():
  code = (
    'from mhr_jax.task_data import TaskModule\n'
    'TaskModule("mhr_jax.tasks.skills").register()\n'
    'import tensorflow'
  )
  assert _stderr(code) == []
