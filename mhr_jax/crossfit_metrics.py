"""The seven metrics of CrossFit, times 100.

Definitions: `dataloader/metrics.py` of INK-USC/CrossFit at 56285ca (Ye et al.
2021, arXiv:2104.08835), reimplemented; scores there are from 0 to 1.
Predictions are stripped first, as there. Exact match, accuracy, token F1 and
ROUGE-L are taken over the best of an instance's references; macro F1 and the
two correlations over all instances at once, against the first reference.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
import re
import string
import types

import numpy as np

from mhr_jax.errors import UserError
from mhr_jax.metric_forms import (
  InstanceMetric,
  SetMetric,
  best_over_references,
  check_references,
)

_NO_PUNCTUATION = str.maketrans('', '', string.punctuation)
_ARTICLES = re.compile(r'\b(a|an|the)\b')
_POSITIVE = 'acceptable'  # The label of CoLA, the one task with Matthews.


def normalize_answer(text: str) -> str:
  """Lower case, no ASCII punctuation, no articles, single spaces.

  >>> normalize_answer(' The  answer, (42)! ')
  'answer 42'
  """
  text = text.lower().translate(_NO_PUNCTUATION)
  return ' '.join(_ARTICLES.sub(' ', text).split())


def exact_match(
  predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> np.ndarray:
  """'EM': 100 where the normalised texts are equal, else 0 [instances]."""
  return best_over_references(
    _stripped(predictions),
    references,
    lambda a, b: normalize_answer(a) == normalize_answer(b),
  )


def accuracy(
  predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> np.ndarray:
  """'ACC': 100 where the texts differ in case at most, else 0 [instances]."""
  return best_over_references(
    _stripped(predictions), references, lambda a, b: a.lower() == b.lower()
  )


def token_f1(
  predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> np.ndarray:
  """'QA-F1': F1 of the normalised texts' words as bags [instances]."""
  return best_over_references(_stripped(predictions), references, _token_f1)


def _token_f1(prediction: str, reference: str) -> float:
  a = normalize_answer(prediction).split()
  b = normalize_answer(reference).split()
  common = sum((Counter(a) & Counter(b)).values())
  return 2 * common / (len(a) + len(b)) if common else 0.0


def rouge_l(
  predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> np.ndarray:
  """'Rouge-L': that of the package `rouge` [instances].

  Other numbers than `metrics.rouge_l`, which is that of `rouge_score`: case,
  punctuation and endings count; a text is cut at full stops; and a word
  counts once however often it comes. Precision and recall are the distinct
  words that stand in a longest common subsequence of any two sentences,
  divided by the distinct words of either text.
  """
  return best_over_references(_stripped(predictions), references, _rouge_l)


def _rouge_l(prediction: str, reference: str) -> float:
  if not prediction.translate(_NO_PUNCTUATION):
    return 0.0
  a, b = _sentences(prediction), _sentences(reference)
  common: set[str] = set()
  for of_reference in b:
    for of_prediction in a:
      common |= _common_words(of_reference, of_prediction)
  if not common:
    return 0.0
  precision = len(common) / len({word for words in a for word in words})
  recall = len(common) / len({word for words in b for word in words})
  return 2 * precision * recall / (precision + recall + 1e-8)


def _sentences(text: str) -> list[list[str]]:
  """Words of each sentence; one of spaces alone has one word, the empty."""
  return [part.split() or [''] for part in text.split('.') if part]


def _common_words(x: Sequence[str], y: Sequence[str]) -> set[str]:
  """Returns the words of one longest common subsequence.

  Of several, the one that is found from the end, going back in `x` only
  where that leaves more than going back in `y`, as the package does.
  """
  table = np.zeros((len(x) + 1, len(y) + 1), np.int32)
  for i, word in enumerate(x, 1):
    for j, other in enumerate(y, 1):
      table[i, j] = (
        table[i - 1, j - 1] + 1
        if word == other
        else max(table[i - 1, j], table[i, j - 1])
      )
  found, i, j = set(), len(x), len(y)
  while i and j:
    if x[i - 1] == y[j - 1]:
      found.add(x[i - 1])
      i, j = i - 1, j - 1
    elif table[i - 1, j] > table[i, j - 1]:
      i -= 1
    else:
      j -= 1
  return found


def classification_f1(
  predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> float:
  """'Classification-F1': mean F1 over all labels that occur on either side.

  A text that is no label of the task counts as a label of its own with F1 0,
  which lowers the mean: so scikit-learn's `f1_score(…, average='macro')`.
  """
  check_references(predictions, references)
  wanted = [choices[0] for choices in references]
  pairs = Counter(zip(_stripped(predictions), wanted, strict=True))
  given, right = Counter(_stripped(predictions)), Counter(wanted)
  labels = sorted(given.keys() | right.keys())
  scores = [
    2 * pairs[label, label] / (given[label] + right[label]) for label in labels
  ]
  return 100.0 * float(np.mean(scores))


def matthews(
  predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> float:
  """'Matthew-Correlation' of being 'acceptable'; 0 where a side is constant."""
  check_references(predictions, references)
  given = [text == _POSITIVE for text in _stripped(predictions)]
  right = [choices[0] == _POSITIVE for choices in references]
  found = _correlation(np.array(given, float), np.array(right, float))
  return 0.0 if np.isnan(found) else 100.0 * found


def pearson(
  predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> float:
  """'Pearson-Correlation' of numbers.

  Not a number where a side is constant, or a prediction is not a number.

  Raises:
    UserError: a reference is not a number.
  """
  check_references(predictions, references)
  right = []
  for i, (first, *_) in enumerate(references):
    if _number(first) is None:
      raise UserError(
        f'Instance {i}: the reference {first!r} is not a number, which a'
        ' correlation needs: choose another metric for this task.'
      )
    right.append(_number(first))
  given = [_number(text) for text in _stripped(predictions)]
  if None in given:
    return np.nan
  return 100.0 * _correlation(np.array(given, float), np.array(right, float))


def _number(text: str) -> float | None:
  try:
    return float(text)
  except ValueError:
    return None


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
  """Returns Pearson's correlation; NaN where a side does not vary."""
  if np.all(a == a[0]) or np.all(b == b[0]):
    return np.nan
  a, b = a - a.mean(), b - b.mean()
  return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def _stripped(predictions: Sequence[str]) -> list[str]:
  return [text.strip() for text in predictions]


INSTANCE_METRICS: Mapping[str, InstanceMetric] = types.MappingProxyType(
  {
    'crossfit_exact_match': exact_match,
    'crossfit_accuracy': accuracy,
    'crossfit_token_f1': token_f1,
    'crossfit_rouge_l': rouge_l,
  }
)
SET_METRICS: Mapping[str, SetMetric] = types.MappingProxyType(
  {
    'crossfit_classification_f1': classification_f1,
    'crossfit_matthews': matthews,
    'crossfit_pearson': pearson,
  }
)
