"""A full disk, a limit on files, no permission: said, and made good later."""

import contextlib
import os
import resource
import subprocess
import time

import pytest

from faults.harness import assert_explained, assert_same_run
from mhr_jax import checkpoints

pytestmark = pytest.mark.faults


@contextlib.contextmanager
def _mounted(folder):
  """Puts a disk of 8 MiB of its own in a new folder's place."""
  folder.mkdir(parents=True)
  command = ['mount', '-t', 'tmpfs', '-o', 'size=8m', 'faults', str(folder)]
  try:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
  except FileNotFoundError:
    pytest.skip('there is no program `mount`')
  if done.returncode:
    pytest.skip(f'no file system can be mounted here: {done.stderr.strip()}')
  yield folder
  subprocess.run(['umount', str(folder)], check=True)


@contextlib.contextmanager
def _closed(folder):
  """Makes a new folder that may not be written; permissions stop no root."""
  if os.geteuid():
    folder.mkdir(parents=True)
    folder.chmod(0o555)
    yield
    folder.chmod(0o755)
    return
  with _mounted(folder):
    command = ['mount', '-o', 'remount,ro', str(folder)]
    subprocess.run(command, check=True)
    yield


@pytest.fixture
def small_disk(bench):
  """A folder with room for 8 MiB."""
  with _mounted(bench.root / 'small_disk') as folder:
    yield folder


def _fill(path):
  """Makes a file take all the room that is left."""
  with path.open('ab', buffering=0) as file, contextlib.suppress(OSError):
    while True:
      file.write(b'x' * 4096)


def test_a_full_disk_loses_nothing_committed(bench, whole, small_disk):
  run_dir, ballast = small_disk / 'run', small_disk / 'ballast'
  started = bench.start(run_dir)
  while not checkpoints.committed_steps(run_dir):
    assert started.process.poll() is None, started.text
    time.sleep(0.005)
  while started.process.poll() is None:  # It frees some when it deletes steps.
    _fill(ballast)
    time.sleep(0.005)
  assert_explained(started.end(), str(run_dir), 'No space left on device')
  committed = checkpoints.committed_steps(run_dir)
  assert committed and committed[-1] < bench.steps
  ballast.unlink()
  again = bench.run(run_dir)
  assert f'Resuming at step {committed[-1]}' in again.text
  assert again.code == 0, again.text
  assert_same_run(run_dir, whole)


@pytest.mark.parametrize('kib', [8, 28])
def test_files_that_may_not_grow_are_named(bench, whole, kib):
  """Where nothing can be mounted this stands for a full disk."""
  run_dir = bench.root / f'limited_{kib}'
  limits = (kib * 1024, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
  ended = bench.run(
    run_dir,
    preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits),
  )
  assert_explained(ended, str(run_dir), 'File too large')
  assert bench.run(run_dir).code == 0
  assert_same_run(run_dir, whole)


@pytest.mark.parametrize('part', ['.', 'checkpoints'])
def test_what_may_not_be_written_is_named(bench, part):
  run_dir = bench.root / f'closed_{len(part)}'
  with _closed(run_dir / part):
    ended = bench.run(run_dir)
    reason = 'Permission denied' if os.geteuid() else 'Read-only file system'
    assert_explained(ended, str(run_dir), reason)
    assert not checkpoints.committed_steps(run_dir)
