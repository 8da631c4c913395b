"""One layer of the T5 encoder, one layer of the decoder."""

import functools

from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from mhr_jax.t5 import config as config_lib
from mhr_jax.t5 import layers as layers_lib


class EncoderLayer(nn.Module):
  """Self-attention and feed-forward, each behind a norm."""

  config: config_lib.T5Config

  def setup(self):
    config = self.config
    norm = functools.partial(
      layers_lib.RMSNorm, config.layer_norm_epsilon, config.dtype
    )
    if config.relative_positions == 'layer':
      self.relpos_bias = layers_lib.RelativePositionBias(
        config, bidirectional=True
      )
    self.pre_attention_layer_norm = norm()
    self.attention = layers_lib.Attention(config)
    self.pre_mlp_layer_norm = norm()
    self.mlp = layers_lib.Mlp(config)
    self.dropout = layers_lib.dropout(config)

  def __call__(
    self,
    x: Float[Array, 'batch length emb'],
    biases: tuple[Array, ...],
    adapters: layers_lib.Adapters,
    *,
    deterministic: bool,
  ) -> Float[Array, 'batch length emb']:
    """Returns the residual stream after the layer."""
    drop = functools.partial(self.dropout, deterministic=deterministic)
    given = adapters.get('attention', {})
    h = self.pre_attention_layer_norm(x)
    attended = self.attention(
      h,
      self.attention.keys_values(h, given),
      biases,
      given,
      deterministic=deterministic,
    )
    x = x + drop(attended)
    y = self.mlp(
      self.pre_mlp_layer_norm(x),
      adapters.get('mlp', {}),
      deterministic=deterministic,
    )
    return x + drop(y)


class DecoderLayer(nn.Module):
  """Self-attention, attention to the encoder, and feed-forward."""

  config: config_lib.T5Config

  def setup(self):
    config = self.config
    norm = functools.partial(
      layers_lib.RMSNorm, config.layer_norm_epsilon, config.dtype
    )
    if config.relative_positions == 'layer':
      self.relpos_bias = layers_lib.RelativePositionBias(
        config, bidirectional=False
      )
    self.pre_self_attention_layer_norm = norm()
    self.self_attention = layers_lib.Attention(config)
    self.pre_cross_attention_layer_norm = norm()
    self.encoder_decoder_attention = layers_lib.Attention(config)
    self.pre_mlp_layer_norm = norm()
    self.mlp = layers_lib.Mlp(config)
    self.dropout = layers_lib.dropout(config)

  def cross_keys_values(
    self,
    encoded: Float[Array, 'batch inputs emb'],
    adapters: layers_lib.Adapters,
  ) -> layers_lib.KeysValues:
    """Returns the encoder's keys and values as this layer sees them."""
    return self.encoder_decoder_attention.keys_values(
      encoded, adapters.get('encoder_decoder_attention', {})
    )

  def __call__(
    self,
    x: Float[Array, 'rows length emb'],
    cross_keys_values: layers_lib.KeysValues,
    self_biases: tuple[Array, ...],
    cross_biases: tuple[Array, ...],
    adapters: layers_lib.Adapters,
    *,
    cached: tuple[layers_lib.KeysValues, Array] | None = None,
    deterministic: bool,
  ) -> tuple[Float[Array, 'rows length emb'], layers_lib.KeysValues]:
    """Returns the residual stream, and the self-attention's new keys, values.

    Args:
      x: the residual stream.
      cross_keys_values: from `cross_keys_values`.
      self_biases: added to the self-attention's logits.
      cross_biases: added to the logits over the encoder.
      adapters: of this layer.
      cached: keys and values of all positions, and the position at which those
        of x belong; None where x is the whole sequence.
      deterministic: no dropout.
    """
    drop = functools.partial(self.dropout, deterministic=deterministic)
    given = adapters.get('self_attention', {})
    h = self.pre_self_attention_layer_norm(x)
    new = self.self_attention.keys_values(h, given)
    attended = self.self_attention(
      h,
      new if cached is None else write_positions(*cached, new),
      self_biases,
      given,
      deterministic=deterministic,
    )
    x = x + drop(attended)
    attended = self.encoder_decoder_attention(
      self.pre_cross_attention_layer_norm(x),
      cross_keys_values,
      cross_biases,
      adapters.get('encoder_decoder_attention', {}),
      deterministic=deterministic,
    )
    x = x + drop(attended)
    y = self.mlp(
      self.pre_mlp_layer_norm(x),
      adapters.get('mlp', {}),
      deterministic=deterministic,
    )
    return x + drop(y), new


def write_positions(
  cached: layers_lib.KeysValues, position: Array, new: layers_lib.KeysValues
) -> layers_lib.KeysValues:
  """Returns the cache with new positions; the length is the axis before last."""
  write = functools.partial(
    lax.dynamic_update_slice_in_dim, start_index=position, axis=-2
  )
  return write(cached[0], new[0]), write(cached[1], new[1])
