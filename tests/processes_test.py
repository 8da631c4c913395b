"""Joining other processes: what is refused before any is waited for.

What several do together is in `multiprocess_test.py`.
"""

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
    ('', 'TPU pods, Slurm and Open MPI'),
  ],
)
def test_an_address_that_cannot_be_is_refused(where, message, monkeypatch):
  for name in ('SLURM_JOB_ID', 'OMPI_MCA_orte_hnp_uri', 'TPU_NAME'):
    monkeypatch.delenv(name, raising=False)
  with pytest.raises(UserError, match=message):
    processes.join(where)


def test_a_single_process_is_the_first_and_waits_for_nobody():
  assert processes.is_first()
  processes.check_alone('A study')
  processes.check_local(partitioning.make_mesh(), 'Loading')
  found = processes.first_then_others(lambda: 'first', pytest.fail)
  assert found == 'first'
  assert not jax.distributed.is_initialized()
