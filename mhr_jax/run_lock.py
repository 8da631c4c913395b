"""One training at a time in a run folder."""

from collections.abc import Iterator
import contextlib

from etils import epath
import jax
from jax.experimental import multihost_utils
import numpy as np

from mhr_jax import checkpoints
from mhr_jax.data import folder_lock
from mhr_jax.errors import UserError

LOCK_FOLDER = 'train.lock'


@contextlib.contextmanager
def run_lock(run_dir: epath.PathLike) -> Iterator[None]:
  """Holds a run folder while the block runs.

  Of several processes that train as one, the first holds it for all. What a
  killed training held is taken over: at once on the same machine, on another
  after a minute without a sign of life.

  Args:
    run_dir: the run folder, made if absent.

  Raises:
    UserError: another training holds it, in which case every process raises,
      or the folder cannot be written.
  """
  with contextlib.ExitStack() as stack:
    error = None
    if jax.process_index() == 0:
      error = _hold(stack, checkpoints.absolute(run_dir))
    if jax.process_count() > 1:
      free = multihost_utils.broadcast_one_to_all(np.bool_(error is None))
      if not free and error is None:
        error = UserError(f'The first process could not hold {run_dir}.')
    if error is not None:
      raise error
    yield


def _hold(stack: contextlib.ExitStack, run_dir: epath.Path) -> UserError | None:
  """Holds the folder until the stack ends; returns why that is not possible."""
  path = run_dir / LOCK_FOLDER
  try:
    stack.enter_context(folder_lock.folder_lock(path, while_held='refuse'))
  except folder_lock.LockHeld as error:
    return UserError(
      f'{run_dir} is being trained by another process ({error.owner}): wait'
      ' until it ends, stop it, or choose another run_dir.'
    )
  except OSError as error:
    return UserError(f'{run_dir} cannot be written: {error.strerror or error}.')
  return None
