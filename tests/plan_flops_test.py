"""The analytic count against the products of the traced step."""

import math

import jax
from jax.extend import core
import jax.numpy as jnp
import pytest

from mhr_jax import optim, plan_flops
from mhr_jax.adapters import AdapterConfig
from mhr_jax.model import RoutedT5
from mhr_jax.t5.config import t5_config
from mhr_jax.train_state import init_state, make_train_step

_ROWS, _INPUTS, _TARGETS = 6, 10, 7


def _inner(equation):
  for value in equation.params.values():
    for each in value if isinstance(value, tuple | list) else [value]:
      if isinstance(each, core.ClosedJaxpr):
        yield each.jaxpr
      elif isinstance(each, core.Jaxpr):
        yield each


def _count_products(jaxpr):
  """FLOP of the matrix products of a jaxpr; loops count once a turn."""
  total = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'dot_general':
      (contract, _), _ = equation.params['dimension_numbers']
      left, out = equation.invars[0].aval, equation.outvars[0].aval
      depth = math.prod(left.shape[i] for i in contract)
      total += 2 * depth * math.prod(out.shape)
    inner = sum(map(_count_products, _inner(equation)))
    total += inner * equation.params.get('length', 1)
  return total


def _traced(model, trains):
  rule = optim.make_optimizer(optim.OptimizerSettings(), 10)
  state = jax.eval_shape(
    lambda tree: init_state(tree, rule, trains), model.abstract_params()
  )
  shapes = {
    'encoder_input_tokens': ((_ROWS, _INPUTS), jnp.int32),
    'decoder_input_tokens': ((_ROWS, _TARGETS), jnp.int32),
    'decoder_target_tokens': ((_ROWS, _TARGETS), jnp.int32),
    'decoder_loss_weights': ((_ROWS, _TARGETS), jnp.float32),
    'task_ids': ((_ROWS,), jnp.int32),
  }
  batch = {name: jax.ShapeDtypeStruct(*each) for name, each in shapes.items()}
  key = jax.eval_shape(lambda: jax.random.key(0))
  step = make_train_step(model, rule)
  return jax.make_jaxpr(step)(state, batch, key).jaxpr


@pytest.mark.parametrize('remat', ['none', 'full'])
@pytest.mark.parametrize(
  ('mix_in', 'adapters', 'trains'),
  [
    ('front', {'n_skills': 3, 'rank': 4, 'n_splits': 2}, None),
    ('layer', {'n_skills': 3, 'rank': 4, 'n_splits': 2}, None),
    ('front', {'mixing': 'uniform', 'n_skills': 1}, ('adapters',)),
    ('front', {'targets': '.*wo', 'rank': 2}, ('adapters',)),
    ('front', None, ('backbone',)),
  ],
)
def test_the_count_is_that_of_the_traced_products(
  mix_in, adapters, trains, remat
):
  config = t5_config('t5_1_1_tiny', vocab_size=128, remat=remat)
  added = adapters and AdapterConfig(n_tasks=5, **adapters)
  trains = trains or ('adapters', 'routers')
  shape = plan_flops.StepShape(
    _ROWS, _INPUTS, _TARGETS, trains, in_layer=mix_in == 'layer'
  )
  counted = plan_flops.count_flops(config, added, shape).total
  traced = _count_products(_traced(RoutedT5(config, added, mix_in), trains))
  # The first layers' inputs do not train, so a little is never done.
  assert traced == pytest.approx(counted, rel=0.06)


def test_a_frozen_weight_costs_four_and_a_trained_one_six():
  config = t5_config('t5_1_1_tiny')
  sizes = (_ROWS, _INPUTS, _TARGETS)
  frozen = plan_flops.StepShape(*sizes, ('adapters', 'routers'))
  trained = plan_flops.StepShape(*sizes, ('backbone',))
  a = plan_flops.count_flops(config, None, frozen)
  b = plan_flops.count_flops(config, None, trained)
  assert a.weights / 4 == b.weights / 6
  assert a.logits / 4 == b.logits / 6
