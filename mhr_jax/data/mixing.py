"""The order in which a mixture's examples are seen: pure functions.

A position in the stream of examples is located without walking there, so that
a run resumes exactly, on any number of processes, from its step alone:

    position ─ block, offset ─ task, and its n-th draw in all
             ─ epoch, place in the epoch ─ permuted index of the example

Blocks have one fixed length and hold each task the number of times that
brings its count up to its share (largest remainders, carried from block to
block), in a seeded order; a task's count before the block is a closed form.
The cost of a position does not grow with the number of tasks. An epoch's
permutation is a keyed bijection computed an index at a time (a Feistel
network over a square domain, with cycle walking), so that the order of large
tasks is never held in memory.
"""

import dataclasses
import functools
from typing import Literal
import zlib

from jaxtyping import Float64, Int64, UInt64
import numpy as np
from numpy.typing import ArrayLike

from mhr_jax.errors import UserError

Rates = Literal['proportional', 'temperature', 'equal']

_DENOMINATOR = 1 << 30  # rates are held as multiples of 2**-30
_LEAST = 1 << 8  # and are at least 2**-22, which bounds a block's length
_ROUNDS = 8
_BLOCK_STREAM = 0x626C6F63
_EPOCH_STREAM = 0x65706F63


def _scramble(x: UInt64[np.ndarray, '*n']) -> UInt64[np.ndarray, '*n']:
  """The finaliser of SplitMix64 (Steele et al. 2014), a bijection."""
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def hash_words(*words) -> UInt64[np.ndarray, '*n']:
  """Returns 64 random-looking bits for each combination of words.

  Args:
    *words: non-negative integers or arrays of them, broadcast together.

  Returns:
    uint64 of the broadcast shape.
  """
  with np.errstate(over='ignore'):
    state = np.uint64(0x9E3779B97F4A7C15)
    for word in words:
      word = np.asarray(word).astype(np.uint64)
      state = _scramble(
        state * np.uint64(0xD1342543DE82EF95)
        + word
        + np.uint64(0x9E3779B97F4A7C15)
      )
  return np.asarray(state)


def key_of(name: str) -> int:
  """Returns the integer by which a task's name enters `hash_words`.

  Draws depend on a task's name and not on its id, so that adding a task to a
  mixture leaves the other tasks' draws alone.
  """
  return zlib.crc32(name.encode('utf-8'))


def draw_below(
  bits: UInt64[np.ndarray, '*n'], bound: Int64[np.ndarray, '*n']
) -> Int64[np.ndarray, '*n']:
  """Turns random bits into integers that are uniform in [0, bound).

  Args:
    bits: from `hash_words`.
    bound: positive and below 2**31.
  """
  high = (bits >> np.uint64(33)).astype(np.int64)
  return (high * bound) >> 31


def permute(index, size, key) -> Int64[np.ndarray, '*n']:
  """Maps indices through a keyed permutation of range(size).

  Args:
    index: integers in [0, size).
    size: sizes of the permuted ranges, broadcast against `index`.
    key: uint64 keys, broadcast against `index`; each key is a permutation.

  Returns:
    int64 indices; over all of range(size) each value comes exactly once.
  """
  index, size, key = np.broadcast_arrays(
    np.asarray(index, np.int64), np.asarray(size, np.int64), key
  )
  side = np.ceil(np.sqrt(size)).astype(np.int64)
  side += side == 3  # networks over 3 x 3 reach too few permutations
  value = _feistel(index, side, key)
  outside = value >= size
  while np.any(outside):
    value = np.where(outside, _feistel(value, side, key), value)
    outside = value >= size
  return value


def _feistel(index, side, key):
  """Permutes range(side²) by `_ROUNDS` keyed rounds."""
  left, right = np.divmod(index, side)
  with np.errstate(over='ignore'):
    for i in range(_ROUNDS):
      mixed = _scramble(
        (key ^ right.astype(np.uint64)) + np.uint64(i * 0x9E3779B97F4A7C15 >> 8)
      )
      shift = (mixed >> np.uint64(33)).astype(np.int64) % side
      left, right = right, (left + shift) % side
  return left * side + right


def task_rates(
  sizes: ArrayLike,
  *,
  kind: Rates = 'proportional',
  cap: int | None = None,
  temperature: float = 1.0,
) -> Float64[np.ndarray, 'task']:
  """Returns each task's share of the mixture.

  Args:
    sizes: examples a task.
    kind: 'proportional' to the size, at most `cap`; 'temperature': that to
      the power 1 / `temperature` (T5's, arXiv:1910.10683 section 3.5.2);
      'equal'.
    cap: the largest size that counts; None for no cap.
    temperature: at least 1; only for kind 'temperature'.

  Returns:
    Rates that sum to 1.

  Raises:
    UserError: an unknown kind, an empty task, or a setting out of range.
  """
  shares = np.asarray(sizes, np.float64)
  if shares.size == 0 or np.any(shares < 1):
    raise UserError('Every task of a mixture needs at least one example.')
  if cap is not None and cap < 1:
    raise UserError(f'The cap of a mixture must be at least 1, not {cap}.')
  if not temperature >= 1:
    raise UserError(f'The temperature must be at least 1, not {temperature}.')
  if kind not in ('proportional', 'temperature', 'equal'):
    raise UserError(
      f'Unknown rates {kind!r}: proportional, temperature or equal.'
    )
  if kind == 'equal':
    shares = np.ones_like(shares)
  elif cap is not None:
    shares = np.minimum(shares, cap)
  if kind == 'temperature':
    shares = shares ** (1 / temperature)
  return shares / shares.sum()


def _to_fractions(
  rates: Float64[np.ndarray, 'task'],
) -> Int64[np.ndarray, 'task']:
  """Returns integers, proportional to rates, that sum to 2**30."""
  if not np.all(np.isfinite(rates)) or np.any(rates <= 0):
    raise UserError('The rates of a mixture must be positive numbers.')
  exact = rates / rates.sum() * _DENOMINATOR
  whole = np.maximum(np.floor(exact).astype(np.int64), _LEAST)
  order = np.argsort(whole - exact, kind='stable')
  missing = int(_DENOMINATOR - whole.sum())
  if missing >= 0:
    whole[order[:missing]] += 1
  else:  # tiny rates were rounded up: the largest one pays
    whole[np.argmax(whole)] += missing
  return whole


@dataclasses.dataclass(frozen=True)
class Located:
  """Which unit (example or packed row) stands at each position.

  Attributes:
    tasks: index of the task in the mixture.
    epochs: how often the task was seen through before.
    units: index of the unit within the task.
  """

  tasks: Int64[np.ndarray, 'n']
  epochs: Int64[np.ndarray, 'n']
  units: Int64[np.ndarray, 'n']

  def __getitem__(self, rows) -> 'Located':
    return Located(self.tasks[rows], self.epochs[rows], self.units[rows])


class MixtureOrder:
  """The endless, seeded order of a mixture; see the module's docstring."""

  def __init__(
    self,
    sizes: ArrayLike,
    rates: ArrayLike,
    *,
    seed: int,
    task_keys: ArrayLike | None = None,
    block_length: int = 1024,
  ):
    """Makes the order.

    Args:
      sizes: units a task.
      rates: positive, one a task; normalised here, and raised to 2**-22
        where they are less.
      seed: non-negative; chooses all permutations.
      task_keys: see `key_of`; by default the tasks' positions.
      block_length: made longer where the rarest task needs it to come at
        least once a block.
    """
    self.sizes = np.asarray(sizes, np.int64)
    shares = np.asarray(rates, np.float64)
    if len(self.sizes) != len(shares):
      raise UserError(f'{len(self.sizes)} tasks but {len(shares)} rates.')
    self._keys = np.asarray(
      np.arange(len(shares)) if task_keys is None else task_keys, np.int64
    )
    self._fractions = _to_fractions(shares)
    # From one appearance a block on, largest remainders never take back what
    # an earlier block gave.
    rarest = int(self._fractions.min())
    self.block_length = max(block_length, -(-_DENOMINATOR // rarest))
    self._seed = seed
    self._block = functools.lru_cache(maxsize=4)(self._make_block)

  @property
  def rates(self) -> Float64[np.ndarray, 'task']:
    """The shares in force: what was asked for, to 2**-30."""
    return self._fractions / _DENOMINATOR

  def cumulative_counts(self, blocks: int) -> Int64[np.ndarray, 'task']:
    """Returns how often each task comes in the first `blocks` blocks.

    The largest-remainder apportionment of all their positions: it sums to
    them, and each task is less than one away from its share.
    """
    whole, part = np.divmod(self.block_length * self._fractions, _DENOMINATOR)
    carried, remainder = np.divmod(blocks * part, _DENOMINATOR)
    counts = blocks * whole + carried
    missing = blocks * self.block_length - int(counts.sum())
    counts[np.argsort(-remainder, kind='stable')[:missing]] += 1
    return counts

  def _make_block(self, block: int):
    """Returns the task at each place of a block, and which draw it is."""
    before = self.cumulative_counts(block)
    counts = self.cumulative_counts(block + 1) - before
    lots = hash_words(
      self._seed, _BLOCK_STREAM, block, np.arange(self.block_length)
    )
    by_task = np.argsort(lots, kind='stable')
    ends = np.cumsum(counts)
    # Each task takes a stretch of the places drawn; its draws come in the
    # order of the places.
    tasks = np.empty(self.block_length, np.int32)
    tasks[by_task] = np.repeat(np.arange(len(counts)), counts)
    in_order = np.argsort(tasks, kind='stable')
    draws = np.empty(self.block_length, np.int64)
    draws[in_order] = np.arange(self.block_length) + np.repeat(
      before - (ends - counts), counts
    )
    return tasks, draws

  def locate(self, positions) -> Located:
    """Returns what stands at the given positions of the stream.

    Args:
      positions: non-negative integers, in any order.
    """
    positions = np.asarray(positions, np.int64)
    blocks, offsets = np.divmod(positions, self.block_length)
    tasks = np.empty_like(positions)
    draws = np.empty_like(positions)
    for block in np.unique(blocks):
      here = blocks == block
      block_tasks, block_draws = self._block(int(block))
      tasks[here] = block_tasks[offsets[here]]
      draws[here] = block_draws[offsets[here]]
    return self._in_epochs(tasks, draws)

  def _in_epochs(self, tasks, draws) -> Located:
    sizes = self.sizes[tasks]
    epochs, places = np.divmod(draws, sizes)
    keys = hash_words(self._seed, _EPOCH_STREAM, self._keys[tasks], epochs)
    return Located(tasks, epochs, permute(places, sizes, keys))
