"""Span corruption, T5's unsupervised objective (arXiv:1910.10683, section 3).

Some spans of a text are each replaced by one sentinel; the target names each
sentinel and then what it stands for:

    Thank you for inviting me to your party last week
    inputs   Thank you <0> me to your party <1> week
    targets  <0> for inviting <1> last

The lengths of both follow from the text's length alone; where the spans lie
is random: a uniformly random segmentation of noise and of the rest, T5's
`random_spans_noise_mask`.
"""

import dataclasses

from jaxtyping import Bool, Int64, UInt64
import numpy as np

from mhr_jax.data.mixing import draw_below, hash_words
from mhr_jax.data.tokens import Spans
from mhr_jax.errors import UserError

_WINDOW_STREAM, _REST_STREAM, _NOISE_STREAM = 1, 2, 3


@dataclasses.dataclass(frozen=True)
class SpanCorruption:
  """How texts are corrupted.

  Attributes:
    first_sentinel: id of the first sentinel; the next ones descend.
    n_sentinels: how many there are.
    density: share of the tokens that is corrupted.
    mean_span_length: of the corrupted spans.
  """

  first_sentinel: int
  n_sentinels: int
  density: float = 0.15
  mean_span_length: float = 3.0

  def __post_init__(self):
    if not 0 < self.density < 1 or self.mean_span_length < 1:
      raise UserError(
        'Span corruption wants a density between 0 and 1 and spans of at'
        f' least 1 token, not {self.density} and {self.mean_span_length}.'
      )
    if self.n_sentinels < 1:
      raise UserError(
        'Span corruption needs sentinels: prepare the tasks with a vocabulary'
        ' that has extra ids.'
      )

  def counts(self, length):
    """Returns how many tokens are noise, and in how many spans.

    Args:
      length: of the text, an integer or an array of them. Of fewer than 2
        tokens none is noise.
    """
    length = np.asarray(length, np.int64)
    noise = np.rint(length * self.density).astype(np.int64)
    noise = np.minimum(np.maximum(noise, 1), length - 1)
    spans = np.rint(noise / self.mean_span_length).astype(np.int64)
    spans = np.minimum(np.maximum(spans, 1), np.minimum(noise, length - noise))
    return np.where(length < 2, 0, noise), np.where(length < 2, 0, spans)

  def lengths(self, length):
    """Returns the lengths of inputs and targets, without EOS.

    Args:
      length: of the text; an integer or an array of them.
    """
    noise, spans = self.counts(length)
    return length - noise + spans, noise + spans

  def longest_text(self, input_length: int, target_length: int) -> int:
    """Returns the longest text whose corruption, with EOS, fits.

    Raises:
      UserError: no text fits, or the sentinels would run out.
    """
    lengths = np.arange(2, 2 * (input_length + target_length) + 2)
    inputs, targets = self.lengths(lengths)
    fits = (inputs < input_length) & (targets < target_length)
    if not fits[0]:
      raise UserError(
        f'Nothing fits into {input_length} + {target_length} tokens.'
      )
    longest = int(lengths[np.argmin(fits) - 1])
    _, spans = self.counts(longest)
    if spans > self.n_sentinels:
      raise UserError(
        f'A text of {longest} tokens needs {spans} sentinels; the vocabulary'
        f' has {self.n_sentinels} extra ids.'
      )
    return longest


def corrupt_spans(
  texts: Spans,
  corruption: SpanCorruption,
  *,
  seeds: UInt64[np.ndarray, 'n'],
  longest: int,
) -> tuple[Spans, Spans]:
  """Corrupts many texts, each by its own seed.

  Args:
    texts: token ids.
    corruption: how.
    seeds: one a text; all that is random depends on it alone.
    longest: of a longer text a random window of so many tokens is taken.

  Returns:
    inputs and targets, without EOS.
  """
  room = np.maximum(texts.lengths - longest, 0)
  windows = Spans(
    texts.flat,
    texts.starts + draw_below(hash_words(seeds, _WINDOW_STREAM), room + 1),
    np.minimum(texts.lengths, longest),
  )
  noise = noise_mask(windows.lengths, corruption, seeds=seeds)
  starts = noise & ~np.concatenate([[False], noise[:-1]])
  tokens = windows.flat[windows.indices()]
  first = corruption.first_sentinel
  return (
    _replace(tokens, ~noise, starts, lengths=windows.lengths, first=first),
    _replace(tokens, noise, starts, lengths=windows.lengths, first=first),
  )


def noise_mask(
  lengths: Int64[np.ndarray, 'n'],
  corruption: SpanCorruption,
  *,
  seeds: UInt64[np.ndarray, 'n'],
) -> Bool[np.ndarray, 'token']:
  """Draws which tokens of the texts are noise; a text starts with none.

  Args:
    lengths: of the texts.
    corruption: how much and in how many spans.
    seeds: one a text.

  Returns:
    The masks of all texts, one behind the other.
  """
  noise, spans = corruption.counts(lengths)
  pieces = np.stack(
    [
      _segment(lengths - noise, spans, hash_words(seeds, _REST_STREAM)),
      _segment(noise, spans, hash_words(seeds, _NOISE_STREAM)),
    ],
    axis=-1,
  )
  is_noise = np.broadcast_to(np.array([False, True]), pieces.shape)
  return np.repeat(is_noise.ravel(), pieces.ravel())


def _segment(
  n_items: Int64[np.ndarray, 'n'],
  n_segments: Int64[np.ndarray, 'n'],
  seeds: UInt64[np.ndarray, 'n'],
) -> Int64[np.ndarray, 'n segment']:
  """Cuts items into non-empty segments, each way equally likely.

  Returns:
    The segments' lengths; 0 behind the last one.
  """
  n, most = len(n_items), int(n_items.max(initial=1))
  columns = np.arange(most)
  lots = hash_words(seeds[:, None], columns)
  lots[columns >= n_items[:, None] - 1] = np.iinfo(np.uint64).max
  order = np.argsort(lots, axis=1)
  cuts = np.zeros((n, most), np.int64)
  np.put_along_axis(cuts, order, columns < n_segments[:, None] - 1, axis=1)
  # An item's segment: how many cuts lie before it.
  segments = np.cumsum(cuts, axis=1) - cuts
  width = int(n_segments.max(initial=1))
  cells = np.arange(n)[:, None] * width + segments
  inside = columns < n_items[:, None]
  counts = np.bincount(cells[inside], minlength=n * width)
  return counts.reshape(n, width)


def _replace(tokens, keep, starts, *, lengths, first) -> Spans:
  """Keeps some tokens and puts a sentinel where each noise span starts."""
  sizes = keep.astype(np.int64) + starts
  ends = np.cumsum(sizes)
  text_ends = np.concatenate([[0], ends])[np.cumsum(lengths)]
  bounds = np.concatenate([[0], text_ends])
  result = np.empty(int(bounds[-1]), np.int32)
  result[ends[keep] - 1] = tokens[keep]  # behind the sentinel, if any
  spans_before = np.concatenate([[0], np.cumsum(starts)])
  text_starts = np.cumsum(lengths) - lengths
  numbers = spans_before[:-1] - np.repeat(spans_before[text_starts], lengths)
  result[(ends - sizes)[starts]] = first - numbers[starts]
  return Spans(result, bounds[:-1], np.diff(bounds))
