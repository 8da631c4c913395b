"""What a T5 is: sizes, options, the published shapes, its adaptable linears."""

import dataclasses
from typing import Any, Literal, NamedTuple

from mhr_jax import errors, setting_checks

Dtype = Literal['float32', 'bfloat16', 'float64']
Storage = Literal['float32', 'bfloat16', 'int8']
Remat = Literal['none', 'full']
RelativePositions = Literal['stack', 'layer']
Stack = Literal['encoder', 'decoder']

ACTIVATIONS = ('gelu', 'relu', 'silu', 'linear')
_DTYPES = ('float32', 'bfloat16', 'float64')
_SIZE_FIELDS = (
  'vocab_size',
  'emb_dim',
  'num_heads',
  'head_dim',
  'mlp_dim',
  'num_encoder_layers',
  'num_decoder_layers',
)
# Beyond any T5: a mistyped or damaged file would be worked on for hours.
_LARGEST_SIZE, _MOST_LAYERS = 2**24, 2**12


@dataclasses.dataclass(frozen=True)
class T5Config:
  """The shape and the numerics of one T5 encoder-decoder.

  Two configs with the same sizes share checkpoints: `dtype`, `dropout_rate`
  and `remat` change no parameter, `scan_layers` only how the parameters are
  laid out (`mhr_jax.t5.parameters` converts exactly), and `storage` only to
  how many digits a frozen backbone is kept (`mhr_jax.t5.storage`).

  Attributes:
    vocab_size: rows of the embedding, padding rows included.
    emb_dim: width of the residual stream.
    num_heads: attention heads.
    head_dim: width of one head; heads times head_dim need not be emb_dim.
    mlp_dim: hidden width of the feed-forward sublayer.
    num_encoder_layers: layers of the encoder.
    num_decoder_layers: layers of the decoder.
    mlp_activations: one a hidden projection, multiplied together: T5 1.1 has
      ('gelu', 'linear') with the tanh form of gelu, T5 1.0 has ('relu',).
    logits_via_embedding: the output layer is the embedding, with the decoder's
      output scaled by emb_dim ** -0.5 (T5 1.0).
    relative_positions: 'stack' has one relative-position table for all layers
      of a stack (published T5), 'layer' one in every layer, as T5X's scanned
      network does (t5x/examples/scalable_t5/network.py).
    relative_attention_num_buckets: rows of a relative-position table.
    relative_attention_max_distance: distance from which all share a bucket.
    dropout_rate: share dropped in training.
    dtype: of the matrix products and the residual stream. Norms, softmax and
      logits are float32 under 'bfloat16' too.
      'float64' is for comparisons and needs jax_enable_x64.
    storage: of the parameters of a backbone that does not train: 'float32',
      'bfloat16' (half the bytes), or 'int8', kernels and embedding as whole
      numbers with scales (a quarter). What trains is float32 in any case.
    layer_norm_epsilon: added to the mean square.
    scan_layers: one traced layer body over stacked parameters (compile time
      does not grow with depth), or a parameter subtree `layers_N` a layer.
    remat: 'full' computes each layer again in the backward pass.
    pad_id: token that means "nothing here".
    eos_id: token that ends a sequence.
    decoder_start_token_id: first token that the decoder reads.

  Raises:
    UserError: a setting is not possible.
  """

  vocab_size: int
  emb_dim: int
  num_heads: int
  head_dim: int
  mlp_dim: int
  num_encoder_layers: int
  num_decoder_layers: int
  mlp_activations: tuple[str, ...] = ('gelu', 'linear')
  logits_via_embedding: bool = False
  relative_positions: RelativePositions = 'stack'
  relative_attention_num_buckets: int = 32
  relative_attention_max_distance: int = 128
  dropout_rate: float = 0.0
  dtype: Dtype = 'float32'
  storage: Storage = 'float32'
  layer_norm_epsilon: float = 1e-6
  scan_layers: bool = True
  remat: Remat = 'none'
  pad_id: int = 0
  eos_id: int = 1
  decoder_start_token_id: int = 0

  def __post_init__(self) -> None:
    # Lists come from gin and json; a hashable config can be a static argument.
    object.__setattr__(self, 'mlp_activations', tuple(self.mlp_activations))
    _check_choices(self)
    _check_sizes(self)

  @property
  def joined_kv(self) -> int:
    """Width of all heads together."""
    return self.num_heads * self.head_dim

  @property
  def wide_dtype(self) -> Dtype:
    """What norms, softmax and logits are computed in: float32 at least."""
    return 'float64' if self.dtype == 'float64' else 'float32'

  @property
  def mlp_inputs(self) -> tuple[str, ...]:
    """Names of the hidden projections: ('wi',) or ('wi_0', 'wi_1', …)."""
    count = len(self.mlp_activations)
    return ('wi',) if count == 1 else tuple(f'wi_{i}' for i in range(count))

  def num_layers(self, stack: Stack) -> int:
    """Returns the layers of one stack."""
    if stack == 'encoder':
      return self.num_encoder_layers
    return self.num_decoder_layers


def _check_sizes(config: T5Config) -> None:
  setting_checks.check_fields(
    config,
    least=dict.fromkeys(_SIZE_FIELDS, 1),
    most=dict.fromkeys(_SIZE_FIELDS, _LARGEST_SIZE)
    | dict.fromkeys(('num_encoder_layers', 'num_decoder_layers'), _MOST_LAYERS),
    below={'dropout_rate': 1}
    | dict.fromkeys(
      ('pad_id', 'eos_id', 'decoder_start_token_id'), config.vocab_size
    ),
  )
  buckets = config.relative_attention_num_buckets
  if buckets < 4 or buckets % 2:
    raise errors.UserError(
      'relative_attention_num_buckets must be even and at least 4 (half of '
      f'them look ahead in the encoder), not {buckets}.'
    )
  if config.relative_attention_max_distance <= buckets // 2:
    raise errors.UserError(
      'relative_attention_max_distance must exceed half the buckets '
      f'({buckets // 2}), not {config.relative_attention_max_distance}.'
    )


def check_dtype(dtype: str) -> None:
  """Refuses what is not a `Dtype`.

  Raises:
    UserError: it is not; the message says which there are.
  """
  if dtype == 'float16':
    raise errors.UserError(
      "dtype 'float16' is refused: the activations of T5 exceed its largest "
      "number (65,504) and become infinite. Use 'bfloat16', which has the "
      'range of float32.'
    )
  if dtype not in _DTYPES:
    raise errors.UserError(
      f'dtype {dtype!r} is not known.{errors.nearest(str(dtype), _DTYPES)}'
    )


def _check_choices(config: T5Config) -> None:
  check_dtype(config.dtype)
  if not config.mlp_activations:
    raise errors.UserError('mlp_activations must name at least one.')
  for activation in config.mlp_activations:
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
      raise errors.UserError(
        f'mlp_activations: {activation!r} is not known.'
        f'{errors.nearest(str(activation), ACTIVATIONS)}'
      )


# Published sizes: emb_dim, num_heads, head_dim, mlp_dim, layers of each stack.
# 'tiny' is ours, for tests and for a first look on a laptop. Sources: T5 1.1:
# google-research/text-to-text-transfer-transformer, released_checkpoints.md
# and T5X's t5_1_1 gin files; T5 1.0 (its xl and xxl were called 3B and 11B):
# Raffel et al. 2020, section 3.7.
_Sizes = dict[str, tuple[int, ...]]
_SIZES_1_1: _Sizes = {
  'tiny': (64, 4, 16, 128, 2),
  'small': (512, 6, 64, 1024, 8),
  'base': (768, 12, 64, 2048, 12),
  'large': (1024, 16, 64, 2816, 24),
  'xl': (2048, 32, 64, 5120, 24),
  'xxl': (4096, 64, 64, 10240, 24),
}
_SIZES_1_0: _Sizes = {
  'tiny': (64, 4, 16, 256, 2),
  'small': (512, 8, 64, 2048, 6),
  'base': (768, 12, 64, 3072, 12),
  'large': (1024, 16, 64, 4096, 24),
  'xl': (1024, 32, 128, 16384, 24),
  'xxl': (1024, 128, 128, 65536, 24),
}
T5_VOCAB_SIZE = 32_128  # 32,000 pieces and 100 sentinels, padded to 128 · 251

_FAMILIES: dict[str, tuple[_Sizes, dict[str, Any]]] = {
  't5_1_1': (_SIZES_1_1, {}),
  't5_1_0': (
    _SIZES_1_0,
    {'mlp_activations': ('relu',), 'logits_via_embedding': True},
  ),
}


def config_names() -> tuple[str, ...]:
  """Returns the names that `t5_config` knows."""
  return tuple(
    f'{family}_{size}'
    for family, (sizes, _) in _FAMILIES.items()
    for size in sizes
  )


def t5_config(name: str, **overrides: Any) -> T5Config:
  """Returns a published T5 by name, with some of its fields replaced.

  Args:
    name: such as 't5_1_1_small': of 't5_1_1' and 't5_1_0' there are tiny,
      small, base, large, xl and xxl.
    **overrides: fields of `T5Config`, e.g. `dtype='bfloat16'`.

  Returns:
    The config.

  Raises:
    UserError: the name or a field is not known, or a value is not possible.
  """
  if name not in config_names():
    raise errors.UserError(
      f'There is no model {name!r}.{errors.nearest(name, config_names())}'
    )
  family, size = name.rsplit('_', 1)
  sizes, options = _FAMILIES[family]
  emb_dim, num_heads, head_dim, mlp_dim, layers = sizes[size]
  fields: dict[str, Any] = dict(
    vocab_size=T5_VOCAB_SIZE,
    emb_dim=emb_dim,
    num_heads=num_heads,
    head_dim=head_dim,
    mlp_dim=mlp_dim,
    num_encoder_layers=layers,
    num_decoder_layers=layers,
    **options,
  )
  known = [field.name for field in dataclasses.fields(T5Config)]
  for field in overrides:
    if field not in known:
      raise errors.UserError(
        f'T5Config has no field {field!r}.{errors.nearest(field, known)}'
      )
  return T5Config(**(fields | overrides))


class Linear(NamedTuple):
  """One kind of linear map, the same in every layer of its stack."""

  layers: int
  in_features: int
  out_features: int


def _attention_linears(config: T5Config, layers: int) -> dict[str, Linear]:
  emb, joined = config.emb_dim, config.joined_kv
  project = Linear(layers, emb, joined)
  return {
    'query': project,
    'key': project,
    'value': project,
    'out': Linear(layers, joined, emb),
  }


def _mlp_linears(config: T5Config, layers: int) -> dict[str, Linear]:
  linears = {
    name: Linear(layers, config.emb_dim, config.mlp_dim)
    for name in config.mlp_inputs
  }
  return linears | {'wo': Linear(layers, config.mlp_dim, config.emb_dim)}


def list_linears(config: T5Config) -> dict[str, Linear]:
  """Returns every linear that can be adapted, by path, in network order.

  Args:
    config: the backbone.

  Returns:
    Paths such as 'encoder/attention/query', 'decoder/self_attention/out',
    'decoder/encoder_decoder_attention/key' or 'decoder/mlp/wi_0', each with
    its number of layers and its features. The output layer is not among them.
  """
  sublayers: dict[Stack, tuple[str, ...]] = {
    'encoder': ('attention',),
    'decoder': ('self_attention', 'encoder_decoder_attention'),
  }
  linears = {}
  for stack, attentions in sublayers.items():
    layers = config.num_layers(stack)
    for attention in attentions:
      for name, linear in _attention_linears(config, layers).items():
        linears[f'{stack}/{attention}/{name}'] = linear
    for name, linear in _mlp_linears(config, layers).items():
      linears[f'{stack}/mlp/{name}'] = linear
  return linears
