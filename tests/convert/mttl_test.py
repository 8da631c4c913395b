"""mttl's checkpoints: names and shapes, shared routers, what is refused."""

import dataclasses

import jax
import numpy as np
import pytest

from mhr_jax import routing
from mhr_jax.convert import (
  hf_names,
  linear_tensors,
  mttl,
  mttl_routers,
  tensor_files,
)
from mhr_jax.errors import UserError
from mhr_jax.t5 import config as config_lib
from mhr_jax.task_table import TaskTable
import mttl_checkpoints
import random_adapters

BACKBONE = random_adapters.BACKBONE
LORA = {'n_tasks': 1, 'n_skills': 1, 'n_splits': 1, 'mixing': 'uniform'}


def write(folder, tensors):
  path = folder / 'state.safetensors'
  tensor_files.write_tensors(path, tensors)
  return path


def read(folder, tensors, **settings):
  return mttl.read_adapter(write(folder, tensors), BACKBONE, **settings)


def assert_same_params(actual, expected):
  jax.tree.map(np.testing.assert_array_equal, actual.params, expected.params)


@pytest.mark.parametrize('prefix', ['model.', ''])
@pytest.mark.parametrize(
  'settings', [{}, {'n_splits': 1, 'targets': random_adapters.ATTENTION}]
)
def test_poly_and_mhr_bit_for_bit(tmp_path, prefix, settings):
  bundle = random_adapters.draw_bundle(alpha=16.0, **settings)
  tensors = mttl_checkpoints.to_state_dict(bundle, prefix=prefix)
  back = read(tmp_path, tensors, alpha=16.0, task_table=bundle.task_table)
  assert_same_params(back, bundle)
  targets = back.config.targets
  assert back.config == dataclasses.replace(bundle.config, targets=targets)
  assert back.task_table == bundle.task_table


def test_lora_bit_for_bit(tmp_path):
  bundle = random_adapters.draw_bundle(names=False, **LORA)
  tensors = mttl_checkpoints.to_state_dict(bundle)
  name = 'model.encoder.block.1.layer.1.DenseReluDense.wo.lora_a'
  assert tensors[name].shape == (28, 2)
  messages = []
  back = read(tmp_path, tensors, on_message=messages.append)
  assert back.config == bundle.config
  assert_same_params(back, bundle)
  [message] = messages
  assert 'does not tell alpha; 1 is assumed' in message
  messages.clear()
  read(tmp_path, tensors, alpha=1.0, on_message=messages.append)
  assert not messages


@pytest.mark.parametrize('names', ['all', 'first'])
@pytest.mark.parametrize('scope', routing.ROUTER_SCOPES)
def test_shared_routers_under_all_names_or_the_first(tmp_path, scope, names):
  bundle = random_adapters.draw_bundle(router_scope=scope)
  tensors = mttl_checkpoints.to_state_dict(bundle, names=names)
  logits = [x for x in tensors if x.endswith('module_logits')]
  routers = {'module': 47, 'layer': 13, 'block': 5, 'stack': 2, 'model': 1}
  assert len(logits) == (47 if names == 'all' else routers[scope])
  back = read(tmp_path, tensors)
  assert back.config.router_scope == scope
  assert_same_params(back, bundle)


def test_routers_that_conflict(tmp_path):
  bundle = random_adapters.draw_bundle(router_scope='layer')
  tensors = mttl_checkpoints.to_state_dict(bundle)
  names = [x for x in tensors if x.endswith('module_logits')]
  del tensors[names[3]]
  tensors[names[4]] = tensors[names[4]] + 1
  with pytest.raises(UserError, match='no way of sharing .* has no routing'):
    read(tmp_path, tensors)


def sort(tensors):
  tensors = {k.removeprefix('model.'): x for k, x in tensors.items()}
  kinds = {'lora_a': 'a', 'selector.module_logits': routing.LOGITS}
  return linear_tensors.sort_tensors(tensors, kinds, BACKBONE, where='x.ckpt')


def test_the_granularity_that_the_settings_name_is_held_to():
  bundle = random_adapters.draw_bundle(router_scope='block')
  found = sort(mttl_checkpoints.to_state_dict(bundle))
  routers = mttl_routers.read_routers(found, 4, 3, 'finegrained')
  assert routers.scope == 'module' and len(routers.arrays) == 18
  assert mttl_routers.read_routers(found, 4, 3, 'blockwise').scope == 'block'
  with pytest.raises(
    UserError, match=r"granularity 'coderwise', but .*block\.0.* and .* differ"
  ):
    mttl_routers.read_routers(found, 4, 3, 'coderwise')
  with pytest.raises(UserError, match="no router_granularity 'blocks'"):
    mttl_routers.read_routers(found, 4, 3, 'blocks')


def test_the_backbone_of_the_file_is_left_out_and_counted(tmp_path):
  bundle = random_adapters.draw_bundle(targets='encoder/mlp/wo')
  tensors = mttl_checkpoints.to_state_dict(bundle)
  names = [leaf.name for leaf in hf_names.list_leaves(BACKBONE)]
  names += [
    'decoder.embed_tokens.weight',
    'encoder.block.0.layer.1.DenseReluDense.wo.layer.weight',
  ]
  tensors |= {f'model.{name}': np.zeros(1, np.float32) for name in names}
  messages = []
  back = read(tmp_path, tensors, on_message=messages.append)
  assert_same_params(back, bundle)
  assert [x for x in messages if f'{len(names)} tensors of the backbone' in x]


@pytest.mark.parametrize(
  'name',
  [
    'model.encoder.block.0.layer.0.SelfAttention.q.multi_lora_b',
    'model.encoder.block.9.layer.0.layer_norm.weight',
    'model.encoder.block.0.layer.0.SelfAttention.q.layer.weight',
    'loss_plugins.mi.weight',
  ],
)
def test_other_tensors_are_refused(tmp_path, name):
  bundle = random_adapters.draw_bundle(targets='encoder/mlp/wo')
  tensors = mttl_checkpoints.to_state_dict(bundle)
  tensors[name] = np.zeros(3, np.float32)
  with pytest.raises(UserError, match=name.removeprefix('model.')):
    read(tmp_path, tensors)


def test_what_is_missing_or_misshapen_is_named(tmp_path):
  bundle = random_adapters.draw_bundle()
  tensors = mttl_checkpoints.to_state_dict(bundle)
  name = 'model.decoder.block.2.layer.0.SelfAttention.v.lora_b'
  without = {k: x for k, x in tensors.items() if k != name}
  with pytest.raises(
    UserError, match=r'value has its b in layers .0, 1. alone'
  ):
    read(tmp_path, without)
  with pytest.raises(UserError, match='v.lora_b has the shape .4, 3, 2, 2.;'):
    read(tmp_path, tensors | {name: tensors[name][..., :2]})
  logits = name.replace('lora_b', 'selector.module_logits')
  with pytest.raises(UserError, match='logits has the shape .4, 12.; .5, 12.'):
    read(tmp_path, tensors | {logits: tensors[logits][:4]})


def test_skills_without_routers(tmp_path):
  bundle = random_adapters.draw_bundle(
    n_skills=5, mixing='private', names=False
  )
  tensors = mttl_checkpoints.to_state_dict(bundle)
  with pytest.raises(UserError, match="mixing='private' .* or 'uniform'"):
    read(tmp_path, tensors)
  back = read(tmp_path, tensors, mixing='private')
  assert back.config == bundle.config
  assert_same_params(back, bundle)
  names = TaskTable(('x', 'y'))
  uniform = read(tmp_path, tensors, mixing='uniform', task_table=names)
  assert uniform.config.mixing == 'uniform' and uniform.config.n_tasks == 2
  with pytest.raises(UserError, match="no routing logits, .*'sigmoid'"):
    read(tmp_path, tensors, mixing='sigmoid')


def test_averaged_selectors_are_uniform(tmp_path):
  bundle = random_adapters.draw_bundle(mixing='uniform', n_tasks=1, names=False)
  tensors = mttl_checkpoints.to_state_dict(bundle)
  for name in [x for x in tensors if x.endswith('lora_a')]:
    probs = name.replace('lora_a', 'selector.module_probs')
    tensors[probs] = np.full((4, 3), 1 / 3, np.float32)
  back = read(tmp_path, tensors)
  assert back.config == bundle.config
  assert_same_params(back, bundle)


def test_t5_1_0_has_one_input_projection(tmp_path):
  backbone = random_adapters.BACKBONE_1_0
  bundle = random_adapters.draw_bundle(
    backbone=backbone, targets=('.*/wi', '.*/wo')
  )
  path = write(tmp_path, mttl_checkpoints.to_state_dict(bundle))
  assert_same_params(mttl.read_adapter(path, backbone), bundle)
  with pytest.raises(UserError, match='wi.* the backbone has no such linear'):
    mttl.read_adapter(path, BACKBONE)


def test_a_folder_with_one_file(tmp_path):
  bundle = random_adapters.draw_bundle()
  tensors = mttl_checkpoints.to_state_dict(bundle)
  write(tmp_path, tensors)
  assert_same_params(mttl.read_adapter(tmp_path, BACKBONE), bundle)
  # A backbone beside it is not mttl's.
  tensor_files.write_tensors(tmp_path / 'model.safetensors', tensors)
  assert_same_params(mttl.read_adapter(tmp_path, BACKBONE), bundle)
  tensor_files.write_tensors(tmp_path / 'other.safetensors', tensors)
  with pytest.raises(UserError, match='has 2 files .* Name the one'):
    mttl.read_adapter(tmp_path, BACKBONE)


def test_no_adapters_at_all(tmp_path):
  with pytest.raises(UserError, match=r'no adapters .* shared\.weight'):
    read(tmp_path, {'model.shared.weight': np.zeros(3, np.float32)})


def test_pickles_are_refused_unasked(tmp_path):
  path = tmp_path / 'best.ckpt'
  path.write_bytes(b'PK')
  with pytest.raises(UserError, match='pickle.*allow_pickle'):
    mttl.read_adapter(path, BACKBONE)


def test_all_linears_are_named_by_the_helper():
  """The names the tests make are those that the backbone has."""
  bundle = random_adapters.draw_bundle()
  modules = {
    name.removeprefix('model.').removesuffix('.lora_a')
    for name in mttl_checkpoints.to_state_dict(bundle)
    if name.endswith('lora_a')
  }
  assert modules == {
    hf_names.module_name(path, layer)
    for path, linear in config_lib.list_linears(BACKBONE).items()
    for layer in range(linear.layers)
  }
