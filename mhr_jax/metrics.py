"""All metrics of generated text by name; those of SuperNI are here.

A metric maps predictions and their references to numbers from 0 to 100: one
an instance (`METRICS`), whose mean is the score of a set, or one a set
(`SET_METRICS`). Exact match and ROUGE-L are those of the official
`compute_metrics.py` of allenai/natural-instructions: the best over an
instance's references, with the tokens and stems of the `rouge_score` package,
which that script uses. CrossFit's are in `crossfit_metrics`.
"""

from collections.abc import Mapping, Sequence
import functools
import string
import types

import numpy as np

from mhr_jax import crossfit_metrics
from mhr_jax.errors import UserError, nearest
from mhr_jax.metric_forms import (
  InstanceMetric,
  SetMetric,
  best_over_references,
)

_NO_PUNCTUATION = str.maketrans('', '', string.punctuation)


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
  return best_over_references(
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
  return best_over_references(
    predictions,
    references,
    lambda a, b: scorer.score(target=b, prediction=a)['rougeL'].fmeasure,
  )


def accuracy(
  predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> np.ndarray:
  """Returns 100 where a prediction is one of its references, else 0.

  Letter for letter. Where answer choices are ranked, evaluation counts those
  whose label was chosen instead; see `mhr_jax.scores`.

  Args:
    predictions: one text an instance.
    references: the acceptable texts of each instance, at least one.

  Returns:
    float64 [instances].

  Raises:
    UserError: the lengths differ, or an instance has no reference.
  """
  return best_over_references(predictions, references, lambda a, b: a == b)


METRICS: Mapping[str, InstanceMetric] = types.MappingProxyType(
  {
    'accuracy': accuracy,
    'exact_match': exact_match,
    'rouge_l': rouge_l,
    **crossfit_metrics.INSTANCE_METRICS,
  }
)
SET_METRICS: Mapping[str, SetMetric] = crossfit_metrics.SET_METRICS


def check_name(name: str) -> None:
  """Refuses what is not a metric.

  Raises:
    UserError: there is none of that name; the message has the nearest.
  """
  known = [*METRICS, *SET_METRICS]
  if name not in known:
    raise UserError(f'There is no metric {name!r}.{nearest(name, known)}')


def score_set(
  name: str, predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> float:
  """Returns one metric of a set: of an instance metric, the mean."""
  check_name(name)
  if name in SET_METRICS:
    return SET_METRICS[name](predictions, references)
  return float(np.mean(METRICS[name](predictions, references)))


@functools.cache
def _rouge_scorer():
  # Imported late: its stemmer brings nltk, which few runs need.
  from rouge_score import rouge_scorer

  return rouge_scorer.RougeScorer(['rougeL'], use_stemmer=True)
