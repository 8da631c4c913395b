"""From token ids to the padded arrays of a batch."""

from collections.abc import Sequence

from jaxtyping import Int32, Int64
import numpy as np

from mhr_jax.data.tokens import Spans

PAD = 0
EOS = 1

Batch = dict[str, np.ndarray]


def assemble(
  inputs: Spans,
  targets: Spans,
  *,
  rows: Int64[np.ndarray, 'example'],
  task_ids: Int32[np.ndarray, 'row'],
  input_length: int,
  target_length: int,
  segments: bool,
) -> Batch:
  """Lays examples into the rows of a batch, each ended by EOS.

  What is too long is cut, and still ends in EOS.

  Args:
    inputs: of each example, without EOS.
    targets: of each example, without EOS.
    rows: the row of each example, ascending; several examples in one row
      stand one behind the other and must fit.
    task_ids: of each row.
    input_length: width of the inputs.
    target_length: width of the targets.
    segments: whether to tell which example of its row a token belongs to
      (from 1; 0 is padding).

  Returns:
    int32 `encoder_input_tokens` [row, input], `decoder_target_tokens`,
    `decoder_input_tokens` (the targets moved right by one, each example
    starting from 0), float32 `decoder_loss_weights` (1 on targets and EOS)
    [row, target], `task_ids` [row]; with segments also int32
    `encoder_segment_ids` and `decoder_segment_ids`.
  """
  shape = (len(task_ids), input_length)
  encoder_tokens, encoder_segments, _ = _lay(inputs, rows, shape, segments)
  shape = (len(task_ids), target_length)
  target_tokens, target_segments, starts = _lay(targets, rows, shape, segments)
  decoder_inputs = np.zeros_like(target_tokens)
  decoder_inputs[:, 1:] = target_tokens[:, :-1]
  decoder_inputs[rows, starts] = PAD
  batch = {
    'encoder_input_tokens': encoder_tokens,
    'decoder_input_tokens': decoder_inputs,
    'decoder_target_tokens': target_tokens,
    # Padding alone has id 0; neither texts nor sentinels have.
    'decoder_loss_weights': (target_tokens != PAD).astype(np.float32),
    'task_ids': np.asarray(task_ids, np.int32),
  }
  if segments:
    batch['encoder_segment_ids'] = encoder_segments
    batch['decoder_segment_ids'] = target_segments
  return batch


def lay_choices(
  choices: Sequence[Sequence[Sequence[int]]], *, n_choices: int, length: int
) -> Batch:
  """Lays answer choices into the rows of a batch, each ended by EOS.

  What is too long is cut, and still ends in EOS, as targets are.

  Args:
    choices: the token ids of each row's choices, without EOS.
    n_choices: to make room for in every row.
    length: width of a choice.

  Returns:
    int32 `choice_tokens` [row, choice, length], and bool `choice_mask`
    [row, choice], True where there is a choice.
  """
  counts = np.array([len(each) for each in choices], np.int64)
  mask = np.arange(n_choices) < counts[:, None]
  flat = Spans.from_arrays([ids for each in choices for ids in each])
  shape = (mask.size, length)
  tokens, _, _ = _lay(flat, np.flatnonzero(mask), shape, False)
  tokens = tokens.reshape(*mask.shape, length)
  return {'choice_tokens': tokens, 'choice_mask': mask}


def choice_widths(
  choices: Sequence[Sequence[Sequence[int]]], target_length: int
) -> tuple[int, int]:
  """Returns how many choices, and how wide, make room for all of these.

  Rounded up to powers of two, so that batches have few shapes: up to 4
  choices are as many as there are, and a choice is at least 8 tokens wide.

  Args:
    choices: the token ids of each row's choices, without EOS.
    target_length: the width that no choice exceeds.
  """
  count = max((len(each) for each in choices), default=0)
  longest = max((len(ids) for each in choices for ids in each), default=0)
  count = count if count <= 4 else 1 << (count - 1).bit_length()
  width = max(8, 1 << longest.bit_length())  # the EOS has room: 7 needs 8
  return max(count, 1), min(width, target_length)


def _lay(spans: Spans, rows, shape, segments):
  """Lays spans, each with EOS, into rows: tokens, segment ids, starts."""
  n_rows, width = shape
  spans = spans.clip(width - 1)
  starts, numbers = _places_in_rows(spans.lengths + 1, rows, n_rows)
  if np.any(starts + spans.lengths >= width):
    raise ValueError('Packed examples do not fit into their row.')
  cells = Spans(spans.flat, rows * width + starts, spans.lengths)
  tokens = np.full(n_rows * width, PAD, np.int32)
  tokens[cells.indices()] = spans.flat[spans.indices()]
  tokens[cells.starts + cells.lengths] = EOS
  ids = None
  if segments:
    ids = np.zeros(n_rows * width, np.int32)
    whole = Spans(spans.flat, cells.starts, cells.lengths + 1)
    ids[whole.indices()] = np.repeat(numbers, whole.lengths)
    ids = ids.reshape(shape)
  return tokens.reshape(shape), ids, starts


def _places_in_rows(sizes, rows, n_rows):
  """Returns where each example starts in its row, and which it is (from 1)."""
  ends = np.cumsum(sizes)
  firsts = np.searchsorted(rows, np.arange(n_rows))
  first_of_mine = firsts[rows]
  starts = (ends - sizes) - (ends - sizes)[first_of_mine]
  return starts, np.arange(len(rows)) - first_of_mine + 1
