"""Checkpoints: whole or not at all, strict, on any devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mhr_jax import checkpoints, frozen, partitioning
from mhr_jax.errors import UserError

P = jax.sharding.PartitionSpec


def _tree(fill=1.0):
  return {
    'adapters': {'query': {'a': jnp.full((2, 4), fill)}},
    'routers': {'routing_logits': jnp.arange(6.0).reshape(2, 3)},
  }


def _save(folder, steps, **kwargs):
  optimizer = optax.adam(0.1)
  with checkpoints.Checkpoints(folder, **kwargs) as saved:
    for step in steps:
      tree = _tree(float(step))
      saved.save(
        step,
        trainable=tree,
        optimizer=optimizer.init(tree),
        metadata={'step': step, 'note': ['a', None]},
      )


def _assert_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_what_is_saved_comes_back(tmp_path):
  _save(tmp_path, [3])
  optimizer = optax.adam(0.1)
  with checkpoints.Checkpoints(tmp_path) as saved:
    assert saved.latest_step == 3
    assert saved.metadata(3) == {'step': 3, 'note': ['a', None]}
    shapes = jax.eval_shape(lambda: (_tree(), optimizer.init(_tree())))
    trainable, state = saved.restore(
      3, trainable=shapes[0], optimizer=shapes[1]
    )
  _assert_equal(trainable, _tree(3.0))
  _assert_equal(state, optimizer.init(_tree()))
  assert checkpoints.read_metadata(tmp_path, 3)['step'] == 3
  _assert_equal(checkpoints.read_trainable(tmp_path, 3, shapes[0]), _tree(3.0))


def test_the_last_ones_and_every_so_many_are_kept(tmp_path):
  _save(tmp_path, range(1, 10), keep=2, keep_every=4)
  assert checkpoints.committed_steps(tmp_path) == (4, 8, 9)


def test_a_save_broken_off_is_not_a_step(tmp_path):
  _save(tmp_path, [1, 2])
  folder = tmp_path / 'checkpoints'
  (folder / '3.orbax-checkpoint-tmp').mkdir()
  (folder / '3.orbax-checkpoint-tmp' / 'trainable').mkdir()
  assert checkpoints.committed_steps(tmp_path) == (1, 2)
  with checkpoints.Checkpoints(tmp_path) as saved:
    assert saved.steps == (1, 2)
  _save(tmp_path, [3])
  assert checkpoints.committed_steps(tmp_path) == (1, 2, 3)


def test_a_committed_step_is_left_as_it_is(tmp_path):
  _save(tmp_path, [1, 1])
  assert checkpoints.committed_steps(tmp_path) == (1,)


def test_a_folder_without_checkpoints_has_none(tmp_path):
  assert checkpoints.committed_steps(tmp_path / 'nothing') == ()


def test_restoring_names_every_leaf_that_does_not_fit(tmp_path):
  _save(tmp_path, [1])
  target = _tree()
  target['routers']['routing_logits'] = jnp.ones((5, 3))
  target['adapters']['key'] = target['adapters'].pop('query')
  with pytest.raises(UserError) as info:
    checkpoints.read_trainable(tmp_path, 1, target)
  message = str(info.value)
  for part in (
    'adapters/key/a: the checkpoint has no such array, the model wants (2, 4)',
    'adapters/query/a: the model has no such parameter',
    'routers/routing_logits: the checkpoint has (2, 3), the model wants (5, 3)',
  ):
    assert part in message


def test_trees_move_between_meshes(tmp_path):
  tree = _tree()
  one = partitioning.make_mesh(2, 4)
  placed = jax.device_put(tree, jax.sharding.NamedSharding(one, P('data')))
  checkpoints.save_tree(tmp_path / 'tree', placed)
  other = jax.sharding.NamedSharding(partitioning.make_mesh(1, 8), P())
  target = checkpoints.with_shardings(tree, jax.tree.map(lambda _: other, tree))
  found = checkpoints.restore_tree(tmp_path / 'tree', target)
  _assert_equal(found, tree)
  assert found['adapters']['query']['a'].sharding == other


def test_restoring_converts_to_the_type_wanted(tmp_path):
  checkpoints.save_tree(tmp_path / 'tree', _tree())
  target = jax.eval_shape(
    lambda: jax.tree.map(lambda x: x.astype(jnp.bfloat16), _tree())
  )
  found = checkpoints.restore_tree(tmp_path / 'tree', target)
  assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype('bfloat16')}


def test_frozen_subtrees_are_saved_once_and_known_by_checksum(tmp_path):
  folder = tmp_path / 'backbone'
  first = frozen.save_frozen(folder, _tree())
  arrays = folder / frozen.ARRAYS_FOLDER
  written = arrays.stat().st_mtime_ns
  assert frozen.save_frozen(folder, _tree()) == first
  assert arrays.stat().st_mtime_ns == written
  assert frozen.read_frozen(folder)['parameters'] == 14
  _assert_equal(frozen.restore_frozen(folder, _tree()), _tree())
  frozen.check_frozen(tmp_path, {'backbone': first})
  with pytest.raises(UserError, match='backbone is not the one'):
    frozen.save_frozen(folder, _tree(2.0))
  with pytest.raises(UserError, match='the checkpoint was made with'):
    frozen.check_frozen(tmp_path, {'backbone': 'another'})
  with pytest.raises(UserError, match='adapters is missing'):
    frozen.check_frozen(tmp_path, {'adapters': first})


def test_a_frozen_save_broken_off_is_made_whole(tmp_path):
  folder = tmp_path / 'backbone'
  first = frozen.save_frozen(folder, _tree(2.0))
  (folder / frozen.FROZEN_FILE).unlink()
  assert frozen.save_frozen(folder, _tree()) != first
  _assert_equal(frozen.restore_frozen(folder, _tree()), _tree())


@pytest.mark.parametrize(
  ('file', 'named'),
  [
    ('metadata/metadata', 'metadata'),
    ('trainable/_METADATA', 'trainable'),
    ('trainable/manifest.ocdbt', 'trainable'),
    ('trainable/d', 'trainable'),
  ],
)
@pytest.mark.parametrize('cut', [False, True])
def test_damaged_files_of_a_step_are_named(tmp_path, file, named, cut):
  _save(tmp_path, [1])
  path = tmp_path / 'checkpoints' / '1' / file
  for part in path.iterdir() if path.is_dir() else (path,):
    if cut:
      part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
    else:
      part.unlink()
  message = rf'checkpoints/1/{named} cannot be read: .* copy it again'
  with pytest.raises(UserError, match=message):
    if named == 'metadata':
      checkpoints.read_metadata(tmp_path, 1)
    else:
      checkpoints.read_trainable(tmp_path, 1, _tree())
  optimizer = optax.adam(0.1).init(_tree())
  with (
    checkpoints.Checkpoints(tmp_path) as saved,
    pytest.raises(UserError, match=message),
  ):
    saved.metadata(1)
    saved.restore(1, trainable=_tree(), optimizer=optimizer)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('{"checksum": ', 'is not whole JSON: .* line 1'),
    ('{}', 'lacks checksum, config'),
    ('{"format_version": 9, "checksum": ""}', 'has format 9; .* up to 1'),
  ],
)
def test_damaged_facts_of_a_frozen_subtree_are_named(tmp_path, text, message):
  (tmp_path / frozen.FROZEN_FILE).write_text(text)
  with pytest.raises(UserError, match=rf'{frozen.FROZEN_FILE} {message}'):
    frozen.read_frozen(tmp_path)
