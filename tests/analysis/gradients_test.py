"""Gradient alignment against gradients of the routed model, pair by pair."""

import dataclasses
import itertools

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from mhr_jax import adapters as adapters_lib
from mhr_jax import losses, partitioning, routing
from mhr_jax.analysis import gradients, unit_gradients
from mhr_jax.data import ordered
from mhr_jax.errors import UserError
from mhr_jax.model import RoutedT5
from mhr_jax.tree_paths import leaves_by_path
import toy_text

_SETTINGS = gradients.AlignmentSettings(examples=5, batch_size=3)


def _batches(settings=_SETTINGS):
  return gradients.build_task_batches(
    [toy_text.make_source(task, 7) for task in toy_text.TASKS.names],
    toy_text.TASKS,
    settings,
    **toy_text.WIDTHS,
  )


@pytest.fixture(scope='module')
def model():
  return toy_text.make_model(alpha=3.0)  # A scale other than 1.


@pytest.fixture(scope='module')
def params(model):
  return toy_text.make_params(model)


@pytest.fixture(scope='module')
def found(model, params):
  return gradients.measure_alignment(model, params, _batches())


def _of_all_batches(gradient, tasks):
  """Returns a gradient a task, {path: float64}, summed over its batches."""
  result = []
  for task in tasks:
    trees = [leaves_by_path(gradient(task, batch)) for batch in task.batches]
    result.append(
      {
        path: sum(np.asarray(tree[path], np.float64) for tree in trees)
        for path in trees[0]
      }
    )
  return result


def _mean_cosine(by_task, keep):
  """The plain loop over pairs, over the leaves whose path `keep` takes."""
  rows = [
    np.concatenate([x.ravel() for path, x in leaves.items() if keep(path)])
    for leaves in by_task
  ]
  cosines = [
    a @ b / np.sqrt((a @ a) * (b @ b))
    for a, b in itertools.combinations(rows, 2)
  ]
  return np.mean(cosines)


def _expected(by_task, kind):
  """Everything that is measured, by name."""
  paths = list(by_task[0])
  sublayers = {'/'.join(path.split('/')[:2]) for path in paths}
  names = {kind: lambda path: True}
  for sublayer in sublayers:
    names[f'{kind}/{sublayer}'] = lambda path, s=sublayer: path.startswith(s)
  for leaf in ('a', 'b'):
    names[f'{kind}/{leaf}'] = lambda path, leaf=leaf: path.endswith(f'/{leaf}')
  return {name: _mean_cosine(by_task, keep) for name, keep in names.items()}


def _measured(found, kind):
  return {k: v for k, v in found.items() if k.partition('/')[0] == kind}


def test_inventories_equal_gradients_of_the_routed_model(model, params, found):
  @jax.jit
  def gradient(adapters, batch):
    return jax.grad(lambda x: model.loss({**params, 'adapters': x}, batch)[0])(
      adapters
    )

  by_task = _of_all_batches(
    lambda task, batch: gradient(params['adapters'], batch), _batches()
  )
  expected = _expected(by_task, 'inventories')
  assert _measured(found, 'inventories') == pytest.approx(expected, abs=2e-6)
  assert max(map(abs, expected.values())) > 0.05


def test_effective_equals_gradients_of_a_network_with_the_mixed_pairs(
  model, params, found
):
  """The pairs are handed to the network itself, the scale applied to b."""
  config = model.adapters

  def loss(pair, batch):
    scaled = jax.tree_util.tree_map_with_path(
      lambda path, x: x * config.scale if path[-1].key == 'b' else x, pair
    )
    logits = model.network.apply(
      {'params': params['backbone']},
      batch['encoder_input_tokens'],
      batch['decoder_input_tokens'],
      scaled,
    )
    return losses.token_cross_entropy(
      logits, batch['decoder_target_tokens'], batch['decoder_loss_weights']
    )[0]

  gradient = jax.jit(jax.grad(loss))

  def of_task(task, batch):
    weights = routing.compute_mixing_weights(
      params['routers'],
      adapters_lib.linears_of(params['adapters']),
      jnp.array([task.task_id]),
      config,
    )
    pair = adapters_lib.mix_adapters(
      adapters_lib.pair_with_weights(params['adapters'], weights)
    )
    return gradient(pair, batch)

  by_task = _of_all_batches(of_task, _batches())
  expected = _expected(by_task, 'effective')
  assert _measured(found, 'effective') == pytest.approx(expected, abs=2e-6)
  assert found['tasks'] == 3
  assert found['zero_gradients'] == 0


def test_private_inventories_alone_are_nothing_to_measure():
  model = toy_text.make_model(mixing='private', n_splits=1)
  found = gradients.measure_alignment(
    model, {}, [gradients.TaskBatches(i, ()) for i in range(3)], ['inventories']
  )
  assert found == {'tasks': 3}


def test_scales_of_ia3_align_as_gradients_of_the_model():
  config = dataclasses.replace(
    toy_text.ADAPTERS, targets=('.*/mlp/wo',)
  ).of_kind('ia3')
  model = RoutedT5(toy_text.CONFIG, config)
  params = toy_text.make_params(model)
  assert {
    path.rpartition('/')[2] for path in leaves_by_path(params['adapters'])
  } == {'scale'}
  tasks = [task._replace(batches=task.batches[:1]) for task in _batches()]
  found = gradients.measure_alignment(model, params, tasks, ('inventories',))
  gradient = jax.jit(
    jax.grad(lambda x, batch: model.loss({**params, 'adapters': x}, batch)[0])
  )
  by_task = _of_all_batches(
    lambda _, batch: gradient(params['adapters'], batch), tasks
  )
  expected = _mean_cosine(by_task, lambda path: True)
  assert found['inventories'] == pytest.approx(expected, abs=2e-6)
  assert abs(expected) > 0.01
  assert set(found) == {
    'inventories',
    'inventories/encoder/mlp',
    'inventories/decoder/mlp',
    'tasks',
    'zero_gradients',
  }


def test_where_b_is_zero_a_has_no_gradient_and_no_alignment(model, params):
  start = jax.tree_util.tree_map_with_path(
    lambda path, x: x * (path[-1].key != 'b'), params['adapters']
  )
  found = gradients.measure_alignment(
    model, {**params, 'adapters': start}, _batches()
  )
  assert 'effective/a' not in found
  assert 'inventories/a' not in found
  # What is left is b alone.
  assert found['effective'] == pytest.approx(found['effective/b'])
  assert found['zero_gradients'] == 0


def test_tasks_with_the_same_examples_and_adapter_align_fully(model, params):
  task = _batches()[0]
  found = gradients.measure_alignment(model, params, [task, task])
  measured = {
    **_measured(found, 'effective'),
    **_measured(found, 'inventories'),
  }
  assert measured == pytest.approx(dict.fromkeys(measured, 1.0), abs=2e-6)


def test_one_task_has_nothing_to_align_with(model, params):
  with pytest.raises(UserError, match='there are 1'):
    gradients.measure_alignment(model, params, _batches()[:1])


@pytest.mark.slow
def test_an_adapter_a_task_has_no_alignment_of_inventories():
  config = dataclasses.replace(
    toy_text.ADAPTERS, mixing='private', n_splits=1, targets=('.*/mlp/wo',)
  )
  model = RoutedT5(toy_text.CONFIG, config)
  params = toy_text.make_params(model)
  found = gradients.measure_alignment(model, params, _batches())
  assert abs(found['effective']) > 1e-3
  # By construction they are orthogonal, so they are not measured.
  assert not _measured(found, 'inventories')
  batch = _batches()[0].batches[0]
  gradient = jax.grad(
    lambda x: model.loss({**params, 'adapters': x}, batch)[0]
  )(params['adapters'])
  for leaf in jax.tree.leaves(gradient):
    own = leaf[:, :, batch['task_ids'][0]]
    assert own.any() and jnp.sum(leaf**2) == jnp.sum(own**2)


@pytest.mark.slow
def test_one_shared_adapter_is_both_and_full_training_the_backbone():
  config = toy_text.ADAPTERS.without_routing()
  model = RoutedT5(toy_text.CONFIG, config)
  params = toy_text.make_params(model)
  found = gradients.measure_alignment(model, params, _batches())
  for name, value in _measured(found, 'effective').items():
    same = name.replace('effective', 'inventories')
    assert found[same] == pytest.approx(value, abs=1e-6)

  bare = RoutedT5(toy_text.CONFIG)
  found = gradients.measure_alignment(bare, params, _batches())
  gradient = jax.jit(
    jax.grad(lambda x, batch: bare.loss({'backbone': x}, batch)[0])
  )
  by_task = _of_all_batches(
    lambda _, batch: gradient(params['backbone'], batch), _batches()
  )
  expected = _mean_cosine(by_task, lambda path: True)
  assert found['backbone'] == pytest.approx(expected, abs=2e-6)
  assert 'backbone/encoder/attention' in found


@pytest.mark.slow
def test_on_a_mesh_the_numbers_are_the_same_and_sums_stay_split(
  model, params, found
):
  mesh = partitioning.make_mesh(3, 2, devices=jax.devices()[:6])
  places = partitioning.shardings(model.logical_axes(), mesh, params).tree
  on_mesh = partitioning.put(params, places)
  again = gradients.measure_alignment(model, on_mesh, _batches())
  assert again == pytest.approx(found, abs=2e-6)


# The sums alone, on arrays.


def _add_all(gradients_of_tasks, kind='effective'):
  parts = unit_gradients.start_sums(gradients_of_tasks[0], kind)
  for gradient in gradients_of_tasks:
    parts = unit_gradients.add_gradient(parts, gradient, kind)
  return unit_gradients.finish_sums(parts, kind)


def _tree(enc, dec):
  return {
    'encoder': {'mlp': {'wo': {'a': jnp.float32(enc), 'b': jnp.zeros(2)}}},
    'decoder': {'mlp': {'wo': {'a': jnp.float32(dec), 'b': jnp.zeros(2)}}},
  }


def test_two_vectors_in_closed_form_each_group_normalised_on_its_own():
  found = _add_all([_tree([3, 4], [0, 2]), _tree([4, 3], [2, 0])])
  cosines = {name: float(value) for name, (value, _) in found.items()}
  assert cosines['encoder/mlp'] == pytest.approx(24 / 25)
  assert cosines['decoder/mlp'] == pytest.approx(0, abs=1e-7)
  assert cosines[''] == pytest.approx(24 / (25 + 4))
  assert cosines['a'] == cosines['']
  assert int(found['b'][1]) == 0


def test_a_gradient_of_zero_is_left_out_of_the_mean():
  zero = _tree([0, 0], [1, 0])
  found = _add_all([_tree([1, 0], [1, 0]), zero, _tree([1, 1], [1, 0])])
  value, n = found['encoder/mlp']
  assert int(n) == 2
  assert float(value) == pytest.approx(0.5**0.5)
  assert int(found[''][1]) == 3


def test_memory_does_not_grow_with_the_tasks():
  """Nothing in the step is larger than the largest leaf."""
  gradient = {'encoder': {'mlp': {'wo': {'a': np.ones((7, 11), np.float32)}}}}
  parts = unit_gradients.start_sums(gradient, 'inventories')
  step = jax.make_jaxpr(
    lambda parts, g: unit_gradients.add_gradient(parts, g, 'inventories')
  )(parts, gradient)
  sizes = [v.aval.size for eqn in step.eqns for v in eqn.outvars]
  assert max(sizes) == 77
  assert jax.tree.map(jnp.shape, _shapes(step)) == jax.tree.map(
    jnp.shape, jax.tree.leaves(parts)
  )


def _shapes(jaxpr):
  return [jnp.zeros(v.aval.shape) for v in jaxpr.jaxpr.outvars]


# What is measured on.


def test_the_choice_of_tasks_and_examples_is_seeded():
  names = [f'task{i}' for i in range(20)]
  chosen = gradients.choose_tasks(names, 5, 0)
  assert chosen == gradients.choose_tasks(names, 5, 0)
  assert chosen != gradients.choose_tasks(names, 5, 1)
  assert len(set(chosen)) == 5
  assert sorted(chosen, key=names.index) == list(chosen)
  assert gradients.choose_tasks(names, 99, 0) == tuple(names)


def test_tasks_of_one_size_draw_examples_of_their_own():
  drawn = [
    [
      source._examples.index(example)
      for example in gradients._draw_examples(source, _SETTINGS)._examples
    ]
    for source in (
      ordered.ExampleSource(name, [{'i': i} for i in range(50)])
      for name in ('one', 'two', 'one')
    )
  ]
  assert drawn[0] == drawn[2] != drawn[1]


def test_batches_hold_each_drawn_example_once():
  (first, *_), again = _batches(), _batches()[0]
  assert len(first.batches) == 2
  for batch, other in zip(first.batches, again.batches, strict=True):
    jax.tree.map(np.testing.assert_array_equal, batch, other)
  rows = np.concatenate([b['encoder_input_tokens'] for b in first.batches])
  weights = np.concatenate([b['decoder_loss_weights'] for b in first.batches])
  real = weights.sum(axis=1) > 0
  assert real.sum() == 5
  assert rows.shape == (6, 8)


@pytest.mark.parametrize(
  ('changes', 'message'),
  (
    ({'tasks': 1}, 'tasks is 1; at least 2'),
    ({'every': -1}, 'every is -1'),
    ({'wrt': ('efective',)}, "of 'efective': one of.*'effective'"),
    ({'wrt': ()}, 'wrt is empty'),
  ),
)
def test_impossible_settings(changes, message):
  with pytest.raises(UserError, match=message):
    gradients.AlignmentSettings(**changes)
