"""Batches made in the background: the same ones, and threads that end."""

import subprocess
import sys
import threading
import time

import pytest

from mhr_jax.data.read_ahead import ReadAhead
from mhr_jax.errors import UserError


class _Loader:
  """Stands for a loader: a batch is its step; one of them fails."""

  def __init__(self, fails_at: int | None = None):
    self.fails_at = fails_at
    self.made = set()

  def batch(self, step):
    if step == self.fails_at:
      raise UserError(f'step {step} cannot be read')
    self.made.add(step)
    return {'step': step}


def _threads():
  return {t for t in threading.enumerate() if 'grain' in t.name}


def _end(threads):
  """Whether threads end soon."""
  for thread in threads:
    thread.join(timeout=10)
  return not any(thread.is_alive() for thread in threads)


def test_batches_are_made_before_they_are_asked_for():
  loader = _Loader()
  with ReadAhead(loader, depth=3) as ahead:
    assert [ahead(step)['step'] for step in (5, 6)] == [5, 6]
    deadline = time.monotonic() + 10
    while len(loader.made) < 5 and time.monotonic() < deadline:
      time.sleep(0.01)
  assert loader.made == {5, 6, 7, 8, 9}


def test_no_thread_is_left_after_closing_nor_after_going_on_elsewhere():
  before = _threads()
  ahead = ReadAhead(_Loader())
  assert ahead(0)['step'] == 0
  first = _threads() - before
  assert first
  assert ahead(7)['step'] == 7
  assert _end(first)
  second = _threads() - before
  assert second
  ahead.close()
  ahead.close()
  assert _end(second)
  with pytest.raises(RuntimeError, match='closed'):
    ahead(8)


def test_what_the_loader_raises_comes_at_its_step():
  before = _threads()
  with (
    pytest.raises(UserError, match='step 3 cannot be read'),
    ReadAhead(_Loader(fails_at=3)) as ahead,
  ):
    for step in range(9):
      assert ahead(step)['step'] == step < 3
  assert _end(_threads() - before)


def test_a_process_that_does_not_close_ends():
  code = """
import time
from mhr_jax.data.read_ahead import ReadAhead

class Slow:
  def batch(self, step):
    time.sleep(0.2)
    return {'step': step}

ahead = ReadAhead(Slow())
ahead(0)
raise SystemExit(3)
"""
  done = subprocess.run([sys.executable, '-c', code], check=False, timeout=60)
  assert done.returncode == 3
