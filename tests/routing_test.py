"""Mixing forms against loops, shapes by scope, noise, rows of new tasks."""

import functools
import itertools
import math

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from mhr_jax import routing
from mhr_jax.adapters import AdapterConfig, LinearShape
from mhr_jax.errors import UserError
from mhr_jax.routing import MixingForm

LINEARS = {
  'encoder/attention/query': LinearShape(3, 8, 12),
  'encoder/attention/out': LinearShape(3, 12, 8),
  'encoder/mlp/wo': LinearShape(3, 16, 8),
  'decoder/self_attention/query': LinearShape(2, 8, 12),
}
SIZES = {'n_tasks': 5, 'n_splits': 2, 'n_skills': 4}


def loop_weights(logits, form, noise=None):
  """One row at a time, as the formulas are written."""
  result = np.zeros_like(logits)
  splits, skills = logits.shape[-2:]
  for index in itertools.product(*map(range, logits.shape[:-1])):
    row = [float(x) for x in logits[index]]
    if noise is not None:
      u = [float(x) for x in noise[index]]
      row = [
        x + math.log(v) - math.log1p(-v) for x, v in zip(row, u, strict=True)
      ]
    if form.mixing == 'l2_norm':
      length = math.sqrt(sum(x**2 for x in row)) or 1
      result[index] = [x / length for x in row]
      continue
    if form.mixing == 'softmax':
      z = [math.exp(x) for x in row]
    else:
      z = [1 / (1 + math.exp(-x)) for x in row]
    if form.mixing == 'straight_through':
      z = [float(x > 0.5) for x in z]
    if form.shared_skill:
      z[-1] = 1.0
    if form.normalisation == 'sqrt':
      result[index] = [x * math.sqrt(splits) / math.sqrt(skills) for x in z]
    else:
      result[index] = [x / (sum(z) or 1) for x in z]
  return result


FORMS = [
  *(MixingForm(mixing) for mixing in sorted(routing.LEARNED_MIXINGS)),
  *(
    MixingForm(mixing, normalisation, shared_skill)
    for mixing in routing.GATED_MIXINGS
    for normalisation, shared_skill in (
      ('sqrt', False),
      ('sum', True),
      ('sqrt', True),
    )
  ),
]


@pytest.mark.parametrize('form', FORMS, ids=repr)
def test_mixing_forms_equal_a_loop(form):
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(3, 5, 2, 4)) * 2
  noise = None
  if form.mixing == 'relaxed_bernoulli':
    noise = rng.uniform(size=logits.shape)
  with jax.enable_x64(True):
    weights = routing.mixing_weights(
      jnp.array(logits), form, noise=None if noise is None else jnp.array(noise)
    )
  expected = loop_weights(logits, form, noise)
  np.testing.assert_allclose(weights, expected, atol=1e-11)


def test_a_shared_skill_has_no_gradient_of_its_own():
  form = MixingForm(shared_skill=True)
  logits = jnp.array([[0.5, -1.0, 2.0]])
  jacobian = jax.jacobian(lambda x: routing.mixing_weights(x, form))(logits)
  assert not jacobian[..., -1].any()
  assert jacobian[..., :-1].all()


@pytest.mark.parametrize('mixing', ['straight_through', 'l2_norm'])
def test_a_row_that_mixes_nothing_has_a_gradient_that_is_usable(mixing):
  logits = jnp.array([-0.5, -0.5]) if mixing == 'straight_through' else 0.0
  logits = jnp.broadcast_to(logits, (1, 2))
  weights, vjp = jax.vjp(
    lambda x: routing.mixing_weights(x, MixingForm(mixing)), logits
  )
  assert not weights.any()
  (gradient,) = vjp(jnp.array([[1.0, -2.0]]))
  assert gradient.all() and abs(gradient).max() < 10


def test_straight_through_has_the_gradient_of_the_rounded_mean():
  logits = jnp.array([0.5, -1.0, 2.0])
  cotangent = jnp.array([1.0, 3.0, -2.0])
  _, vjp = jax.vjp(
    lambda x: routing.mixing_weights(x, MixingForm('straight_through')), logits
  )
  # w = h / sum(h) at h = round(z), and dh/dz = 1.
  z, h = jax.nn.sigmoid(logits), jnp.array([1.0, 0.0, 1.0])
  d_h = cotangent / h.sum() - (cotangent * h).sum() / h.sum() ** 2
  np.testing.assert_allclose(vjp(cotangent)[0], d_h * z * (1 - z), rtol=1e-5)


def test_forms_without_logits_refuse_them():
  with pytest.raises(ValueError, match='no routing logits'):
    routing.mixing_weights(jnp.zeros((1, 4)), MixingForm('uniform'))


@pytest.mark.parametrize('mixing', ['softmax', 'l2_norm', 'uniform', 'private'])
@pytest.mark.parametrize(
  'gates', [{'normalisation': 'sqrt'}, {'shared_skill': True}], ids=str
)
def test_settings_of_gates_are_refused_where_there_are_none(mixing, gates):
  (name,) = gates
  with pytest.raises(
    UserError, match=f"{name}=.*mixing='{mixing}' has not got.*choose one of"
  ):
    MixingForm(mixing, **gates)


@functools.cache
def init(scope):
  key = jax.random.key(0)
  return jax.jit(
    lambda: routing.init_routers(key, LINEARS, scope=scope, **SIZES)
  )()


@functools.partial(jax.jit, static_argnames=('scope', 'mixing'))
def weights_of(
  routers,
  task_ids,
  *,
  scope='module',
  mixing='sigmoid',
  noise_key=None,
  example_index=None,
):
  n_tasks = SIZES['n_skills'] if mixing == 'private' else SIZES['n_tasks']
  config = AdapterConfig(
    **SIZES | {'n_tasks': n_tasks}, mixing=mixing, router_scope=scope
  )
  return routing.compute_mixing_weights(
    routers,
    LINEARS,
    jnp.array(task_ids),
    config,
    noise_key=noise_key,
    example_index=example_index,
  )


ROUTERS = {
  'module': {path: (LINEARS[path].layers,) for path in LINEARS},
  'layer': {
    'encoder/attention': (3,),
    'encoder/mlp': (3,),
    'decoder/self_attention': (2,),
  },
  'block': {'encoder': (3,), 'decoder': (2,)},
  'stack': {'encoder': (), 'decoder': ()},
  'model': {'model': ()},
}


def at(tree, path):
  for part in path.split('/'):
    tree = tree[part]
  return tree['routing_logits']


@pytest.mark.parametrize('scope', routing.ROUTER_SCOPES)
def test_router_shapes_and_weights_by_scope(scope):
  routers = init(scope)
  assert len(jax.tree.leaves(routers)) == len(ROUTERS[scope])
  for path, layers in ROUTERS[scope].items():
    assert at(routers, path).shape == (*layers, 5, 2, 4)
    assert 0 < abs(at(routers, path)).max() <= 1e-3
  task_ids = np.array([4, 0, 4])
  weights = weights_of(routers, task_ids, scope=scope)
  for path, linear in LINEARS.items():
    logits = np.asarray(at(routers, routing.router_of(path, scope)))
    logits = np.broadcast_to(logits, (linear.layers, 5, 2, 4))
    expected = loop_weights(logits[:, task_ids], MixingForm())
    np.testing.assert_allclose(weights[path], expected, atol=1e-6)


@pytest.mark.parametrize('scope', routing.ROUTER_SCOPES)
def test_logical_axes_have_the_structure_of_the_routers(scope):
  axes = routing.router_logical_axes(LINEARS, scope)
  jax.tree.map(
    lambda leaf, names: np.testing.assert_equal(leaf.ndim, len(names)),
    init(scope),
    axes,
  )


def test_linears_that_share_a_router_share_weights_and_noise():
  weights = weights_of(
    init('layer'),
    np.array([1, 2]),
    scope='layer',
    mixing='relaxed_bernoulli',
    noise_key=jax.random.key(3),
  )
  query, out = 'encoder/attention/query', 'encoder/attention/out'
  np.testing.assert_array_equal(weights[query], weights[out])
  assert (weights[query] != weights['encoder/mlp/wo']).all()


def test_uniform_and_private_need_no_router():
  uniform = weights_of({}, np.array([1, 2, 0]), mixing='uniform')
  for path, linear in LINEARS.items():
    np.testing.assert_array_equal(
      uniform[path], np.full((linear.layers, 1, 2, 4), 0.25)
    )
  private = weights_of({}, np.array([3, 0]), mixing='private')
  expected = np.zeros((3, 2, 2, 4))
  expected[:, 0, :, 3] = expected[:, 1, :, 0] = 1
  np.testing.assert_array_equal(private['encoder/mlp/wo'], expected)


def test_noise_depends_on_the_global_index_and_not_on_the_batch_split():
  routers, key = init('module'), jax.random.key(7)
  task_ids, indices = np.array([0, 1, 1, 4, 2, 0]), np.arange(6)
  options = {'mixing': 'relaxed_bernoulli', 'noise_key': key}
  whole = weights_of(routers, task_ids, example_index=indices, **options)
  parts = [
    weights_of(
      routers,
      task_ids[part],
      example_index=indices[part],
      **options,
    )
    for part in (slice(0, 2), slice(2, 4), slice(4, 6))
  ]
  for path in LINEARS:
    joined = np.concatenate([part[path] for part in parts], axis=1)
    np.testing.assert_array_equal(whole[path], joined)


def test_noise_differs_by_router_layer_example_split_and_skill():
  key = jax.random.key(7)
  indices = jnp.arange(50)
  shapes = {'encoder': (6, 3, 4), 'decoder': (6, 3, 4), 'model': (3, 4)}
  noise = routing.draw_noise(key, shapes, indices)
  assert noise['encoder'].shape == noise['decoder'].shape == (6, 50, 3, 4)
  assert noise['model'].shape == (50, 3, 4)
  numbers = np.concatenate([np.ravel(u) for u in noise.values()])
  assert len(np.unique(numbers)) > 0.99 * numbers.size
  np.testing.assert_allclose(numbers.mean(), 0.5, atol=0.02)
  alone = routing.draw_noise(key, {'decoder': (6, 3, 4)}, indices)
  np.testing.assert_array_equal(alone['decoder'], noise['decoder'])


def test_there_is_no_noise_without_a_key_or_in_other_forms():
  routers = init('module')
  sigmoid = weights_of(routers, np.array([1, 2]))
  for options in (
    {'mixing': 'relaxed_bernoulli'},
    {'mixing': 'sigmoid', 'noise_key': jax.random.key(0)},
  ):
    weights = weights_of(routers, np.array([1, 2]), **options)
    jax.tree.map(np.testing.assert_array_equal, weights, sigmoid)


@pytest.mark.parametrize('mixing', sorted(set(routing.MIXINGS) - {'uniform'}))
def test_an_id_that_no_task_has_is_nan_and_not_another_tasks(mixing):
  last = SIZES['n_skills' if mixing == 'private' else 'n_tasks'] - 1
  task_ids = np.array([last, last + 1, -1, -last - 1])
  options = {'mixing': mixing, 'noise_key': jax.random.key(0)}
  weights = weights_of(init('module'), task_ids, **options)['encoder/mlp/wo']
  assert jnp.isfinite(weights[:, 0]).all()
  assert jnp.isnan(weights[:, 1:]).all()


def test_an_id_that_no_task_has_trains_no_row():
  def total(routers):
    return sum(x.sum() for x in weights_of(routers, np.array([-1, 9])).values())

  gradients = jax.grad(total)(init('module'))
  assert not any(g.any() for g in jax.tree.leaves(gradients))


def test_rows_of_new_tasks():
  rng = np.random.default_rng(1)
  routers = jax.tree.map(
    lambda x: jnp.array(rng.normal(size=x.shape), x.dtype), init('layer')
  )
  old = routers['encoder']['mlp']['routing_logits']
  key = jax.random.key(2)
  uniform = routing.new_task_rows(routers, 2, key=key)
  mean = routing.new_task_rows(routers, 2, init='mean')
  zeros = routing.new_task_rows(routers, 1, init='zeros')
  for rows in (uniform, mean):
    assert jax.tree.structure(rows) == jax.tree.structure(routers)
    assert rows['encoder']['mlp']['routing_logits'].shape == (3, 2, 2, 4)
  uniform = uniform['encoder']['mlp']['routing_logits']
  assert 0 < abs(uniform).max() <= 1e-3
  np.testing.assert_allclose(
    mean['encoder']['mlp']['routing_logits'][:, 1], old.mean(1), rtol=1e-6
  )
  assert not zeros['encoder']['mlp']['routing_logits'].any()


def test_new_rows_say_what_is_missing():
  with pytest.raises(ValueError, match='needs a key'):
    routing.new_task_rows(init('model'), 1)
  with pytest.raises(ValueError, match='one of uniform, mean, zeros'):
    routing.new_task_rows(init('model'), 1, init='random')


def test_init_does_not_depend_on_the_other_linears():
  some = {'encoder/mlp/wo': LINEARS['encoder/mlp/wo']}
  key = jax.random.key(0)
  alone = routing.init_routers(key, some, scope='module', **SIZES)
  np.testing.assert_array_equal(
    alone['encoder']['mlp']['wo']['routing_logits'],
    init('module')['encoder']['mlp']['wo']['routing_logits'],
  )


def test_annealing_is_a_cosine_over_the_last_steps_and_ends_at_uniform():
  shares = [
    float(routing.uniform_share(jnp.int32(step), steps=10, anneal_steps=4))
    for step in range(10)
  ]
  expected = [1 - math.cos(math.pi / 2 * n / 4) for n in range(1, 5)]
  np.testing.assert_allclose(shares, [0.0] * 6 + expected, rtol=1e-6)
  assert shares[:6] == [0.0] * 6 and shares[-1] == 1.0
  whole = routing.uniform_share(0, steps=3, anneal_steps=3)
  assert float(whole) == pytest.approx(1 - math.cos(math.pi / 6))


@pytest.mark.parametrize(
  ('mixing', 'scope'), [('relaxed_bernoulli', 'model'), ('private', 'module')]
)
def test_a_share_of_the_weights_is_uniform(mixing, scope):
  n_tasks = SIZES['n_skills'] if mixing == 'private' else SIZES['n_tasks']
  config = AdapterConfig(
    **SIZES | {'n_tasks': n_tasks}, mixing=mixing, router_scope=scope
  )
  compute = functools.partial(
    routing.compute_mixing_weights,
    {} if mixing == 'private' else init(scope),
    LINEARS,
    jnp.array([3, 0, 9]),
    config,
    noise_key=jax.random.key(1),
  )
  plain = compute()
  for share in (0.0, 0.3, 1.0):
    for path, weights in compute(uniform_share=jnp.float32(share)).items():
      for index, weight in np.ndenumerate(np.asarray(weights)):
        if index[1] == 2:  # No task has that id.
          assert math.isnan(weight)
        else:
          own = float(plain[path][index])
          mixed = (1 - share) * own + share / SIZES['n_skills']
          assert weight == pytest.approx(mixed, abs=1e-6)
