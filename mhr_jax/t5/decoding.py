"""Decoding with a key-value cache: greedy, sampled or by beam search.

The encoder, its keys and values, and the adapters are computed once; a loop
under `jax.jit` then reads one token a row and stops when all rows have ended.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mhr_jax import errors, setting_checks
from mhr_jax.t5 import beams, stacks
from mhr_jax.t5 import config as config_lib
from mhr_jax.t5 import network as network_lib

_EXPONENTS = {'hf': 1.0, 't5x': 0.6}


@dataclasses.dataclass(frozen=True)
class DecodingSettings:
  """How to choose the next token.

  The defaults are greedy; `num_beams` above 1 is beam search; `temperature`
  above 0 is sampling.

  Attributes:
    max_new_tokens: tokens to make room for, the end token included.
    num_beams: sequences that beam search keeps.
    temperature: what logits are divided by before sampling; 0 takes the best.
    top_k: sample from that many best tokens; 0 from all.
    top_p: sample from the fewest best tokens that reach this probability.
    length_penalty: whose beam search: 'hf' divides sums of log-probabilities
      by length ** exponent, 't5x' by ((5 + length) / 6) ** exponent; for what
      else differs see `mhr_jax.t5.beams`.
    length_exponent: that exponent; None is 1.0 for 'hf', 0.6 for 't5x', their
      own defaults.

  Raises:
    UserError: a setting is not possible, is of another type, or has no effect
      beside the others.
  """

  max_new_tokens: int
  num_beams: int = 1
  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  length_penalty: beams.LengthPenaltyForm = 'hf'
  length_exponent: float | None = None

  def __post_init__(self) -> None:
    if self.length_penalty not in _EXPONENTS:
      hint = errors.nearest(str(self.length_penalty), _EXPONENTS)
      raise errors.UserError(
        f'There is no length_penalty {self.length_penalty!r}.{hint}'
        ' (Its exponent is length_exponent.)'
      )
    setting_checks.check_fields(
      self,
      least={'max_new_tokens': 1, 'num_beams': 1},
      most={'top_p': 1},
      above={'top_p': 0},
      signed=('length_exponent',),
    )
    if self.temperature and self.num_beams > 1:
      raise errors.UserError(
        'Beam search does not sample: set temperature to 0 or num_beams to 1.'
      )
    if not self.temperature and (self.top_k or self.top_p < 1):
      raise errors.UserError(
        'top_k and top_p say what to sample from: set temperature above 0.'
      )

  @property
  def scoring(self) -> beams.LengthPenalty:
    """How beam search counts lengths."""
    exponent = self.length_exponent
    if exponent is None:
      exponent = _EXPONENTS[self.length_penalty]
    return beams.LengthPenalty(self.length_penalty, exponent)


def decode_tokens(
  network: network_lib.T5,
  backbone_params: Any,
  encoder_input_tokens: Int[Array, 'batch inputs'],
  adapters: Any,
  settings: DecodingSettings,
  *,
  key: Array | None = None,
  encoder_mask: Bool[Array, 'batch inputs'] | None = None,
) -> Int[Array, 'batch length']:
  """Returns the tokens that the network continues with.

  Runs under `jax.jit` with `network` and `settings` static. Adapters should be
  mixed in front: `layer_adapters` would run again at every token.

  Args:
    network: the backbone.
    backbone_params: its parameters, in the layout of its config.
    encoder_input_tokens: int32 token ids.
    adapters: as for `T5`, or None; one an example, however many beams.
    settings: how to choose.
    key: of the random choices; needed where `settings.temperature` > 0. What
      a row samples depends on its place in the batch, not on other rows.
    encoder_mask: True where there is a token; by default, where it is not
      padding. A row without any comes back as padding.

  Returns:
    int32 tokens [batch, max_new_tokens], no start token, padded after the end.

  Raises:
    UserError: no key to sample with, or more beams than the vocabulary feeds.
  """
  config = network.config
  _check(settings, config, key)
  if encoder_mask is None:
    encoder_mask = encoder_input_tokens != config.pad_id
  # `apply` may return a pair, of which type checkers know; without mutable
  # collections it does not.
  run: Any = functools.partial(network.apply, {'params': backbone_params})
  encoded = run(
    encoder_input_tokens, adapters, mask=encoder_mask, method='encode'
  )
  cache = run(
    encoded,
    adapters,
    rows=encoded.shape[0] * settings.num_beams,
    length=settings.max_new_tokens,
    method='start_cache',
  )

  cache = cache._replace(
    cross_attention=stacks.split_layers(cache.cross_attention, config)
  )
  in_loop = stacks.split_layers(adapters, config)

  def step(tokens, position, cache):
    return run(
      tokens, position, cache, encoder_mask, in_loop, method='decode_step'
    )

  wanted = jnp.any(encoder_mask, axis=1)
  if settings.num_beams == 1:
    return _follow_one(step, cache, wanted, config, settings, key)
  return beams.search_beams(
    step,
    cache,
    wanted,
    config,
    num_beams=settings.num_beams,
    length_penalty=settings.scoring,
  )


def _check(
  settings: DecodingSettings, config: config_lib.T5Config, key: Array | None
) -> None:
  if settings.temperature and key is None:
    raise errors.UserError('Sampling (temperature above 0) needs a key.')
  if 2 * settings.num_beams > config.vocab_size:
    raise errors.UserError(
      f'{settings.num_beams} beams need a vocabulary of at least twice as '
      f'many tokens, not {config.vocab_size}.'
    )


class _State(NamedTuple):
  """Where decoding stands after reading `position` tokens a row."""

  position: Int[Array, '']
  last: Int[Array, 'batch']
  tokens: Int[Array, 'batch length']
  ended: Bool[Array, 'batch']
  cache: stacks.Cache


def _follow_one(
  step: beams.Step,
  cache: stacks.Cache,
  wanted: Bool[Array, 'batch'],
  config: config_lib.T5Config,
  settings: DecodingSettings,
  key: Array | None,
) -> Int[Array, 'batch length']:
  """Decodes one sequence a row, greedily or by sampling."""
  batch = wanted.shape[0]

  def body(state: _State) -> _State:
    logits, cache = step(state.last, state.position, state.cache)
    token = _choose(logits, settings, key, state.position)
    token = jnp.where(state.ended, config.pad_id, token)
    return _State(
      position=state.position + 1,
      last=token,
      tokens=state.tokens.at[:, state.position].set(token),
      ended=state.ended | (token == config.eos_id),
      cache=cache,
    )

  def unfinished(state: _State) -> Array:
    return (state.position < cache.length) & ~jnp.all(state.ended)

  start = _State(
    position=jnp.int32(0),
    last=jnp.full(batch, config.decoder_start_token_id, jnp.int32),
    tokens=jnp.full((batch, cache.length), config.pad_id, jnp.int32),
    ended=~wanted,
    cache=cache,
  )
  return lax.while_loop(unfinished, body, start).tokens


def _choose(
  logits: Float[Array, 'batch vocab'],
  settings: DecodingSettings,
  key: Array | None,
  position: Int[Array, ''],
) -> Int[Array, 'batch']:
  if key is None or not settings.temperature:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
  logits = keep_likely(
    logits / settings.temperature, top_k=settings.top_k, top_p=settings.top_p
  )
  fold = functools.partial(
    jax.random.fold_in, jax.random.fold_in(key, position)
  )
  keys = jax.vmap(fold)(jnp.arange(logits.shape[0]))
  return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def keep_likely(
  logits: Float[Array, '*batch vocab'], *, top_k: int, top_p: float
) -> Float[Array, '*batch vocab']:
  """Returns logits with those of unlikely tokens at minus infinity.

  Args:
    logits: of the next token.
    top_k: how many of the best to keep at most; 0 keeps all.
    top_p: keeps the fewest best tokens whose probability (after top_k) reaches
      this; the best one always stays.
  """
  if 0 < top_k < logits.shape[-1]:
    least = lax.top_k(logits, top_k)[0][..., -1:]
    logits = jnp.where(logits < least, -jnp.inf, logits)
  if top_p < 1:
    best_first = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
    probabilities = jax.nn.softmax(best_first, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    kept = jnp.where(before < top_p, best_first, jnp.inf)
    logits = jnp.where(
      logits < jnp.min(kept, axis=-1, keepdims=True), -jnp.inf, logits
    )
  return logits
