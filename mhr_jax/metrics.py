"""Scores of generated text, as Super-NaturalInstructions evaluates it.

Every metric maps predictions and their references to one score an instance,
times 100, the best over that instance's references; the score of a set is the
mean over its instances, as in the official `compute_metrics.py` of
allenai/natural-instructions. Tokens and stems of ROUGE-L are those of the
`rouge_score` package, which that script uses.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import string
import types

import numpy as np

from mhr_jax.errors import UserError

_NO_PUNCTUATION = str.maketrans('', '', string.punctuation)

Metric = Callable[[Sequence[str], Sequence[Sequence[str]]], np.ndarray]


def normalize_answer(text: str) -> str:
  """Lower case, no ASCII punctuation, single spaces; articles stay.

  >>> normalize_answer(' The  answer, (42)! ')
  'the answer 42'
  """
  return ' '.join(text.lower().translate(_NO_PUNCTUATION).split())


def exact_match(
  predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> np.ndarray:
  """Returns 100 where a prediction equals one of its references, else 0.

  Args:
    predictions: one text an instance.
    references: the acceptable texts of each instance, at least one.

  Returns:
    float64 [instances].

  Raises:
    UserError: the lengths differ, or an instance has no reference.
  """
  return _best_over_references(
    predictions,
    references,
    lambda a, b: normalize_answer(a) == normalize_answer(b),
  )


def rouge_l(
  predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> np.ndarray:
  """Returns the ROUGE-L F-measure with Porter stems, times 100.

  Args:
    predictions: one text an instance.
    references: the acceptable texts of each instance, at least one.

  Returns:
    float64 [instances].

  Raises:
    UserError: the lengths differ, or an instance has no reference.
  """
  scorer = _rouge_scorer()
  return _best_over_references(
    predictions,
    references,
    lambda a, b: scorer.score(target=b, prediction=a)['rougeL'].fmeasure,
  )


METRICS: Mapping[str, Metric] = types.MappingProxyType(
  {'exact_match': exact_match, 'rouge_l': rouge_l}
)


def score(
  predictions: Sequence[str],
  references: Sequence[Sequence[str]],
  *,
  metrics: Sequence[str] = ('exact_match', 'rouge_l'),
) -> dict[str, float]:
  """Returns the mean over instances of each metric, by name."""
  return {
    name: float(np.mean(METRICS[name](predictions, references)))
    for name in metrics
  }


def _best_over_references(
  predictions: Sequence[str],
  references: Sequence[Sequence[str]],
  compare: Callable[[str, str], float],
) -> np.ndarray:
  """Applies `compare(prediction, reference)` and keeps the best, times 100."""
  if len(predictions) != len(references):
    raise UserError(
      f'{len(predictions)} predictions, but references for'
      f' {len(references)} instances.'
    )
  best = np.zeros(len(predictions))
  for i, (text, choices) in enumerate(
    zip(predictions, references, strict=True)
  ):
    if isinstance(choices, str) or not choices:
      raise UserError(
        f'Instance {i} needs a list of references, not {choices!r}.'
      )
    best[i] = 100.0 * max(float(compare(text, choice)) for choice in choices)
  return best


@functools.cache
def _rouge_scorer():
  # Imported late: its stemmer brings nltk, which few runs need.
  from rouge_score import rouge_scorer

  return rouge_scorer.RougeScorer(['rougeL'], use_stemmer=True)
