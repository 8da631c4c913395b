"""Meshes, and where parameters, optimizer state and batches live."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mhr_jax import checksums, optim, partitioning
from mhr_jax.errors import UserError

P = jax.sharding.PartitionSpec

_AXES = {
  'backbone': {'wi': ('layers', 'embed', 'mlp'), 'norm': ('embed',)},
  'adapters': {
    'a': ('layers', 'split', 'skill', 'embed', 'rank'),
    'b': ('layers', 'split', 'skill', 'rank', 'mlp'),
  },
  'routers': {'routing_logits': ('layers', 'task', 'split', 'skill')},
}
_PARAMS = {
  'backbone': {'wi': jnp.ones((2, 8, 16)), 'norm': jnp.ones(8)},
  'adapters': {'a': jnp.ones((2, 1, 3, 8, 1)), 'b': jnp.ones((2, 1, 3, 1, 16))},
  'routers': {'routing_logits': jnp.ones((2, 5, 1, 3))},
}


def _specs(found):
  return jax.tree.map(lambda s: s.spec, found.tree)


@pytest.mark.parametrize(
  ('data', 'model', 'shape'),
  [(-1, 1, (8, 1)), (-1, 4, (2, 4)), (4, -1, (4, 2)), (2, 4, (2, 4))],
)
def test_mesh_takes_what_is_left(data, model, shape):
  mesh = partitioning.make_mesh(data, model)
  assert mesh.axis_names == ('data', 'model')
  assert mesh.devices.shape == shape


@pytest.mark.parametrize('shape', [(3, -1), (2, 2), (-1, -1), (-1, 0), (16, 1)])
def test_mesh_that_does_not_fit(shape):
  with pytest.raises(UserError, match='does not fit the 8 devices'):
    partitioning.make_mesh(*shape)


def test_rules_place_parameters_and_spread_adapters_over_the_mesh():
  found = partitioning.shardings(_AXES, partitioning.make_mesh(2, 4), _PARAMS)
  assert _specs(found) == {
    'backbone': {'wi': P(None, None, 'model'), 'norm': P()},
    'adapters': {
      'a': P(None, None, None, ('model', 'data')),
      'b': P(None, None, None, None, ('model', 'data')),
    },
    'routers': {'routing_logits': P()},
  }
  assert found.notes == ()


def test_splits_take_the_place_of_their_features():
  shapes = {'a': (2, 4, 3, 8, 2), 'b': (2, 4, 3, 2, 16)}
  params = {
    'adapters': {name: jnp.ones(shape) for name, shape in shapes.items()},
    'routers': {'routing_logits': jnp.ones((2, 5, 4, 3))},
  }
  axes = {label: _AXES[label] for label in params}
  found = partitioning.shardings(axes, partitioning.make_mesh(2, 4), params)
  # The network has `mlp` over `model`, and `embed` whole.
  assert _specs(found) == {
    'adapters': {
      'a': P(None, None, None, ('model', 'data')),
      'b': P(None, 'model', None, None, 'data'),
    },
    'routers': {'routing_logits': P(None, None, 'model')},
  }
  odd = {'adapters': {'b': jnp.ones((2, 2, 3, 2, 16))}}
  mesh = partitioning.make_mesh(2, 4)
  found = partitioning.shardings(
    {'adapters': {'b': axes['adapters']['b']}}, mesh, odd
  )
  assert found.tree['adapters']['b'].spec == P(
    None, None, None, None, ('model', 'data')
  )
  assert found.notes == ()


def test_2d_rules_split_the_backbone_over_both_axes():
  found = partitioning.shardings(
    _AXES,
    partitioning.make_mesh(2, 4),
    _PARAMS,
    rules=partitioning.LOGICAL_AXIS_RULES_2D,
  )
  assert found.tree['backbone']['wi'].spec == P(None, 'data', 'model')


def test_an_axis_that_does_not_divide_stays_whole_and_is_reported():
  params = {'backbone': {'wi': jnp.ones((8, 6))}}
  axes = {'backbone': {'wi': ('embed', 'mlp')}}
  found = partitioning.shardings(axes, partitioning.make_mesh(2, 4), params)
  assert found.tree['backbone']['wi'].spec == P()
  assert found.notes == (
    'backbone/wi: mlp of 6 does not divide by model of 4; it is not split.',
  )


def test_axes_must_match_the_parameters():
  mesh = partitioning.make_mesh()
  params = {'backbone': {'wi': jnp.ones((8, 6))}}
  with pytest.raises(UserError, match=r'backbone/wi has shape \(8, 6\)'):
    partitioning.shardings({'backbone': {'wi': ('embed',)}}, mesh, params)
  with pytest.raises(UserError, match="no rule for the axis 'mpl'"):
    axes = {'backbone': {'wi': ('embed', 'mpl')}}
    partitioning.shardings(axes, mesh, params)


@pytest.mark.parametrize('name', ['adamw', 'adafactor'])
def test_optimizer_state_lives_with_its_parameter(name):
  mesh = partitioning.make_mesh(2, 4)
  where = partitioning.shardings(_AXES, mesh, _PARAMS).tree
  optimizer = optim.make_optimizer(optim.OptimizerSettings(name=name), 10)
  state = jax.eval_shape(optimizer.init, _PARAMS)
  found = partitioning.train_state_shardings(state, where, _PARAMS, mesh)
  if name == 'adafactor':
    moments = optax.tree_utils.tree_get(found, 'moments')
    specs = jax.tree.map(lambda place: place.spec, moments)
    # a [2, 1, 3, 8, 1], b [2, 1, 3, 1, 16], wi [2, 8, 16] as a matrix.
    both = ('model', 'data')
    assert specs['adapters'] == {
      'a': {'row': P(None, None, None, both), 'col': P()},
      'b': {'row': P(), 'col': P(None, None, None, both)},
    }
    assert specs['routers']['routing_logits'] == {'row': P(), 'col': P()}
    assert specs['backbone']['norm'] == {'full': P()}
    return
  moments = optax.tree_utils.tree_get(found, 'mu')
  assert jax.tree.all(jax.tree.map(lambda a, b: a == b, moments, where))
  assert (
    optax.tree_utils.tree_get_all_with_path(found, 'count')[0][1].spec == P()
  )


def test_batches_are_split_over_data():
  mesh = partitioning.make_mesh(4, 2)
  rows = np.arange(24).reshape(8, 3)
  batch = partitioning.put_batch({'x': rows}, mesh)
  assert batch['x'].sharding.spec == P('data')
  np.testing.assert_array_equal(batch['x'], rows)
  assert partitioning.data_shard(mesh) == (0, 1)
  with pytest.raises(UserError, match='6 rows does not divide by the 4'):
    partitioning.put_batch({'x': rows[:6]}, mesh)


@pytest.mark.parametrize(
  ('processes', 'index', 'expected'),
  [
    ([[0], [0], [1], [1]], 1, (1, 2)),
    ([[0], [0], [1], [1], [0], [0], [1], [1]], 0, (0, 2)),  # 2×2 chips a host
    ([[0], [0], [1], [1], [0], [0], [1], [1]], 1, (1, 2)),
    ([[0, 1], [0, 1], [2, 3], [2, 3]], 1, (0, 2)),
    ([[0, 1], [0, 1], [2, 3], [2, 3]], 2, (1, 2)),
    ([[0, 1, 2, 3]], 3, (0, 1)),
  ],
)
def test_each_row_of_a_batch_comes_from_one_part(
  processes, index, expected, monkeypatch
):
  monkeypatch.setattr(jax, 'process_index', lambda: index)
  assert partitioning.data_shard(_mesh_of_processes(processes)) == expected


def test_rows_that_processes_share_in_part_are_refused():
  mesh = _mesh_of_processes([[0, 0], [0, 1], [1, 1]])
  with pytest.raises(UserError, match='another mesh than data=3, model=2'):
    partitioning.data_shard(mesh)


def _mesh_of_processes(processes):
  """A stand-in for a mesh over devices of several processes."""
  devices = np.empty(np.shape(processes), object)
  for place, process in np.ndenumerate(np.array(processes)):
    devices[place] = types.SimpleNamespace(process_index=int(process))
  return types.SimpleNamespace(devices=devices, axis_names=('data', 'model'))


def test_checksum_does_not_depend_on_the_devices():
  mesh = partitioning.make_mesh(2, 4)
  rng = np.random.default_rng(0)
  tree = {
    'wi': jnp.asarray(rng.normal(size=(4, 16)), jnp.float32),
    'half': jnp.asarray(rng.normal(size=(16,)), jnp.bfloat16),
    'ids': jnp.arange(3),
  }
  where = jax.sharding.NamedSharding(mesh, P(None, 'model'))
  moved = {**tree, 'wi': jax.device_put(tree['wi'], where)}
  assert checksums.checksum(tree) == checksums.checksum(moved)


def test_checksum_sees_values_places_names_shapes_and_types():
  x = jnp.asarray([[1.0, 2.0], [3.0, 4.0]])
  trees = [
    {'w': x},
    {'w': x.at[0, 0].set(jnp.nextafter(1.0, 2.0))},
    {'w': x[::-1]},
    {'w': x.T},
    {'w': x.reshape(4)},
    {'w': x.astype(jnp.bfloat16)},
    {'v': x},
    {'w': x, 'v': x},
  ]
  assert len({checksums.checksum(t) for t in trees}) == len(trees)
