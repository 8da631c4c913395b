"""A routed T5 as T5X's encoder-decoder model."""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

from flax import core as flax_core
from flax import traverse_util
from flax.linen import partitioning as flax_partitioning
import jax
import jax.numpy as jnp
import seqio
from t5x import decoding as t5x_decoding
from t5x import models, optimizers

from mhr_jax.convert import t5x_tree
from mhr_jax.errors import UserError
from mhr_jax.model import RoutedT5
from mhr_jax.optim import LABELS
from mhr_jax.t5.decoding import DecodingSettings
from mhr_jax.t5.stacks import Cache
from mhr_jax.t5x.features import TASK_IDS, RoutedFeatureConverter

Params = Any
Batch = Mapping[str, jax.Array]
_NOISE = 1  # folded into the step's key; dropout has the key itself


class RoutedEncoderDecoderModel(models.EncoderDecoderModel):
  """T5X's `EncoderDecoderModel` over a `RoutedT5`.

  The batch has T5X's features and `task_ids` [batch, 1]. Parameters are those
  of a plain T5 1.1, with `adapters` and `routers` beside
  (`mhr_jax.convert.t5x_tree`); every one has its axes in `params_axes`.
  """

  FEATURE_CONVERTER_CLS = RoutedFeatureConverter

  def __init__(
    self,
    routed: RoutedT5,
    input_vocabulary: seqio.Vocabulary,
    output_vocabulary: seqio.Vocabulary,
    optimizer_def: optimizers.OptimizerDef,
    decode_fn: models.DecodeFnCallable = t5x_decoding.beam_search,
    decoding: DecodingSettings | None = None,
    **settings: Any,
  ):
    """Makes the model.

    Args:
      routed: backbone and adapters; `scan_layers=False` has the names of
        published checkpoints.
      input_vocabulary: equal to the tasks'.
      output_vocabulary: equal to the tasks'.
      optimizer_def: `RoutedOptimizer`, say; its `trains` says what is not
        differentiated.
      decode_fn: T5X's beam search or sampling.
      decoding: decode with ours instead; `max_new_tokens` is that of the
        batch.
      **settings: of T5X's model: `z_loss`, `label_smoothing`,
        `loss_normalizing_factor`, `default_decoder_params`.
    """
    super().__init__(
      module=routed.network,
      input_vocabulary=input_vocabulary,
      output_vocabulary=output_vocabulary,
      optimizer_def=optimizer_def,
      decode_fn=decode_fn,
      **settings,
    )
    self.routed = routed
    self._decoding = decoding
    self._trains = tuple(getattr(optimizer_def, 'trains', LABELS))

  def get_initial_variables(
    self,
    rng: jax.Array,
    input_shapes: Mapping[str, Any],
    input_types: Mapping[str, Any] | None = None,
  ) -> Any:
    """Returns `params` and, for each one, the names of its axes."""
    del input_shapes, input_types
    params = t5x_tree.to_t5x(self.routed.init(rng))
    names = t5x_tree.to_t5x(self.routed.logical_axes())
    flat = traverse_util.flatten_dict(names)
    axes = {
      (*path[:-1], f'{path[-1]}_axes'): flax_partitioning.AxisMetadata(each)
      for path, each in flat.items()
    }
    return flax_core.freeze(
      {'params': params, 'params_axes': traverse_util.unflatten_dict(axes)}
    )

  def _compute_logits(
    self,
    params: Params,
    batch: Batch,
    dropout_rng: jax.Array | None = None,
    mutable: Any = False,
    other_variables: Any = None,
  ) -> Any:
    if mutable or other_variables:
      raise UserError(
        'A routed model sows no intermediates: score without'
        ' return_intermediates.'
      )
    noise_key = None
    if dropout_rng is not None:
      noise_key = jax.random.fold_in(dropout_rng, _NOISE)
    dropout_key = dropout_rng if self.routed.config.dropout_rate else None
    return self.routed.logits(
      self._split(params),
      _our_batch(batch),
      dropout_key=dropout_key,
      noise_key=noise_key,
    )

  def predict_batch_with_aux(
    self,
    params: Params,
    batch: Batch,
    rng: jax.Array | None = None,
    decoder_params: Mapping[str, Any] | None = None,
    return_all_decodes: bool | None = None,
    num_decodes: int | None = None,
    prompt_with_targets: bool = False,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Decodes each row with the adapter of its task, mixed once.

    See `EncoderDecoderModel.predict_batch_with_aux` for the arguments; ours
    (`decoding=`) has no scores to return and takes no prompts.
    """
    split = self._split(params)
    if self._decoding is not None:
      if prompt_with_targets or return_all_decodes or decoder_params:
        raise UserError(
          'decoding= takes no prompts, decoder_params or return_all_decodes:'
          " leave it out to use T5X's decode_fn."
        )
      return self._decode_ours(self._decoding, split, batch, rng), {}
    default = self._default_decoder_params
    if return_all_decodes is None:
      return_all_decodes = default.return_all_decodes
    rows = default.num_decodes if num_decodes is None else num_decodes
    settings = dict(decoder_params or {})
    settings.setdefault('eos_id', self.output_vocabulary.eos_id or 1)
    if rng is not None:
      settings['decode_rng'] = rng
    prompts = batch['decoder_input_tokens']
    if prompt_with_targets:
      prompts = prompts * (prompts != settings['eos_id'])
    else:
      prompts = jnp.zeros_like(prompts)
    cache, next_logits = self._start_decoding(split, batch, rows)
    decodes, scores = self._decode_fn(
      inputs=prompts,
      cache=cache,
      tokens_to_logits=next_logits,
      num_decodes=rows,
      cache_offset=1,  # layers come first
      **settings,
    )
    if return_all_decodes:
      return decodes, {'scores': scores}
    return decodes[:, -1, :], {'scores': scores[:, -1]}

  def _decode_ours(self, settings, params, batch, rng):
    length = batch['decoder_input_tokens'].shape[1]
    settings = dataclasses.replace(settings, max_new_tokens=length)
    return self.routed.generate(params, _our_batch(batch), settings, key=rng)

  def _start_decoding(self, params, batch, rows):
    """Returns an empty cache, and what reads one token a row."""
    tokens = batch['encoder_input_tokens']
    adapters = self.routed.mix(params, _our_batch(batch).get(TASK_IDS))
    # `apply` may return a pair with mutable collections; here it does not.
    run: Any = functools.partial(
      self.routed.network.apply, {'params': params['backbone']}
    )
    encoded = run(tokens, adapters, method='encode')
    start = run(
      encoded,
      adapters,
      rows=tokens.shape[0],
      length=batch['decoder_input_tokens'].shape[1],
      method='start_cache',
    )
    mask = tokens != self.routed.config.pad_id

    def next_logits(state):
      keys, values = state.cache['keys'], state.cache['values']
      cache = Cache((keys, values), start.cross_attention)
      logits, cache = run(
        state.cur_token[:, 0],
        jnp.ravel(state.cur_index)[0],
        cache,
        mask,
        adapters,
        method='decode_step',
      )
      keys, values = cache.self_attention
      return logits, {'keys': keys, 'values': values}

    keys, values = start.self_attention
    return {'keys': keys, 'values': values}, next_logits

  def _split(self, params: Params) -> dict[str, Any]:
    """Returns our labelled subtrees; what does not train has no gradient."""
    split = t5x_tree.from_t5x(flax_core.unfreeze(params))
    return {
      label: tree
      if label in self._trains
      else jax.lax.stop_gradient(tree)
      for label, tree in split.items()
    }  # fmt: skip


def _our_batch(batch: Batch) -> dict[str, jax.Array]:
  """Returns the batch with `task_ids` [batch]."""
  ours = dict(batch)
  if TASK_IDS in ours:
    ours[TASK_IDS] = ours[TASK_IDS][:, 0]
  return ours
