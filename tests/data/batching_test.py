"""Tests of the padded arrays of a batch, against a loop over rows."""

import numpy as np
import pytest

from mhr_jax.data.batching import assemble, choice_widths, lay_choices
from mhr_jax.data.tokens import Spans


def _oracle(arrays, rows, n_rows, width):
  tokens = np.zeros((n_rows, width), np.int32)
  segments = np.zeros((n_rows, width), np.int32)
  before = np.zeros((n_rows, width), np.int32)
  used, count = [0] * n_rows, [0] * n_rows
  for array, row in zip(arrays, rows, strict=True):
    ended = [*array[: width - 1], 1]
    count[row] += 1
    where = slice(used[row], used[row] + len(ended))
    tokens[row, where] = ended
    before[row, where] = [0, *ended[:-1]]
    segments[row, where] = count[row]
    used[row] += len(ended)
  return tokens, before, segments


@pytest.mark.parametrize('packed', [False, True])
def test_assemble_equals_a_loop(packed):
  generator = np.random.default_rng(0)
  rows = np.array([0, 0, 0, 1, 2, 2] if packed else [0, 1, 2, 3, 4, 5])
  n_rows = int(rows.max()) + 1
  most = 4 if packed else 14
  inputs, targets = (
    [generator.integers(3, 90, generator.integers(0, most)) for _ in rows]
    for _ in range(2)
  )
  batch = assemble(
    Spans.from_arrays(inputs),
    Spans.from_arrays(targets),
    rows=rows,
    task_ids=np.arange(n_rows),
    input_length=12,
    target_length=13,
    segments=packed,
  )
  tokens, _, segments = _oracle(inputs, rows, n_rows, 12)
  np.testing.assert_array_equal(batch['encoder_input_tokens'], tokens)
  wanted, before, target_segments = _oracle(targets, rows, n_rows, 13)
  np.testing.assert_array_equal(batch['decoder_target_tokens'], wanted)
  here = wanted != 0
  np.testing.assert_array_equal(
    batch['decoder_input_tokens'][here], before[here]
  )
  np.testing.assert_array_equal(batch['decoder_loss_weights'], here)
  assert batch['decoder_loss_weights'].dtype == np.float32
  assert (
    batch['task_ids'].dtype == batch['encoder_input_tokens'].dtype == 'int32'
  )
  if packed:
    np.testing.assert_array_equal(batch['encoder_segment_ids'], segments)
    np.testing.assert_array_equal(batch['decoder_segment_ids'], target_segments)
  else:
    assert 'encoder_segment_ids' not in batch
    shifted = np.pad(wanted, ((0, 0), (1, 0)))[:, :-1]
    np.testing.assert_array_equal(batch['decoder_input_tokens'], shifted)


def test_what_does_not_fit_into_its_row_is_a_bug():
  spans = Spans.from_arrays([[5, 6], [7]])
  with pytest.raises(ValueError, match='do not fit'):
    assemble(
      spans,
      spans,
      rows=np.array([0, 0]),
      task_ids=np.array([0]),
      input_length=4,
      target_length=9,
      segments=True,
    )


def test_choices_are_laid_into_rows_and_cut_as_targets_are():
  laid = lay_choices([[[5], [6, 7, 8]], [], [[], [9]]], n_choices=3, length=3)
  assert laid['choice_tokens'].tolist() == [
    [[5, 1, 0], [6, 7, 1], [0, 0, 0]],
    [[0, 0, 0]] * 3,
    [[1, 0, 0], [9, 1, 0], [0, 0, 0]],
  ]
  assert laid['choice_mask'].tolist() == [
    [True, True, False],
    [False] * 3,
    [True, True, False],
  ]
  assert laid['choice_tokens'].dtype == np.int32


@pytest.mark.parametrize(
  ('n', 'longest', 'widths'),
  [(2, 1, (2, 8)), (3, 7, (3, 8)), (5, 8, (8, 16)), (9, 40, (16, 32))],
)
def test_few_shapes_make_room_for_all_choices(n, longest, widths):
  choices = [[[3] * longest], [[4]] * n, []]
  assert choice_widths(choices, 32) == widths
  count, width = widths
  assert count >= n and (width > longest or width == 32)
