"""Optimizers against plain numpy loops of the published formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mhr_jax import optim
from mhr_jax.errors import UserError

_SHAPES = {
  'backbone': {
    'encoder': {
      'layers': {'mlp': {'kernel': (2, 5, 4)}, 'norm': {'scale': (2, 5)}},
      'norm': {'scale': (5,)},
    },
    'token_embedder': {'embedding': (7, 5)},
  },
  'adapters': {
    'query': {'a': (2, 2, 3, 5, 2), 'b': (2, 2, 3, 2, 4)},
    'key': {'scale': (2, 2, 3, 4)},
  },
  'routers': {
    'query': {'routing_logits': (2, 6, 2, 3)},
    'model': {'routing_logits': (6, 2, 3)},
  },
}


def _is_shape(x):
  return isinstance(x, tuple)


def _random(seed):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda s: jnp.asarray(rng.normal(size=s) * 0.3, jnp.float32),
    _SHAPES,
    is_leaf=_is_shape,
  )


def _run(settings, *, steps=4, total=10, learning_rates=None):
  optimizer = optim.make_optimizer(settings, total)
  params = _random(0)
  state = optimizer.init(params)
  for i in range(steps):
    updates, state = optimizer.update(
      _random(i + 1), state, params, learning_rates=learning_rates
    )
    params = optax.apply_updates(params, updates)
  return params


def _reference_tensors(params):
  """The tensors that the reference would keep: {name: (label, array)}."""
  found = {}
  for label, tree in params.items():
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
      name = jax.tree_util.keystr(path)
      x = np.asarray(leaf, np.float64)
      stacked = label == 'adapters' or "'layers'" in name
      if label == 'routers':
        stacked = x.ndim == 4
        x = x.reshape(*x.shape[:-2], -1)
      slices = list(x) if stacked else [x]
      found |= {f'{label}{name}{i}': (label, s) for i, s in enumerate(slices)}
  return found


def _adafactor_loop(*, steps, rates, scale_parameter, decay):
  """Transformers' Adafactor, one tensor at a time."""
  params = {k: p for k, (_, p) in _reference_tensors(_random(0)).items()}
  row, col, full = {}, {}, {}
  for t in range(1, steps + 1):
    for name, (label, g) in _reference_tensors(_random(t)).items():
      p = params[name]
      beta = 1 - t**-0.8
      square = g**2 + 1e-30
      if p.ndim >= 2 and "'scale'" not in name:
        r = row.get(name, 0.0) * beta + (1 - beta) * square.mean(-1)
        c = col.get(name, 0.0) * beta + (1 - beta) * square.mean(-2)
        row[name], col[name] = r, c
        r_factor = 1 / np.sqrt(r / r.mean(-1, keepdims=True))
        u = g * r_factor[..., None] / np.sqrt(c)[..., None, :]
      else:
        full[name] = full.get(name, 0.0) * beta + (1 - beta) * square
        u = g / np.sqrt(full[name])
      u = u / max(1.0, np.sqrt((u**2).mean()))
      scale = np.sqrt((p**2).mean()) if scale_parameter else 1.0
      lr = rates[label] * (max(1e-3, scale) if scale_parameter else 1.0)
      wd = 0.0 if "'scale'" in name else decay[label]
      params[name] = p - lr * wd * p - lr * u
  return params


@pytest.mark.parametrize(
  'scale_parameter', [True, pytest.param(False, marks=pytest.mark.slow)]
)
def test_adafactor_equals_a_loop_over_the_reference_tensors(scale_parameter):
  rates = {'backbone': 0.02, 'adapters': 0.05, 'routers': 0.1}
  decay = {'backbone': 0.1, 'adapters': 0.2, 'routers': 0.0}
  settings = optim.OptimizerSettings(
    name='adafactor',
    learning_rates=rates,
    weight_decay=decay,
    schedule='constant',
    warmup_steps=0,
    clip_norm=None,
    scale_parameter=scale_parameter,
  )
  actual = _reference_tensors(_run(settings))
  expected = _adafactor_loop(
    steps=4, rates=rates, scale_parameter=scale_parameter, decay=decay
  )
  assert actual.keys() == expected.keys()
  for name, (_, value) in actual.items():
    np.testing.assert_allclose(value, expected[name], rtol=2e-5, atol=2e-6)


def test_adamw_with_clipping_decay_and_schedule_equals_a_loop():
  settings = optim.OptimizerSettings(
    learning_rates={'backbone': 0.01, 'adapters': 0.02, 'routers': 0.3},
    weight_decay={'backbone': 0.1, 'adapters': 0.0, 'routers': 0.0},
    warmup_steps=2,
    clip_norm=0.5,
  )
  actual = jax.tree.leaves_with_path(_run(settings, steps=5))
  rates = settings.learning_rates.as_dict()
  multipliers = [0, 0.5, 1, 7 / 8, 6 / 8]
  flat = dict(jax.tree.leaves_with_path(_random(0)))
  params = {k: np.asarray(v, np.float64) for k, v in flat.items()}
  m = dict.fromkeys(params, 0.0)
  v = dict.fromkeys(params, 0.0)
  for t in range(1, 6):
    grads = dict(jax.tree.leaves_with_path(_random(t)))
    norm = np.sqrt(sum(float((g**2).sum()) for g in grads.values()))
    for path, g in grads.items():
      g = np.asarray(g, np.float64) * min(1.0, 0.5 / norm)
      m[path] = 0.9 * m[path] + 0.1 * g
      v[path] = 0.999 * v[path] + 0.001 * g**2
      step = (m[path] / (1 - 0.9**t)) / (
        np.sqrt(v[path] / (1 - 0.999**t)) + 1e-8
      )
      label, leaf = path[0].key, path[-1].key
      wd = 0.1 if label == 'backbone' and leaf != 'scale' else 0.0
      lr = rates[label] * multipliers[t - 1]
      params[path] = params[path] - lr * (step + wd * params[path])
  for path, value in actual:
    np.testing.assert_allclose(value, params[path], rtol=1e-4, atol=2e-5)


def test_sgd_moves_along_the_gradient():
  settings = optim.OptimizerSettings(
    name='sgd',
    schedule='constant',
    warmup_steps=0,
    clip_norm=None,
    weight_decay={'backbone': 0.0, 'adapters': 0.0},
  )
  moved = _run(settings, steps=1)['routers']['model']['routing_logits']
  start, grad = (_random(i)['routers']['model'] for i in (0, 1))
  expected = start['routing_logits'] - 0.1 * grad['routing_logits']
  np.testing.assert_allclose(moved, expected, rtol=1e-6)


@pytest.mark.parametrize('name', ['adamw', 'adafactor', 'sgd'])
def test_learning_rates_at_the_call_replace_the_settings(name):
  given = {'adapters': 0.5, 'routers': 0.25}
  expected = _run(optim.OptimizerSettings(name=name, learning_rates=given))
  actual = _run(optim.OptimizerSettings(name=name), learning_rates=given)
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_one_program_serves_several_learning_rates():
  optimizer = optim.make_optimizer(optim.OptimizerSettings(), 10)
  params = _random(0)
  traces = []

  @jax.jit
  def update(state, rates):
    traces.append(1)
    return optimizer.update(params, state, params, learning_rates=rates)[0]

  state = optimizer.init(params)
  for rate in (0.1, 0.2):
    update(state, {'routers': jnp.float32(rate)})
  assert len(traces) == 1


@pytest.mark.parametrize(
  ('schedule', 'expected'),
  [
    ('linear', [0, 0.5, 1, 0.75, 0.5, 0.25, 0, 0]),
    ('constant', [0, 0.5, 1, 1, 1, 1, 1, 1]),
    ('cosine', [0, 0.5, 1, 0.853553, 0.5, 0.146447, 0, 0]),
  ],
)
def test_schedules(schedule, expected):
  settings = optim.OptimizerSettings(schedule=schedule, warmup_steps=2)
  values = [optim.make_schedule(settings, 6)(i) for i in range(8)]
  np.testing.assert_allclose(values, expected, atol=1e-6)


def test_warmup_proportion_is_a_share_of_all_steps():
  multiplier = optim.make_schedule(optim.OptimizerSettings(), 1000)
  assert float(multiplier(60)) == 1.0
  np.testing.assert_allclose(multiplier(30), 0.5)


def test_a_run_without_warmup_starts_at_the_peak():
  settings = optim.OptimizerSettings(warmup_steps=0)
  assert float(optim.make_schedule(settings, 10)(0)) == 1.0


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    ({'name': 'adamv'}, "Did you mean 'adamw'"),
    ({'schedule': 'lineal'}, "Did you mean 'linear'"),
    ({'learning_rates': {'router': 0.1}}, "Did you mean 'routers'"),
    ({'learning_rates': {'routers': -1.0}}, 'routers is -1.0; at least 0'),
    ({'warmup_proportion': 6}, 'is 6; at most 1'),
    ({'clip_norm': 0.0}, 'above 0'),
  ],
)
def test_settings_that_cannot_be(kwargs, message):
  with pytest.raises(UserError, match=message):
    optim.OptimizerSettings(**kwargs)


def test_settings_keep_the_defaults_of_labels_not_named():
  rates = optim.OptimizerSettings(learning_rates={'adapters': 3e-3})
  assert rates.learning_rates == optim.PerLabel(1e-3, 3e-3, 0.1)
