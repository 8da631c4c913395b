"""Rank classification: the answer choice that a model finds most likely.

Source: Sanh et al. 2021 (arXiv:2110.08207), where a choice's score is its
summed log-probability, and Liu et al. 2022 (arXiv:2205.05638), where it is the
mean a token.
"""

from collections.abc import Iterator, Sequence
import dataclasses

from jaxtyping import Float
import numpy as np

from mhr_jax import choice_losses, scores
from mhr_jax.data import batching
from mhr_jax.data.ordered import EvalBatch, EvalRecord
from mhr_jax.errors import UserError
from mhr_jax.setting_checks import check_fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChoiceSettings:
  """How answer choices are ranked.

  Attributes:
    length_norm: a choice's score is its log-probability over the number of
      its tokens, EOS counted, to this power: 1 is the mean a token, as in
      T-Few and mttl, 0 the sum, as in T0.

  Raises:
    UserError: it is negative.
  """

  length_norm: float = 1.0

  def __post_init__(self):
    check_fields(self)


def choice_widths(batches: Sequence[EvalBatch]) -> tuple[int, int]:
  """Returns how many choices, and how wide, make room for these batches'."""
  choices = [r.choice_tokens for batch in batches for r in batch.records]
  widths = [
    batch.arrays['decoder_target_tokens'].shape[-1] for batch in batches
  ]
  return batching.choice_widths(choices, max(widths))


def check_choices(batch: EvalBatch) -> None:
  """Refuses examples that have nothing to rank.

  Raises:
    UserError: an example has no choices.
  """
  for record in batch.records:
    if not record.choices:
      raise UserError(
        f'Task {record.task!r}, example {record.example_id!r}: there are no'
        f' answer choices to rank, which the metric {scores.ACCURACY!r} asks'
        ' for. Choose other metrics (EvaluationSettings.metrics ='
        " ('exact_match', 'rouge_l')), or tasks whose examples have choices."
      )


def with_choices(batch: EvalBatch, widths: tuple[int, int]) -> batching.Batch:
  """Returns what `RoutedT5.score_choices` reads of a batch.

  Rows that only fill up have no choices.

  Args:
    batch: of examples with choices.
    widths: how many choices to make room for, and how wide each.

  Raises:
    UserError: an example has no choices.
  """
  check_choices(batch)
  choices: list[Sequence[Sequence[int]]] = [
    record.choice_tokens for record in batch.records
  ]
  choices += [()] * (len(batch.row_weights) - len(choices))
  laid = batching.lay_choices(choices, n_choices=widths[0], length=widths[1])
  read = {
    name: array
    for name, array in batch.arrays.items()
    if not name.startswith('decoder_')
  }
  return read | laid


def to_predictions(
  batch: EvalBatch,
  log_probs: Float[np.ndarray, 'row choice'],
  lengths: Float[np.ndarray, 'row choice'],
  settings: ChoiceSettings,
) -> Iterator[scores.Prediction]:
  """Yields the choice taken of each of a batch's instances, fillers left out.

  Args:
    batch: of examples with choices.
    log_probs: of each choice, summed over its tokens.
    lengths: its tokens.
    settings: how to rank.

  Raises:
    UserError: the score of a choice is not finite: nothing ranks first.
  """
  ranked = choice_losses.normalise_scores(
    log_probs, lengths, settings.length_norm
  )
  for record, row in zip(batch.records, ranked, strict=False):
    own = row[: len(record.choices)]
    _check_finite(record, own)
    yield scores.Prediction(
      example_id=record.example_id,
      task=record.task,
      category=record.category,
      input=record.inputs,
      prediction=record.choices[int(np.argmax(own))],
      references=record.targets,
      metric=record.metric,
      choices=record.choices,
      choice_scores=tuple(own.tolist()),
      label=record.label,
    )


def _check_finite(record: EvalRecord, own: Float[np.ndarray, 'choice']):
  for choice, score in zip(record.choices, own, strict=True):
    if not np.isfinite(score):
      raise UserError(
        f'Task {record.task!r}, example {record.example_id!r}: the score of'
        f' the choice {choice!r} is {score}, so no choice ranks first. Some'
        ' parameters are not finite, or numbers overflow on the way.'
      )
