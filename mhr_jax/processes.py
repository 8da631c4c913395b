"""Several processes that run one program: joining, taking turns, going alone.

JAX makes one computer of them: a mesh reaches over all their devices, and
every process runs the same code. Where only one may act, it is the first.
"""

from collections.abc import Callable
from typing import TypeVar

import jax

from mhr_jax.errors import UserError

_T = TypeVar('_T')

HEARTBEAT_SECONDS = 100
"""JAX's own default; long enough for a host that stands still for a while."""

_DAY_MS = 24 * 3600 * 1000


def join(where: str, *, heartbeat_seconds: int = HEARTBEAT_SECONDS) -> None:
  """Joins the other processes of a run, before anything touches a device.

  Args:
    where: 'address:port,count,index', or '' where JAX knows by itself: on TPU
      pods, under Slurm and Open MPI.
    heartbeat_seconds: the others end when one has not been heard of so long.

  Raises:
    UserError: `where` is neither, or JAX does not know by itself.
  """
  patience = {
    'heartbeat_timeout_seconds': heartbeat_seconds,
    # Of one that ends early, for the others to come to an end, too.
    'shutdown_timeout_seconds': heartbeat_seconds,
  }
  if not where:
    try:
      jax.distributed.initialize(**patience)
    except ValueError as error:
      raise UserError(
        '--distributed alone is for TPU pods, Slurm and Open MPI, of which'
        ' there is none here; elsewhere it is'
        f' --distributed=ADDRESS:PORT,COUNT,INDEX. ({error})'
      ) from error
    return
  address, *numbers = where.split(',')
  if len(numbers) != 2 or not all(number.isdigit() for number in numbers):
    raise UserError(f'--distributed={where}: it is ADDRESS:PORT,COUNT,INDEX.')
  count, index = map(int, numbers)
  if index >= count:
    raise UserError(
      f'--distributed={where}: the index counts from 0, so of {count} processes'
      f' the last is {count - 1}.'
    )
  jax.distributed.initialize(address, count, index, **patience)


def is_first() -> bool:
  """Whether this process is the one that writes and prints for all."""
  return jax.process_index() == 0


def first_then_others(first: Callable[[], _T], others: Callable[[], _T]) -> _T:
  """Returns `first()`, in the first process; then `others()`, in the others.

  All processes must come here. They wait by JAX's coordination service, which
  needs no device, for a day at most.

  Args:
    first: what one process alone may do; it may fail.
    others: how the others take over what it did.
  """
  if jax.process_count() == 1:
    return first()
  if is_first():
    try:
      return first()
    finally:
      _wait_for_all()
  _wait_for_all()
  return others()


def _wait_for_all() -> None:
  from orbax.checkpoint import multihost

  wait = multihost.get_barrier_sync_fn()
  wait(key='mhr_jax.first_then_others', timeout_ms=_DAY_MS)


def check_alone(what: str) -> None:
  """Refuses to go on as one of several processes.

  Args:
    what: cannot be shared out.

  Raises:
    UserError: there are several.
  """
  if jax.process_count() > 1:
    raise UserError(
      f'{what} runs in one process, and this is one of {jax.process_count()}:'
      ' start it by itself, on the devices of one host.'
    )


def check_local(mesh: jax.sharding.Mesh, what: str) -> None:
  """Refuses a mesh that reaches over several processes.

  Args:
    mesh: the devices.
    what: needs all of them here.

  Raises:
    UserError: some belong to another process.
  """
  if mesh.is_multi_process:
    raise UserError(
      f'{what} needs a mesh of its own process, such as'
      ' partitioning.make_mesh(devices=jax.local_devices()).'
    )
