"""The parts of a T5 layer: dense, norm, attention, feed-forward, positions.

A dense layer may be handed one adapter an example, a low-rank pair or an (IA)³
scale; these modules know adapters only as arrays.

Parameter names and initialisers are those of T5X's T5 1.1
(t5x/examples/t5/layers.py), so that its checkpoints map leaf by leaf.
"""

from collections.abc import Mapping
import functools
import math
import operator
from typing import Any

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from mhr_jax import placement
from mhr_jax.t5 import config as config_lib
from mhr_jax.t5 import storage

# {'a': [B, in, rank], 'b': [B, rank, out]} or {'scale': [B, out]}
Adapter = Mapping[str, Array]
Adapters = Mapping[str, Any]  # adapters of a layer or sublayer, nested by name
KeysValues = tuple[Array, Array]  # each [batch, heads, length, head_dim]

_ATTENTION_INIT = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal')
_DENSE_INIT = nn.initializers.variance_scaling(
  1.0, 'fan_in', 'truncated_normal'
)
_TABLE_INIT = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform')
_ACTIVATIONS = {
  'gelu': functools.partial(nn.gelu, approximate=True),
  'relu': nn.relu,
  'silu': nn.silu,
  'linear': lambda x: x,
}


def apply_adapter(
  x: Float[Array, 'rows length in'],
  a: Float[Array, 'batch in rank'],
  b: Float[Array, 'batch rank out'],
) -> Float[Array, 'rows length out']:
  """Returns (x·a)·b with one adapter for each group of rows.

  Args:
    x: inputs; rows are `batch` groups of equally many contiguous rows, such as
      the beams of an example, which share an adapter.
    a: down-projections; a batch of 1 serves every row and is not copied.
    b: up-projections, with the scale already in them.

  Returns:
    What the adapters add to the layer's output, in x's dtype.
  """
  a, b = a.astype(x.dtype), b.astype(x.dtype)
  grouped = x.reshape(a.shape[0], -1, x.shape[-1])
  return _low_rank(grouped, a, b).reshape(*x.shape[:-1], b.shape[-1])


@jax.custom_vjp
def _low_rank(
  x: Float[Array, 'group row in'],
  a: Float[Array, 'group in rank'],
  b: Float[Array, 'group rank out'],
) -> Float[Array, 'group row out']:
  return (x @ a) @ b


def _low_rank_forward(x, a, b):
  down = x @ a
  return down @ b, (x, a, b, down)


def _low_rank_backward(residuals, d_y):
  """Returns the gradients, that of `a` as a product with x untransposed.

  XLA on CPUs transposes a product's left side where it is contracted along
  rows, and x is the widest there is: that was 4 to 11 times slower. Without
  the barriers XLA turns the product back into that.
  """
  x, a, b, down = residuals
  d_down = jnp.einsum('gto,gro->gtr', d_y, b)
  turned = lax.optimization_barrier(d_down.swapaxes(1, 2))
  d_a = lax.optimization_barrier(turned @ x).swapaxes(1, 2)
  d_x = jnp.einsum('gtr,gir->gti', d_down, a)
  return d_x, d_a, jnp.einsum('gtr,gto->gro', down, d_y)


_low_rank.defvjp(_low_rank_forward, _low_rank_backward)


def apply_scale(
  y: Float[Array, 'rows length out'], scale: Float[Array, 'batch out']
) -> Float[Array, 'rows length out']:
  """Returns y with its features multiplied: (IA)³.

  Args:
    y: a layer's output; rows are grouped as those of `apply_adapter`.
    scale: of the features, one for each group of rows; may be of a wider dtype
      than y, in which the product is then taken.

  Returns:
    The product in y's dtype.
  """
  rows, length, features = y.shape
  if scale.shape[0] == 1:
    return (y * scale[0]).astype(y.dtype)
  grouped = y.reshape(scale.shape[0], -1, features) * scale[:, None]
  return grouped.astype(y.dtype).reshape(rows, length, features)


def matmul(
  x: Float[Array, '*rows in'], kernel: Float[Array, 'in out']
) -> Float[Array, '*rows out']:
  """Returns x·kernel as a product of two matrices.

  Folding the rows first spares XLA on CPUs from transposing x for the
  kernel's gradient: 1.5 times faster for a wide kernel, 4 for a narrow one.
  """
  y = x.reshape(-1, x.shape[-1]) @ kernel
  return y.reshape(*x.shape[:-1], kernel.shape[-1])


class Dense(nn.Module):
  """A linear map without bias, with an optional adapter an example.

  Attributes:
    features: width of the output.
    dtype: the dtype computed in; see `storage` for how the kernel is kept.
    kernel_init: initialiser of `kernel` [in, features].
  """

  features: int
  dtype: config_lib.Dtype
  kernel_init: nn.initializers.Initializer = _DENSE_INIT

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'rows length in'],
    adapter: Adapter | None = None,
  ) -> Float[Array, 'rows length out']:
    """Returns x·W plus what a low-rank pair adds, or times an (IA)³ scale."""
    shape = (x.shape[-1], self.features)
    kernel = storage.read_param(
      self, 'kernel', self.kernel_init, shape, self.dtype
    )
    x = x.astype(self.dtype)
    y = matmul(x, kernel)
    if adapter is None:
      return y
    if 'scale' in adapter:
      return apply_scale(y, adapter['scale'])
    return y + apply_adapter(x, adapter['a'], adapter['b'])


class RMSNorm(nn.Module):
  """T5's layer norm: no mean, no bias; float32 at least inside."""

  epsilon: float
  dtype: config_lib.Dtype

  @nn.compact
  def __call__(
    self, x: Float[Array, '*rows features']
  ) -> Float[Array, '*rows features']:
    """Returns x over its root mean square, times `scale`."""
    scale = self.param(
      'scale', nn.initializers.ones, (x.shape[-1],), jnp.float32
    )
    wide = jnp.promote_types(self.dtype, jnp.float32)
    x = x.astype(wide)
    mean_square = jnp.mean(lax.square(x), axis=-1, keepdims=True)
    normed = x * lax.rsqrt(mean_square + self.epsilon)
    normed = (normed * scale.astype(wide)).astype(self.dtype)
    return placement.constrain_rows(normed)


def dropout(config: config_lib.T5Config) -> nn.Dropout:
  """Returns the dropout of T5: one mask for all positions of a row."""
  return nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))


class Attention(nn.Module):
  """Multi-head attention without scaling (it is in the initialiser).

  Keys and values are computed apart from the attention itself, so that
  decoding can keep them.

  Attributes:
    config: the backbone.
  """

  config: config_lib.T5Config

  def setup(self):
    config = self.config
    dense = functools.partial(Dense, dtype=config.dtype)
    self.query = dense(config.joined_kv, kernel_init=self._init_query)
    self.key = dense(config.joined_kv, kernel_init=_ATTENTION_INIT)
    self.value = dense(config.joined_kv, kernel_init=_ATTENTION_INIT)
    self.out = dense(config.emb_dim, kernel_init=_ATTENTION_INIT)
    self.dropout = dropout(config)

  def _init_query(self, *args: Any) -> Array:
    return _ATTENTION_INIT(*args) / math.sqrt(self.config.head_dim)

  def _split_heads(self, x: Array, rows: int) -> Array:
    heads = (self.config.num_heads, self.config.head_dim)
    return x.reshape(rows, -1, *heads).swapaxes(1, 2)

  def keys_values(
    self, x: Float[Array, 'batch length emb'], adapters: Adapters
  ) -> KeysValues:
    """Returns keys and values, each [batch, heads, length, head_dim]."""
    keys = self.key(x, adapters.get('key'))
    values = self.value(x, adapters.get('value'))
    return (
      self._split_heads(keys, x.shape[0]),
      self._split_heads(values, x.shape[0]),
    )

  def __call__(
    self,
    x: Float[Array, 'rows queries emb'],
    keys_values: KeysValues,
    biases: tuple[Array, ...],
    adapters: Adapters,
    *,
    deterministic: bool = True,
  ) -> Float[Array, 'rows queries emb']:
    """Attends to keys and values.

    Args:
      x: what asks. Its rows may be several contiguous ones (beams) for each
        batch element of the keys; they are then queries of that element.
      keys_values: from `keys_values`, each [batch, heads, keys, head_dim].
      biases: in `wide_dtype`, added to the attention logits; each broadcasts to
        [batch, heads, queries, keys].
      adapters: of this sublayer, by name of the linear.
      deterministic: no dropout.

    Returns:
      The output projection of the weighted values.
    """
    keys, values = keys_values
    wide = self.config.wide_dtype
    query = self._split_heads(
      self.query(x, adapters.get('query')), keys.shape[0]
    )
    logits = jnp.einsum(
      'bhqd,bhkd->bhqk', query, keys, preferred_element_type=wide
    )
    logits = functools.reduce(operator.add, biases, logits)
    # A softmax whose division comes after the product with the values, where
    # there is less to divide.
    highest = lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.exp(logits - highest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    mixed = jnp.einsum(
      'bhqk,bhkd->bhqd',
      self.dropout(weights, deterministic=deterministic).astype(values.dtype),
      values,
      preferred_element_type=wide,
    )
    mixed = (mixed / total).astype(values.dtype).swapaxes(1, 2)
    mixed = mixed.reshape(*x.shape[:-1], self.config.joined_kv)
    return self.out(mixed, adapters.get('out'))


class Mlp(nn.Module):
  """The feed-forward sublayer: activations multiplied together, then out."""

  config: config_lib.T5Config

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'rows length emb'],
    adapters: Adapters,
    *,
    deterministic: bool = True,
  ) -> Float[Array, 'rows length emb']:
    """Returns the sublayer's output."""
    config = self.config
    dense = functools.partial(Dense, dtype=config.dtype)
    hidden = [
      _ACTIVATIONS[activation](
        dense(config.mlp_dim, name=name)(x, adapters.get(name))
      )
      for name, activation in zip(
        config.mlp_inputs, config.mlp_activations, strict=True
      )
    ]
    product = functools.reduce(operator.mul, hidden)
    product = dropout(config)(product, deterministic=deterministic)
    return dense(config.emb_dim, name='wo')(product, adapters.get('wo'))


def relative_position_bucket(
  relative_position: np.ndarray,
  *,
  bidirectional: bool,
  num_buckets: int = 32,
  max_distance: int = 128,
) -> Int[np.ndarray, '...']:
  """Returns the row of the table for each distance from query to key.

  Half of the buckets are exact; the others grow logarithmically up to
  `max_distance`, from which on all distances share the last one. Source:
  Raffel et al. 2020, section 2.1, as transformers computes it in float32.

  Args:
    relative_position: whole numbers, key position minus query position.
    bidirectional: half the buckets look ahead; otherwise all keys ahead share
      bucket 0 (a causal mask hides them).
    num_buckets: rows of the table.
    max_distance: see above.

  Returns:
    int32 buckets in [0, num_buckets).
  """
  ahead = np.zeros_like(relative_position)
  distance = np.maximum(-relative_position, 0)
  if bidirectional:
    num_buckets //= 2
    ahead = np.where(relative_position > 0, num_buckets, 0)
    distance = np.abs(relative_position)
  exact = num_buckets // 2
  octaves = np.log(np.maximum(distance, 1).astype(np.float32) / exact)
  steps = octaves / math.log(max_distance / exact) * (num_buckets - exact)
  logarithmic = np.minimum(exact + steps.astype(np.int32), num_buckets - 1)
  bucket = np.where(distance < exact, distance, logarithmic)
  return (ahead + bucket).astype(np.int32)


def count_positions(length: Any) -> Int[np.ndarray | Array, 'length']:
  """Returns 0, 1, … length - 1.

  NumPy's, so that what depends on positions alone is computed while tracing;
  JAX's where the length is a symbol, as in programs that are exported.
  """
  return np.arange(length) if isinstance(length, int) else jnp.arange(length)


class RelativePositionBias(nn.Module):
  """A table of attention biases by distance: a stack's, or one layer's.

  Attributes:
    config: the backbone.
    bidirectional: keys ahead of the query have buckets of their own.
  """

  config: config_lib.T5Config
  bidirectional: bool

  @nn.compact
  def __call__(
    self, relative_position: Int[np.ndarray | Array, '*shape']
  ) -> Float[Array, 'heads *shape']:
    """Returns the bias of every head at each distance, in `wide_dtype`."""
    config = self.config
    buckets = config.relative_attention_num_buckets
    table = self.param(
      'rel_embedding', _TABLE_INIT, (config.num_heads, buckets), jnp.float32
    )
    bucket = self._bucket(relative_position)
    return jnp.take(table.astype(config.wide_dtype), bucket, axis=1)

  def _bucket(
    self, relative_position: Int[np.ndarray | Array, '*shape']
  ) -> Int[np.ndarray | Array, '*shape']:
    farthest = self.config.relative_attention_max_distance
    bucket = functools.partial(
      relative_position_bucket,
      bidirectional=self.bidirectional,
      num_buckets=self.config.relative_attention_num_buckets,
      max_distance=farthest,
    )
    if isinstance(relative_position, np.ndarray):
      return bucket(relative_position)
    # Looked up, since XLA's logarithm may round another way at the borders
    # of buckets; all distances from the farthest on share one.
    known = jnp.asarray(bucket(np.arange(-farthest, farthest + 1)))
    return known[jnp.clip(relative_position, -farthest, farthest) + farthest]
