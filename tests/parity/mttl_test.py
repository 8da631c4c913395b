"""A routed linear against the authors' code: all 13 cases, in float64.

Every case goes through the code that a network runs: routing logits to mixing
weights, inventories to one low-rank pair an example, `layers.Dense` with it.
"""

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from mhr_jax import adapters, routing
from mhr_jax.adapters import AdapterConfig, LinearShape
from mhr_jax.t5.layers import Dense
import mttl_cases

pytestmark = pytest.mark.parity

TOLERANCE = 1e-10
REFERENCE = 'mttl, one linear, float64'


def compute_weights(config, case, leaves):
  """Returns the mixing weights of the batch, [batch, split, skill]."""
  if config.has_routers:
    rows = jnp.take(leaves['routing_logits'], case.task_ids, axis=0)
    return routing.mixing_weights(rows, config.mixing_form, noise=case.noise)
  linears = {'linear': LinearShape(1, *case.kernel.shape)}
  weights = routing.compute_mixing_weights({}, linears, case.task_ids, config)
  return weights['linear'][0]


def run(config, case, leaves):
  """Returns the linear's output and the mixing weights."""
  leaves = case.arrange(leaves)
  weights = compute_weights(config, case, leaves)
  mixed = adapters.mix_adapter(leaves, weights, config.scale)
  linear = Dense(case.kernel.shape[1], 'float64')
  kernel = {'params': {'kernel': case.kernel}}
  return linear.apply(kernel, case.x, mixed), weights


@pytest.mark.parametrize('name', mttl_cases.NAMES)
def test_outputs_weights_and_gradients(shared_dir, name, report_difference):
  case = mttl_cases.load_case(shared_dir, name)
  config = AdapterConfig(**case.settings)

  def check(what, actual, expected):
    assert actual.dtype == expected.dtype == np.float64
    difference = report_difference(
      f'{name}: {what}', REFERENCE, actual, expected
    )
    assert difference <= TOLERANCE

  with jax.enable_x64(True):
    leaves = jax.tree.map(jnp.array, case.leaves)
    y, vjp, weights = jax.vjp(
      lambda leaves: run(config, case, leaves), leaves, has_aux=True
    )
    check('output', y, case.y)
    if case.mixing_weights is not None:
      check('mixing weights', weights, case.mixing_weights)
    if case.cotangent is None:
      return
    (gradients,) = vjp(jnp.array(case.cotangent))
  assert set(gradients) == set(case.gradients)
  for leaf, expected in case.gradients.items():
    actual, usable = np.asarray(gradients[leaf]), np.isfinite(expected)
    # Where a row of gates rounds to 0 the reference divides by 1e-12, and its
    # gradient is 1e12 times too large: nothing to compare with; ours is sane.
    assert usable.all() or (name, leaf) == (
      'mhr_straight_through',
      'routing_logits',
    )
    assert usable.mean() > 0.9 and abs(actual).max() < 1e3
    check(f'd {leaf}', actual[usable], expected[usable])


def test_private_serves_each_task_its_own_adapter(shared_dir):
  """By the formula: at rank > 1 the reference serves rows of other tasks."""
  case = mttl_cases.load_case(shared_dir, 'skilled_private')
  a, b = case.leaves['a'], case.leaves['b']
  task_ids = np.array([2, 0, 1, 2])
  config = AdapterConfig(n_tasks=3, n_skills=3, rank=2, mixing='private')
  x = case.x[:4]
  with jax.enable_x64(True):
    weights = routing.compute_mixing_weights(
      {}, {'linear': LinearShape(1, *case.kernel.shape)}, task_ids, config
    )['linear'][0]
    mixed = adapters.mix_adapter({'a': a, 'b': b}, weights, config.scale)
    y = Dense(64, 'float64').apply(
      {'params': {'kernel': case.kernel}}, x, mixed
    )
  for i, task in enumerate(task_ids):
    expected = x[i] @ (case.kernel + a[0, task] @ b[0, task] / 2)
    np.testing.assert_allclose(y[i], expected, rtol=0, atol=TOLERANCE)
