"""Losses and scores of answer choices: T-Few's three parts.

    L = likelihood + choice_loss * choice + unlikelihood * unlikelihood part

* likelihood: the mean over the tokens of the batch's right choices of
  -log p.
* choice: the mean over examples of the cross-entropy of the right choice
  among all, whose logits are the choices' scores: summed log-probabilities
  over length ** length_norm.
* unlikelihood: the mean over the tokens of the batch's wrong choices of
  -log(1 - p + 0.01).

Tokens are those of a choice and its EOS; padding never counts. The means have
three different weights, which depend on the batch alone: so each part is one
sum and one weight a row here, and the weights of the whole batch are known
before any part of it is computed.

Source: Liu et al. 2022 (arXiv:2205.05638) and r-three/t-few,
src/models/EncoderDecoder.py. There the tokens of padding and of right choices
stay in the unlikelihood sum with log p = -100 and add a constant -log(1.01)
each: no gradient, and left out here. A choice's score is the same number with
the sign turned: higher is better here.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from mhr_jax.setting_checks import check_fields

# Keeps the unlikelihood of a token of probability 1 finite.
_ROOM = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChoiceLoss:
  """What T-Few's loss is made of.

  Attributes:
    choice_loss: weight of the cross-entropy over choices.
    unlikelihood: weight of the wrong choices' unlikelihood.
    length_norm: a choice's score is its log-probability over its length to
      this power; 1 is the mean a token, 0 the sum.

  Raises:
    UserError: a number is negative.
  """

  choice_loss: float = 1.0
  unlikelihood: float = 1.0
  length_norm: float = 1.0

  def __post_init__(self):
    check_fields(self)


class Parts(NamedTuple):
  """The three parts of the loss, one number a row each."""

  likelihood: Float[Array, 'batch']
  choice: Float[Array, 'batch']
  unlikelihood: Float[Array, 'batch']


def normalise_scores(
  log_probs: Float[Array | np.ndarray, '*shape'],
  lengths: Float[Array | np.ndarray, '*shape'],
  length_norm: float,
) -> Any:
  """Returns log-probabilities over their lengths to the power `length_norm`.

  JAX's arrays give JAX's, NumPy's NumPy's. A length of 0 counts as 1.
  """
  return log_probs / lengths.clip(1) ** length_norm


def count_parts(
  weights: Float[Array, 'batch choice length'],
  choice_mask: Bool[Array, 'batch choice'],
  labels: Int[Array, 'batch'],
) -> Parts:
  """Returns what each row adds to the weight of each part.

  Args:
    weights: 1 for the tokens of a choice, 0 for padding.
    choice_mask: True where there is a choice; a row without any counts
      nowhere.
    labels: index of the right choice.
  """
  right, wrong = _split(choice_mask, labels)
  lengths = weights.sum(axis=-1)
  return Parts(
    likelihood=jnp.sum(lengths * right, axis=-1),
    choice=choice_mask.any(axis=-1).astype(weights.dtype),
    unlikelihood=jnp.sum(lengths * wrong, axis=-1),
  )


def sum_parts(
  losses: Float[Array, 'batch choice length'],
  nll: Float[Array, 'batch choice length'],
  weights: Float[Array, 'batch choice length'],
  choice_mask: Bool[Array, 'batch choice'],
  labels: Int[Array, 'batch'],
  *,
  length_norm: float,
) -> Parts:
  """Returns what each row adds to the sum of each part.

  Args:
    losses: of every token, for the likelihood: `nll`, perhaps smoothed.
    nll: -log p of every token, in float32 at least.
    weights: see `count_parts`.
    choice_mask: see `count_parts`.
    labels: see `count_parts`.
    length_norm: see `ChoiceLoss`.
  """
  right, wrong = _split(choice_mask, labels)
  scores = normalise_scores(
    -jnp.sum(nll * weights, axis=-1), weights.sum(axis=-1), length_norm
  )
  there = choice_mask.any(axis=-1)
  # A row without choices is a row of equal ones that weighs nothing: minus
  # infinity would make its gradient NaN.
  log_z = jax.nn.logsumexp(scores, axis=-1, where=choice_mask | ~there[:, None])
  among = log_z - jnp.sum(scores * right, axis=-1)
  unlikely = -jnp.log(1 - jnp.exp(-nll) + _ROOM) * weights
  return Parts(
    likelihood=jnp.sum(losses * weights * right[..., None], axis=(1, 2)),
    choice=jnp.where(there, among, 0),
    unlikelihood=jnp.sum(unlikely * wrong[..., None], axis=(1, 2)),
  )


def share_parts(counts: Parts) -> Parts:
  """Returns every row's factor of each part: 1 over the batch's weight.

  Each row's part times its factor, summed over rows, is the batch's mean,
  however the rows are cut into micro-batches or spread over devices.
  """
  return Parts(
    *(jnp.broadcast_to(1 / jnp.maximum(n.sum(), 1), n.shape) for n in counts)
  )


def _split(
  choice_mask: Bool[Array, 'batch choice'], labels: Int[Array, 'batch']
) -> tuple[Bool[Array, 'batch choice'], Bool[Array, 'batch choice']]:
  """Returns which choices are right and which are wrong."""
  right = jnp.arange(choice_mask.shape[-1]) == labels[:, None]
  return choice_mask & right, choice_mask & ~right
