"""route: adapters in models of Flax's own parts, however they are put up."""

import dataclasses
import functools

from flax import linen as nn
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from flax_models import (
  ADDED,
  CONFIG,
  IDS,
  MODELS,
  TASKS,
  WIDTH,
  Decoder,
  VisionTransformer,
  own_part,
  random_variables,
  routed_model,
)
from mhr_jax import RoutedDense, UserError, adapters, route
from mhr_jax.adapters import AdapterConfig, LinearShape


def test_init_leaves_the_models_own_variables_as_they_are():
  routed, _, _, x = routed_model('vision')
  variables = jax.jit(routed.init)(jax.random.key(0), x, task_ids=TASKS)
  own = jax.jit(MODELS['vision'][0].init)(jax.random.key(0), x)
  assert variables.keys() == own.keys() | set(ADDED)
  for collection in own:
    jax.tree.map(
      np.testing.assert_array_equal, variables[collection], own[collection]
    )


@pytest.mark.parametrize('name', MODELS)
def test_until_b_trains_the_model_computes_what_it_did(name):
  _, variables, apply, x = routed_model(name)
  untrained = {
    **variables,
    'adapters': jax.tree.map(jnp.zeros_like, variables['adapters']),
  }
  expected = jax.jit(MODELS[name][0].apply)(own_part(variables), x)
  np.testing.assert_allclose(
    apply(untrained, x, task_ids=TASKS), expected, rtol=1e-6, atol=1e-6
  )


@pytest.mark.parametrize('name', MODELS)
def test_a_mixed_batch_equals_each_task_alone(name):
  _, variables, apply, x = routed_model(name)
  mixed = apply(variables, x, task_ids=TASKS)
  for i, task in enumerate(TASKS):
    alone = apply(variables, x[i : i + 1], task_ids=np.array([task]))
    np.testing.assert_allclose(mixed[i], alone[0], rtol=1e-4, atol=1e-4)
  other = apply(variables, x, task_ids=(TASKS + 1) % 3)
  assert (abs(mixed - other).reshape(4, -1).max(axis=-1) > 1e-2).all()


def in_float64(tree):
  """Returns arrays in which floats have 64 bits."""

  def cast(x):
    is_float = jnp.issubdtype(x.dtype, jnp.floating)
    return jnp.asarray(x, np.float64 if is_float else np.int32)

  with jax.enable_x64(True):
    return jax.tree.map(cast, tree)


@pytest.mark.parametrize('name', ['decoder', 'vision'])
def test_it_is_the_plain_model_with_each_tasks_low_rank_sum_in_its_kernels(
  name,
):
  """By the plain model, whose kernels have W + alpha/rank · a·b added."""
  _, variables, routed_apply, x = routed_model(name)
  variables, x = in_float64((variables, x))
  own, apply = own_part(variables), jax.jit(MODELS[name][0].apply)
  with jax.enable_x64(True):
    y = routed_apply(variables, x, task_ids=jnp.array(TASKS))
    assert y.dtype == np.float64
    for i, task in enumerate(TASKS):
      low_rank = adapters.task_adapter(variables, int(task), CONFIG)
      flat = adapters.list_inventories(low_rank)
      params = jax.tree.map(np.array, own['params'])
      for path, pair in flat.items():
        node = functools.reduce(lambda t, k: t[k], path.split('/'), params)
        product = np.asarray(pair['a'][0] @ pair['b'][0])
        node['kernel'] += product.reshape(node['kernel'].shape)
      expected = apply({**own, 'params': params}, x[i : i + 1])
      np.testing.assert_allclose(y[i], expected[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize('stacked_on', [0, 1, -1])
def test_scanned_layers_have_the_adapters_of_unrolled_ones(stacked_on):
  model = Decoder(stacked_on=stacked_on)
  variables = random_variables(route(model, CONFIG), IDS)
  a = variables['adapters']['layer']['attention']['out']['a']
  assert a.shape == (3, 2, 4, 4, 2)
  logits = variables['routers']['layer']['up']['routing_logits']
  assert logits.shape == (3, 3, 2, 4)
  # As restored from a file: an object that has not seen `init`.
  y = jax.jit(route(model, CONFIG).apply)(variables, IDS, task_ids=TASKS)

  def unrolled(tree, axis):
    layers = {
      f'layer_{i}': jax.tree.map(
        lambda x, i=i: jnp.moveaxis(x, axis, 0)[i], tree['layer']
      )
      for i in range(3)
    }
    return {**{k: v for k, v in tree.items() if k != 'layer'}, **layers}

  plain = {'params': unrolled(variables['params'], stacked_on)}
  for name in ADDED:
    layers = unrolled(variables[name], 0)
    plain[name] = jax.tree.map(lambda x: x[None], layers)
  expected = jax.jit(route(Decoder(), CONFIG).apply)(plain, IDS, task_ids=TASKS)
  np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


def test_gradients_and_training_reach_adapters_alone():
  routed, variables, _, x = routed_model('decoder, scanned')
  own = {'params': variables['params']}
  trained = {k: variables[k] for k in ADDED}

  @jax.jit
  def step(trained):
    def loss(trained):
      logits = routed.apply({**own, **trained}, x, task_ids=TASKS)
      picked = jnp.take_along_axis(nn.log_softmax(logits), x[..., None], -1)
      return -picked.mean()

    value, gradients = jax.value_and_grad(loss)(trained)
    moved = jax.tree.map(lambda p, g: p - 0.1 * g, trained, gradients)
    return value, moved, gradients

  losses = []
  for _ in range(15):
    value, trained, gradients = step(trained)
    losses.append(float(value))
  assert losses[-1] < losses[0] - 0.3
  assert all(abs(g).max() > 0 for g in jax.tree.leaves(gradients))


def test_what_is_routed_is_printed_and_listed(capsys):
  model, x = MODELS['decoder, scanned']
  routed = route(model, CONFIG)
  added = routed.init_added(jax.random.key(0), x)
  printed = capsys.readouterr().out
  assert printed == (
    'Routing 12 of 19 linears: layer/attention/query, layer/attention/value,'
    ' layer/attention/out, … (1,728 in adapters and 288 in routers)\n'
  )
  assert routed.find_linears(jax.random.key(0), x) == {
    'layer/attention/query': LinearShape(3, 8, 8),
    'layer/attention/value': LinearShape(3, 8, 8),
    'layer/attention/out': LinearShape(3, 8, 8),
    'layer/up': LinearShape(3, 8, 16),
  }
  assert not added['adapters']['layer']['up']['b'].any()
  a = added['adapters']['layer']['attention']['out']['a']
  assert 0.9 < abs(a).max() * (3 * WIDTH) ** 0.5 <= 1


@pytest.mark.parametrize('mixing', ['sigmoid', 'private'])
def test_an_id_that_no_task_has_makes_its_example_nan_under_jit(mixing):
  config = AdapterConfig(n_tasks=3, n_skills=3, mixing=mixing)
  routed = route(Shared(), config)
  x = np.ones((4, WIDTH), np.float32)
  variables = random_variables(routed, x)
  y = jax.jit(routed.apply)(variables, x, task_ids=np.array([2, -1, 3, 0]))
  assert np.isnan(y[1:3]).all() and np.isfinite(y[::3]).all()


def test_one_key_for_apply_and_keys_without_params():
  """By objects that have not seen `init`."""
  model, x = MODELS['vision']
  _, variables, apply, _ = routed_model('vision')
  y = jax.jit(route(model, CONFIG).apply)(
    variables, x, task_ids=TASKS, rngs=jax.random.key(0)
  )
  np.testing.assert_array_equal(y, apply(variables, x, task_ids=TASKS))
  routed, keys = route(model, CONFIG), {'dropout': jax.random.key(0)}
  for method in (routed.init, routed.init_added, routed.find_linears):
    with pytest.raises(
      UserError, match=r"\['dropout'\], and 'params' is needed"
    ):
      method(keys, x)


def test_one_router_for_the_model():
  config = AdapterConfig(
    n_tasks=3, n_splits=2, targets='.*/(query|up)', router_scope='model'
  )
  routed = route(Decoder(stacked_on=0), config)
  variables, apply = random_variables(routed, IDS), jax.jit(routed.apply)
  shapes = jax.tree.map(jnp.shape, variables['routers'])
  assert shapes == {'model': {'routing_logits': (3, 2, 8)}}
  y = apply(variables, IDS, task_ids=TASKS)
  assert abs(y - apply(variables, IDS, task_ids=TASKS[::-1])).max() > 1e-2


@pytest.mark.slow
def test_noise_differs_by_layer_example_and_key():
  config = AdapterConfig(
    n_tasks=3, n_splits=2, targets='.*/up', mixing='relaxed_bernoulli'
  )
  routed = route(Decoder(stacked_on=0), config)
  variables = random_variables(routed, IDS)
  apply = jax.jit(routed.apply)

  def noisy(key, rows=slice(None), **arguments):
    rngs = {'routing': jax.random.key(key)}
    return apply(
      variables, IDS[rows], task_ids=TASKS[rows], rngs=rngs, **arguments
    )

  def far(x, y):
    return abs(x - y).max(axis=(1, 2)) > 1e-3

  calm = apply(variables, IDS, task_ids=TASKS)
  assert far(calm, noisy(1)).all() and far(noisy(1), noisy(2)).all()
  np.testing.assert_array_equal(noisy(1), noisy(1))
  rows = noisy(1, slice(2, 4), example_index=jnp.array([2, 3]))
  np.testing.assert_allclose(rows, noisy(1)[2:], rtol=1e-4, atol=1e-4)
  assert far(noisy(1, slice(2, 4)), noisy(1)[2:]).all()


def test_other_collections_and_arguments_pass_through():
  routed, variables, _, x = routed_model('vision')
  apply = jax.jit(routed.apply, static_argnames=('train', 'mutable'))
  call = {'task_ids': TASKS, 'train': True}
  y, updated = apply(variables, x, mutable='batch_stats', **call)
  assert y.shape == (4, 5) and updated.keys() == {'batch_stats'}
  _, everything = apply(variables, x, mutable=True, **call)
  assert jax.tree.structure(everything['params']) == jax.tree.structure(
    variables['params']
  )


def test_a_method_that_calls_some_of_the_linears():
  """Also by an object that has not seen `init`."""
  model, x = MODELS['vision']
  _, variables, _, _ = routed_model('vision')
  routed = route(model, CONFIG)
  first = VisionTransformer.first_block
  apply = jax.jit(routed.apply, static_argnames='method')
  y = apply(variables, x, task_ids=TASKS, method=first)
  other = apply(variables, x, task_ids=TASKS[::-1], method=first)
  assert y.shape == (4, 4, WIDTH)
  assert (abs(y - other).max(axis=(1, 2)) > 1e-3).all()
  # Here the method comes to no linear that is routed.
  config = dataclasses.replace(CONFIG, targets='blocks_1/.*')
  later = {k: {'blocks_1': variables[k]['blocks_1']} for k in ADDED}
  apply = jax.jit(route(model, config).apply, static_argnames='method')
  np.testing.assert_allclose(
    apply({**variables, **later}, x, task_ids=TASKS, method=first),
    jax.jit(model.apply, static_argnames='method')(
      own_part(variables), x, method=first
    ),
    rtol=1e-6,
  )
  whole = jax.jit(routed.apply)(variables, x, task_ids=TASKS)
  expected = routed_model('vision')[2](variables, x, task_ids=TASKS)
  np.testing.assert_array_equal(whole, expected)


class Shared(nn.Module):
  """One linear, called twice, and one of a class that calls super."""

  class Doubled(nn.Dense):
    @nn.compact
    def __call__(self, x):
      return 2 * super().__call__(x)

  def setup(self):
    self.twice = nn.Dense(WIDTH, use_bias=False)
    self.doubled = self.Doubled(WIDTH, use_bias=False)

  def __call__(self, x):
    return self.doubled(self.twice(self.twice(x)))


def test_a_linear_called_twice_and_a_subclass_are_adapted_once_a_call():
  config = AdapterConfig(n_tasks=3, n_splits=2, rank=2)
  routed = route(Shared(), config)
  x = np.random.default_rng(0).normal(size=(4, WIDTH)).astype(np.float32)
  variables = random_variables(routed, x)
  assert variables['adapters'].keys() == {'twice', 'doubled'}
  variables, x = in_float64((variables, x))
  with jax.enable_x64(True):
    y = routed.apply(variables, x, task_ids=TASKS)
    for i, task in enumerate(TASKS):
      low_rank = adapters.task_adapter(variables, int(task), config)
      kernels = {
        name: variables['params'][name]['kernel']
        + low_rank[name]['a'][0] @ low_rank[name]['b'][0]
        for name in low_rank
      }
      row = x[i] @ kernels['twice'] @ kernels['twice'] @ kernels['doubled'] * 2
      np.testing.assert_allclose(y[i], row, rtol=0, atol=1e-10)


def test_recurrent_cells_and_vmapped_heads():
  class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.RNN(nn.GRUCell(WIDTH), name='rnn')(x)
      heads = nn.vmap(
        nn.Dense,
        variable_axes={'params': 0},
        split_rngs={'params': True},
        in_axes=None,
        out_axes=2,
        axis_size=3,
      )
      return heads(4, name='heads')(x)

  config = AdapterConfig(n_tasks=3, n_splits=2, rank=2)
  routed = route(Model(), config)
  x = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
  variables = random_variables(routed, x)
  assert variables['adapters']['heads']['a'].shape == (3, 2, 8, 4, 2)
  apply = jax.jit(routed.apply)
  mixed = apply(variables, x, task_ids=TASKS)
  assert mixed.shape == (4, 5, 3, 4)
  for i in range(4):
    alone = apply(variables, x[i : i + 1], task_ids=TASKS[i : i + 1])
    np.testing.assert_allclose(mixed[i], alone[0], rtol=1e-4, atol=1e-4)


class OwnLinear(nn.Module):
  """A linear that is none of Flax's."""

  features: int

  @nn.compact
  def __call__(self, x):
    shape = (x.shape[-1], self.features)
    return x @ self.param('weight', nn.initializers.normal(), shape)


class OwnModel(nn.Module):
  @nn.compact
  def __call__(self, x):
    return OwnLinear(4, name='linear')(x)


def test_linears_of_other_classes_are_named():
  x, config = np.ones((4, 6), np.float32), AdapterConfig(n_tasks=3)
  with pytest.raises(
    UserError, match='calls no linear of these classes: Dense'
  ):
    route(OwnModel(), config).init_added(jax.random.key(0), x)
  routed = route(OwnModel(), config, linears=[OwnLinear])
  variables = random_variables(routed, x)
  y = routed.apply(variables, x, task_ids=TASKS)
  assert abs(y[0] - y[2]).max() == 0 and abs(y[0] - y[1]).max() > 1e-3


def test_routed_linears_inside_keep_their_own_adapters():
  class Model(nn.Module):
    @nn.compact
    def __call__(self, x, task_ids):
      x = RoutedDense(WIDTH, adapters=CONFIG, name='own')(x, task_ids)
      return nn.Dense(WIDTH, name='up')(x)

  config = AdapterConfig(n_tasks=3)
  found = route(Model(), config).find_linears(
    jax.random.key(0), np.ones((4, 6), np.float32), TASKS
  )
  assert found.keys() == {'up'}
