"""A lock between processes that needs no file locks.

The lock is a folder: making one is exclusive on every file system. Its owner
writes who it is and keeps writing a beat; another process takes the lock over
when the owner's process is gone (same machine) or its beat stands still (any).

Buckets have no exclusive creation, so there two processes may both hold the
lock for a moment: it saves double work and is not what keeps data whole.
"""

from collections.abc import Iterator
import contextlib
import functools
import json
import os
import pathlib
import socket
import threading
import time
from typing import Literal
import uuid

from etils import epath

from mhr_jax import run_files
from mhr_jax.errors import UserError

_POLL_SECONDS = 0.1


class LockHeld(UserError):
  """Another process has the lock.

  Attributes:
    owner: its machine and process id, for people.
  """

  def __init__(self, message: str, owner: str):
    super().__init__(message)
    self.owner = owner


@contextlib.contextmanager
def folder_lock(
  path: epath.PathLike,
  *,
  timeout_seconds: float = 3600.0,
  stale_seconds: float = 60.0,
  while_held: Literal['wait', 'refuse'] = 'wait',
) -> Iterator[Literal['at once', 'after waiting']]:
  """Holds the lock `path` while the block runs.

  Args:
    path: the lock's folder; its parents are made.
    timeout_seconds: how long to wait for another owner.
    stale_seconds: an owner whose beat stands still this long is given up.
    while_held: whether to wait for an owner that works, or to give up as soon
      as it is sure to: at once on this machine, at its next beat on another.

  Yields:
    Whether the lock was free, or another process held it before.

  Raises:
    LockHeld: another process has it, and `timeout_seconds` have passed or
      `while_held` is 'refuse'.
    OSError: the lock cannot be written.
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
      _remove(path, watch.token)
    elif while_held == 'refuse' and watch.is_alive():
      raise LockHeld(
        f'Another process ({watch.owner}) holds {path}.', watch.owner
      )
    elif time.monotonic() > deadline:
      raise LockHeld(
        f'Another process ({watch.owner}) has held {path} for'
        f' {timeout_seconds:.0f} s. If it is not running, remove that folder.',
        watch.owner,
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
    _remove(path, token)


class _Watch:
  """Judges whether the owner of a lock still works, by this clock alone."""

  def __init__(self, path: epath.Path, stale_seconds: float):
    self._path = path
    self._stale_seconds = stale_seconds
    self._last: dict = {}
    self._since = time.monotonic()
    self._changes = 0

  @property
  def owner(self) -> str:
    return f'{self._last.get("host", "?")}, pid {self._last.get("pid", "?")}'

  @property
  def token(self) -> str | None:
    return self._last.get('token')

  def is_stale(self) -> bool:
    now = _read(self._path)
    if now != self._last:
      self._changes += 1 if self._last else 0
      self._last, self._since = now, time.monotonic()
    if now.get('machine') == _machine() and not _runs(now):
      return True
    return time.monotonic() - self._since > self._stale_seconds

  def is_alive(self) -> bool:
    """Whether the owner works for certain; call after `is_stale`."""
    here = self._last.get('machine') == _machine()
    return self._changes > 0 or (here and bool(self._last.get('started')))


def _take(path: epath.Path, token: str) -> bool:
  if run_files.is_remote(path) and _read(path):
    return False  # Making a folder there is not exclusive.
  try:
    # Who held it may have taken the folder around it away, being empty.
    path.mkdir(parents=True)
  except FileExistsError:
    return False
  try:
    _write(path, token, 0)
  except FileNotFoundError:  # given up as stale at this very moment
    return False
  except OSError:  # no room, say
    _remove(path, None)
    raise
  return _read(path).get('token') == token


def _keep_beating(
  path: epath.Path, token: str, stop: threading.Event, stale_seconds: float
) -> None:
  beats = 0
  while not stop.wait(stale_seconds / 6):
    beats += 1
    if _read(path).get('token', token) != token:
      return  # taken over while this process stood still
    with contextlib.suppress(OSError):  # a full disk: the next one may do
      _write(path, token, beats)


def _write(path: epath.Path, token: str, beats: int) -> None:
  owner = {
    'host': socket.gethostname(),
    'machine': _machine(),
    'pid': os.getpid(),
    'started': _start_of(os.getpid()),
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


def _remove(path: epath.Path, token: str | None) -> None:
  """Frees the lock of one owner; of several that try, one renames the folder.

  Args:
    path: the lock's folder.
    token: the owner's, None where it wrote none. Where it is another's by now,
      since somebody else gave up the stale one and took it, it is put back.
  """
  if _read(path).get('token') != token:
    return
  if run_files.is_remote(path):
    path.rmtree(missing_ok=True)
    return
  freed = path.parent / f'{path.name}.{uuid.uuid4().hex}.freed'
  with contextlib.suppress(OSError):
    path.rename(freed)
    if _read(freed).get('token') != token:
      freed.rename(path)
    else:
      freed.rmtree()


@functools.cache
def _machine() -> str:
  """Returns what process ids belong to: a machine, its start, a container.

  Names of machines are not enough: containers may share one.
  """
  parts = [socket.gethostname()]
  with contextlib.suppress(OSError):
    parts.append(pathlib.Path('/proc/sys/kernel/random/boot_id').read_text())
    parts.append(os.readlink('/proc/self/ns/pid'))
  return ' '.join(part.strip() for part in parts)


def _start_of(pid: int) -> str:
  """Returns when a process started, in ticks; '' where nobody says.

  Process ids come back after a while; together with this they do not. One that
  ended and waits for its parent to notice has no start.
  """
  try:
    text = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except OSError:
    return ''
  state, *fields = text.rpartition(')')[2].split()  # The name may hold blanks.
  return '' if state == 'Z' else fields[18]


def _runs(owner: dict) -> bool:
  """Whether the process of an owner on this machine runs."""
  try:
    os.kill(owner['pid'], 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    pass
  return _start_of(owner['pid']) == owner.get('started', '')
