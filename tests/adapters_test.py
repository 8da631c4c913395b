"""Mixing against loops; averages; one task's adapter; settings."""

import functools

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from mhr_jax import adapters, methods, routing
from mhr_jax.adapters import AdapterConfig, LinearShape
from mhr_jax.errors import UserError

LINEARS = {
  'encoder/attention/query': LinearShape(3, 8, 12),
  'encoder/mlp/wo': LinearShape(3, 16, 8),
  'decoder/mlp/wo': LinearShape(2, 16, 8),
}
CONFIG = AdapterConfig(n_tasks=5, n_skills=3, n_splits=4, rank=2, alpha=6.0)


def random_params(config=CONFIG):
  """Adapters and routers with no zeros in them."""
  shapes = jax.eval_shape(
    lambda key: methods.init_added(key, config, LINEARS), jax.random.key(0)
  )
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: jnp.array(rng.normal(size=x.shape), x.dtype), shapes
  )


@functools.partial(jax.jit, static_argnums=2)
def weights_of(params, task_ids, config=CONFIG):
  return routing.compute_mixing_weights(
    params.get('routers', {}),
    adapters.linears_of(params['adapters']),
    task_ids,
    config,
  )


task_adapter = jax.jit(
  adapters.task_adapter, static_argnums=2, static_argnames='scale'
)
mix_adapters = jax.jit(
  adapters.mix_adapters, static_argnames=('scale', 'dtype')
)


def loop_mix(a, b, weights, scale):
  """Blocks of a stacked along the input, of b along the output."""
  batch, splits, skills = weights.shape
  mixed_a, mixed_b = [], []
  for i in range(batch):
    blocks_a = [
      sum(weights[i, q, k] * a[q, k] for k in range(skills))
      for q in range(splits)
    ]
    blocks_b = [
      sum(weights[i, q, k] * b[q, k] for k in range(skills))
      for q in range(splits)
    ]
    mixed_a.append(np.concatenate(blocks_a, axis=0))
    mixed_b.append(scale * np.concatenate(blocks_b, axis=1))
  return np.stack(mixed_a), np.stack(mixed_b)


def test_mixing_equals_a_loop_with_and_without_the_layer_axis():
  inventory = random_params()['adapters']['encoder']['attention']['query']
  weights = np.random.default_rng(1).uniform(size=(3, 5, 4, 3))
  weights = weights.astype(np.float32)
  mix = jax.jit(adapters.mix_adapter)
  mixed = mix(inventory, weights, 0.5)
  assert mixed['a'].shape == (3, 5, 8, 2)
  assert mixed['b'].shape == (3, 5, 2, 12)
  for layer in range(3):
    own = jax.tree.map(lambda x, n=layer: np.asarray(x)[n], inventory)
    a, b = loop_mix(*map(np.asarray, (own['a'], own['b'], weights[layer])), 0.5)
    np.testing.assert_allclose(mixed['a'][layer], a, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mixed['b'][layer], b, rtol=1e-5, atol=1e-6)
    alone = mix(own, weights[layer], 0.5)
    np.testing.assert_allclose(alone['a'], a, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(alone['b'], b, rtol=1e-5, atol=1e-6)


def test_a_tree_mixes_as_its_layers_do():
  params = random_params()
  paired = adapters.pair_with_weights(
    params['adapters'], weights_of(params, jnp.array([4, 0]))
  )
  whole = mix_adapters(paired, scale=CONFIG.scale)
  slices = jax.tree.map(lambda x: x[1], paired['encoder'])
  layer = mix_adapters(slices, scale=CONFIG.scale)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x[1], y, rtol=1e-6, atol=1e-6),
    whole['encoder'],
    layer,
  )
  rounded = mix_adapters(paired, dtype=jnp.bfloat16)
  assert {x.dtype for x in jax.tree.leaves(rounded)} == {
    jnp.dtype(jnp.bfloat16)
  }


def test_one_split_is_poly():
  """With S = 1, ΔW = (Σ w_k a_k)(Σ w_k b_k): Ponti et al., equation 1."""
  config = AdapterConfig(n_tasks=5, n_skills=3, rank=2)
  params = random_params(config)
  weights = weights_of(params, jnp.array([3]), config)['decoder/mlp/wo'][
    1, 0, 0
  ]
  inventory = params['adapters']['decoder']['mlp']['wo']
  a = np.einsum('k,kdr->dr', weights, inventory['a'][1, 0])
  b = np.einsum('k,krd->rd', weights, inventory['b'][1, 0])
  task = task_adapter(params, 3, config)['decoder']['mlp']['wo']
  np.testing.assert_allclose(task['a'][1] @ task['b'][1], a @ b / 2, rtol=1e-4)


@pytest.mark.parametrize('mixing', ['sigmoid', 'softmax', 'uniform'])
def test_a_tasks_adapter_is_what_its_examples_get(mixing):
  config = AdapterConfig(5, 3, 4, rank=2, alpha=6.0, mixing=mixing)
  params = random_params(config)
  paired = adapters.pair_with_weights(
    params['adapters'], weights_of(params, jnp.array([2, 2]), config)
  )
  mixed = mix_adapters(paired, scale=config.scale)
  task = task_adapter(params, 2, config)
  apart = task_adapter(params, 2, config, scale=1.0)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x[:, 0], y, rtol=1e-5, atol=1e-6),
    mixed,
    task,
  )
  wo, wo_apart = (tree['decoder']['mlp']['wo'] for tree in (task, apart))
  np.testing.assert_allclose(wo['b'], 3.0 * wo_apart['b'], rtol=1e-5, atol=1e-5)


def test_the_average_is_the_mean_of_a_and_of_b_and_uniform_mixing():
  params = random_params()
  average = jax.jit(adapters.average_adapters)(params['adapters'])
  wo = params['adapters']['encoder']['mlp']['wo']
  mean_a = np.asarray(wo['a']).mean(2).reshape(3, 16, 2)
  mean_b = np.asarray(wo['b']).mean(2).swapaxes(1, 2).reshape(3, 2, 8)
  got = average['encoder']['mlp']['wo']
  np.testing.assert_allclose(got['a'][:, 0, 0], mean_a, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(got['b'][:, 0, 0], mean_b, rtol=1e-5, atol=1e-6)
  uniform = AdapterConfig(5, 3, 4, rank=2, alpha=6.0, mixing='uniform')
  single = AdapterConfig(1, 1, 1, rank=2, alpha=6.0, mixing='uniform')
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
    task_adapter(params, 0, uniform),
    task_adapter({'adapters': average}, 0, single),
  )


def test_the_average_is_taken_in_full_precision_on_accelerators():
  params = random_params()
  program = jax.make_jaxpr(adapters.average_adapters)(params['adapters'])
  products = [e for e in program.eqns if e.primitive.name == 'dot_general']
  highest = jax.lax.Precision.HIGHEST
  assert products
  assert all(e.params['precision'] == (highest, highest) for e in products)


def test_init_has_mttls_bounds_and_zero_b():
  config = AdapterConfig(1, 64, 4, rank=8)
  query = adapters.init_adapters(jax.random.key(0), config, LINEARS)['encoder'][
    'attention'
  ]['query']
  assert query['a'].shape == (3, 4, 64, 2, 8)
  assert query['b'].shape == (3, 4, 64, 8, 3)
  bound = 1 / np.sqrt(3) / np.sqrt(8)
  assert 0.999 * bound < abs(query['a']).max() <= bound
  np.testing.assert_allclose(query['a'].std(), bound / np.sqrt(3), rtol=0.02)
  assert not query['b'].any()


def test_shapes_are_read_back_and_axes_have_the_same_structure():
  tree = random_params()['adapters']
  assert adapters.linears_of(tree) == LINEARS
  features = dict.fromkeys(LINEARS, ('embed', 'mlp'))
  axes = adapters.adapter_logical_axes(features)
  jax.tree.map(
    lambda leaf, names: np.testing.assert_equal(leaf.ndim, len(names)),
    tree,
    axes,
  )
  assert axes['encoder']['mlp']['wo'] == {
    'a': ('layers', 'split', 'skill', 'embed', 'rank'),
    'b': ('layers', 'split', 'skill', 'rank', 'mlp'),
  }


def test_targets_choose_linears_in_the_networks_order():
  config = AdapterConfig(1, targets=('decoder/.*', '.*/query'))
  chosen = adapters.select_linears(config, LINEARS)
  assert list(chosen) == ['encoder/attention/query', 'decoder/mlp/wo']
  assert AdapterConfig(1, targets='.*').targets == ('.*',)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'targets': ('.*/wi',)}, "'.*/wi' matches no linear.*mlp/wo"),
    ({'targets': ('query',)}, 'Did you mean|There are'),
    ({'targets': ('(',)}, 'no regular expression'),
    (
      {'n_splits': 8},
      'n_splits=8 does not divide encoder/attention/query: 8 features in, 12'
      ' out.* may be 1, 2, 4',
    ),
  ],
)
def test_impossible_targets_say_why(settings, message):
  with pytest.raises(UserError, match=message):
    adapters.select_linears(AdapterConfig(2, **settings), LINEARS)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'n_tasks': 0}, 'n_tasks is 0'),
    ({'rank': 0}, 'rank is 0'),
    ({'mixing': 'sigmoyd'}, "Did you mean 'sigmoid'"),
    ({'router_scope': 'modul'}, "Did you mean 'module'"),
    ({'mixing': 'private', 'n_skills': 3}, 'one skill a task'),
    (
      {'normalisation': 'mean'},
      "normalisation is 'mean'; one of 'sum', 'sqrt'",
    ),
    ({'mixing': 'softmax', 'normalisation': 'sqrt'}, 'choose one of sigmoid'),
    ({'shared_skill': True, 'n_skills': 1}, 'nothing is left to route'),
  ],
)
def test_impossible_settings_say_why(settings, message):
  with pytest.raises(UserError, match=message):
    AdapterConfig(**{'n_tasks': 2} | settings)


def test_a_config_without_routing_keeps_what_adapters_are():
  config = AdapterConfig(
    5, 4, 2, 3, 6.0, ('.*/wo',), 'layer', 'sigmoid', 'sqrt', True
  )
  expected = AdapterConfig(
    7, 1, 1, 3, 6.0, ('.*/wo',), 'layer', 'uniform', 'sum', False
  )
  assert config.without_routing(7) == expected
  assert config.without_routing().n_tasks == 5


@pytest.mark.parametrize('mixing', ['sigmoid', 'private', 'uniform'])
def test_the_only_task_has_the_only_id(mixing):
  """One pair serves all; an id of no task leaves none, but to an average."""
  skills = 1 if mixing == 'private' else 3
  config = AdapterConfig(n_tasks=1, n_skills=skills, mixing=mixing)
  params = random_params(config)
  pair = functools.partial(adapters.pair_for_batch, params, config)
  for ids, right in ([0, 0, 0], True), ([0, 1, 0], False), (None, True):
    paired = pair(None if ids is None else jnp.array(ids))
    weights = paired['encoder']['mlp']['wo']['weights']
    assert weights.shape == (3, 1, 1, skills)
    assert np.isfinite(weights).all() == (right or mixing == 'uniform')
