"""RoutedT5: backbone, adapters and routers as one model on token ids.

Where the data flow comes together: task ids → mixing weights → one low-rank
pair an example → T5 → loss, scores or tokens. The model holds settings only;
parameters are handed in, as `{'backbone': …, 'adapters': …, 'routers': …}`. A
leaf's first key is its label, which says whether it trains, at which learning
rate, and whether it is saved. A model without adapters has a backbone alone
and works through the same calls.
"""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any, Literal, get_args

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from mhr_jax import adapters as adapters_lib
from mhr_jax import choice_losses, losses, methods, placement, routing
from mhr_jax.adapters import AdapterConfig
from mhr_jax.errors import UserError, nearest
from mhr_jax.t5 import decoding, network, parameters, storage
from mhr_jax.t5.config import T5Config, list_linears
from mhr_jax.tree_paths import names_of

MixIn = Literal['auto', 'front', 'layer']
Params = dict[str, PyTree]
Batch = Mapping[str, Array]

FRONT_BYTES = 2**30
"""'auto' mixes in front of the network up to this many bytes of pairs."""


@dataclasses.dataclass(frozen=True)
class MixInLayer:
  """The `layer_adapters` of the network that mixes one layer's inventories."""

  scale: float
  dtype: str

  def __call__(self, paired: PyTree) -> PyTree:
    """Returns {path: {'a', 'b'} or {'scale'}} of one layer's slice."""
    mixed = adapters_lib.mix_adapters(
      paired, scale=self.scale, dtype=jnp.dtype(self.dtype)
    )
    return jax.tree_util.tree_map_with_path(_pin_features, mixed)


@dataclasses.dataclass(frozen=True)
class RoutedT5:
  """A T5 whose linears have routed adapters.

  A batch is a dict of arrays: `encoder_input_tokens` [batch, inputs],
  `decoder_input_tokens`, `decoder_target_tokens`, `decoder_loss_weights`
  [batch, length], `task_ids` [batch], for packed rows `encoder_segment_ids`
  and `decoder_segment_ids`, and perhaps `encoder_mask` [batch, inputs], True
  where a token is read; without, every token but padding is. With answer
  choices it has `choice_tokens` [batch, choice, length], each choice ended by
  EOS, `choice_mask` [batch, choice], True where there is one, and, to train,
  `choice_labels` [batch].

  Attributes:
    config: the backbone.
    adapters: which linears are adapted and how; None for the bare backbone.
    mix_in: where inventories are mixed in `logits`, `loss` and `score`. In
      front of the network all layers are mixed at once, which is fastest, and
      the pairs of all layers and examples stay for the backward pass. In the
      layer, only one layer's pairs exist at a time, and are mixed again in
      the backward pass. 'auto' takes the front where the mixing weights have
      batch 1, or where all pairs of the (global) batch together have at most
      `FRONT_BYTES`; else the layer. Both give the same numbers. Decoding
      always mixes in front: once, and not at every token.

  Raises:
    UserError: a target matches nothing, n_splits does not divide, or there is
      no such `mix_in`.
  """

  config: T5Config
  adapters: AdapterConfig | None = None
  mix_in: MixIn = 'auto'

  def __post_init__(self):
    if self.mix_in not in get_args(MixIn):
      hint = nearest(self.mix_in, get_args(MixIn))
      raise UserError(f'There is no mix_in {self.mix_in!r}.{hint}')
    if self.adapters is not None:
      adapters_lib.select_linears(self.adapters, list_linears(self.config))

  @property
  def network(self) -> network.T5:
    """The Flax module, for adapters mixed in front."""
    return network.T5(self.config)

  def init(self, key: PRNGKeyArray) -> Params:
    """Draws all parameters."""
    backbone_key, added_key = jax.random.split(key)
    token = jnp.zeros((1, 1), jnp.int32)
    variables = jax.jit(self.network.init)(backbone_key, token, token)
    backbone = storage.store(variables['params'], self.config.storage)
    return {'backbone': backbone} | self.init_added(added_key)

  def init_added(self, key: PRNGKeyArray) -> Params:
    """Draws what the model adds to a backbone: adapters, perhaps routers."""
    if self.adapters is None:
      return {}
    added, linears = self.adapters, list_linears(self.config)
    return jax.jit(lambda k: methods.init_added(k, added, linears))(key)

  def abstract_params(self) -> Params:
    """Returns the shapes and dtypes of all parameters, without making any."""
    return jax.eval_shape(self.init, jax.random.key(0))

  def count_parameters(self) -> dict[str, int]:
    """Returns the number of parameters by label."""
    return {
      label: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
      for label, tree in self.abstract_params().items()
    }

  def logical_axes(self) -> PyTree[tuple[str, ...]]:
    """Returns the name of every parameter's axes: the structure of `init`."""
    backbone = parameters.logical_axes(self.config)
    axes = {'backbone': backbone}
    if self.adapters is None:
      return axes
    linears = adapters_lib.select_linears(
      self.adapters, list_linears(self.config)
    )
    features = {path: _feature_axes(backbone, path) for path in linears}
    axes['adapters'] = adapters_lib.adapter_logical_axes(
      features, self.adapters.kind
    )
    if self.adapters.has_routers:
      axes['routers'] = routing.router_logical_axes(
        linears, self.adapters.router_scope
      )
    return axes

  def mix(
    self,
    params: Params,
    task_ids: Int[Array, 'batch'] | None,
    *,
    noise_key: PRNGKeyArray | None = None,
    example_index: Int[Array, 'batch'] | None = None,
  ) -> PyTree | None:
    """Mixes every example's adapters, for the network.

    Args:
      params: with adapters and routers.
      task_ids: of the examples; not needed where the task does not matter.
      noise_key: of the step, in training with 'relaxed_bernoulli'.
      example_index: the examples' indices in the global batch, on which the
        noise depends; default 0, 1, 2 ….

    Returns:
      By path {'a' [layer, batch, in, rank], 'b' [layer, batch, rank, out]}, or
      of (IA)³ {'scale' [layer, batch, out]}; batch is 1 where all examples
      share one adapter; None without adapters.

    Raises:
      UserError: the adapters depend on the task and there are no task ids.
    """
    if self.adapters is None:
      return None
    paired = self._pair(params, task_ids, noise_key, example_index)
    return self._mixer(paired)

  def logits(
    self,
    params: Params,
    batch: Batch,
    *,
    dropout_key: PRNGKeyArray | None = None,
    noise_key: PRNGKeyArray | None = None,
    example_index: Int[Array, 'batch'] | None = None,
    uniform_share: Float[Array, ''] | float | None = None,
  ) -> Float[Array, 'batch length vocab']:
    """Returns the float32 logits of the target tokens.

    Args:
      params: all parameters.
      batch: see the class; targets and weights are not needed.
      dropout_key: of the step, in training; no dropout without.
      noise_key: see `mix`.
      example_index: see `mix`.
      uniform_share: how much of the mixing weights is uniform, 0 to 1, where
        training anneals them; None for none.
    """
    module, adapters = self.network, None
    if self.adapters is not None:
      task_ids = batch.get('task_ids')
      paired = self._pair(
        params, task_ids, noise_key, example_index, uniform_share
      )
      if self._mixes_in_layer(paired):
        module, adapters = network.T5(self.config, self._mixer), paired
      else:
        adapters = self._mixer(paired)
    logits: Any = module.apply(
      {'params': params['backbone']},
      batch['encoder_input_tokens'],
      batch['decoder_input_tokens'],
      adapters,
      encoder_segment_ids=batch.get('encoder_segment_ids'),
      decoder_segment_ids=batch.get('decoder_segment_ids'),
      encoder_mask=batch.get('encoder_mask'),
      deterministic=dropout_key is None,
      rngs=None if dropout_key is None else {'dropout': dropout_key},
    )
    return logits

  def loss(
    self,
    params: Params,
    batch: Batch,
    *,
    dropout_key: PRNGKeyArray | None = None,
    noise_key: PRNGKeyArray | None = None,
    example_index: Int[Array, 'batch'] | None = None,
    uniform_share: Float[Array, ''] | float | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
  ) -> tuple[Float[Array, ''], Float[Array, ''], dict[str, Array]]:
    """Returns the summed loss, the summed weights and the loss's parts.

    See `logits` for the arguments and `losses.token_cross_entropy` for what
    comes back.
    """
    logits = self.logits(
      params,
      batch,
      dropout_key=dropout_key,
      noise_key=noise_key,
      example_index=example_index,
      uniform_share=uniform_share,
    )
    return losses.token_cross_entropy(
      logits,
      batch['decoder_target_tokens'],
      batch['decoder_loss_weights'],
      label_smoothing=label_smoothing,
      z_loss=z_loss,
    )

  def score(self, params: Params, batch: Batch) -> Float[Array, 'batch']:
    """Returns the log-probability of each row's targets, summed over tokens."""
    _, _, parts = self.loss(params, batch)
    return -parts['row_nll']

  def score_choices(
    self, params: Params, batch: Batch
  ) -> tuple[Float[Array, 'batch choice'], Float[Array, 'batch choice']]:
    """Scores all answer choices of every row; the inputs are encoded once.

    Args:
      params: all parameters.
      batch: with choices; targets and labels are not needed.

    Returns:
      Each choice's log-probability, summed over its tokens, and their number;
      both 0 where there is no choice.
    """
    (_, nll), weights = self._choice_tokens(params, batch, {})
    return -jnp.sum(nll * weights, axis=-1), weights.sum(axis=-1)

  def choice_loss(
    self,
    params: Params,
    batch: Batch,
    settings: choice_losses.ChoiceLoss,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    **options: Any,
  ) -> tuple[Float[Array, ''], Float[Array, ''], dict[str, Array]]:
    """Returns T-Few's loss; see `choice_losses`.

    Args:
      params: all parameters.
      batch: with choices, and perhaps `part_shares` from
        `weigh_choice_parts`, where these rows are a part of a batch.
      settings: the weights of the parts.
      label_smoothing: of the likelihood.
      z_loss: of the likelihood.
      **options: of `logits`.

    Returns:
      The loss; its weight, 1 for a whole batch; and the parts by name.
    """
    (loss, nll), weights = self._choice_tokens(
      params,
      batch,
      {'label_smoothing': label_smoothing, 'z_loss': z_loss},
      **options,
    )
    sums = choice_losses.sum_parts(
      loss,
      nll,
      weights,
      batch['choice_mask'],
      batch['choice_labels'],
      length_norm=settings.length_norm,
    )
    if 'part_shares' not in batch:
      batch = self.weigh_choice_parts(batch)
    shares = batch['part_shares']
    parts = {
      name: jnp.sum(rows * shares[name])
      for name, rows in sums._asdict().items()
    }
    total = parts['likelihood'] + settings.choice_loss * parts['choice']
    total += settings.unlikelihood * parts['unlikelihood']
    return total, shares['row'].sum(), parts

  def generate(
    self,
    params: Params,
    batch: Batch,
    settings: decoding.DecodingSettings,
    *,
    key: PRNGKeyArray | None = None,
  ) -> Int[Array, 'batch max_new_tokens']:
    """Decodes each row's inputs; its adapters are mixed once.

    Args:
      params: all parameters.
      batch: with `encoder_input_tokens`, `task_ids` and perhaps
        `encoder_mask`.
      settings: greedy, beam search or sampling.
      key: source of randomness, for sampling.

    Returns:
      Token ids without the start token, padded after the end.
    """
    return decoding.decode_tokens(
      self.network,
      params['backbone'],
      batch['encoder_input_tokens'],
      self.mix(params, batch.get('task_ids')),
      settings,
      key=key,
      encoder_mask=batch.get('encoder_mask'),
    )

  def weigh_choice_parts(self, batch: Batch) -> dict[str, Any]:
    """Adds what each row's part of T-Few's loss is to be multiplied by.

    Args:
      batch: whole, with choices and labels.

    Returns:
      The batch with `part_shares`, arrays [batch] by name.
    """
    counts = choice_losses.count_parts(
      self._choice_weights(batch), batch['choice_mask'], batch['choice_labels']
    )
    shares = choice_losses.share_parts(counts)._asdict()
    rows = len(batch['choice_labels'])
    return {**batch, 'part_shares': {**shares, 'row': jnp.full(rows, 1 / rows)}}

  def _choice_weights(
    self, batch: Batch
  ) -> Float[Array, 'batch choice length']:
    there = batch['choice_tokens'] != self.config.pad_id
    there &= batch['choice_mask'][..., None]
    return there.astype(jnp.float32)

  def _choice_tokens(
    self,
    params: Params,
    batch: Batch,
    loss_options: Mapping[str, float],
    **options: Any,
  ) -> tuple[Any, Float[Array, 'batch choice length']]:
    """Returns every choice's token losses (two kinds), and weights.

    The choices of an example are rows of the decoder that follow each other:
    they share its adapters and its encoded inputs, of which no copy is made.
    """
    tokens = batch['choice_tokens']
    targets = tokens.reshape(-1, tokens.shape[-1])
    read = jnp.roll(targets, 1, axis=-1)
    read = read.at[:, 0].set(self.config.decoder_start_token_id)
    logits = self.logits(
      params, {**batch, 'decoder_input_tokens': read}, **options
    )
    found = losses.token_losses(logits, targets, **loss_options)
    shaped = jax.tree.map(lambda x: x.reshape(tokens.shape), found)
    return shaped, self._choice_weights(batch).astype(shaped[0].dtype)

  @property
  def _mixer(self) -> MixInLayer:
    return MixInLayer(self._added.scale, self.config.dtype)

  @property
  def _added(self) -> AdapterConfig:
    assert self.adapters is not None
    return self.adapters

  def _pair(
    self, params, task_ids, noise_key, example_index, uniform_share=None
  ) -> PyTree:
    """Returns inventories with their mixing weights, ready to be mixed."""
    return adapters_lib.pair_for_batch(
      params,
      self._added,
      task_ids,
      noise_key=noise_key,
      example_index=example_index,
      uniform_share=uniform_share,
    )

  def _mixes_in_layer(self, paired: PyTree) -> bool:
    if self.mix_in != 'auto':
      return self.mix_in == 'layer'
    mixed = jax.eval_shape(self._mixer, paired)
    pairs = jax.tree.leaves(mixed)
    if all(pair.shape[1] == 1 for pair in pairs):
      return False
    return sum(_bytes(pair) for pair in pairs) > FRONT_BYTES


def _pin_features(path: Any, x: Array) -> Array:
  """Keeps an adapter whole along features that are whole in the network.

  Cut along them, it would cut the residual stream that it is added to.
  """
  *_, linear, leaf = names_of(path)
  in_axis, out_axis = parameters.linear_axes(linear)
  axis, name = (-2, in_axis) if leaf == 'a' else (-1, out_axis)
  return placement.constrain_axis(x, axis, None) if name == 'embed' else x


def _bytes(array: jax.ShapeDtypeStruct) -> int:
  return math.prod(array.shape) * array.dtype.itemsize


def _feature_axes(backbone: Mapping[str, Any], path: str) -> tuple[str, str]:
  """Returns the axes of a linear's kernel, without `layers`."""
  stack, *rest = path.split('/')
  layers = backbone[stack]
  node = layers['layers' if 'layers' in layers else 'layers_0']
  for part in rest:
    node = node[part]
  return node['kernel'][-2:]
