"""The encoder and the decoder of T5: their layers, and running over them.

Layers are scanned (one traced body, parameters stacked on axis 0) or unrolled
(`layers_0`, `layers_1`, …). Adapters are stacked over layers either way.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from mhr_jax import placement
from mhr_jax.t5 import blocks
from mhr_jax.t5 import config as config_lib
from mhr_jax.t5 import layers as layers_lib

MASKED = -1e10  # added to attention logits; finite, so an all-masked row is too

LayerAdapters = Callable[[Any], layers_lib.Adapters]


class Cache(NamedTuple):
  """Keys and values of every decoder layer, kept between positions.

  Attributes:
    self_attention: each [layers, rows, heads, length, head_dim].
    cross_attention: each [layers, batch, heads, inputs, head_dim].
  """

  self_attention: layers_lib.KeysValues
  cross_attention: layers_lib.KeysValues

  @property
  def length(self) -> int:
    """Positions that there is room for."""
    return self.self_attention[0].shape[-2]


def as_given(adapters: Any) -> layers_lib.Adapters:
  """The `layer_adapters` of adapters that were mixed in front."""
  return adapters


@jax.tree_util.register_pytree_node_class
class Layers(tuple):
  """One array a layer, where an unrolled stack reads a stacked array."""

  def tree_flatten(self) -> tuple[tuple[Any, ...], None]:
    return tuple(self), None

  @classmethod
  def tree_unflatten(cls, _: None, leaves: Any) -> 'Layers':
    return cls(leaves)


def split_layers(stacked: Any, config: config_lib.T5Config) -> Any:
  """Returns arrays stacked over layers as an unrolled stack reads them fastest.

  Around a loop in which the stack runs: there every step would copy each
  layer's part out of the stacked array. A scanned stack takes it as it is.
  """
  if config.scan_layers:
    return stacked
  return jax.tree.map(Layers, stacked)


def _of_layer(stacked: Any, layer: int) -> Any:
  return jax.tree.map(
    lambda leaf: leaf[layer],
    stacked,
    is_leaf=lambda node: isinstance(node, Layers),
  )


def _scan(
  body: Callable[..., tuple[Any, Any]],
  stack: Any,
  carry: Any,
  xs: Any,
  config: config_lib.T5Config,
  length: int,
) -> tuple[Any, Any]:
  """Runs `body(layer, carry, x) -> carry, y` over layers, scanned or not.

  `stack` is one module with stacked parameters, or a list of modules; xs and
  ys are stacked over layers either way (xs of a list may be `Layers`).
  """
  if config.scan_layers:
    scanned = nn.scan(
      body,
      variable_axes={'params': 0},
      split_rngs={'params': True, 'dropout': True},
      length=length,
    )
    return scanned(stack, carry, xs)
  ys = []
  for i, layer in enumerate(stack):
    carry, y = body(layer, carry, _of_layer(xs, i))
    ys.append(y)
  return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *ys)


def _remat(
  body: Callable[..., Any],
  config: config_lib.T5Config,
  layer_adapters: LayerAdapters,
) -> Callable[..., Any]:
  """Returns `body`, with what its backward pass computes again.

  Adapters mixed inside the layer are there to save memory, so they are not
  kept for the backward pass: only products with the backbone's kernels are.
  """
  if config.remat == 'full':
    policy = jax.checkpoint_policies.nothing_saveable
  elif layer_adapters is not as_given:
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
  else:
    return body
  return nn.remat(body, policy=policy, prevent_cse=not config.scan_layers)


class _Stack(nn.Module):
  """What encoder and decoder share: positions, layers, the running over them.

  Attributes:
    config: the backbone.
    layer_adapters: maps a layer's slice of the adapters to {path: {a, b}} or
      {path: {scale}}.
  """

  config: config_lib.T5Config
  layer_adapters: LayerAdapters = as_given

  def _build_layers(self, layer: type[nn.Module], length: int) -> Any:
    if self.config.scan_layers:
      return layer(self.config)
    return [layer(self.config) for _ in range(length)]

  def _norm(self) -> layers_lib.RMSNorm:
    config = self.config
    return layers_lib.RMSNorm(config.layer_norm_epsilon, config.dtype)

  def _position_biases(
    self, look_up: Callable[[layers_lib.RelativePositionBias], Array]
  ) -> Callable[[nn.Module], Array]:
    """Returns what finds the position bias of a layer.

    Args:
      look_up: finds the bias in a table; done once where the stack has one.
    """
    if self.config.relative_positions == 'layer':
      return lambda layer: look_up(layer.relpos_bias)
    shared = look_up(self.relpos_bias)
    return lambda layer: shared


class Encoder(_Stack):
  """The encoder, from embedded tokens on."""

  def setup(self):
    config = self.config
    if config.relative_positions == 'stack':
      self.relpos_bias = layers_lib.RelativePositionBias(
        config, bidirectional=True
      )
    self.layers = self._build_layers(
      blocks.EncoderLayer, config.num_encoder_layers
    )
    self.encoder_norm = self._norm()
    self.dropout = layers_lib.dropout(config)

  def __call__(
    self,
    x: Float[Array, 'batch length emb'],
    biases: tuple[Array, ...],
    adapters: Any,
    *,
    deterministic: bool = True,
  ) -> Float[Array, 'batch length emb']:
    """Returns the encoder's output.

    Args:
      x: embedded tokens.
      biases: masks, added to the attention logits.
      adapters: of every layer, leaves stacked on axis 0; {} for none.
      deterministic: no dropout.
    """
    config, layer_adapters = self.config, self.layer_adapters
    positions = layers_lib.count_positions(x.shape[1])
    relative = positions[None, :] - positions[:, None]
    bias_of = self._position_biases(lambda table: table(relative)[None])

    def body(layer, x, adapters):
      given = layer_adapters(adapters)
      added = (bias_of(layer), *biases)
      x = placement.constrain_rows(x)
      return layer(x, added, given, deterministic=deterministic), None

    x = self.dropout(x, deterministic=deterministic)
    x, _ = _scan(
      _remat(body, config, layer_adapters),
      self.layers,
      x,
      adapters,
      config,
      config.num_encoder_layers,
    )
    return self.dropout(self.encoder_norm(x), deterministic=deterministic)


class Decoder(_Stack):
  """The decoder, from embedded tokens to logits."""

  def setup(self):
    config = self.config
    if config.relative_positions == 'stack':
      self.relpos_bias = layers_lib.RelativePositionBias(
        config, bidirectional=False
      )
    self.layers = self._build_layers(
      blocks.DecoderLayer, config.num_decoder_layers
    )
    self.decoder_norm = self._norm()
    self.dropout = layers_lib.dropout(config)
    if not config.logits_via_embedding:
      self.logits_dense = layers_lib.Dense(config.vocab_size, config.wide_dtype)

  def __call__(
    self,
    x: Float[Array, 'batch length emb'],
    encoded: Float[Array, 'batch inputs emb'],
    self_biases: tuple[Array, ...],
    cross_biases: tuple[Array, ...],
    adapters: Any,
    *,
    deterministic: bool = True,
  ) -> Float[Array, 'batch length emb']:
    """Returns the decoder's normed output for whole sequences.

    Args:
      x: embedded tokens.
      encoded: the encoder's output.
      self_biases: masks of the self-attention beside the causal one.
      cross_biases: masks of the attention to the encoder.
      adapters: of every layer, leaves stacked on axis 0; {} for none.
      deterministic: no dropout.
    """
    config, layer_adapters = self.config, self.layer_adapters
    length = x.shape[1]
    bias_of = self._position_biases(lambda table: _causal_bias(table, length))

    def body(layer, x, adapters):
      given = layer_adapters(adapters)
      x, _ = layer(
        placement.constrain_rows(x),
        layer.cross_keys_values(encoded, given),
        (bias_of(layer), *self_biases),
        cross_biases,
        given,
        deterministic=deterministic,
      )
      return x, None

    x = self.dropout(x, deterministic=deterministic)
    x, _ = _scan(
      _remat(body, config, layer_adapters),
      self.layers,
      x,
      adapters,
      config,
      config.num_decoder_layers,
    )
    return self.dropout(self.decoder_norm(x), deterministic=deterministic)

  def start_cache(
    self,
    encoded: Float[Array, 'batch inputs emb'],
    adapters: Any,
    *,
    rows: int,
    length: int,
  ) -> Cache:
    """Returns a cache that knows the encoder's output and no position yet."""
    config, layer_adapters = self.config, self.layer_adapters

    def body(layer, carry, adapters):
      given = layer_adapters(adapters)
      return carry, layer.cross_keys_values(encoded, given)

    layers = config.num_decoder_layers
    _, cross = _scan(body, self.layers, None, adapters, config, layers)
    shape = (layers, rows, config.num_heads, length, config.head_dim)
    empty = jnp.zeros(shape, config.dtype)
    return Cache(self_attention=(empty, empty), cross_attention=cross)

  def step(
    self,
    x: Float[Array, 'rows 1 emb'],
    position: Int[Array, ''],
    cache: Cache,
    cross_biases: tuple[Array, ...],
    adapters: Any,
  ) -> tuple[Float[Array, 'rows 1 emb'], Cache]:
    """Returns the normed output at one position, and the cache with it."""
    config, layer_adapters = self.config, self.layer_adapters
    bias_of = self._position_biases(
      lambda table: _bias_at(table, position, cache.length)
    )

    def body(layer, x, xs):
      adapters, cached, cross = xs
      return layer(
        x,
        cross,
        (bias_of(layer),),
        cross_biases,
        layer_adapters(adapters),
        cached=(cached, position),
        deterministic=True,
      )

    xs = (adapters, cache.self_attention, cache.cross_attention)
    layers = config.num_decoder_layers
    x, new = _scan(body, self.layers, x, xs, config, layers)
    written = blocks.write_positions(cache.self_attention, position, new)
    return self.decoder_norm(x), cache._replace(self_attention=written)


def _causal_bias(
  table: layers_lib.RelativePositionBias, length: int
) -> Float[Array, '1 heads length length']:
  positions = layers_lib.count_positions(length)
  relative = positions[None, :] - positions[:, None]
  hidden = (relative > 0) * np.float32(MASKED)
  return (table(relative) + hidden)[None]


def _bias_at(
  table: layers_lib.RelativePositionBias,
  position: Int[Array, ''],
  length: int,
) -> Float[Array, '1 heads 1 length']:
  by_distance = table(-layers_lib.count_positions(length))
  distance = position - jnp.arange(length)
  bias = jnp.take(by_distance, jnp.maximum(distance, 0), axis=1)
  return jnp.where(distance < 0, MASKED, bias)[None, :, None, :]
