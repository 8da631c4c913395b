"""Mixing weights of every scope against a plain loop; closed-form statistics."""

import jax
import numpy as np
import pytest

from mhr_jax import adapters, routing
from mhr_jax.analysis import routing as analysis
from mhr_jax.errors import UserError
from mhr_jax.task_table import TaskTable

LINEARS = {
  'encoder/attention/query': adapters.LinearShape(2, 8, 8),
  'encoder/mlp/wi': adapters.LinearShape(2, 8, 12),
  'decoder/mlp/wi': adapters.LinearShape(3, 8, 12),
}


def _params(config: adapters.AdapterConfig):
  key = jax.random.key(0)
  params = {'adapters': adapters.init_adapters(key, config, LINEARS)}
  if config.has_routers:
    routers = routing.init_routers(
      key,
      LINEARS,
      n_tasks=config.n_tasks,
      n_splits=config.n_splits,
      n_skills=config.n_skills,
      scope=config.router_scope,
    )
    params['routers'] = jax.tree.map(lambda x: x * 2e3, routers)
  return params


@pytest.mark.parametrize('scope', routing.ROUTER_SCOPES)
def test_weights_equal_a_plain_loop(scope):
  config = adapters.AdapterConfig(
    n_tasks=5, n_skills=3, n_splits=2, router_scope=scope
  )
  params = _params(config)
  weights = analysis.task_mixing_weights(params, config)
  assert set(weights) == set(LINEARS)
  for path, linear in LINEARS.items():
    node = params['routers']
    for part in routing.router_of(path, scope).split('/'):
      node = node[part]
    logits = np.asarray(node[routing.LOGITS], np.float64)
    for layer in range(linear.layers):
      of_layer = logits[layer] if logits.ndim == 4 else logits
      for task in range(5):
        z = 1 / (1 + np.exp(-of_layer[task]))
        expected = z / z.sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(
          weights[path][layer, task], expected, rtol=1e-5
        )


def test_unrouted_methods_have_weights_too():
  uniform = adapters.AdapterConfig(n_tasks=4, n_skills=2, mixing='uniform')
  weights = analysis.task_mixing_weights(_params(uniform), uniform)
  assert weights['encoder/mlp/wi'].shape == (2, 4, 1, 2)
  assert np.all(weights['encoder/mlp/wi'] == 0.5)
  private = adapters.AdapterConfig(n_tasks=4, n_skills=4, mixing='private')
  weights = analysis.task_mixing_weights(_params(private), private)
  np.testing.assert_array_equal(weights['decoder/mlp/wi'][0, :, 0], np.eye(4))


def test_no_adapters_is_an_error():
  config = adapters.AdapterConfig(n_tasks=2)
  with pytest.raises(UserError, match='no adapters'):
    analysis.task_mixing_weights({'backbone': {}}, config)


def test_usage_and_entropy_in_closed_form():
  weights = np.array([[[1.0, 0.0]], [[0.5, 0.5]]])  # task, split, skill
  np.testing.assert_allclose(analysis.usage(weights), [[0.75, 0.25]])
  np.testing.assert_allclose(analysis.entropy(weights), [[0.0], [1.0]])
  assert analysis.entropy(np.ones((3, 1))).tolist() == [0, 0, 0]


def test_weights_with_signs_or_any_sum_count_by_their_size():
  weights = np.array([[[0.6, -0.6]], [[0.0, 2.0]], [[0.0, 0.0]]])
  np.testing.assert_allclose(analysis.entropy(weights), [[1.0], [0.0], [0.0]])
  np.testing.assert_allclose(analysis.usage(weights[:2]), [[0.25, 0.75]])


def test_similarity_finds_two_groups():
  on, off = [0.9, 0.1], [0.1, 0.9]
  weights = {'x': np.array([[[on], [off], [on], [off]]])}
  similarity = analysis.task_similarity(weights)
  expected = [[1, -1, 1, -1], [-1, 1, -1, 1]] * 2
  np.testing.assert_allclose(similarity, expected, atol=1e-9)
  order = list(analysis.order_tasks(similarity))
  assert {frozenset(order[:2]), frozenset(order[2:])} == {
    frozenset({0, 2}),
    frozenset({1, 3}),
  }


def test_similarity_of_uniform_routing_is_zero_not_nan():
  weights = {'x': np.full((2, 3, 1, 4), 0.25)}
  np.testing.assert_array_equal(analysis.task_similarity(weights), np.eye(3))
  assert sorted(analysis.order_tasks(np.eye(3))) == [0, 1, 2]


def test_routing_file_round_trip(tmp_path):
  assert analysis.load_routing(tmp_path) is None
  weights = {'encoder/mlp/wi': np.random.default_rng(0).random((2, 2, 1, 3))}
  tasks = TaskTable(('a', 'b'))
  analysis.save_routing(tmp_path, weights, tasks)
  loaded, names = analysis.load_routing(tmp_path)
  assert names == tasks
  np.testing.assert_allclose(
    loaded['encoder/mlp/wi'], weights['encoder/mlp/wi'], rtol=1e-6
  )
  with pytest.raises(UserError, match='the task table has 1'):
    analysis.save_routing(tmp_path, weights, TaskTable(('a',)))
