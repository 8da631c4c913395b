"""Beam search over one-position steps, as transformers or as T5X does it.

Scores are sums of log-probabilities over a power of the length. The two differ
in more than that power:

                        hf (transformers)           t5x
  divided by            length ** exponent          ((5 + length) / 6) ** exponent
  may finish            the best `beams`            all 2 · `beams` candidates
  at the last position  running beams finish        they do not; they are the
                                                    answer where none finished
  a row ends when       the best running beam,      it cannot though it had the
                        scored as it is, cannot     longest length
                        enter the finished ones

transformers' `early_stopping=False`; t5x/decoding.py (`beam_search`) at
cc342d4.
"""

from collections.abc import Callable
import dataclasses
from typing import Literal, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mhr_jax.t5 import config as config_lib
from mhr_jax.t5 import stacks

Step = Callable[[Array, Array, stacks.Cache], tuple[Array, stacks.Cache]]

LengthPenaltyForm = Literal['hf', 't5x']

_NEVER = -1e9  # a score that no sequence has


@dataclasses.dataclass(frozen=True)
class LengthPenalty:
  """What sums of log-probabilities are divided by.

  Attributes:
    form: transformers' or T5X's; see the module.
    exponent: of the length; 0 divides by 1.
  """

  form: LengthPenaltyForm
  exponent: float

  def divisor(self, length: Array | int) -> Array:
    """Returns the divisor at a length, the end token included."""
    length = jnp.asarray(length).astype(jnp.float32)
    if self.form == 't5x':
      length = (5 + length) / 6
    return length**self.exponent


class _State(NamedTuple):
  """Where the search stands after reading `position` tokens a beam."""

  position: Int[Array, '']
  last: Int[Array, 'batch beams']
  running: Int[Array, 'batch beams length']
  scores: Float[Array, 'batch beams']
  finished: Int[Array, 'batch beams length']
  finished_scores: Float[Array, 'batch beams']
  is_finished: Bool[Array, 'batch beams']
  improvable: Bool[Array, 'batch']
  cache: stacks.Cache


class _Candidates(NamedTuple):
  """The best continuations of a row, best first; twice as many as beams."""

  tokens: Int[Array, 'batch candidates length']
  scores: Float[Array, 'batch candidates']
  origin: Int[Array, 'batch candidates']
  ended: Bool[Array, 'batch candidates']


def search_beams(
  step: Step,
  cache: stacks.Cache,
  wanted: Bool[Array, 'batch'],
  config: config_lib.T5Config,
  *,
  num_beams: int,
  length_penalty: LengthPenalty,
) -> Int[Array, 'batch length']:
  """Returns the best sequence found for each row.

  Args:
    step: reads tokens [batch · beams] at a position with a cache; returns
      logits [batch · beams, vocab] and the cache. Beams are contiguous.
    cache: an empty one, for batch · beams rows.
    wanted: rows to decode; the others come back as padding.
    config: the backbone; says which tokens start, end and pad.
    num_beams: sequences kept at each position.
    length_penalty: how lengths count.

  Returns:
    int32 tokens without the start token, padded after the end.
  """
  length = cache.length

  def body(state: _State) -> _State:
    logits, cache = step(state.last.reshape(-1), state.position, state.cache)
    candidates = _continue(state, logits, config.eos_id, length_penalty)
    state = _keep_running(state._replace(cache=cache), candidates)
    return _keep_finished(state, candidates, length_penalty)

  def unfinished(state: _State) -> Array:
    return (state.position < length) & jnp.any(state.improvable)

  start = _start(cache, wanted, config, num_beams)
  end = lax.while_loop(unfinished, body, start)
  best = end.finished[:, 0]
  if length_penalty.form == 't5x':
    none = ~jnp.any(end.is_finished, axis=1) & wanted
    best = jnp.where(none[:, None], end.running[:, 0], best)
  return best


def _start(
  cache: stacks.Cache, wanted: Array, config: config_lib.T5Config, beams: int
) -> _State:
  shape = (wanted.shape[0], beams)
  padding = jnp.full((*shape, cache.length), config.pad_id, jnp.int32)
  never = jnp.full(shape, _NEVER)
  return _State(
    position=jnp.int32(0),
    last=jnp.full(shape, config.decoder_start_token_id, jnp.int32),
    running=padding,
    # All beams are equal at first, so only one of them counts.
    scores=never.at[:, 0].set(0.0),
    finished=padding,
    finished_scores=never,
    is_finished=jnp.zeros(shape, bool),
    improvable=wanted,
    cache=cache,
  )


def _continue(
  state: _State,
  logits: Float[Array, 'rows vocab'],
  eos_id: int,
  length_penalty: LengthPenalty,
) -> _Candidates:
  batch, beams, length = state.running.shape
  vocab = logits.shape[-1]
  totals = jax.nn.log_softmax(logits).reshape(batch, beams, vocab)
  totals = totals + state.scores[:, :, None]
  # At most `beams` of them end, so enough are left to go on with.
  scores, flat = lax.top_k(totals.reshape(batch, -1), 2 * beams)
  origin, token = flat // vocab, flat % vocab
  tokens = _gather(state.running, origin)
  ended = token == eos_id
  if length_penalty.form == 'hf':
    ended = ended | (state.position + 1 == length)
  return _Candidates(
    tokens=tokens.at[:, :, state.position].set(token),
    scores=scores,
    origin=origin,
    ended=ended,
  )


def _keep_running(state: _State, candidates: _Candidates) -> _State:
  """Goes on with the best candidates that have not ended."""
  batch, beams, _ = state.running.shape
  scores = candidates.scores + jnp.where(candidates.ended, _NEVER, 0.0)
  scores, chosen = lax.top_k(scores, beams)
  running = _gather(candidates.tokens, chosen)
  origin = _gather(candidates.origin, chosen)
  rows = (jnp.arange(batch)[:, None] * beams + origin).reshape(-1)
  keys, values = state.cache.self_attention
  reordered = (jnp.take(keys, rows, axis=1), jnp.take(values, rows, axis=1))
  return state._replace(
    position=state.position + 1,
    last=lax.dynamic_index_in_dim(
      running, state.position, axis=2, keepdims=False
    ),
    running=running,
    scores=scores,
    cache=state.cache._replace(self_attention=reordered),
  )


def _keep_finished(
  state: _State, candidates: _Candidates, length_penalty: LengthPenalty
) -> _State:
  """Merges candidates that just ended into the finished ones.

  A candidate counts only while its row could still improve.
  """
  beams, length = state.running.shape[1:]
  norm = reachable = length_penalty.divisor(state.position)
  counts = candidates.ended & state.improvable[:, None]
  if length_penalty.form == 'hf':
    counts = counts & (jnp.arange(2 * beams) < beams)
  else:
    reachable = length_penalty.divisor(length + 1)
  scores = jnp.where(counts, candidates.scores / norm, _NEVER)
  scores = jnp.concatenate([state.finished_scores, scores], axis=1)
  tokens = jnp.concatenate([state.finished, candidates.tokens], axis=1)
  is_finished = jnp.concatenate([state.is_finished, counts], axis=1)
  scores, chosen = lax.top_k(scores, beams)
  is_finished = _gather(is_finished, chosen)
  worst = jnp.where(jnp.all(is_finished, axis=1), scores[:, -1], _NEVER)
  return state._replace(
    finished=_gather(tokens, chosen),
    finished_scores=scores,
    is_finished=is_finished,
    improvable=state.improvable & (state.scores[:, 0] / reachable > worst),
  )


def _gather(x: Array, index: Int[Array, 'batch n']) -> Array:
  index = index.reshape(*index.shape, *(1,) * (x.ndim - 2))
  return jnp.take_along_axis(x, index, axis=1)
