"""route: calls and variables that do not fit are refused, and say why."""

import dataclasses

from flax import linen as nn
from flax import traverse_util
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
  Decoder,
  routed_model,
)
from mhr_jax import UserError, route
from mhr_jax.adapters import AdapterConfig


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
