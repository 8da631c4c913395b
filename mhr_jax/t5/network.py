"""The T5 encoder-decoder on token ids.

Adapters are arrays handed in, one adapter an example and linear, stacked over
layers; how they were made is nobody's business here. The same modules
serve training (`T5.__call__`) and decoding one position at a time with a cache
(`T5.start_cache`, `T5.decode_step`; see `mhr_jax.t5.decoding`).
"""

import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mhr_jax import errors, placement
from mhr_jax.t5 import config as config_lib
from mhr_jax.t5 import layers as layers_lib
from mhr_jax.t5 import stacks, storage


def mask_bias(
  keys: Bool[Array, 'batch keys'],
) -> Float[Array, 'batch 1 1 keys']:
  """Returns the attention bias that hides the keys that are False."""
  return jnp.where(keys, 0.0, stacks.MASKED)[:, None, None, :]


def segment_bias(
  queries: Int[Array, 'batch queries'], keys: Int[Array, 'batch keys']
) -> Float[Array, 'batch 1 queries keys']:
  """Returns the attention bias that hides the keys of other segments."""
  same = queries[:, :, None] == keys[:, None, :]
  return jnp.where(same, 0.0, stacks.MASKED)[:, None]


class Embedder(nn.Module):
  """The token embedding, which T5 1.0 also uses as its output layer."""

  config: config_lib.T5Config

  def setup(self):
    shape = (self.config.vocab_size, self.config.emb_dim)
    init = nn.initializers.normal(1.0)
    self.embedding = self.param('embedding', init, shape, jnp.float32)
    self.scale = storage.read_scale(self, 'embedding')

  def __call__(
    self, tokens: Int[Array, '*shape']
  ) -> Float[Array, '*shape emb']:
    """Returns the rows of tokens; NaN for a token outside the vocabulary."""
    read = functools.partial(jnp.take, indices=tokens, axis=0)
    rows = storage.scaled(
      read(self.embedding), jax.tree.map(read, self.scale), axis=-1
    )
    return placement.constrain_rows(rows.astype(self.config.dtype))

  def logits(
    self, x: Float[Array, '*shape emb']
  ) -> Float[Array, '*shape vocab']:
    """Returns logits of the tied output layer, in `wide_dtype`."""
    wide = self.config.wide_dtype
    x = x.astype(wide) * self.config.emb_dim**-0.5
    embedding = storage.scaled(self.embedding, self.scale, axis=-1)
    return layers_lib.matmul(x, embedding.astype(wide).T)


class T5(nn.Module):
  """T5 1.1 or 1.0, with adapters handed in as arrays.

  `adapters` is {'encoder': {'attention': {'query': {'a': …, 'b': …}, …}, …},
  'decoder': …}, with a [layers, batch, in, rank] and b [layers, batch, rank,
  out], the scale already in b; of (IA)³ {'scale': …} with scale [layers, batch,
  out]. Batch is 1, or divides the rows, each adapter then serving a group of
  contiguous rows. A linear that is not in it has no
  adapter; None means none at all.

  Attributes:
    config: the backbone.
    layer_adapters: applied inside each layer to its slice (axis 0 taken away)
      of `adapters['encoder']` or `adapters['decoder']`; must return
      {sublayer: {linear: {'a': …, 'b': …} or {'scale': …}}}. Mixing in the
      layer is done here; then only products with the backbone's kernels are kept for the
      backward pass.
  """

  config: config_lib.T5Config
  layer_adapters: stacks.LayerAdapters = stacks.as_given

  def setup(self):
    _check_precision(self.config)
    self.token_embedder = Embedder(self.config)
    self.encoder = stacks.Encoder(self.config, self.layer_adapters)
    self.decoder = stacks.Decoder(self.config, self.layer_adapters)

  def __call__(
    self,
    encoder_input_tokens: Int[Array, 'batch inputs'],
    decoder_input_tokens: Int[Array, 'batch length'],
    adapters: Any = None,
    *,
    encoder_segment_ids: Int[Array, 'batch inputs'] | None = None,
    decoder_segment_ids: Int[Array, 'batch length'] | None = None,
    encoder_mask: Bool[Array, 'batch inputs'] | None = None,
    deterministic: bool = True,
  ) -> Float[Array, 'batch length vocab']:
    """Returns logits in `wide_dtype`; see `encode` and `decode`."""
    encoded = self.encode(
      encoder_input_tokens,
      adapters,
      segment_ids=encoder_segment_ids,
      mask=encoder_mask,
      deterministic=deterministic,
    )
    return self.decode(
      encoded,
      encoder_input_tokens,
      decoder_input_tokens,
      adapters,
      encoder_segment_ids=encoder_segment_ids,
      decoder_segment_ids=decoder_segment_ids,
      encoder_mask=encoder_mask,
      deterministic=deterministic,
    )

  def encode(
    self,
    encoder_input_tokens: Int[Array, 'batch inputs'],
    adapters: Any = None,
    *,
    segment_ids: Int[Array, 'batch inputs'] | None = None,
    mask: Bool[Array, 'batch inputs'] | None = None,
    deterministic: bool = True,
  ) -> Float[Array, 'batch inputs emb']:
    """Returns the encoder's output.

    Args:
      encoder_input_tokens: int32 token ids.
      adapters: see the class.
      segment_ids: of packed rows; a token sees its own segment only.
      mask: True where there is a token; by default, where it is not padding.
      deterministic: no dropout; otherwise a 'dropout' rng is needed.
    """
    biases = [mask_bias(self._mask(encoder_input_tokens, mask))]
    if segment_ids is not None:
      biases.append(segment_bias(segment_ids, segment_ids))
    return self.encoder(
      self.token_embedder(encoder_input_tokens),
      tuple(biases),
      _part(adapters, 'encoder'),
      deterministic=deterministic,
    )

  def decode(
    self,
    encoded: Float[Array, 'batch inputs emb'],
    encoder_input_tokens: Int[Array, 'batch inputs'],
    decoder_input_tokens: Int[Array, 'batch length'],
    adapters: Any = None,
    *,
    encoder_segment_ids: Int[Array, 'batch inputs'] | None = None,
    decoder_segment_ids: Int[Array, 'batch length'] | None = None,
    encoder_mask: Bool[Array, 'batch inputs'] | None = None,
    deterministic: bool = True,
  ) -> Float[Array, 'batch length vocab']:
    """Returns the logits of whole target sequences, in `wide_dtype`.

    Args:
      encoded: from `encode`.
      encoder_input_tokens: what was encoded; says where padding is.
      decoder_input_tokens: targets shifted right.
      adapters: see the class.
      encoder_segment_ids: of packed rows; needs `decoder_segment_ids`.
      decoder_segment_ids: of packed rows; needs `encoder_segment_ids`.
      encoder_mask: True where there is a token; by default, where it is not
        padding.
      deterministic: no dropout; otherwise a 'dropout' rng is needed.

    Raises:
      ValueError: one of the two segment ids is given without the other.
    """
    if (encoder_segment_ids is None) != (decoder_segment_ids is None):
      raise ValueError('Packed rows need both kinds of segment ids.')
    self_biases = []
    cross_biases = [mask_bias(self._mask(encoder_input_tokens, encoder_mask))]
    if decoder_segment_ids is not None and encoder_segment_ids is not None:
      self_biases.append(segment_bias(decoder_segment_ids, decoder_segment_ids))
      cross_biases.append(
        segment_bias(decoder_segment_ids, encoder_segment_ids)
      )
    y = self.decoder(
      self.token_embedder(decoder_input_tokens),
      encoded,
      tuple(self_biases),
      tuple(cross_biases),
      _part(adapters, 'decoder'),
      deterministic=deterministic,
    )
    return self._logits(y)

  def start_cache(
    self,
    encoded: Float[Array, 'batch inputs emb'],
    adapters: Any = None,
    *,
    rows: int,
    length: int,
  ) -> stacks.Cache:
    """Returns an empty cache for decoding.

    Args:
      encoded: from `encode`; its keys and values are computed here, once.
      adapters: see the class.
      rows: sequences decoded, a multiple of batch (beams are contiguous).
      length: positions to make room for.
    """
    given = _part(adapters, 'decoder')
    return self.decoder.start_cache(encoded, given, rows=rows, length=length)

  def decode_step(
    self,
    tokens: Int[Array, 'rows'],
    position: Int[Array, ''],
    cache: stacks.Cache,
    encoder_mask: Bool[Array, 'batch inputs'],
    adapters: Any = None,
  ) -> tuple[Float[Array, 'rows vocab'], stacks.Cache]:
    """Reads one token a row; returns logits of the next, and the new cache.

    Args:
      tokens: the token at `position` of each row.
      position: same for all rows; all earlier ones must have been read.
      cache: from `start_cache` or the previous step.
      encoder_mask: True where the encoder had a token.
      adapters: see the class.
    """
    y, cache = self.decoder.step(
      self.token_embedder(tokens[:, None]),
      position,
      cache,
      (mask_bias(encoder_mask),),
      _part(adapters, 'decoder'),
    )
    return self._logits(y)[:, 0], cache

  def _mask(self, tokens: Array, mask: Array | None) -> Array:
    return tokens != self.config.pad_id if mask is None else mask

  def _logits(self, y: Array) -> Array:
    if self.config.logits_via_embedding:
      return self.token_embedder.logits(y)
    return self.decoder.logits_dense(y)


def _part(adapters: Any, stack: str) -> Any:
  return {} if adapters is None else adapters.get(stack, {})


def _check_precision(config):
  """JAX would compute in float32 all the same."""
  possible = jax.dtypes.canonicalize_dtype(config.dtype)
  if config.dtype == 'float64' and possible != config.dtype:
    raise errors.UserError(
      "dtype 'float64' needs JAX's 64-bit mode: set JAX_ENABLE_X64=1, or wrap"
      " the call in jax.enable_x64(True). 'float32' does without."
    )
