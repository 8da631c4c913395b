"""route: adapters in models of Flax's own parts, however they are put up."""

import dataclasses
import functools

from flax import linen as nn
from flax import traverse_util
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from mhr_jax import RoutedDense, UserError, adapters, route
from mhr_jax.adapters import AdapterConfig, LinearShape

CONFIG = AdapterConfig(
  n_tasks=3,
  n_skills=4,
  n_splits=2,
  rank=2,
  alpha=4.0,
  targets=('.*/(query|value|out)', '.*/up'),
)
TASKS = np.array([2, 0, 2, 1])
WIDTH = 8
ADDED = ('adapters', 'routers')


class Block(nn.Module):
  """Flax's attention, and an mlp of two linears."""

  causal: bool = True

  @nn.compact
  def __call__(self, x, _=None):
    mask = nn.make_causal_mask(x[..., 0]) if self.causal else None
    attention = nn.MultiHeadDotProductAttention(2, name='attention')
    x = x + attention(nn.LayerNorm()(x), mask=mask)
    hidden = nn.Dense(2 * WIDTH, name='up')(nn.LayerNorm()(x))
    return x + nn.Dense(WIDTH, name='down')(nn.gelu(hidden)), None


class Decoder(nn.Module):
  """A decoder-only language model; its layers in a row or scanned."""

  stacked_on: int | None = None
  remat: bool = False

  def embed(self, ids):
    return jax.nn.one_hot(ids, WIDTH)

  @nn.compact
  def __call__(self, ids):
    x = nn.Embed(11, WIDTH)(ids)
    block = nn.remat(Block, prevent_cse=False) if self.remat else Block
    if self.stacked_on is None:
      for i in range(3):
        x, _ = block(name=f'layer_{i}')(x)
    else:
      layers = nn.scan(
        block,
        variable_axes={'params': self.stacked_on},
        split_rngs={'params': True},
        length=3,
      )
      x, _ = layers(name='layer')(x, None)
    return nn.Dense(11, name='logits')(x)


class VisionTransformer(nn.Module):
  """Patches, a batch norm, blocks and a head, made in `setup`."""

  def setup(self):
    self.patches = nn.Conv(WIDTH, (2, 2), (2, 2))
    self.norm = nn.BatchNorm()
    self.blocks = [Block(causal=False) for _ in range(2)]
    self.head = nn.Dense(5)

  def first_block(self, images, train=False):
    x = self.norm(self.patches(images), use_running_average=not train)
    return self.blocks[0](x.reshape(len(images), -1, WIDTH))[0]

  def __call__(self, images, train=False):
    x, _ = self.blocks[1](self.first_block(images, train))
    return self.head(x.mean(1))


IDS = np.random.default_rng(0).integers(0, 11, (4, 6))
IMAGES = np.random.default_rng(0).normal(size=(4, 4, 4, 3)).astype(np.float32)
MODELS = {
  'decoder': (Decoder(), IDS),
  'decoder, scanned': (Decoder(stacked_on=0, remat=True), IDS),
  'vision': (VisionTransformer(), IMAGES),
}


def fill(shapes):
  """Returns arrays without zeros, cheaper than what `init` draws."""
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda x: jnp.array(rng.normal(size=x.shape) * 0.5, x.dtype), shapes
  )


def random_variables(routed, x):
  """Returns variables in which nothing is zero, and no variance negative."""
  variables = fill(jax.eval_shape(lambda: routed.init(jax.random.key(0), x)))
  stats = variables.get('batch_stats', {})
  return {**variables, 'batch_stats': jax.tree.map(abs, stats)}


def own_part(variables):
  """Returns the variables of the model itself."""
  return {k: tree for k, tree in variables.items() if k not in ADDED}


@functools.cache
def routed_model(name):
  """Returns the routed model, its variables, its jitted apply, an input."""
  model, x = MODELS[name]
  routed = route(model, CONFIG)
  return routed, random_variables(routed, x), jax.jit(routed.apply), x


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


@pytest.mark.parametrize('name', ['decoder', 'vision'])
def test_it_is_the_plain_model_with_each_tasks_low_rank_sum_in_its_kernels(
  name,
):
  """By the plain model, whose kernels have W + alpha/rank · a·b added."""
  _, variables, routed_apply, x = routed_model(name)
  model, _ = MODELS[name]
  y = routed_apply(variables, x, task_ids=TASKS)
  own, apply = own_part(variables), jax.jit(model.apply)
  for i, task in enumerate(TASKS):
    low_rank = adapters.task_adapter(variables, int(task), CONFIG)
    flat = adapters.list_inventories(low_rank)
    params = jax.tree.map(np.array, own['params'])
    for path, pair in flat.items():
      node = functools.reduce(lambda t, k: t[k], path.split('/'), params)
      product = np.asarray(pair['a'][0] @ pair['b'][0])
      node['kernel'] += product.reshape(node['kernel'].shape)
    expected = apply({**own, 'params': params}, x[i : i + 1])
    np.testing.assert_allclose(y[i], expected[0], rtol=1e-3, atol=1e-3)


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


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'targets': 'attention/query'}, r"mean 'layer_\d/attention/query'"),
    ({'targets': '.*/nothing'}, 'matches no linear'),
    ({'targets': '.*', 'n_splits': 4}, '11 out. .* may be 1'),
    ({'router_scope': 'stack'}, "'module' and 'model'"),
  ],
)
def test_settings_that_fit_nothing_are_errors(settings, message):
  config = AdapterConfig(**{'n_tasks': 3, **settings})
  with pytest.raises(UserError, match=message):
    route(Decoder(), config).find_linears(jax.random.key(0), IDS)


def change_leaf(variables, path, leaf):
  """Returns variables with another leaf at a path, or with none."""
  flat = traverse_util.flatten_dict(variables, sep='/')
  flat = {**flat, path: leaf}
  flat = {k: x for k, x in flat.items() if x is not None}
  return traverse_util.unflatten_dict(flat, sep='/')


@pytest.mark.parametrize(
  'settings', [{'rank': 4}, {'n_skills': 2}, {'n_tasks': 5}, {'n_splits': 1}]
)
@pytest.mark.parametrize('method', [None, Decoder.embed])
def test_variables_of_another_config_are_refused(settings, method):
  """Also where the call comes to no linear."""
  model, x = MODELS['decoder']
  _, variables, _, _ = routed_model('decoder')
  other = route(model, dataclasses.replace(CONFIG, **settings))
  with pytest.raises(UserError, match='layer_0.* is .*the config makes it'):
    jax.eval_shape(
      lambda v: other.apply(v, x, task_ids=TASKS, method=method), variables
    )


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


@pytest.mark.parametrize(
  ('change', 'task_ids', 'message'),
  [
    (lambda v: {'params': v['params']}, TASKS, 'add what init_added'),
    (lambda v: v, None, 'no task_ids'),
    (lambda v: v, TASKS[:2], r'layer_0/attention/query: .* 4 row\(s\).* 2'),
    (lambda v: v, TASKS[:1], r'layer_0/attention/query: .* 4 row\(s\).* 1'),
    (lambda v: v, TASKS.astype(float), 'task_ids are float'),
    (lambda v: v, TASKS - 1, 'There is no task -1 .*from 0 to 2'),
    (
      lambda v: {k: tree for k, tree in v.items() if k != 'routers'},
      TASKS,
      'routers/layer_0/attention/query/routing_logits is missing',
    ),
    (
      lambda v: change_leaf(v, 'routers/layer_1/up/routing_logits', None),
      TASKS,
      'routers/layer_1/up/routing_logits is missing',
    ),
    (
      lambda v: change_leaf(v, 'routers/layer_1/down/routing_logits', 0.0),
      TASKS,
      'routers/layer_1/down/routing_logits is there',
    ),
    (
      lambda v: change_leaf(v, 'adapters/layer_1/up/b', None),
      TASKS,
      'adapters/layer_1/up/b is missing',
    ),
    (
      lambda v: change_leaf(v, 'adapters/layer_1/up/a', jnp.ones((1, 2, 4))),
      TASKS,
      r'adapters/layer_1/up/a is \[1, 2, 4\], and .* \[1, 2, 4, 4, 2\]',
    ),
    (
      lambda v: {**v, **{k: {'layer_0': v[k]['layer_0']} for k in ADDED}},
      TASKS,
      'no adapters for layer_1/attention/query, .*layer_2/up, which',
    ),
    (
      lambda v: change_leaf(v, 'adapters/layer_1/down/a', 0.0),
      TASKS,
      'adapters for layer_1/down, which no target matches',
    ),
    (
      lambda v: {
        **v,
        'adapters': {'layer_7': v['adapters']['layer_0']},
        'routers': {'layer_7': v['routers']['layer_0']},
      },
      TASKS,
      "'layer_7/attention/out', which the model has not got",
    ),
  ],
)
def test_calls_that_fit_nothing_are_errors(change, task_ids, message):
  routed, variables, _, x = routed_model('decoder')
  with pytest.raises(UserError, match=message):
    jax.eval_shape(
      lambda v: routed.apply(v, x, task_ids=task_ids), change(variables)
    )


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
  y = routed.apply(variables, x, task_ids=TASKS)
  for i, task in enumerate(TASKS):
    low_rank = adapters.task_adapter(variables, int(task), config)
    kernels = {
      name: variables['params'][name]['kernel']
      + low_rank[name]['a'][0] @ low_rank[name]['b'][0]
      for name in low_rank
    }
    row = x[i] @ kernels['twice'] @ kernels['twice'] @ kernels['doubled'] * 2
    np.testing.assert_allclose(y[i], row, rtol=1e-3, atol=1e-3)


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


def test_what_cannot_be_adapted_is_said():
  class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.DenseGeneral(4, batch_dims=(0,), name='linear')(x)

  x, config = np.ones((4, 6), np.float32), AdapterConfig(n_tasks=3)
  with pytest.raises(UserError, match='linear has batch_dims=.*Leave it out'):
    route(Model(), config).init_added(jax.random.key(0), x)
  with pytest.raises(UserError, match='itself one linear: use RoutedDense'):
    route(nn.Dense(3), config).init_added(jax.random.key(0), x)


def test_a_model_with_collections_of_these_names_is_refused():
  class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
      self.variable('routers', 'seen', lambda: 0)
      return nn.Dense(3, name='linear')(x)

  routed = route(Model(), AdapterConfig(n_tasks=3))
  with pytest.raises(UserError, match="collection 'routers' of its own"):
    routed.init(jax.random.key(0), np.ones((4, 6), np.float32))


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
