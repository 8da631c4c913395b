"""Only one process holds a lock, and a dead owner's lock is taken over."""

import json
import multiprocessing
import os
import signal
import threading
import time

import pytest

from mhr_jax.data import folder_lock
from mhr_jax.errors import UserError

_SPAWN = multiprocessing.get_context('spawn')


def _count(path, log, n):
  for _ in range(n):
    with folder_lock.folder_lock(path / 'lock'):
      value = int(log.read_text())
      time.sleep(0.01)
      log.write_text(str(value + 1))


def _hold(path, held):
  with folder_lock.folder_lock(path / 'lock'):
    held.set()
    time.sleep(60)


def test_increments_of_three_processes_are_not_lost(tmp_path):
  log = tmp_path / 'log'
  log.write_text('0')
  processes = [
    _SPAWN.Process(target=_count, args=(tmp_path, log, 4)) for _ in range(3)
  ]
  for process in processes:
    process.start()
  for process in processes:
    process.join(timeout=60)
  assert [process.exitcode for process in processes] == [0, 0, 0]
  assert log.read_text() == '12'
  assert sorted(p.name for p in tmp_path.iterdir()) == ['log']


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
  held = _SPAWN.Event()
  process = _SPAWN.Process(target=_hold, args=(tmp_path, held))
  process.start()
  assert held.wait(timeout=60)
  with (
    pytest.raises(UserError, match=f'pid {process.pid}'),
    folder_lock.folder_lock(tmp_path / 'lock', timeout_seconds=0.3),
  ):
    pass
  os.kill(process.pid, signal.SIGKILL)
  process.join()
  started = time.monotonic()
  with folder_lock.folder_lock(tmp_path / 'lock') as how:
    assert how == 'after waiting'
  assert time.monotonic() - started < 20


def test_a_lock_of_another_machine_is_given_up_when_its_beat_stops(tmp_path):
  lock = tmp_path / 'lock'
  lock.mkdir()
  owner = {'host': 'elsewhere', 'pid': os.getpid(), 'token': 't', 'beats': 3}
  (lock / 'owner.json').write_text(json.dumps(owner))
  with folder_lock.folder_lock(lock, stale_seconds=0.5):
    now = json.loads((lock / 'owner.json').read_text())
    assert now['pid'] == os.getpid() and now['token'] != 't'
  assert not lock.exists()


def test_the_lock_is_freed_when_the_block_fails(tmp_path):
  with pytest.raises(KeyError), folder_lock.folder_lock(tmp_path / 'lock'):
    raise KeyError
  with folder_lock.folder_lock(tmp_path / 'lock') as how:
    assert how == 'at once'


def test_an_owner_that_works_is_refused_at_its_next_beat(tmp_path):
  """As on another machine: only the beat tells that it works."""
  lock = tmp_path / 'lock'
  lock.mkdir()
  owner = {'host': 'elsewhere', 'pid': 1, 'token': 't', 'beats': 0}
  stop = threading.Event()

  def beat():
    while not stop.wait(0.05):
      owner['beats'] += 1
      (lock / 'partial').write_text(json.dumps(owner))
      (lock / 'partial').replace(lock / 'owner.json')

  thread = threading.Thread(target=beat)
  thread.start()
  try:
    with (
      pytest.raises(folder_lock.LockHeld, match='elsewhere, pid 1'),
      folder_lock.folder_lock(lock, while_held='refuse'),
    ):
      pass
  finally:
    stop.set()
    thread.join()


def test_an_owner_on_this_machine_is_refused_at_once(tmp_path):
  with (
    folder_lock.folder_lock(tmp_path / 'lock'),
    pytest.raises(folder_lock.LockHeld, match=f'pid {os.getpid()}'),
    folder_lock.folder_lock(tmp_path / 'lock', while_held='refuse'),
  ):
    pass


def test_a_process_id_that_came_back_is_no_owner(tmp_path):
  lock = tmp_path / 'lock'
  with folder_lock.folder_lock(lock):
    owner = json.loads((lock / 'owner.json').read_text())
    lock.rename(tmp_path / 'left')
  if not owner['started']:
    pytest.skip('this system does not say when a process started')
  owner['started'] = '1'
  (tmp_path / 'left' / 'owner.json').write_text(json.dumps(owner))
  (tmp_path / 'left').rename(lock)
  with folder_lock.folder_lock(lock, while_held='refuse') as how:
    assert how == 'after waiting'


def test_giving_up_one_owners_lock_leaves_that_of_the_next(tmp_path):
  path = tmp_path / 'lock'
  with folder_lock.folder_lock(path):
    # Another process found the one before stale, and comes too late.
    folder_lock._remove(path, 'that of the owner before')
    assert path.exists()
    with (
      pytest.raises(UserError),
      folder_lock.folder_lock(path, while_held='refuse'),
    ):
      pass
  assert not path.exists()
