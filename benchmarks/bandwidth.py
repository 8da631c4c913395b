"""How many bytes a second this machine's memory moves: a copy on all cores."""

from concurrent import futures
import os

import numpy as np

from benchmarks.works import Works

COPY = 'copy'
_BYTES = 2**29


def build(size: int = _BYTES) -> Works:
  """Builds the copy of an array that no cache holds.

  Args:
    size: bytes of the array; a copy reads and writes as many.
  """
  cores = len(os.sched_getaffinity(0))
  source = np.ones(size // 4, np.float32)
  target = np.zeros_like(source)
  pairs = list(
    zip(
      np.array_split(target, cores), np.array_split(source, cores), strict=True
    )
  )
  pool = futures.ThreadPoolExecutor(cores)

  def run() -> None:
    list(pool.map(lambda pair: np.copyto(*pair), pairs))

  return Works({COPY: run}, {'bytes': 2 * source.nbytes})
