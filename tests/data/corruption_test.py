"""Tests of span corruption."""

import numpy as np
import pytest

from mhr_jax.data.corruption import (
  SpanCorruption,
  corrupt_spans,
  noise_mask,
)
from mhr_jax.data.mixing import hash_words
from mhr_jax.data.tokens import Spans
from mhr_jax.errors import UserError

_FIRST = 999
_CORRUPTION = SpanCorruption(first_sentinel=_FIRST, n_sentinels=100)


def _restore(inputs, targets):
  """Puts the target's spans back in the place of their sentinels."""
  spans, current = {}, None
  for token in targets:
    if token > _FIRST - 100:
      current = token
      spans[current] = []
    else:
      spans[current].append(token)
  restored = []
  for token in inputs:
    restored.extend(spans.pop(token) if token > _FIRST - 100 else [token])
  assert not spans
  return restored


@pytest.fixture
def texts():
  generator = np.random.default_rng(0)
  lengths = [0, 1, 2, 3, 4, 10, 11, 64, 200, 2, 0, 568]
  return Spans.from_arrays([generator.integers(3, 800, n) for n in lengths])


def test_inputs_and_targets_restore_the_text(texts):
  seeds = hash_words(5, np.arange(len(texts)))
  inputs, targets = corrupt_spans(texts, _CORRUPTION, seeds=seeds, longest=1000)
  for i in range(len(texts)):
    assert _restore(inputs[i], targets[i]) == texts[i].tolist()
  want = _CORRUPTION.lengths(texts.lengths)
  np.testing.assert_array_equal(inputs.lengths, want[0])
  np.testing.assert_array_equal(targets.lengths, want[1])


def test_sentinels_descend_from_the_first(texts):
  seeds = hash_words(np.arange(len(texts)))
  _, targets = corrupt_spans(texts, _CORRUPTION, seeds=seeds, longest=1000)
  for i in range(len(texts)):
    found = [token for token in targets[i] if token > _FIRST - 100]
    assert found == [_FIRST - k for k in range(len(found))]


def test_the_share_and_length_of_noise():
  noise, spans = _CORRUPTION.counts(1000)
  assert noise == 150 and spans == 50
  # T5 draws texts of 568 tokens for inputs of 512 and targets of 114.
  assert _CORRUPTION.longest_text(512, 114) == 568


def test_a_text_depends_on_its_own_seed_alone(texts):
  seeds = hash_words(np.arange(len(texts)))
  all_inputs, _ = corrupt_spans(texts, _CORRUPTION, seeds=seeds, longest=100)
  for i in (7, 8, 11):
    alone = Spans.from_arrays([texts[i]])
    inputs, _ = corrupt_spans(
      alone, _CORRUPTION, seeds=seeds[i : i + 1], longest=100
    )
    np.testing.assert_array_equal(inputs[0], all_inputs[i])


def test_long_texts_give_windows_from_everywhere():
  text = np.arange(3, 103)
  texts = Spans.from_arrays([text] * 2000)
  inputs, targets = corrupt_spans(
    texts, _CORRUPTION, seeds=hash_words(np.arange(2000)), longest=20
  )
  starts = []
  for i in range(2000):
    window = _restore(inputs[i], targets[i])
    starts.append(window[0] - 3)
    assert window == text[starts[-1] : starts[-1] + 20].tolist()
  assert set(starts) == set(range(81))


def test_every_segmentation_is_equally_likely():
  # 6 tokens, 3 of them noise in 2 spans: 2 · 2 ways.
  corruption = SpanCorruption(_FIRST, 9, density=0.5, mean_span_length=1.5)
  n = 4000
  masks = noise_mask(
    np.full(n, 6), corruption, seeds=hash_words(1, np.arange(n))
  ).reshape(n, 6)
  _, counts = np.unique(masks, axis=0, return_counts=True)
  assert len(counts) == 4 and np.all(np.abs(counts - n / 4) < 150)
  assert not masks[:, 0].any() and masks[:, -1].all()


def test_refuses_what_cannot_work():
  with pytest.raises(UserError, match='needs 5 sentinels'):
    SpanCorruption(_FIRST, 4).longest_text(100, 100)
  with pytest.raises(UserError, match='extra ids'):
    SpanCorruption(_FIRST, 0)
  with pytest.raises(UserError, match='density'):
    SpanCorruption(_FIRST, 4, density=1.0)
  with pytest.raises(UserError, match='Nothing fits'):
    _CORRUPTION.longest_text(2, 2)
