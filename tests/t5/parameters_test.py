"""Names, shapes, counts, logical axes, and the two layouts."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mhr_jax import tree_paths
from mhr_jax.t5 import config as config_lib
from mhr_jax.t5 import network as network_lib
from mhr_jax.t5 import parameters


def abstract_params(config):
  tokens = jnp.zeros((1, 2), 'int32')
  init = network_lib.T5(config).init
  return jax.eval_shape(init, jax.random.key(0), tokens, tokens)['params']


def count(tree):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


# Sums of the published checkpoints' tensors, with one relative-position table
# a stack; T5 1.1 counted by hand from the sizes, XL as published.
@pytest.mark.parametrize(
  ('name', 'expected'),
  [
    ('t5_1_1_small', 76_961_152),
    ('t5_1_1_base', 247_577_856),
    ('t5_1_1_large', 783_150_080),
    ('t5_1_1_xl', 2_849_757_184),
    ('t5_1_1_xxl', 11_135_332_352),
    ('t5_1_0_small', 60_506_624),
    ('t5_1_0_base', 222_903_552),
    ('t5_1_0_large', 737_668_096),
    ('t5_1_0_xl', 2_851_598_336),
    ('t5_1_0_xxl', 11_307_321_344),
  ],
)
def test_parameter_counts(name, expected):
  assert count(abstract_params(config_lib.t5_config(name))) == expected


PER_LAYER = pytest.mark.parametrize('relative_positions', ['stack', 'layer'])


@pytest.mark.parametrize('scan_layers', [True, False])
@pytest.mark.parametrize('name', ['t5_1_1_tiny', 't5_1_0_tiny'])
@PER_LAYER
def test_logical_axes_have_the_parameters_structure(
  name, scan_layers, relative_positions
):
  config = config_lib.t5_config(
    name, scan_layers=scan_layers, relative_positions=relative_positions
  )
  shapes = abstract_params(config)
  axes = parameters.logical_axes(config)
  ranks = jax.tree.map(
    lambda names: len(names), axes, is_leaf=lambda x: isinstance(x, tuple)
  )
  assert ranks == jax.tree.map(lambda leaf: len(leaf.shape), shapes)


@PER_LAYER
def test_logical_axes_name_the_sizes(relative_positions):
  config = config_lib.t5_config(
    't5_1_1_tiny',
    num_encoder_layers=3,
    num_decoder_layers=3,
    num_heads=5,
    relative_positions=relative_positions,
  )
  sizes = {
    'layers': 3,
    'embed': config.emb_dim,
    'mlp': config.mlp_dim,
    'joined_kv': config.joined_kv,
    'vocab': config.vocab_size,
    'heads': 5,
    'relpos_buckets': 32,
  }
  expected = jax.tree.map(
    lambda names: tuple(sizes[name] for name in names),
    parameters.logical_axes(config),
    is_leaf=lambda x: isinstance(x, tuple),
  )
  shapes = jax.tree.map(lambda leaf: leaf.shape, abstract_params(config))
  assert expected == shapes


def test_names_and_shapes_are_t5x_s(shared_dir):
  """Against the parameters of a checkpoint that T5X wrote."""
  folder = shared_dir / 'fixtures' / 't5x_ocdbt_tiny' / 'unrolled'
  expected = json.loads((folder / 'shapes.json').read_text())
  config = config_lib.T5Config(
    vocab_size=384,
    emb_dim=24,
    num_heads=3,
    head_dim=8,
    mlp_dim=48,
    num_encoder_layers=3,
    num_decoder_layers=2,
    scan_layers=False,
  )
  leaves = jax.tree.leaves_with_path(abstract_params(config))
  ours = {
    jax.tree_util.keystr(path, simple=True, separator='/'): list(leaf.shape)
    for path, leaf in leaves
  }
  assert ours == expected


@pytest.mark.parametrize(('layout', 'path', 'shape'), [
  (('layer', True), 'encoder/layers/relpos_bias/rel_embedding', (2, 4, 32)),
  (('layer', False), 'encoder/layers_1/relpos_bias/rel_embedding', (4, 32)),
  (('stack', True), 'encoder/relpos_bias/rel_embedding', (4, 32)),
])  # fmt: skip
def test_relative_position_tables_lie_where_they_belong(layout, path, shape):
  relative_positions, scan_layers = layout
  config = config_lib.t5_config(
    't5_1_1_tiny',
    relative_positions=relative_positions,
    scan_layers=scan_layers,
  )
  leaves = tree_paths.leaves_by_path(abstract_params(config))
  assert leaves[path].shape == shape
  tables = [name for name in leaves if name.endswith('rel_embedding')]
  per_stack = 2 if layout == ('layer', False) else 1
  assert len(tables) == 2 * per_stack


@PER_LAYER
def test_layouts_convert_exactly_both_ways(relative_positions):
  config = config_lib.t5_config(
    't5_1_1_tiny',
    vocab_size=8,
    emb_dim=8,
    relative_positions=relative_positions,
  )
  tokens = jnp.zeros((1, 2), 'int32')
  init = jax.jit(network_lib.T5(config).init)
  params = init(jax.random.key(0), tokens, tokens)['params']
  unrolled = parameters.unstack_layers(params, config)
  shapes = abstract_params(dataclasses.replace(config, scan_layers=False))
  assert jax.tree.structure(unrolled) == jax.tree.structure(shapes)
  again = parameters.stack_layers(unrolled, config)
  assert jax.tree.structure(again) == jax.tree.structure(params)
  jax.tree.map(np.testing.assert_array_equal, again, params)


def test_other_depths_are_refused():
  config = config_lib.t5_config('t5_1_1_tiny', vocab_size=8)
  deeper = dataclasses.replace(config, num_encoder_layers=3)
  params = abstract_params(config)
  with pytest.raises(ValueError, match='Expected 3 stacked layers'):
    parameters.unstack_layers(params, deeper)
  unrolled = abstract_params(dataclasses.replace(config, scan_layers=False))
  with pytest.raises(ValueError, match='Expected layers_0 to layers_2'):
    parameters.stack_layers(unrolled, deeper)
