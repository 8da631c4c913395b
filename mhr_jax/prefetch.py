"""Batches on the devices before they are asked for."""

import collections
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
import itertools
from typing import NamedTuple

import jax
import numpy as np

from mhr_jax import partitioning

Batches = Callable[[int], Mapping[str, np.ndarray]]

_AHEAD = 2


class Fetched(NamedTuple):
  """A batch on the devices, and its task ids on the host."""

  step: int
  arrays: dict[str, jax.Array]
  task_ids: np.ndarray


def prefetch(
  batches: Batches, mesh: partitioning.Mesh, start: int, stop: int
) -> Iterator[Fetched]:
  """Yields the batches of steps [start, stop), fetched ahead in a thread."""

  def fetch(step: int) -> Fetched:
    batch = batches(step)
    task_ids = np.asarray(batch['task_ids'])
    return Fetched(step, partitioning.put_batch(batch, mesh), task_ids)

  steps = iter(range(start, stop))
  with futures.ThreadPoolExecutor(1, thread_name_prefix='batches') as pool:
    waiting = collections.deque(
      pool.submit(fetch, step) for step in itertools.islice(steps, _AHEAD)
    )
    try:
      while waiting:
        fetched = waiting.popleft().result()
        waiting.extend(
          pool.submit(fetch, s) for s in itertools.islice(steps, 1)
        )
        yield fetched
    finally:
      pool.shutdown(wait=False, cancel_futures=True)
