"""Joining other processes: what is refused before any is waited for.

What several do together is in `multiprocess_test.py`.
"""

import os
import subprocess
import sys

import jax
import pytest

from mhr_jax import partitioning, processes
from mhr_jax.errors import UserError


@pytest.mark.parametrize(
  'where, message',
  [
    ('localhost:1', 'it is ADDRESS:PORT,COUNT,INDEX'),
    ('localhost:1,2', 'it is ADDRESS:PORT,COUNT,INDEX'),
    ('localhost:1,2,-1', 'it is ADDRESS:PORT,COUNT,INDEX'),
    ('localhost:1,2,2', 'of 2 processes the last is 1'),
  ],
)
def test_an_address_that_cannot_be_is_refused(where, message):
  with pytest.raises(UserError, match=message):
    processes.join(where)


def test_without_an_address_a_machine_alone_is_told_what_to_give():
  """In a process of its own: JAX joins before it touches a device."""
  code = "from mhr_jax import processes; processes.join('')"
  environment = {'PATH': os.environ['PATH'], 'JAX_PLATFORMS': 'cpu'}
  done = subprocess.run(
    [sys.executable, '-c', code],
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert 'UserError: --distributed alone is for TPU pods, Slurm' in done.stderr


def test_a_single_process_is_the_first_and_waits_for_nobody():
  assert processes.is_first()
  processes.check_alone('A study')
  processes.check_local(partitioning.make_mesh(), 'Loading')
  found = processes.first_then_others(lambda: 'first', pytest.fail)
  assert found == 'first'
  assert not jax.distributed.is_initialized()
