"""How the stream of examples is cut into batches of rows.

Three ways, all pure functions of the step: one example a row at one width;
one example a row, batches of similar lengths at a few widths; several
examples of one task in a row. A plan is global: every process makes the same
one and builds its own rows of it.
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Protocol

from jaxtyping import Int64
import numpy as np

from mhr_jax.data.mixing import Located, MixtureOrder, hash_words, permute
from mhr_jax.data.packing import PackedRows, pack_rows
from mhr_jax.errors import UserError

_WINDOW = 32  # batches that are sorted by length together
_WINDOW_STREAM = 0x77696E64
_PACK_STREAM = 0x7061636B


@dataclasses.dataclass(frozen=True)
class Plan:
  """What stands in a global batch.

  Attributes:
    examples: the examples, row by row.
    rows: the row of each example, ascending.
    row_tasks: the task (its index in the mixture) of each row.
    input_length: width of the inputs.
    target_length: width of the targets.
  """

  examples: Located
  rows: Int64[np.ndarray, 'example']
  row_tasks: Int64[np.ndarray, 'row']
  input_length: int
  target_length: int

  def local(self, start: int, stop: int) -> 'Plan':
    """Returns the plan of rows `start` to `stop` alone."""
    mine = slice(*np.searchsorted(self.rows, [start, stop]))
    return dataclasses.replace(
      self,
      examples=self.examples[mine],
      rows=self.rows[mine] - start,
      row_tasks=self.row_tasks[start:stop],
    )


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Tokens of all tasks' examples as they stand in a row: cut, with EOS.

  Attributes:
    inputs: of the inputs, task by task.
    targets: of the targets, likewise; of the longest reference where one is
      drawn.
    bases: where each task starts, and the end.
  """

  inputs: Int64[np.ndarray, 'example']
  targets: Int64[np.ndarray, 'example']
  bases: Int64[np.ndarray, 'task+1']

  def of(self, examples: Located) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sizes of inputs and targets of the given examples."""
    places = self.bases[examples.tasks] + examples.units
    return self.inputs[places], self.targets[places]

  def task(self, task: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sizes of inputs and targets of a task's examples."""
    places = slice(self.bases[task], self.bases[task + 1])
    return self.inputs[places], self.targets[places]


class Layout(Protocol):
  """A way to cut the stream into batches."""

  @property
  def n_rows(self) -> int:
    """Rows in which every example of every task stands once."""
    ...

  def plan(self, step: int) -> Plan:
    """Returns the global batch of a step."""
    ...


@dataclasses.dataclass(frozen=True)
class PaddedLayout:
  """One example a row, every batch of the same width."""

  order: MixtureOrder
  batch_size: int
  input_length: int
  target_length: int

  @property
  def n_rows(self) -> int:
    return int(self.order.sizes.sum())

  def plan(self, step: int) -> Plan:
    rows = np.arange(self.batch_size)
    examples = self.order.locate(step * self.batch_size + rows)
    return Plan(
      examples, rows, examples.tasks, self.input_length, self.target_length
    )


class BucketLayout:
  """One example a row; batches of similar lengths, a few widths in all.

  The stream is cut into windows of some batches; within a window examples are
  sorted by bucket and the batches then shuffled.
  """

  def __init__(
    self,
    order: MixtureOrder,
    sizes: Sizes,
    *,
    batch_size: int,
    buckets: Sequence[tuple[int, int]],
    seed: int,
  ):
    """Makes the layout.

    Args:
      order: of the examples.
      sizes: of the examples.
      batch_size: rows of a batch.
      buckets: widths of inputs and targets, neither falling from one to the
        next; the last one holds every example.
      seed: of the shuffling of batches.
    """
    for small, large in zip(buckets[:-1], buckets[1:], strict=True):
      if small[0] > large[0] or small[1] > large[1] or small == large:
        raise UserError(f'Length buckets must grow: {small}, then {large}.')
    self._order = order
    self._sizes = sizes
    self._batch_size = batch_size
    self._buckets = np.array(buckets, np.int64)
    self._seed = seed
    self._window = functools.lru_cache(maxsize=4)(self._make_window)

  @property
  def n_rows(self) -> int:
    return int(self._order.sizes.sum())

  def plan(self, step: int) -> Plan:
    window, place = divmod(step, _WINDOW)
    place = int(permute(place, _WINDOW, self._key(window)))
    examples, buckets = self._window(window)
    rows = slice(place * self._batch_size, (place + 1) * self._batch_size)
    examples = examples[rows]
    width = self._buckets[int(buckets[rows].max())]
    return Plan(
      examples,
      np.arange(self._batch_size),
      examples.tasks,
      int(width[0]),
      int(width[1]),
    )

  def _make_window(self, window: int):
    length = _WINDOW * self._batch_size
    examples = self._order.locate(window * length + np.arange(length))
    inputs, targets = self._sizes.of(examples)
    buckets = np.maximum(
      np.searchsorted(self._buckets[:, 0], inputs),
      np.searchsorted(self._buckets[:, 1], targets),
    )
    order = np.argsort(buckets, kind='stable')
    return examples[order], buckets[order]

  def _key(self, window: int):
    return hash_words(self._seed, _WINDOW_STREAM, window)


class PackedLayout:
  """Several examples of one task a row.

  Each task's examples are dealt out to rows once, in a seeded order; then the
  stream is one of rows, and each epoch permutes them. Rates count examples: a
  task's rows come the more rarely the more examples they hold.
  """

  def __init__(
    self,
    order: MixtureOrder,
    sizes: Sizes,
    *,
    batch_size: int,
    input_length: int,
    target_length: int,
    seed: int,
    task_keys: Int64[np.ndarray, 'task'],
  ):
    """Makes the layout.

    Args:
      order: of the examples: its sizes and rates are translated to rows.
      sizes: of the examples.
      batch_size: rows of a batch.
      input_length: width of the inputs.
      target_length: width of the targets.
      seed: of all permutations.
      task_keys: see `mixing.key_of`.
    """
    self._batch_size = batch_size
    self._widths = (input_length, target_length)
    packed = [
      self._pack(sizes.task(task), hash_words(seed, _PACK_STREAM, key))
      for task, key in enumerate(task_keys)
    ]
    n_rows = np.array([len(rows) for rows in packed])
    self._rows = PackedRows(*_join(packed))
    self._first_row = np.cumsum(n_rows) - n_rows
    self._order = MixtureOrder(
      n_rows,
      order.rates * n_rows / order.sizes,
      seed=seed,
      task_keys=task_keys,
    )

  def _pack(self, sizes, key) -> PackedRows:
    inputs, targets = sizes
    return pack_rows(
      permute(np.arange(len(inputs)), len(inputs), key),
      inputs,
      targets,
      input_length=self._widths[0],
      target_length=self._widths[1],
    )

  @property
  def n_rows(self) -> int:
    return len(self._rows)

  def plan(self, step: int) -> Plan:
    positions = step * self._batch_size + np.arange(self._batch_size)
    located = self._order.locate(positions)
    rows = self._first_row[located.tasks] + located.units
    starts = self._rows.starts[rows]
    counts = self._rows.starts[rows + 1] - starts
    ends = np.cumsum(counts)
    places = np.arange(ends[-1]) + np.repeat(starts - (ends - counts), counts)
    examples = Located(
      np.repeat(located.tasks, counts),
      np.repeat(located.epochs, counts),
      self._rows.members[places],
    )
    row_numbers = np.repeat(np.arange(self._batch_size), counts)
    return Plan(examples, row_numbers, located.tasks, *self._widths)


def _join(packed: Sequence[PackedRows]):
  members = np.concatenate([rows.members for rows in packed])
  counts = np.concatenate([np.diff(rows.starts) for rows in packed])
  return members, np.concatenate([[0], np.cumsum(counts)])
