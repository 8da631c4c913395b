"""Being told to stop: a signal is noted, and the loop ends after its step."""

import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils


class Terminated(SystemExit):
  """A signal ended the run, after it was saved.

  As a `SystemExit` it ends the program with 128 + the signal's number, as
  shells and schedulers expect (SIGTERM: 143).

  Attributes:
    step: the steps done, all of them saved.
  """

  def __init__(self, signum: int, step: int):
    super().__init__(128 + signum)
    self.step = step


class StopSignals:
  """Notes SIGTERM and SIGINT while its block runs; a second one acts at once.

  With several processes SIGTERM is left to JAX, by which all of them agree on
  the step after which they stop.
  """

  def __init__(self):
    self.received: int | None = None
    self._previous: dict[int, Any] = {}

  def __enter__(self) -> 'StopSignals':
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and jax.process_count() == 1:
      for signum in (signal.SIGTERM, signal.SIGINT):
        self._previous[signum] = signal.signal(signum, self._note)
    return self

  def __exit__(self, *exc_info: Any):
    self._restore()

  def _note(self, signum: int, frame: Any):
    del frame
    self.received = signum
    self._restore()

  def _restore(self):
    for signum, handler in self._previous.items():
      signal.signal(signum, handler)
    self._previous = {}

  def stop_after(self, step: int) -> bool:
    """Whether to stop after `step`; every process gets the same answer."""
    if (
      jax.process_count() > 1
      and multihost_utils.reached_preemption_sync_point(step)
    ):
      self.received = signal.SIGTERM
    return self.received is not None
