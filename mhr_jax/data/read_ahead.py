"""Batches made ahead of their use, by grain in background threads."""

import sys
import threading

import grain

from mhr_jax.data.batching import Batch
from mhr_jax.data.loader import Loader


class _Steps:
  """The batches from some step on, as a grain source with random access."""

  def __init__(self, loader: Loader, start: int):
    self._loader = loader
    self._start = start

  def __len__(self) -> int:
    return sys.maxsize

  def __getitem__(self, index: int) -> Batch:
    return self._loader.batch(self._start + index)


def batch_dataset(loader: Loader, start: int = 0) -> grain.MapDataset:
  """Returns the batches from a step on as a grain dataset.

  Its iterators need no checkpoint: a run resumes by its step.
  """
  return grain.MapDataset.source(_Steps(loader, start))


class ReadAhead:
  """`loader.batch` for steps that mostly follow each other, without waiting.

  Calling it with any other step than the next one is right too and starts
  reading there anew. Close it, or use it in a `with` statement, so that its
  threads end.
  """

  def __init__(self, loader: Loader, *, threads: int = 2, depth: int = 4):
    """Starts nothing yet.

    Args:
      loader: makes the batches.
      threads: how many make batches at the same time.
      depth: how many batches may wait.
    """
    self._loader = loader
    self._options = grain.ReadOptions(
      num_threads=threads, prefetch_buffer_size=depth
    )
    self._next: int | None = None
    self._batches: grain.DatasetIterator[Batch] | None = None
    # Who closes may be another thread than the one that waits for a batch.
    self._lock = threading.Lock()
    self._closed = False

  def __call__(self, step: int) -> Batch:
    """Returns the batch of a step.

    Raises:
      RuntimeError: it is closed.
    """
    with self._lock:
      if self._closed:
        raise RuntimeError('ReadAhead is closed.')
      if self._batches is None or step != self._next:
        self._stop()
        dataset = batch_dataset(self._loader, step)
        self._batches = iter(dataset.to_iter_dataset(self._options))
      self._next = step + 1
      return next(self._batches)

  def __enter__(self) -> 'ReadAhead':
    return self

  def __exit__(self, *exc_info: object):
    self.close()

  def close(self) -> None:
    """Ends the threads, each after the batch it is at; again: no-op."""
    with self._lock:
      self._closed = True
      self._stop()

  def _stop(self) -> None:
    if self._batches is not None:
      self._batches.close()
    self._batches = None
