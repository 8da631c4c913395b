"""The two forms of a metric: one score an instance, or one score a set.

The mean of an instance metric over some instances is their score. A set
metric (macro F1, a correlation) has no score of one instance: it is taken
over all instances of a task at once.
"""

from collections.abc import Callable, Sequence

import numpy as np

from mhr_jax.errors import UserError

InstanceMetric = Callable[[Sequence[str], Sequence[Sequence[str]]], np.ndarray]
SetMetric = Callable[[Sequence[str], Sequence[Sequence[str]]], float]


def best_over_references(
  predictions: Sequence[str],
  references: Sequence[Sequence[str]],
  compare: Callable[[str, str], float],
) -> np.ndarray:
  """Applies `compare(prediction, reference)`, keeps the best, times 100.

  Args:
    predictions: one text an instance.
    references: the acceptable texts of each instance, at least one.
    compare: from 0 to 1.

  Returns:
    float64 [instances], from 0 to 100.

  Raises:
    UserError: the lengths differ, or an instance has no reference.
  """
  check_references(predictions, references)
  return np.array(
    [
      100.0 * max(float(compare(text, choice)) for choice in choices)
      for text, choices in zip(predictions, references, strict=True)
    ]
  )


def check_references(
  predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> None:
  """Refuses predictions without references.

  Raises:
    UserError: the lengths differ, or an instance has no reference.
  """
  if len(predictions) != len(references):
    raise UserError(
      f'{len(predictions)} predictions, but references for'
      f' {len(references)} instances.'
    )
  for i, choices in enumerate(references):
    if isinstance(choices, str) or not choices:
      raise UserError(
        f'Instance {i} needs a list of references, not {choices!r}.'
      )
