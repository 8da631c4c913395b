"""The network against transformers and against itself in other forms."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mhr_jax import tree_paths
from mhr_jax.t5 import config as config_lib
from mhr_jax.t5 import decoding, parameters
from mhr_jax.t5 import network as network_lib

CONFIG = config_lib.t5_config(
  't5_1_1_tiny', vocab_size=50, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=24
)
TOKENS = jnp.array([[5, 9, 3, 1, 0, 0], [7, 7, 2, 8, 4, 1], [6, 1, 0, 0, 0, 0]])
TARGETS = jnp.array([[0, 4, 6, 8], [0, 9, 1, 0], [0, 3, 3, 3]])

# Unrolled layers take long to compile, and run the same code.
BOTH_LAYOUTS = pytest.mark.parametrize(
  'scan_layers', [True, pytest.param(False, marks=pytest.mark.slow)]
)


@functools.cache
def make_params(config=CONFIG):
  init = jax.jit(network_lib.T5(config).init)
  return init(jax.random.key(0), TOKENS, TARGETS)['params']


def make_adapters(config=CONFIG, batch=3, rank=2, seed=1):
  """Random adapters, large enough to matter, on every linear but one."""
  rng = np.random.default_rng(seed)
  tree = {}
  for path, linear in config_lib.list_linears(config).items():
    if path == 'decoder/mlp/wi_1':
      continue
    stack, sublayer, name = path.split('/')
    layers, width, out = linear
    a = rng.normal(size=(layers, batch, width, rank)) / np.sqrt(width)
    b = rng.normal(size=(layers, batch, rank, out)) / 2
    pair = {'a': jnp.asarray(a, 'float32'), 'b': jnp.asarray(b, 'float32')}
    tree.setdefault(stack, {}).setdefault(sublayer, {})[name] = pair
  return tree


@functools.partial(
  jax.jit, static_argnames=('config', 'method', 'deterministic')
)
def apply(params, *args, config=CONFIG, **kwargs):
  return network_lib.T5(config).apply({'params': params}, *args, **kwargs)


def test_logits_and_encoder_equal_transformers(hf_config, hf_params, hf_batch):
  inputs = hf_batch['input_ids']
  encoded = apply(
    hf_params, inputs, config=hf_config, method=network_lib.T5.encode
  )
  mask = hf_batch['attention_mask'] > 0
  np.testing.assert_allclose(
    np.asarray(encoded)[mask],
    hf_batch['encoder_last_hidden_state_f64'][mask],
    atol=2e-5,
  )
  logits = apply(
    hf_params, inputs, hf_batch['decoder_input_ids'], config=hf_config
  )
  np.testing.assert_allclose(logits, hf_batch['logits_f64'], atol=2e-5)
  np.testing.assert_allclose(logits, hf_batch['logits_f32'], atol=2e-5)


def test_scanned_equals_unrolled_with_gradients():
  params = make_params()
  adapters = make_adapters()
  unrolled_config = dataclasses.replace(CONFIG, scan_layers=False)

  def loss(params, adapters, config):
    logits = apply(params, TOKENS, TARGETS, adapters, config=config)
    return jnp.sum(jnp.sin(logits))

  gradient = jax.jit(jax.value_and_grad(loss, (0, 1)), static_argnums=2)
  scanned = gradient(params, adapters, CONFIG)
  unrolled = gradient(
    parameters.unstack_layers(params, CONFIG), adapters, unrolled_config
  )
  np.testing.assert_allclose(scanned[0], unrolled[0], rtol=1e-5)
  of_params, of_adapters = unrolled[1]
  stacked = (parameters.stack_layers(of_params, CONFIG), of_adapters)
  for one, other in zip(
    jax.tree.leaves(scanned[1]), jax.tree.leaves(stacked), strict=True
  ):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_adapters_equal_a_loop_over_examples():
  params, adapters = make_params(), make_adapters()
  together = apply(params, TOKENS, TARGETS, adapters)
  for i in range(3):
    own = jax.tree.map(lambda leaf, i=i: leaf[:, i : i + 1], adapters)
    alone = apply(params, TOKENS[i : i + 1], TARGETS[i : i + 1], own)
    np.testing.assert_allclose(together[i], alone[0], rtol=1e-5, atol=1e-5)


def test_adapters_equal_fused_kernels():
  params, adapters = make_params(), make_adapters(batch=1)

  def fuse(kernels, pairs):
    return {
      name: {'kernel': leaf['kernel'] + pairs[name]['a'][:, 0] @ pairs[name]['b'][:, 0]}
      if name in pairs
      else leaf
      for name, leaf in kernels.items()
    }  # fmt: skip

  fused = {**params}
  for stack, sublayers in adapters.items():
    layers = params[stack]['layers']
    changed = {s: fuse(layers[s], pairs) for s, pairs in sublayers.items()}
    fused[stack] = {**params[stack], 'layers': layers | changed}
  np.testing.assert_allclose(
    apply(params, TOKENS, TARGETS, adapters),
    apply(fused, TOKENS, TARGETS),
    rtol=1e-4,
    atol=1e-4,
  )


def test_padding_and_a_row_of_padding_change_nothing():
  params, adapters = make_params(), make_adapters(batch=1)
  logits = apply(params, TOKENS, TARGETS, adapters)
  wide = jnp.pad(TOKENS, ((0, 1), (0, 5)))
  longer = jnp.pad(TARGETS, ((0, 1), (0, 3)))
  padded = apply(params, wide, longer, adapters)
  np.testing.assert_allclose(padded[:3, :4], logits, rtol=1e-5, atol=1e-5)
  assert np.isfinite(padded).all()


def test_segments_equal_separate_rows():
  params, adapters = make_params(), make_adapters(batch=1)
  apart = apply(params, TOKENS[:2], TARGETS[:2], adapters)
  packed = apply(
    params,
    jnp.concatenate([TOKENS[0, :4], TOKENS[1], jnp.zeros(2, 'int32')])[None],
    jnp.concatenate([TARGETS[0], TARGETS[1], jnp.zeros(1, 'int32')])[None],
    adapters,
    encoder_segment_ids=jnp.array([[1] * 4 + [2] * 6 + [0] * 2]),
    decoder_segment_ids=jnp.array([[1] * 4 + [2] * 4 + [0]]),
  )
  np.testing.assert_allclose(packed[0, :4], apart[0], rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(packed[0, 4:8], apart[1], rtol=1e-5, atol=1e-5)
  assert np.isfinite(packed).all()


def test_one_kind_of_segment_ids_is_refused():
  with pytest.raises(ValueError, match='both kinds'):
    apply(make_params(), TOKENS, TARGETS, encoder_segment_ids=TOKENS)


def test_mask_given_replaces_the_padding_mask():
  params = make_params()
  mask = TOKENS > 0
  zeros_are_words = apply(
    params, TOKENS, TARGETS, encoder_mask=jnp.ones_like(mask)
  )
  given = apply(params, TOKENS, TARGETS, encoder_mask=mask)
  np.testing.assert_array_equal(given, apply(params, TOKENS, TARGETS))
  assert np.abs(given[0] - zeros_are_words[0]).max() > 1e-3


def test_bfloat16_stays_near_and_keeps_float32_logits():
  params, adapters = make_params(), make_adapters()
  config = dataclasses.replace(CONFIG, dtype='bfloat16')
  logits = apply(params, TOKENS, TARGETS, adapters, config=config)
  exact = apply(params, TOKENS, TARGETS, adapters)
  assert logits.dtype == jnp.float32
  assert np.abs(logits - exact).mean() < 0.05 * np.abs(exact).mean()
  encoded = apply(params, TOKENS, config=config, method=network_lib.T5.encode)
  assert encoded.dtype == jnp.bfloat16


@BOTH_LAYOUTS
def test_remat_and_adapters_made_in_the_layer_change_nothing(scan_layers):
  plain_config = dataclasses.replace(CONFIG, scan_layers=scan_layers)
  full_config = dataclasses.replace(plain_config, remat='full')
  params, adapters = make_params(plain_config), make_adapters()
  halves = jax.tree.map(lambda leaf: leaf / 2, adapters)

  def double(layer):
    return jax.tree.map(lambda leaf: leaf * 2, layer)

  def loss(adapters, network):
    logits = network.apply({'params': params}, TOKENS, TARGETS, adapters)
    return jnp.mean(jnp.square(logits))

  gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)
  plain = gradient(adapters, network_lib.T5(plain_config))
  remat = gradient(adapters, network_lib.T5(full_config))
  inside = gradient(halves, network_lib.T5(plain_config, double))
  np.testing.assert_allclose(plain[0], remat[0], rtol=1e-6)
  np.testing.assert_allclose(plain[0], inside[0], rtol=1e-6)
  for one, other, doubled in zip(
    *map(jax.tree.leaves, (plain[1], remat[1], inside[1])), strict=True
  ):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(2 * one, doubled, rtol=1e-4, atol=1e-6)


@BOTH_LAYOUTS
def test_dropout_differs_by_key_and_layer(scan_layers):
  config = dataclasses.replace(
    CONFIG, dropout_rate=0.5, scan_layers=scan_layers
  )
  params = make_params(config)

  def logits(seed):
    rngs = {'dropout': jax.random.key(seed)}
    return apply(
      params, TOKENS, TARGETS, config=config, rngs=rngs, deterministic=False
    )

  np.testing.assert_array_equal(logits(0), logits(0))
  assert np.abs(logits(0) - logits(1)).max() > 0.1
  still = apply(params, TOKENS, TARGETS, config=config)
  assert np.abs(logits(0) - still).max() > 0.1


def test_a_token_outside_the_vocabulary_is_not_a_number():
  logits = apply(make_params(), TOKENS.at[0, 0].set(50), TARGETS)
  assert np.isnan(logits[0]).all()
  assert np.isfinite(logits[1:]).all()


def test_t5_1_0_is_tied_and_scaled():
  config = config_lib.t5_config(
    't5_1_0_tiny', vocab_size=50, emb_dim=16, num_heads=2, head_dim=8
  )
  params = make_params(config)
  assert 'logits_dense' not in params['decoder']
  logits = apply(params, TOKENS, TARGETS, config=config)
  # Untied, with the scaled embedding as the output layer, is the same thing.
  untied = dataclasses.replace(config, logits_via_embedding=False)
  kernel = params['token_embedder']['embedding'].T / 4.0  # sqrt(16)
  decoder = params['decoder'] | {'logits_dense': {'kernel': kernel}}
  np.testing.assert_allclose(
    logits,
    apply({**params, 'decoder': decoder}, TOKENS, TARGETS, config=untied),
    rtol=1e-5,
    atol=1e-5,
  )


PER_LAYER = dataclasses.replace(
  CONFIG,
  relative_positions='layer',
  num_encoder_layers=3,
  relative_attention_num_buckets=8,
)


def make_params_with_tables(config, draw):
  """Random weights; relative-position tables come from draw(stack, shape)."""

  def replace(path, leaf):
    names = tree_paths.names_of(path)
    if names[-1] != 'rel_embedding':
      return leaf
    return jnp.asarray(draw(names[0], leaf.shape), leaf.dtype)

  return jax.tree_util.tree_map_with_path(replace, make_params(config))


@BOTH_LAYOUTS
def test_equal_tables_in_every_layer_are_one_table_a_stack(scan_layers):
  rng = np.random.default_rng(0)
  tables = {stack: 2 * rng.normal(size=(2, 8)) for stack in parameters.STACKS}
  logits = []
  for relative_positions in ('layer', 'stack'):
    config = dataclasses.replace(
      PER_LAYER, relative_positions=relative_positions, scan_layers=scan_layers
    )
    params = make_params_with_tables(
      config, lambda stack, shape: np.broadcast_to(tables[stack], shape)
    )
    logits.append(apply(params, TOKENS, TARGETS, config=config))
  np.testing.assert_allclose(*logits, rtol=1e-5, atol=1e-5)


@BOTH_LAYOUTS
def test_greedy_decoding_with_a_table_in_every_layer(scan_layers):
  """Cached steps choose what decoding in full thinks best."""
  rng = np.random.default_rng(1)
  params = make_params_with_tables(
    PER_LAYER, lambda stack, shape: 3 * rng.normal(size=shape)
  )
  config = dataclasses.replace(PER_LAYER, scan_layers=scan_layers)
  if not scan_layers:
    params = parameters.unstack_layers(params, config)
  decode = jax.jit(decoding.decode_tokens, static_argnums=(0, 4))
  tokens = np.asarray(
    decode(
      network_lib.T5(config),
      params,
      TOKENS,
      None,
      decoding.DecodingSettings(12),
    )
  )
  inputs = np.pad(tokens, ((0, 0), (1, 0)))[:, :-1]
  best = np.argmax(apply(params, TOKENS, inputs, config=config), axis=-1)
  ended = np.cumsum(inputs == config.eos_id, axis=1) > 0
  np.testing.assert_array_equal(tokens, np.where(ended, config.pad_id, best))
  assert len(np.unique(tokens)) > 4


def test_networks_are_static_arguments():
  assert hash(network_lib.T5(CONFIG)) == hash(network_lib.T5(CONFIG))
