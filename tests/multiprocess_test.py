"""Several real processes train as one, and agree on when to stop."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from mhr_jax import checkpoints
import toy_training

pytestmark = pytest.mark.multiprocess


def _free_port():
  with socket.socket() as s:
    s.bind(('localhost', 0))
    return s.getsockname()[1]


def _start(run_dir, *, processes, devices, steps, slow=0.0):
  port = _free_port()
  script = pathlib.Path(__file__).parent / 'toy_training.py'
  return [
    subprocess.Popen(
      [sys.executable, str(script), json.dumps({
        'address': f'localhost:{port}',
        'processes': processes,
        'index': i,
        'devices': devices,
        'run_dir': str(run_dir),
        'steps': steps,
        'slow': slow,
      })],
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(processes)
  ]  # fmt: skip


def _wait(processes):
  errors = [p.communicate(timeout=240)[1] for p in processes]
  return [p.returncode for p in processes], '\n'.join(errors)


def _restored(run_dir, steps):
  template = toy_training.ToyModel().init()
  del template['backbone']
  return checkpoints.read_trainable(run_dir, steps, template)


@pytest.mark.parametrize('shape', [(2, 2), (4, 1)])
def test_processes_equal_one(shape, tmp_path):
  processes, devices = shape
  codes, errors = _wait(
    _start(tmp_path / 'many', processes=processes, devices=devices, steps=12)
  )
  assert codes == [0] * processes, errors
  one = toy_training.run(tmp_path / 'one', 12)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    _restored(tmp_path / 'many', 12),
    one.trainable,
  )


def test_sigterm_to_one_stops_all_at_the_same_step(tmp_path):
  started = _start(tmp_path, processes=2, devices=2, steps=2000, slow=0.05)
  while not checkpoints.committed_steps(tmp_path):
    time.sleep(0.1)
    assert all(p.poll() is None for p in started)
  os.kill(started[1].pid, signal.SIGTERM)
  codes, errors = _wait(started)
  assert codes == [143, 143], errors
  assert checkpoints.committed_steps(tmp_path)
