"""RoutedDense: a drop-in without adapters, a plain loop with them."""

import dataclasses
import itertools

from flax import linen as nn
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from mhr_jax import RoutedDense, UserError
from mhr_jax.adapters import AdapterConfig
from mhr_jax.routing import MIXINGS

CONFIG = AdapterConfig(n_tasks=3, n_skills=4, n_splits=2, rank=2, alpha=6.0)
TASKS = np.array([2, 0, 2, 1])

# Arguments, and the shape of an input.
FORMS = {
  'dense': (nn.Dense, {'features': 6}, (4, 8)),
  'dense_without_bias': (
    nn.Dense,
    {'features': 6, 'use_bias': False},
    (4, 3, 8),
  ),
  'dense_of_images': (
    nn.Dense,
    {
      'features': 6,
      'kernel_init': nn.initializers.normal(2.0),
      'bias_init': nn.initializers.ones,
    },
    (4, 3, 5, 8),
  ),
  'to_heads': (nn.DenseGeneral, {'features': (2, 3)}, (4, 5, 8)),
  'from_heads': (
    nn.DenseGeneral,
    {'features': 6, 'axis': (-2, -1)},
    (4, 5, 2, 4),
  ),
  'inner_axis': (
    nn.DenseGeneral,
    {'features': (6,), 'axis': 1, 'use_bias': False},
    (4, 8, 5),
  ),
  'axes_apart': (
    nn.DenseGeneral,
    {'features': (2, 3), 'axis': (3, 1)},
    (4, 2, 5, 4),
  ),
}


def make(form, config=CONFIG, **more):
  """Returns the module, its double, variables without zeros, an input."""
  plain, arguments, shape = FORMS[form]
  rng = np.random.default_rng(0)
  x = jnp.array(rng.normal(size=shape), jnp.float32)
  routed = RoutedDense(**arguments, adapters=config, **more)
  variables = jax.tree.map(
    lambda leaf: jnp.array(rng.normal(size=leaf.shape), leaf.dtype),
    jax.eval_shape(routed.init, jax.random.key(0), x, TASKS),
  )
  return routed, plain(**arguments, **more), variables, x


@pytest.mark.parametrize('form', FORMS)
def test_untrained_it_is_the_layer_it_replaces(form):
  routed, plain, _, x = make(form)
  variables = routed.init(jax.random.key(7), x, TASKS)
  expected = plain.init(jax.random.key(7), x)
  assert variables.keys() == {'params', 'adapters', 'routers'}
  jax.tree.map(
    np.testing.assert_array_equal, variables['params'], expected['params']
  )
  np.testing.assert_array_equal(
    routed.apply(variables, x, TASKS), plain.apply(expected, x)
  )


def looped(variables, x, axis, n_features):
  """x·W + bias + (x·a)·b, example by example, feature by feature."""
  kernel = np.asarray(variables['params']['kernel'], float)
  n_axes = kernel.ndim - n_features
  # Flax sorts the axes: (3, 1) is (1, 3).
  axes = sorted(i % x.ndim for i in np.atleast_1d(axis))
  x = np.moveaxis(np.asarray(x, float), axes, range(-n_axes, 0))
  kept = x.shape[: x.ndim - n_axes]
  x = x.reshape(kept + (-1,))
  inside, features = x.shape[-1], kernel.shape[n_axes:]
  a, b = (np.asarray(variables['adapters'][leaf], float) for leaf in 'ab')
  logits = np.asarray(variables['routers']['routing_logits'], float)
  splits, skills, rank = a.shape[0], a.shape[1], a.shape[-1]
  y = np.zeros(kept + (int(np.prod(features)),))
  for i, task in enumerate(TASKS):
    gates = 1 / (1 + np.exp(-logits[task]))
    weights = gates / gates.sum(axis=-1, keepdims=True)
    mixed_a = np.zeros((inside, rank))
    mixed_b = np.zeros((rank, y.shape[-1]))
    for split, skill in itertools.product(range(splits), range(skills)):
      rows = slice(split * a.shape[2], (split + 1) * a.shape[2])
      columns = slice(split * b.shape[-1], (split + 1) * b.shape[-1])
      mixed_a[rows] += weights[split, skill] * a[split, skill]
      mixed_b[:, columns] += weights[split, skill] * b[split, skill]
    for where in np.ndindex(*kept[1:]):
      row = x[(i, *where)]
      y[(i, *where)] = row @ kernel.reshape(inside, -1)
      y[(i, *where)] += (row @ mixed_a) @ mixed_b * 6.0 / 2
  y = y.reshape(kept + features)
  return y + np.asarray(variables['params'].get('bias', 0.0), float)


@pytest.mark.parametrize('form', FORMS)
def test_each_example_has_its_tasks_adapter(form):
  routed, plain, variables, x = make(form)
  features = np.atleast_1d(plain.features)
  expected = looped(variables, x, getattr(plain, 'axis', -1), len(features))
  y = jax.jit(routed.apply)(variables, x, TASKS)
  np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


def test_collections_names_shapes_and_inits():
  routed, _, _, x = make('to_heads')
  variables = routed.init(jax.random.key(0), x, TASKS)
  shapes = jax.tree.map(jnp.shape, variables)
  assert shapes == {
    'params': {'kernel': (8, 2, 3), 'bias': (2, 3)},
    'adapters': {'a': (2, 4, 4, 2), 'b': (2, 4, 2, 3)},
    'routers': {'routing_logits': (3, 2, 4)},
  }
  a, b = variables['adapters']['a'], variables['adapters']['b']
  assert 0.9 < float(abs(a).max()) / (3 * 8) ** -0.5 <= 1
  assert not b.any()
  assert 0 < abs(variables['routers']['routing_logits']).max() <= 1e-3
  other = routed.init(jax.random.key(1), x, TASKS)
  assert (a != other['adapters']['a']).all()


def test_two_layers_draw_their_own_and_the_adapters_stay_float32():
  class Model(nn.Module):
    @nn.compact
    def __call__(self, x, task_ids):
      for _ in range(2):
        x = RoutedDense(
          8, adapters=CONFIG, dtype='bfloat16', param_dtype='bfloat16'
        )(x, task_ids)
      return x

  x = jnp.ones((4, 8))
  variables = Model().init(jax.random.key(0), x, TASKS)
  first, second = variables['adapters'].values()
  assert (first['a'] != second['a']).all()
  dtypes = {
    label: {str(x.dtype) for x in jax.tree.leaves(tree)}
    for label, tree in variables.items()
  }
  assert dtypes == {
    'params': {'bfloat16'},
    'adapters': {'float32'},
    'routers': {'float32'},
  }
  assert Model().apply(variables, x, TASKS).dtype == jnp.bfloat16


@pytest.mark.parametrize(('mixing', 'skills'), [('uniform', 4), ('private', 3)])
def test_without_learned_routing_there_are_no_routers(mixing, skills):
  config = AdapterConfig(
    n_tasks=3, n_skills=skills, n_splits=2, rank=2, mixing=mixing
  )
  routed, _, variables, x = make('dense', config)
  assert variables.keys() == {'params', 'adapters'}
  y = routed.apply(variables, x, TASKS)
  if mixing == 'uniform':
    np.testing.assert_array_equal(y, routed.apply(variables, x))
  else:
    alone = [
      routed.apply(variables, x[i : i + 1], TASKS[i : i + 1])[0]
      for i in range(4)
    ]
    np.testing.assert_allclose(y, alone, rtol=1e-5, atol=1e-5)


def test_one_task_needs_no_ids():
  config = AdapterConfig(n_tasks=1, n_skills=4, n_splits=2, rank=2)
  routed, _, variables, x = make('from_heads', config)
  np.testing.assert_allclose(
    routed.apply(variables, x),
    routed.apply(variables, x, jnp.zeros(4, int)),
    rtol=1e-5,
  )
  assert routed.apply(variables, x[0, 0]).shape == (6,)


def test_gradients_reach_the_rows_of_the_tasks_in_the_batch_alone():
  routed, _, variables, x = make('to_heads')
  task_ids = jnp.array([2, 0, 2, 2])
  gradients = jax.jit(
    jax.grad(lambda v: jnp.square(routed.apply(v, x, task_ids)).sum())
  )(variables)
  rows = abs(gradients['routers']['routing_logits']).max(axis=(1, 2))
  assert [bool(row) for row in rows > 0] == [True, False, True]
  assert all(abs(g).max() > 0 for g in jax.tree.leaves(gradients))


def test_noise_needs_its_random_numbers_and_goes_by_the_example():
  config = AdapterConfig(
    n_tasks=3, n_skills=4, n_splits=2, rank=2, mixing='relaxed_bernoulli'
  )
  routed, _, variables, x = make('dense', config)
  apply = jax.jit(routed.apply)

  def noisy(rows, **arguments):
    return apply(
      variables,
      x[rows],
      TASKS[rows],
      rngs={'routing': jax.random.key(3)},
      **arguments,
    )

  calm = apply(variables, x, TASKS)
  np.testing.assert_array_equal(calm, apply(variables, x, TASKS))
  everything = noisy(slice(None))
  assert (abs(everything - calm).max(axis=-1) > 1e-3).all()
  np.testing.assert_allclose(
    noisy(slice(2, 4), example_index=jnp.array([2, 3])),
    everything[2:],
    rtol=1e-5,
    atol=1e-5,
  )
  shifted = noisy(slice(2, 4))
  assert (abs(shifted - everything[2:]).max(axis=-1) > 1e-3).all()


def test_repeated_ids_serve_repeated_rows():
  routed, _, variables, x = make('dense_without_bias')
  apply = jax.jit(routed.apply)
  beams = apply(variables, jnp.repeat(x, 2, 0), jnp.repeat(TASKS, 2))
  expected = jnp.repeat(apply(variables, x, TASKS), 2, 0)
  np.testing.assert_allclose(beams, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('remat', [False, True])
def test_inside_a_scan_every_layer_has_its_own(remat):
  class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, task_ids):
      return x + RoutedDense(8, adapters=CONFIG, name='linear')(x, task_ids), 0

  class Model(nn.Module):
    axes: dict

    @nn.compact
    def __call__(self, x, task_ids):
      layers = nn.scan(
        nn.remat(Layer, prevent_cse=False) if remat else Layer,
        variable_axes=self.axes,
        split_rngs={'params': True},
        in_axes=nn.broadcast,
        length=3,
      )
      return layers(name='layers')(x, task_ids)[0]

  axes = {'params': 0, 'adapters': 0, 'routers': 0}
  x = jnp.array(np.random.default_rng(0).normal(size=(4, 8)), jnp.float32)
  variables = jax.jit(Model(axes).init)(jax.random.key(0), x, TASKS)
  assert variables['adapters']['layers']['linear']['a'].shape[0] == 3
  variables = jax.tree.map(lambda leaf: leaf + 0.1, variables)
  expected = x
  for i in range(3):
    layer = jax.tree.map(lambda leaf, i=i: leaf[i], variables)
    one = {label: tree['layers'] for label, tree in layer.items()}
    expected, _ = jax.jit(Layer().apply)(one, expected, TASKS)
  y = jax.jit(Model(axes).apply)(variables, x, TASKS)
  np.testing.assert_allclose(y, expected, rtol=1e-5)
  with pytest.raises(UserError, match="list 'adapters' and 'routers' in"):
    jax.eval_shape(Model({'params': 0}).init, jax.random.key(0), x, TASKS)


@pytest.mark.parametrize(
  'precision',
  ['highest', jax.lax.Precision.HIGHEST, ('highest', 'highest')],
)
def test_the_adapters_products_have_the_layers_precision(precision):
  def dots(precision):
    routed, _, variables, x = make('dense', precision=precision)
    program = jax.make_jaxpr(routed.apply)(variables, x, TASKS)
    names = [
      str(equation.params['precision'])
      for equation in _equations(program.jaxpr)
      if equation.primitive.name == 'dot_general'
    ]
    return sum('HIGHEST' in name for name in names)

  assert dots(None) == 0
  assert dots(precision) == 3


def _equations(jaxpr):
  for equation in jaxpr.eqns:
    yield equation
    for value in equation.params.values():
      if hasattr(value, 'jaxpr'):
        yield from _equations(value.jaxpr)


def test_a_checkpoint_takes_the_place_of_params():
  routed, plain, _, x = make('to_heads')
  checkpoint = plain.init(jax.random.key(5), x)['params']
  variables = routed.init(jax.random.key(0), x, TASKS)
  variables = {**variables, 'params': checkpoint}
  np.testing.assert_array_equal(
    routed.apply(variables, x, TASKS), plain.apply({'params': checkpoint}, x)
  )
  with pytest.raises(UserError, match='no adapters for it'):
    routed.apply({'params': checkpoint}, x, TASKS)


@pytest.mark.parametrize('mixing', sorted(set(MIXINGS) - {'uniform'}))
def test_ids_that_no_task_has_are_errors_and_nan_where_nobody_can_look(mixing):
  config = dataclasses.replace(CONFIG, n_skills=3, mixing=mixing)
  routed, _, variables, x = make('dense', config)
  for wrong in (-1, 3):
    task_ids = np.array([2, wrong, 2, 1])
    for ids in (task_ids, list(task_ids), jnp.array(task_ids)):
      with pytest.raises(UserError, match=f'no task {wrong} .*from 0 to 2'):
        jax.eval_shape(lambda v, i=ids: routed.apply(v, x, i), variables)
  task_ids = np.array([2, -1, 3, 1])
  y = jax.jit(routed.apply)(variables, x, task_ids)
  assert np.isnan(y[1:3]).all() and np.isfinite(y[::3]).all()


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'rank': 1}, r'adapters/RoutedDense/a is \[2, 4, 4, 2\].*\[2, 4, 4, 1\]'),
    ({'n_skills': 2}, r'a is .*b is .*logits is \[3, 2, 4\].*\[3, 2, 2\]'),
    ({'n_splits': 1}, r'a is .*b is \[2, 4, 2, 3\].*\[1, 4, 2, 6\]'),
    ({'n_tasks': 9}, r'logits is \[3, 2, 4\], and the config makes it \[9, 2'),
    ({'mixing': 'uniform'}, 'routers/RoutedDense/routing_logits is there'),
  ],
)
def test_variables_of_another_config_are_refused(settings, message):
  _, _, variables, x = make('dense')
  other = RoutedDense(6, adapters=dataclasses.replace(CONFIG, **settings))
  with pytest.raises(UserError, match=message):
    jax.eval_shape(lambda v: other.apply(v, x, TASKS), variables)


@pytest.mark.parametrize(
  ('form', 'settings', 'arguments', 'task_ids', 'message'),
  [
    ('dense', {'n_splits': 4}, {}, TASKS, 'RoutedDense: 8 features in, 6 out'),
    ('dense', {}, {}, None, 'no task_ids.*3 tasks'),
    ('dense', {}, {}, TASKS[:3], r'4 row\(s\), and there are 3 task ids'),
    ('dense', {}, {}, TASKS[:2], r'4 row\(s\), and there are 2 task ids'),
    ('dense', {}, {}, TASKS[:1], r'4 row\(s\), and there are 1 task ids'),
    ('dense', {}, {}, 1, r'task_ids are int32\[\]'),
    ('dense', {}, {}, np.ones(4), r'task_ids are float32\[4\]'),
    ('dense', {'router_scope': 'model'}, {}, TASKS, 'route'),
    ('dense', {}, {'batch_dims': (0,)}, TASKS, 'one kernel'),
    ('dense', {}, {'axis': 0}, TASKS, '4 task ids'),
  ],
)
def test_what_cannot_be_is_said(form, settings, arguments, task_ids, message):
  _, own, shape = FORMS[form]
  config = AdapterConfig(
    **{'n_tasks': 3, 'n_skills': 4, 'n_splits': 2, 'rank': 2, **settings}
  )
  module = RoutedDense(**own, **arguments, adapters=config)
  with pytest.raises(UserError, match=message):
    jax.eval_shape(
      lambda: module.init(jax.random.key(0), jnp.ones(shape), task_ids)
    )
