"""The modules for any Flax model against the authors' code, in float64.

All 13 cases through `RoutedDense`, and through an `nn.Dense` that `route`
adapts.
"""

from flax import linen as nn
import jax
from jax import numpy as jnp
import numpy as np
import pytest

import mhr_jax
from mhr_jax import routing
from mhr_jax.adapters import AdapterConfig
import mttl_cases

pytestmark = pytest.mark.parity

TOLERANCE = 1e-10


class OneLinear(nn.Module):
  """Somebody's model."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(64, use_bias=False, param_dtype=float, name='linear')(x)


def collections(leaves):
  """Returns adapters and routers as a RoutedDense has them."""
  added = {'adapters': {'a': leaves['a'], 'b': leaves['b']}}
  if 'routing_logits' in leaves:
    added['routers'] = {'routing_logits': leaves['routing_logits']}
  return added


def run_dense(config, case, leaves, **call):
  module = mhr_jax.RoutedDense(
    64, use_bias=False, param_dtype=float, adapters=config
  )
  variables = {'params': {'kernel': case.kernel}, **collections(leaves)}
  return module.apply(variables, case.x, call.pop('task_ids'), **call)


def run_route(config, case, leaves, **call):
  variables = {'params': {'linear': {'kernel': case.kernel}}}
  for collection, tree in collections(leaves).items():
    stacked = jax.tree.map(lambda leaf: leaf[None], tree)
    variables[collection] = {'linear': stacked}
  routed = mhr_jax.route(OneLinear(), config)
  return routed.apply(variables, case.x, **call)


FORMS = {'RoutedDense': run_dense, 'route': run_route}


@pytest.fixture
def draw_noise_of(monkeypatch):
  """A function that makes the library draw a case's noise."""

  def draw_noise_of(case):
    def draw_noise(key, shapes, example_index, dtype):
      del key, example_index
      assert dtype == np.float64
      return {
        name: jnp.array(case.noise).reshape(
          *shape[:-2], len(case.noise), *shape[-2:]
        )
        for name, shape in shapes.items()
      }

    monkeypatch.setattr(routing, 'draw_noise', draw_noise)

  return draw_noise_of


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('name', mttl_cases.NAMES)
def test_outputs_and_gradients(
  shared_dir, name, form, report_difference, draw_noise_of
):
  case = mttl_cases.load_case(shared_dir, name)
  config = AdapterConfig(**case.settings)
  repeats = len(case.x) // len(case.task_ids)
  call: dict = {'task_ids': jnp.repeat(case.task_ids, repeats)}
  if case.noise is not None:
    draw_noise_of(case)
    call['rngs'] = {'routing': jax.random.key(0)}

  with jax.enable_x64(True):
    y, vjp = jax.vjp(
      lambda leaves: FORMS[form](config, case, case.arrange(leaves), **call),
      jax.tree.map(jnp.array, case.leaves),
    )
    actual, expected = {'output': y}, {'output': case.y}
    if case.cotangent is not None:
      (actual['gradients'],) = vjp(jnp.array(case.cotangent))
      expected['gradients'] = case.gradients
  assert {x.dtype for x in jax.tree.leaves(actual)} == {np.dtype('float64')}
  if name == 'mhr_straight_through':
    # In this leaf the reference divides by 1e-12: see mttl_test.py.
    expected, actual = (
      {**x, 'gradients': dict(x['gradients'])} for x in (expected, actual)
    )
    logits = expected['gradients']['routing_logits']
    usable = np.isfinite(logits)
    assert usable.mean() > 0.9
    expected['gradients']['routing_logits'] = logits[usable]
    logits = np.asarray(actual['gradients']['routing_logits'])
    assert abs(logits).max() < 1e3
    actual['gradients']['routing_logits'] = logits[usable]
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(expected))
  reference = f'mttl, {form}, float64'
  assert report_difference(name, reference, actual, expected) <= TOLERANCE
