"""The token ids of a mixture's tasks: small tasks in memory, others on disk."""

from collections.abc import Sequence

from jaxtyping import Int64
import numpy as np

from mhr_jax.data.records import TaskSource
from mhr_jax.data.tokens import Lengths, TokenTable

_IN_MEMORY = -1


class TokenStore:
  """Random access to the token ids of several tasks."""

  def __init__(
    self, sources: Sequence[TaskSource | TokenTable], *, cache_bytes: int
  ):
    """Reads the smallest tasks into memory, as many as fit.

    Args:
      sources: one a task.
      cache_bytes: how much memory may hold tasks read from disk.
    """
    self._sources = list(sources)
    self.sizes = tuple(len(source) for source in sources)
    tables = self._read_small(cache_bytes)
    self._cached = np.array([task in tables for task in range(len(sources))])
    kept = [tables[task] for task in sorted(tables)]
    lengths = np.where(self._cached, self.sizes, 0)
    self._bases = np.cumsum(lengths) - lengths
    self._table = TokenTable.concatenate(kept)

  def _read_small(self, cache_bytes: int) -> dict[int, TokenTable]:
    tables = {}
    left = cache_bytes
    on_disk = []
    for task, source in enumerate(self._sources):
      if isinstance(source, TokenTable):
        tables[task] = source
      else:
        on_disk.append((source.nbytes, task, source))
    for nbytes, task, source in sorted(on_disk, key=lambda each: each[:2]):
      if nbytes > left:
        break
      tables[task] = source.read_tokens()
      left -= tables[task].nbytes
    return tables

  def fetch(
    self, tasks: Int64[np.ndarray, 'n'], indices: Int64[np.ndarray, 'n']
  ) -> tuple[TokenTable, Int64[np.ndarray, 'n']]:
    """Returns a table with the given examples, and their rows in it."""
    cached = self._cached[tasks]
    rows = self._bases[tasks] + indices
    if cached.all():
      return self._table, rows
    origins = np.where(cached, _IN_MEMORY, tasks)
    parts, order = [], []
    for origin in np.unique(origins):
      here = np.nonzero(origins == origin)[0]
      order.append(here)
      if origin == _IN_MEMORY:
        parts.append(self._table.take(rows[here]))
      else:
        parts.append(self._sources[origin].read_tokens(indices[here]))
    places = np.empty(len(tasks), np.int64)
    places[np.concatenate(order)] = np.arange(len(tasks))
    return TokenTable.concatenate(parts), places

  def lengths(self) -> Lengths:
    """Returns the lengths of all examples, task by task.

    Tasks on disk are looked up or measured: see `TaskSource.read_lengths`.
    """
    cached = Lengths.of(self._table)
    parts = []
    for task, source in enumerate(self._sources):
      if isinstance(source, TokenTable) or self._cached[task]:
        start = self._bases[task]
        parts.append(cached.slice(start, start + self.sizes[task]))
      else:
        parts.append(source.read_lengths())
    return Lengths.concatenate(parts)
