"""CrossFit's metrics against cases by hand and plain computations."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from mhr_jax import crossfit_metrics as crossfit
from mhr_jax import metrics
from mhr_jax.errors import UserError


@pytest.mark.parametrize(
  ('prediction', 'references', 'expected'),
  [
    ('The cat.', ['a cat'], 100),  # articles go
    (' an  Apple ', ['pear', 'apple!'], 100),
    ('theme', ['me'], 0),
    ('', ['the'], 100),
  ],
)
def test_exact_match_takes_articles_out(prediction, references, expected):
  assert crossfit.exact_match([prediction], [references]) == [expected]


@pytest.mark.parametrize(
  ('prediction', 'references', 'expected'),
  [
    (' Yes\n', ['yes'], 100),
    ('yes.', ['yes'], 0),  # punctuation counts
    ('(A) x', ['(b) x', '(a) X'], 100),
    ('the a', ['a'], 0),
  ],
)
def test_accuracy_ignores_case_alone(prediction, references, expected):
  assert crossfit.accuracy([prediction], [references]) == [expected]


def test_token_f1_counts_words_as_often_as_both_sides_have_them():
  # Of 'big big cat' and 'cat big' two words meet: 2·2 / (3 + 2).
  found = crossfit.token_f1(
    ['the big big cat', 'no', 'x'], [['dog', 'Cat, big'], ['yes'], ['x y']]
  )
  np.testing.assert_allclose(found, [80, 0, 200 / 3])


def test_classification_f1_counts_every_label_that_occurs():
  predictions = ['a', 'a', 'b ', 'nonsense', 'c', 'c']
  references = [['a', 'b'], ['b'], ['b'], ['c'], ['c'], ['a']]
  wanted = [first for first, *_ in references]
  given = [text.strip() for text in predictions]
  scores = []
  for label in ('a', 'b', 'c', 'nonsense'):
    pairs = list(zip(given, wanted, strict=True))
    right = sum(g == w == label for g, w in pairs)
    wrong = sum((g == label) != (w == label) for g, w in pairs)
    scores.append(2 * right / (2 * right + wrong))
  found = crossfit.classification_f1(predictions, references)
  assert found == pytest.approx(100 * sum(scores) / 4)
  assert crossfit.classification_f1(['a'], [['a']]) == 100


def _matthews(given, wanted):
  """From the four counts, as the textbook has it."""
  pairs = list(zip(given, wanted, strict=True))
  tp, tn, fp, fn = (
    sum(pair == kind for pair in pairs)
    for kind in ((1, 1), (0, 0), (1, 0), (0, 1))
  )
  root = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
  return (tp * tn - fp * fn) / root if root else 0.0


def test_matthews_from_the_four_counts():
  names = {1: 'acceptable', 0: 'unacceptable'}
  for given in itertools.product((0, 1), repeat=4):
    wanted = (1, 1, 0, 1)
    found = crossfit.matthews(
      [names[g] + ' ' for g in given], [[names[w], 'x'] for w in wanted]
    )
    assert found == pytest.approx(100 * _matthews(given, wanted))


def test_pearson_is_scipys_and_undefined_where_a_text_is_no_number():
  rng = np.random.default_rng(0)
  right = rng.normal(size=9)
  given = right + rng.normal(size=9)
  references = [[repr(float(x)), '7'] for x in right]
  found = crossfit.pearson([f' {x!r} ' for x in given.tolist()], references)
  assert found == pytest.approx(100 * stats.pearsonr(right, given)[0])
  assert math.isnan(crossfit.pearson(['1', 'two'], [['1'], ['2']]))
  assert math.isnan(crossfit.pearson(['3', '3'], [['1'], ['2']]))
  with pytest.raises(UserError, match="Instance 1: the reference 'good'"):
    crossfit.pearson(['1', '2'], [['1'], ['good']])


def _rouge_l(prediction, reference):
  """Distinct words of common subsequences, where each is the only longest."""

  def words(text):
    return [sentence.split() for sentence in text.split('.') if sentence]

  def subsequences(sentence):
    chosen = itertools.product((0, 1), repeat=len(sentence))
    return {tuple(itertools.compress(sentence, mask)) for mask in chosen}

  union = set()
  for a, b in itertools.product(words(prediction), words(reference)):
    common = subsequences(a) & subsequences(b)
    longest = [s for s in common if len(s) == max(map(len, common))]
    assert len(longest) == 1
    union |= set(longest[0])
  sizes = [
    len({word for sentence in words(text) for word in sentence})
    for text in (prediction, reference)
  ]
  p, r = len(union) / sizes[0], len(union) / sizes[1]
  return 2 * p * r / (p + r + 1e-8)


@pytest.mark.parametrize(
  ('prediction', 'reference'),
  [
    ('a big cat sat on one mat', 'the big cat is on a mat'),
    ('a cat sat. the dog ran away', 'the dog sat. a cat ran'),
    ('run run run', 'they run'),  # a word counts once
    ('Yes', 'yes'),  # case counts
    ('no, really', 'no really'),  # so does punctuation
  ],
)
def test_rouge_l_by_listing_all_subsequences(prediction, reference):
  found = crossfit.rouge_l([f' {prediction} '], [['zz', reference]])
  assert found[0] == pytest.approx(100 * _rouge_l(prediction, reference))


def test_rouge_l_of_nothing_is_nothing():
  assert crossfit.rouge_l(['', ' .. ', 'a'], [['a'], ['a'], ['.']]).sum() == 0


def test_all_seven_are_metrics_by_name():
  names = [name for name in metrics.METRICS if name.startswith('crossfit_')]
  names += list(metrics.SET_METRICS)
  assert len(names) == 7
  found = {
    name: metrics.score_set(name, ['1', '2'], [['1'], ['2']]) for name in names
  }
  assert found.pop('crossfit_matthews') == 0  # Neither is 'acceptable'.
  assert list(found.values()) == pytest.approx([100] * 6, abs=1e-5)


def test_instances_without_references_are_an_error():
  for metric in (*metrics.METRICS.values(), *metrics.SET_METRICS.values()):
    with pytest.raises(UserError, match='Instance 1 needs a list of ref'):
      metric(['1', '2'], [['1'], []])
