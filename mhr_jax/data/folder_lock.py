"""A lock between processes that needs no file locks.

The lock is a folder: making one is exclusive on every file system. Its owner
writes who it is and keeps writing a beat; a waiter takes the lock over when
the owner's process is gone (same machine) or its beat stands still (any).

Buckets have no exclusive creation, so there two processes may both hold the
lock for a moment: it saves double work and is not what keeps data whole.
"""

from collections.abc import Iterator
import contextlib
import json
import os
import socket
import threading
import time
from typing import Literal
import uuid

from etils import epath

from mhr_jax.errors import UserError

_POLL_SECONDS = 0.1


@contextlib.contextmanager
def folder_lock(
  path: epath.PathLike,
  *,
  timeout_seconds: float = 3600.0,
  stale_seconds: float = 60.0,
) -> Iterator[Literal['at once', 'after waiting']]:
  """Holds the lock `path` while the block runs.

  Args:
    path: the lock's folder; its parents are made.
    timeout_seconds: how long to wait for another owner.
    stale_seconds: an owner whose beat stands still this long is given up.

  Yields:
    Whether the lock was free, or another process held it before.

  Raises:
    UserError: another process still holds it after `timeout_seconds`.
  """
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  token = uuid.uuid4().hex
  watch = _Watch(path, stale_seconds)
  deadline = time.monotonic() + timeout_seconds
  waited = False
  while not _take(path, token):
    waited = True
    if watch.is_stale():
      _remove(path)
    elif time.monotonic() > deadline:
      raise UserError(
        f'Another process ({watch.owner}) has held {path} for'
        f' {timeout_seconds:.0f} s. If it is not running, remove that folder.'
      )
    else:
      time.sleep(_POLL_SECONDS)
  stop = threading.Event()
  beat = threading.Thread(
    target=_keep_beating, args=(path, token, stop, stale_seconds), daemon=True
  )
  beat.start()
  try:
    yield 'after waiting' if waited else 'at once'
  finally:
    stop.set()
    beat.join()
    if _read(path).get('token') == token:
      _remove(path)


class _Watch:
  """Judges whether the owner of a lock still works, by this clock alone."""

  def __init__(self, path: epath.Path, stale_seconds: float):
    self._path = path
    self._stale_seconds = stale_seconds
    self._last: dict = {}
    self._since = time.monotonic()

  @property
  def owner(self) -> str:
    return f'{self._last.get("host", "?")}, pid {self._last.get("pid", "?")}'

  def is_stale(self) -> bool:
    now = _read(self._path)
    if now != self._last:
      self._last, self._since = now, time.monotonic()
    if now.get('host') == socket.gethostname() and not _runs(now['pid']):
      return True
    return time.monotonic() - self._since > self._stale_seconds


def _take(path: epath.Path, token: str) -> bool:
  try:
    # Who held it may have taken the folder around it away, being empty.
    path.mkdir(parents=True)
    _write(path, token, 0)
  except OSError:  # there already, or given up as stale at this very moment
    return False
  return _read(path).get('token') == token


def _keep_beating(
  path: epath.Path, token: str, stop: threading.Event, stale_seconds: float
) -> None:
  beats = 0
  while not stop.wait(stale_seconds / 6):
    beats += 1
    if _read(path).get('token') != token:
      return  # taken over while this process stood still
    _write(path, token, beats)


def _write(path: epath.Path, token: str, beats: int) -> None:
  owner = {
    'host': socket.gethostname(),
    'pid': os.getpid(),
    'token': token,
    'beats': beats,
  }
  partial = path / f'{token}.partial'
  partial.write_text(json.dumps(owner))
  partial.replace(path / 'owner.json')


def _read(path: epath.Path) -> dict:
  """Returns the owner; nothing while the lock is being taken or freed."""
  try:
    return json.loads((path / 'owner.json').read_text())
  except (OSError, ValueError):
    return {}


def _remove(path: epath.Path) -> None:
  """Frees a lock; of several processes that try, one renames the folder."""
  freed = path.parent / f'{path.name}.{uuid.uuid4().hex}.freed'
  with contextlib.suppress(OSError):
    path.rename(freed)
    freed.rmtree()


def _runs(pid: int) -> bool:
  """Whether a process of this machine runs."""
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    return True
  return True
