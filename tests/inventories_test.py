"""(IA)³ inventories: mixing, a whole model, fusing, decoding, training."""

import dataclasses
import functools

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from mhr_jax import (
  adapter_folder,
  adapters,
  fusing,
  inventories,
  methods,
  optim,
  train_state,
)
from mhr_jax.adapters import AdapterConfig, LinearShape
from mhr_jax.errors import UserError
from mhr_jax.model import RoutedT5
from mhr_jax.t5 import layers
from mhr_jax.t5.config import T5Config, list_linears, t5_config
from mhr_jax.t5.decoding import DecodingSettings

T5 = T5Config(
  vocab_size=48,
  emb_dim=10,
  num_heads=2,
  head_dim=8,
  mlp_dim=24,
  num_encoder_layers=2,
  num_decoder_layers=2,
)
# 4 divides what these linears put out, and not the 10 that they take in.
MHR = AdapterConfig(
  n_tasks=3,
  n_skills=4,
  n_splits=4,
  targets=('.*/(key|value|wi_1)',),
  kind='ia3',
)
ROUTED = RoutedT5(T5, MHR, 'front')
TASK_IDS = np.array([2, 0, 2, 1], np.int32)


@functools.cache
def params_of(routed=ROUTED):
  """Random parameters: scales around 1, routing far from uniform."""
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    label = path[0].key
    spread = {'backbone': 0.3, 'adapters': 0.5, 'routers': 2.0}[label]
    middle = 1.0 if label == 'adapters' else 0.0
    drawn = middle + spread * rng.normal(size=leaf.shape)
    return jnp.array(drawn, leaf.dtype)

  return jax.tree_util.tree_map_with_path(draw, routed.abstract_params())


def make_batch():
  rng = np.random.default_rng(1)
  inputs = rng.integers(2, 48, size=(4, 6)).astype(np.int32)
  targets = rng.integers(2, 48, size=(4, 5)).astype(np.int32)
  inputs[1, 4:] = 0
  return {
    'encoder_input_tokens': inputs,
    'decoder_input_tokens': np.pad(targets[:, :-1], ((0, 0), (1, 0))),
    'decoder_target_tokens': targets,
    'decoder_loss_weights': np.ones((4, 5), np.float32),
    'task_ids': TASK_IDS,
  }


@functools.partial(jax.jit, static_argnums=0)
def logits_of(routed, params, batch):
  return routed.logits(params, batch)


def loop_scale(params, path, layer, task):
  """Σ_k w_k · scale_k, split after split, in float64."""
  inventory, router = params['adapters'], params['routers']
  for part in path.split('/'):
    inventory, router = inventory[part], router[part]
  blocks = []
  for split in range(4):
    gates = 1 / (1 + np.exp(-np.float64(router['routing_logits'])))
    weights = gates[layer, task, split] / gates[layer, task, split].sum()
    block = np.zeros(np.shape(inventory['scale'])[-1])
    for skill in range(4):
      scale = np.float64(inventory['scale'])[layer, split, skill]
      block += weights[skill] * scale
    blocks.append(block)
  return np.concatenate(blocks)


def scaled_backbone(params, task):
  """The backbone with every adapted kernel's columns multiplied."""
  backbone = jax.tree.map(np.array, params['backbone'])
  for path in adapters.list_inventories(params['adapters']):
    stack, _, rest = path.partition('/')
    node = backbone[stack]['layers']
    for part in rest.split('/'):
      node = node[part]
    for layer, kernel in enumerate(node['kernel']):
      kernel *= loop_scale(params, path, layer, task)
  return backbone


def test_leaves_are_ones_and_only_the_output_is_split():
  shapes = ROUTED.abstract_params()['adapters']
  key = shapes['decoder']['encoder_decoder_attention']['key']
  assert jax.tree.map(jnp.shape, key) == {'scale': (2, 4, 4, 4)}
  assert jax.tree.map(jnp.shape, shapes['encoder']['mlp']) == {
    'wi_1': {'scale': (2, 4, 4, 6)}
  }
  linears = list_linears(T5)
  drawn = adapters.init_adapters(jax.random.key(0), MHR, linears)
  assert all((leaf == 1).all() for leaf in jax.tree.leaves(drawn))
  axes = ROUTED.logical_axes()['adapters']['encoder']['attention']['value']
  assert axes == {'scale': ('layers', 'split', 'skill', 'joined_kv')}
  assert adapters.linears_of(drawn)['encoder/mlp/wi_1'] == LinearShape(2, 0, 24)
  with pytest.raises(UserError, match='may be 1, 2, 4, 8'):
    RoutedT5(T5, dataclasses.replace(MHR, n_splits=3))


@pytest.mark.parametrize('layers', [(), (3,)])
def test_mixing_is_a_sum_over_skills_by_split(layers):
  rng = np.random.default_rng(2)
  scale = rng.normal(1, 0.5, (*layers, 2, 3, 4)).astype(np.float32)
  weights = rng.dirichlet(np.ones(3), (*layers, 5, 2)).astype(np.float32)
  mixed = inventories.mix_adapter({'scale': scale}, jnp.asarray(weights), 7.0)
  expected = np.einsum('...bqk,...qkd->...bqd', weights, scale)
  np.testing.assert_allclose(
    mixed['scale'], expected.reshape(*layers, 5, 8), rtol=1e-5
  )


def test_weights_that_sum_to_nothing_leave_the_linear_as_it_is():
  scale = np.full((2, 3, 4), 5.0, np.float32)
  mixed = inventories.mix_adapter({'scale': scale}, jnp.zeros((1, 2, 3)))
  np.testing.assert_array_equal(mixed['scale'], np.ones((1, 8)))


def test_a_scale_keeps_float32_in_a_bfloat16_network():
  cast = inventories.cast_adapter(
    {'scale': jnp.float32(1.001), 'a': jnp.float32(1.001)}, jnp.bfloat16
  )
  assert cast['scale'] == np.float32(1.001) and cast['a'] == 1
  assert cast['a'].dtype == jnp.bfloat16
  module = dataclasses.replace(T5, dtype='bfloat16')
  logits = jax.eval_shape(
    RoutedT5(module, MHR).logits, params_of(), make_batch()
  )
  assert logits.dtype == np.float32


def test_a_mixed_batch_is_the_plain_t5_with_each_tasks_columns_scaled():
  params, batch = params_of(), make_batch()
  front = logits_of(ROUTED, params, batch)
  bare = RoutedT5(T5)
  for i, task in enumerate(TASK_IDS):
    own = {'backbone': scaled_backbone(params, task)}
    expected = logits_of(bare, own, batch)
    np.testing.assert_allclose(front[i], expected[i], rtol=1e-4, atol=1e-4)
  plain = logits_of(bare, {'backbone': params['backbone']}, batch)
  assert abs(front - plain).max() > 0.1
  layer = logits_of(dataclasses.replace(ROUTED, mix_in='layer'), params, batch)
  np.testing.assert_allclose(layer, front, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('task', [1, 'average'])
def test_fusing_folds_the_scales_into_the_columns(task):
  params = params_of()
  fused = fusing.fuse(params['backbone'], T5, params, MHR, task)
  if task != 'average':
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
      fused,
      scaled_backbone(params, task),
    )
    return
  mean = np.asarray(params['adapters']['decoder']['mlp']['wi_1']['scale'])
  mean = mean.mean(2).reshape(2, 1, 24)
  kernel = params['backbone']['decoder']['layers']['mlp']['wi_1']['kernel']
  np.testing.assert_allclose(
    fused['decoder']['layers']['mlp']['wi_1']['kernel'],
    np.asarray(kernel) * mean,
    rtol=1e-5,
    atol=1e-6,
  )


def test_what_does_not_fit_is_not_fused():
  params = params_of()
  narrow = jax.tree.map(lambda x: x[..., :3], params['adapters'])
  bundle = {'adapters': narrow, 'routers': params['routers']}
  with pytest.raises(UserError, match=r'is \(2, 10, 16\).* \(2, 10, 12\)'):
    fusing.fuse(params['backbone'], T5, bundle, MHR, 0)


def test_rows_are_scaled_by_groups_in_the_wider_dtype():
  rng = np.random.default_rng(5)
  y = rng.normal(size=(6, 2, 4)).astype(jnp.bfloat16)
  scale = (1 + 1e-3 * rng.normal(size=(3, 4))).astype(np.float32)
  scaled = layers.apply_scale(jnp.asarray(y), jnp.asarray(scale))
  assert scaled.dtype == jnp.bfloat16
  for row in range(6):
    expected = (y[row].astype(np.float32) * scale[row // 2]).astype(y.dtype)
    np.testing.assert_array_equal(scaled[row], expected)
  alone = layers.apply_scale(jnp.asarray(y), jnp.asarray(scale[:1]))
  expected = (y.astype(np.float32) * scale[0]).astype(y.dtype)
  np.testing.assert_array_equal(alone, expected)


@pytest.mark.slow
def test_mixed_tasks_decode_as_each_alone():
  settings = DecodingSettings(max_new_tokens=3, num_beams=2)
  params, batch = params_of(), make_batch()
  generate = jax.jit(RoutedT5.generate, static_argnums=(0, 3))
  mixed = np.asarray(generate(ROUTED, params, batch, settings))
  bare = RoutedT5(T5)
  for task in range(3):
    own = {'backbone': scaled_backbone(params, task)}
    alone = np.asarray(generate(bare, own, batch, settings))
    rows = task == TASK_IDS
    np.testing.assert_array_equal(mixed[rows], alone[rows])
  wrong = generate(
    ROUTED, params, batch | {'task_ids': (TASK_IDS + 1) % 3}, settings
  )
  assert (mixed != wrong).any()


def test_a_step_of_ia3_moves_every_scale_and_nothing_else():
  added = methods.adapter_config('ia3', AdapterConfig(3, targets=MHR.targets))
  routed = RoutedT5(T5, added, 'front')
  drawn = routed.init_added(jax.random.key(0))
  params = {'backbone': params_of()['backbone']} | drawn
  assert list(params) == ['backbone', 'adapters']
  trains = methods.trained_labels('ia3', 'pretrain')
  rule = optim.make_optimizer(
    optim.OptimizerSettings(name='adafactor', warmup_steps=0), 2
  )
  state = train_state.init_state(params, rule, trains)
  step = jax.jit(train_state.make_train_step(routed, rule))
  after, _ = step(state, make_batch(), jax.random.key(1))
  for leaf in jax.tree.leaves(after.trainable):
    assert leaf.shape[1:3] == (1, 1) and (leaf != 1).mean() > 0.95
  assert list(after.trainable) == ['adapters']
  jax.tree.map(
    np.testing.assert_array_equal, after.frozen['backbone'], params['backbone']
  )


def test_adapter_folders_hold_them(tmp_path):
  params = params_of()
  added = {k: params[k] for k in ('adapters', 'routers')}
  bundle = adapter_folder.AdapterBundle(MHR, added, None, T5)
  adapter_folder.save_adapter(tmp_path / 'all', bundle)
  back = adapter_folder.load_adapter(tmp_path / 'all')
  assert back.config == MHR
  jax.tree.map(np.testing.assert_array_equal, back.params, added)
  one = adapter_folder.effective_bundle(back, 2)
  assert (one.config.kind, one.config.n_skills) == ('ia3', 1)
  scale = one.params['adapters']['encoder']['mlp']['wi_1']['scale']
  assert scale.shape == (2, 1, 1, 24)
  expected = loop_scale(params, 'encoder/mlp/wi_1', 1, 2)
  np.testing.assert_allclose(scale[1, 0, 0], expected, rtol=1e-5)


def test_a_method_sets_the_kind_and_drops_what_it_has_not_got():
  base = AdapterConfig(5, rank=4, alpha=8.0, n_splits=2)
  config = methods.adapter_config('mhr_ia3', base)
  assert config == AdapterConfig(5, n_splits=2, kind='ia3')
  assert methods.adapter_config('poly_ia3', config).n_splits == 1
  assert methods.adapter_config('mhr_ia3_mu', config, phase='adapt') == (
    AdapterConfig(5, 1, mixing='uniform', kind='ia3')
  )
  with pytest.raises(UserError, match='leave kind out.*mhr_ia3'):
    methods.adapter_config('mhr', config)
  with pytest.raises(UserError, match='has no rank and no alpha'):
    AdapterConfig(5, rank=4, kind='ia3')
  with pytest.raises(UserError, match="kind is 'ia'; .* Did you mean 'ia3'"):
    AdapterConfig(5, kind='ia')


@pytest.mark.parametrize('size', ['large', 'xl', 'xxl'])
def test_counts_are_those_of_the_papers_recipe(size):
  """On keys, values and wi_1: L(2i + f) + L(4i + f), i the joined heads."""
  expected = {'large': 282_624, 'xl': 540_672, 'xxl': 1_081_344}[size]
  linears = list_linears(t5_config(f't5_1_1_{size}'))
  base = AdapterConfig(313, n_splits=64, targets=MHR.targets)
  count = functools.partial(methods.parameter_counts, linears=linears)
  for method in ('ia3', 'poly_ia3_mu', 'mhr_ia3_mu'):
    found = count(method, base=base, phase='adapt', n_tasks=1)
    assert found == {
      'adapters': expected,
      'routers': 0,
      'trainable': expected,
    }
  pretrained = count('mhr_ia3', base=base)
  assert pretrained['adapters'] == 8 * expected
  assert pretrained['routers'] == 192 * 313 * 64 * 8
