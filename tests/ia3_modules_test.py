"""(IA)³ in RoutedDense and in any Linen model, by the plain layers."""

import functools

from flax import linen as nn
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from flax_models import IDS, TASKS, Decoder, own_part, random_variables
from mhr_jax import RoutedDense, UserError, adapters, route
from mhr_jax.adapters import AdapterConfig

# 3 divides what the layers put out, and not the 8 that they take in.
CONFIG = AdapterConfig(n_tasks=3, n_skills=2, n_splits=3, kind='ia3')
FORMS = {
  'dense': (nn.Dense, {'features': 6}, (4, 8)),
  'to_heads': (nn.DenseGeneral, {'features': (2, 3)}, (4, 5, 8)),
  'from_heads': (
    nn.DenseGeneral,
    {'features': 6, 'axis': (-2, -1)},
    (4, 5, 2, 4),
  ),
}


@pytest.mark.parametrize('form', FORMS)
def test_each_examples_output_is_scaled_bias_and_all(form):
  plain, arguments, shape = FORMS[form]
  rng = np.random.default_rng(0)
  x = jnp.array(rng.normal(size=shape), jnp.float32)
  routed = RoutedDense(**arguments, adapters=CONFIG)
  shapes = jax.eval_shape(routed.init, jax.random.key(0), x, TASKS)
  assert jax.tree.map(jnp.shape, shapes['adapters']) == {'scale': (3, 2, 2)}
  variables = jax.tree.map(
    lambda leaf: jnp.array(rng.normal(size=leaf.shape), leaf.dtype), shapes
  )
  y = routed.apply(variables, x, TASKS)
  bare = plain(**arguments).apply({'params': variables['params']}, x)
  scale = np.float64(variables['adapters']['scale'])
  gates = 1 / (1 + np.exp(-variables['routers']['routing_logits']))
  for i, task in enumerate(TASKS):
    columns = []
    for split in range(3):
      weights = gates[task, split] / gates[task, split].sum()
      columns += list(
        weights[0] * scale[split, 0] + weights[1] * scale[split, 1]
      )
    columns = np.reshape(columns, arguments['features'])
    np.testing.assert_allclose(y[i], bare[i] * columns, rtol=1e-4, atol=1e-5)
  untrained = {**variables, 'adapters': {'scale': jnp.ones((3, 2, 2))}}
  np.testing.assert_array_equal(routed.apply(untrained, x, TASKS), bare)


def test_the_linears_of_a_scanned_model_are_scaled():
  """By the plain model, whose kernels and biases have scaled columns."""
  targets = ('.*/(key|value)', '.*/up')
  config = AdapterConfig(3, 4, 2, targets=targets, kind='ia3')
  model = Decoder(stacked_on=1)
  routed = route(model, config)
  variables = random_variables(routed, IDS)
  # As restored from a file: an object that has not seen `init`.
  y = jax.jit(route(model, config).apply)(variables, IDS, task_ids=TASKS)
  own, plain = own_part(variables), jax.jit(model.apply)
  for i, task in enumerate(TASKS):
    params = jax.tree.map(np.array, own['params'])
    scales = adapters.task_adapter(variables, int(task), config)
    for path, adapter in adapters.list_inventories(scales).items():
      node = functools.reduce(lambda t, k: t[k], path.split('/'), params)
      for leaf, x in node.items():
        layers = np.moveaxis(x, 1, 0)
        features = layers.ndim - (2 if leaf == 'kernel' else 1)
        for layer, scale in zip(layers, adapter['scale'], strict=True):
          layer *= np.asarray(scale).reshape(layer.shape[-features:])
    expected = plain({**own, 'params': params}, IDS[i : i + 1])
    np.testing.assert_allclose(y[i], expected[0], rtol=1e-3, atol=1e-4)


def test_variables_of_another_kind_are_refused():
  x = jnp.ones((4, 8))
  routed = RoutedDense(6, adapters=CONFIG)
  variables = routed.init(jax.random.key(0), x, TASKS)
  pairs = RoutedDense(6, adapters=AdapterConfig(3, 2, 1))
  with pytest.raises(UserError, match='no adapters for it'):
    pairs.apply(variables, x, TASKS)
  model = route(Decoder(), AdapterConfig(3, targets='.*/up'))
  scales = route(Decoder(), AdapterConfig(3, targets='.*/up', kind='ia3'))
  with pytest.raises(UserError, match='/a is missing'):
    model.apply(random_variables(scales, IDS), IDS, task_ids=TASKS)
