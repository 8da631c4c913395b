"""Checkpoints as T5X writes them, in both forms, without T5X."""

import dataclasses

from flax import serialization, traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from mhr_jax.t5 import config as config_lib
from mhr_jax.t5 import network as network_lib
from mhr_jax.tree_paths import leaves_by_path
import random_t5

MAX_DISTANCE = config_lib.T5Config.relative_attention_max_distance


def make_config(family='t5_1_1', seed=0, **overrides):
  """Sizes that differ from each other; what shapes do not tell is as assumed."""
  config = random_t5.draw_config(family, seed)
  overrides = {'relative_attention_max_distance': MAX_DISTANCE} | overrides
  return dataclasses.replace(config, **overrides)


def abstract_backbone(config):
  tokens = jnp.zeros((1, 2), jnp.int32)
  init = network_lib.T5(config).init
  return jax.eval_shape(init, jax.random.key(0), tokens, tokens)['params']


def draw_backbone(config, seed=0, dtype=np.float32):
  """Random parameters in the layout of the config."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: rng.normal(size=leaf.shape).astype(dtype),
    abstract_backbone(config),
  )


def read_state(folder):
  """The whole state as plain Orbax reads it."""
  reader = ocp.PyTreeCheckpointer()
  tree = reader.metadata(folder / 'state').item_metadata.tree
  as_numpy = jax.tree.map(
    lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree
  )
  return reader.restore(folder / 'state', restore_args=as_numpy)


def write_state(folder, target, **state):
  """What T5X writes, by plain Orbax; target by path."""
  state = {'step': np.int32(3), 'param_states': {}} | state
  target = traverse_util.unflatten_dict(target, sep='/')
  ocp.PyTreeCheckpointer().save(
    folder / 'state', {'state': state, 'target': target}
  )


def write_legacy(folder, target, *, version=3, spec_of=None, small=64):
  """T5X's older form: msgpack for small leaves, zarr folders for the others."""
  folder.mkdir(parents=True)
  leaves = {}
  for path, array in target.items():
    name = f'target.{path.replace("/", ".")}'
    if array.size <= small:
      leaves[path] = array
      continue
    metadata = {
      'shape': list(array.shape),
      'chunks': [-(-size // 2) for size in array.shape],
      'dtype': 'bfloat16' if array.dtype == jnp.bfloat16 else array.dtype.str,
      'compressor': {'id': 'gzip', 'level': 1},
    }
    kvstore = {'driver': 'file', 'path': f'{folder / name}/'}
    spec = {'driver': 'zarr', 'kvstore': kvstore, 'metadata': metadata}
    ts.open(spec, create=True).result().write(array).result()
    leaves[path] = (spec_of or spec_beside)(name) | {'metadata': metadata}
  target = traverse_util.unflatten_dict(leaves, sep='/')
  content = {
    'version': version,
    'optimizer': {'target': target, 'state': {'step': np.int32(3)}},
  }
  content['optimizer']['state']['param_states'] = {'m': np.zeros(5, 'f4')}
  (folder / 'checkpoint').write_bytes(serialization.msgpack_serialize(content))


def spec_beside(name):
  return {'driver': 'zarr', 'kvstore': {'driver': 'gfile', 'path': name}}


def spec_in_a_bucket(name):
  kvstore = {'driver': 'gcs', 'bucket': 't5x-dummy-bucket', 'path': f'{name}/'}
  return {'driver': 'zarr', 'kvstore': kvstore}


def spec_of_2021(name):
  return {'driver': 'zarr', 'kvstore': {'driver': 'file'}, 'path': name}


def assert_equal_trees(one, other):
  one, other = leaves_by_path(one), leaves_by_path(other)
  assert sorted(one) == sorted(other)
  for path, leaf in one.items():
    assert leaf.dtype == other[path].dtype, path
    np.testing.assert_array_equal(
      np.asarray(leaf), np.asarray(other[path]), err_msg=path
    )
