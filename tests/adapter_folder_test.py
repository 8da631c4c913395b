"""Adapters alone: written whole, read strictly, reduced to one LoRA."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from mhr_jax import adapter_folder
from mhr_jax.adapter_folder import ADAPTER_FILE, ARRAYS_FILE, AdapterBundle
from mhr_jax.adapters import AdapterConfig
from mhr_jax.convert import tensor_files
from mhr_jax.errors import UserError
from mhr_jax.t5 import parameters
from mhr_jax.task_table import TaskTable
import random_adapters
import t5x_checkpoints

BACKBONE = random_adapters.BACKBONE


def assert_same(actual, expected):
  assert actual.config == expected.config
  assert actual.task_table == expected.task_table
  assert actual.backbone == expected.backbone
  jax.tree.map(np.testing.assert_array_equal, actual.params, expected.params)


@pytest.mark.parametrize(
  'settings',
  [
    {'alpha': 16.0, 'router_scope': 'layer', 'mixing': 'relaxed_bernoulli'},
    {'router_scope': 'model', 'targets': random_adapters.ATTENTION},
    {'n_skills': 5, 'n_splits': 1, 'mixing': 'private'},
    {'n_skills': 1, 'n_splits': 1, 'mixing': 'uniform', 'names': False},
  ],
)
def test_what_is_saved_is_loaded_bit_for_bit(tmp_path, settings):
  bundle = random_adapters.draw_bundle(**settings)
  adapter_folder.save_adapter(tmp_path / 'adapter', bundle)
  assert_same(adapter_folder.load_adapter(tmp_path / 'adapter'), bundle)


def test_the_backbones_checksum_is_kept_and_may_be_absent(tmp_path):
  bundle = random_adapters.draw_bundle()
  known = dataclasses.replace(bundle, backbone_checksum='12ab')
  adapter_folder.save_adapter(tmp_path, known)
  assert adapter_folder.load_adapter(tmp_path).backbone_checksum == '12ab'
  one = adapter_folder.effective_bundle(known, 0)
  assert one.backbone_checksum == '12ab'
  path = tmp_path / ADAPTER_FILE
  facts = json.loads(path.read_text())
  del facts['backbone_checksum']
  path.write_text(json.dumps(facts))
  assert adapter_folder.load_adapter(tmp_path).backbone_checksum is None


def test_a_backbone_has_one_checksum_in_either_layout():
  scanned = t5x_checkpoints.draw_backbone(BACKBONE)
  unrolled = parameters.unstack_layers(scanned, BACKBONE)
  config = dataclasses.replace(BACKBONE, scan_layers=False)
  expected = adapter_folder.checksum_backbone(scanned, BACKBONE)
  assert adapter_folder.checksum_backbone(unrolled, config) == expected
  unrolled['encoder']['layers_1']['mlp']['wo']['kernel'] *= 2
  assert adapter_folder.checksum_backbone(unrolled, config) != expected


def test_the_backbone_is_told_without_the_arrays(tmp_path):
  adapter_folder.save_adapter(tmp_path, random_adapters.draw_bundle())
  (tmp_path / ARRAYS_FILE).unlink()
  assert adapter_folder.read_backbone_config(tmp_path) == BACKBONE


def test_the_arrays_have_our_paths(tmp_path):
  adapter_folder.save_adapter(tmp_path, random_adapters.draw_bundle())
  arrays = tensor_files.read_tensors(tmp_path / ARRAYS_FILE)
  assert arrays['adapters/decoder/mlp/wo/a'].shape == (3, 4, 3, 7, 2)
  assert arrays['routers/encoder/mlp/wo/routing_logits'].shape == (2, 5, 4, 3)


def test_nothing_is_overwritten(tmp_path):
  first, second = (random_adapters.draw_bundle(seed) for seed in (0, 1))
  adapter_folder.save_adapter(tmp_path, first)
  with pytest.raises(UserError, match='not an empty folder.*Choose a new'):
    adapter_folder.save_adapter(tmp_path, second)
  assert_same(adapter_folder.load_adapter(tmp_path), first)


@pytest.mark.parametrize('writes', ['save_file', 'write_json'])
def test_half_a_write_leaves_nothing(tmp_path, monkeypatch, writes):
  def fail(*_, **__):
    raise OSError('the disk is full')

  owner = adapter_folder.run_files
  if writes == 'save_file':
    owner = tensor_files.safetensors.numpy
  monkeypatch.setattr(owner, writes, fail)
  with pytest.raises(UserError, match='cannot be written: the disk is full'):
    adapter_folder.save_adapter(
      tmp_path / 'adapter', random_adapters.draw_bundle(1)
    )
  assert not list(tmp_path.iterdir())


def rewrite(folder, change):
  arrays = tensor_files.read_tensors(folder / ARRAYS_FILE)
  arrays = {name: array.copy() for name, array in arrays.items()}
  change(arrays)
  tensor_files.write_tensors(folder / ARRAYS_FILE, arrays)


def drop(arrays):
  del arrays['adapters/encoder/mlp/wo/a']


def add(arrays):
  arrays['adapters/encoder/mlp/wo/c'] = np.zeros(3)


def reshape(arrays):
  name = 'routers/encoder/mlp/wo/routing_logits'
  arrays[name] = arrays[name][:, :4]


def alter(arrays):
  arrays['adapters/encoder/mlp/wo/b'][0, 0, 0, 0, 0] += 1


@pytest.mark.parametrize(
  'change, message',
  [
    (drop, 'encoder/mlp/wo/a: .* no such array, .* wants .2, 4, 3, 7, 2'),
    (add, r'encoder/mlp/wo/c: .* no such parameter, .* has .3,'),
    (reshape, r'has .2, 4, 4, 3., the model wants .2, 5, 4, 3'),
    (alter, 'altered or damaged .* checksum'),
  ],
)
def test_other_arrays_are_refused_by_name(tmp_path, change, message):
  adapter_folder.save_adapter(tmp_path, random_adapters.draw_bundle())
  rewrite(tmp_path, change)
  with pytest.raises(UserError, match=message) as error:
    adapter_folder.load_adapter(tmp_path)
  assert str(tmp_path / ARRAYS_FILE) in str(error.value)


@pytest.mark.parametrize('kept', [0, 6, 500, -4])
def test_a_truncated_file_is_named(tmp_path, kept):
  adapter_folder.save_adapter(tmp_path, random_adapters.draw_bundle())
  path = tmp_path / ARRAYS_FILE
  path.write_bytes(path.read_bytes()[:kept])
  with pytest.raises(UserError, match=f'{ARRAYS_FILE} is (no safetensors|cut)'):
    adapter_folder.load_adapter(tmp_path)


def change_facts(folder, **changes):
  path = folder / ADAPTER_FILE
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_newer_format_is_refused(tmp_path):
  adapter_folder.save_adapter(tmp_path, random_adapters.draw_bundle())
  change_facts(tmp_path, format_version=9)
  with pytest.raises(UserError, match='format 9; .* up to 1'):
    adapter_folder.load_adapter(tmp_path)


@pytest.mark.parametrize('tasks', ['abcde', [1, 2, 3, 4, 5], 5])
def test_tasks_that_are_no_list_of_names_are_refused(tmp_path, tasks):
  adapter_folder.save_adapter(tmp_path, random_adapters.draw_bundle())
  change_facts(tmp_path, tasks=tasks)
  with pytest.raises(UserError, match='not (by )?(.abc|1|5)'):
    adapter_folder.load_adapter(tmp_path)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'format_version': 'x'}, "format_version is 'x'; a whole number"),
    ({'tasks': 5}, f'{ADAPTER_FILE}: tasks: '),
    ({'model': 5}, f'{ADAPTER_FILE}: model is 5; an object is wanted'),
    (
      {'model': {'config': {'emb_dim': '8'}}},
      "config: emb_dim is '8'; a whole",
    ),
  ],
)
def test_values_of_another_kind_are_named(tmp_path, changes, message):
  adapter_folder.save_adapter(tmp_path, random_adapters.draw_bundle())
  change_facts(tmp_path, **changes)
  with pytest.raises(UserError, match=message) as error:
    adapter_folder.load_adapter(tmp_path)
  assert str(tmp_path / ADAPTER_FILE) in str(error.value)


def test_facts_that_are_cut_short_are_named(tmp_path):
  adapter_folder.save_adapter(tmp_path, random_adapters.draw_bundle())
  path = tmp_path / ADAPTER_FILE
  path.write_text(path.read_text()[:100])
  with pytest.raises(UserError, match=f'{ADAPTER_FILE} is not whole JSON'):
    adapter_folder.load_adapter(tmp_path)


def test_a_folder_of_something_else_is_named(tmp_path):
  with pytest.raises(UserError, match=f'no {ADAPTER_FILE}'):
    adapter_folder.load_adapter(tmp_path)


def test_a_bundle_whose_parts_do_not_fit_is_refused():
  bundle = random_adapters.draw_bundle()
  with pytest.raises(UserError, match='names 1 tasks, .* for 5'):
    dataclasses.replace(bundle, task_table=TaskTable(('one',)))
  deeper = dataclasses.replace(BACKBONE, num_encoder_layers=4)
  with pytest.raises(UserError, match='encoder/attention/key/a'):
    dataclasses.replace(bundle, backbone=deeper)


def mix_by_loops(inventory, logits, task, layer):
  """Returns one layer's (a, b) of a task, block by block, in float64."""
  a, b = (np.float64(inventory[name][layer]) for name in ('a', 'b'))
  splits, skills = a.shape[:2]
  blocks_a, blocks_b = [], []
  for split in range(splits):
    z = 1 / (1 + np.exp(-np.float64(logits[task, split])))
    weights = z / z.sum()
    blocks_a.append(sum(weights[k] * a[split, k] for k in range(skills)))
    blocks_b.append(sum(weights[k] * b[split, k] for k in range(skills)))
  return np.concatenate(blocks_a, axis=0), np.concatenate(blocks_b, axis=1)


def test_the_effective_adapter_of_a_task_by_loops():
  bundle = random_adapters.draw_bundle(alpha=16.0, router_scope='layer')
  task = 3
  one = adapter_folder.effective_bundle(bundle, task)
  assert one.config == AdapterConfig(
    1, n_skills=1, rank=2, alpha=16.0, mixing='uniform'
  )
  assert one.task_table == TaskTable(('task 3',))
  inventory = bundle.params['adapters']['decoder']['mlp']['wi_1']
  logits = bundle.params['routers']['decoder']['mlp']['routing_logits']
  pair = one.params['adapters']['decoder']['mlp']['wi_1']
  for layer in range(3):
    a, b = mix_by_loops(inventory, logits[layer], task, layer)
    np.testing.assert_allclose(pair['a'][layer, 0, 0], a, atol=1e-6)
    np.testing.assert_allclose(pair['b'][layer, 0, 0], b, atol=1e-6)


def test_the_average_weighs_all_skills_alike():
  bundle = random_adapters.draw_bundle()
  one = adapter_folder.effective_bundle(bundle, 'average')
  assert one.task_table == TaskTable(('average',))
  inventory = bundle.params['adapters']['encoder']['attention']['out']
  pair = one.params['adapters']['encoder']['attention']['out']
  a, b = mix_by_loops(inventory, np.zeros((1, 4, 3)), 0, 1)
  np.testing.assert_allclose(pair['a'][1, 0, 0], a, atol=1e-6)
  np.testing.assert_allclose(pair['b'][1, 0, 0], b, atol=1e-6)


def test_one_adapter_is_its_own_effective_adapter_bit_for_bit():
  bundle = random_adapters.draw_bundle(
    n_tasks=2, n_skills=1, n_splits=1, mixing='uniform', names=False
  )
  for task in (1, 'average'):
    one = adapter_folder.effective_bundle(bundle, task)
    jax.tree.map(np.testing.assert_array_equal, one.params, bundle.params)
    assert one.task_table is None


@pytest.mark.parametrize('task', [5, -1])
def test_a_task_that_is_not_there(task):
  bundle = random_adapters.draw_bundle()
  with pytest.raises(UserError, match=f'no task {task}: .* 0 to 4'):
    adapter_folder.effective_bundle(bundle, task)


def test_a_bundle_makes_the_model_that_takes_it():
  bundle = random_adapters.draw_bundle()
  assert isinstance(bundle, AdapterBundle)
  assert bundle.model.config == BACKBONE
  assert bundle.model.adapters == bundle.config
