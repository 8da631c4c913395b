"""Backbones of every format, in the layout and at the place that was asked."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from mhr_jax import backbones, partitioning
from mhr_jax.convert import hf_t5, t5x
from mhr_jax.errors import UserError
from mhr_jax.t5 import parameters
from mhr_jax.vocabulary import ByteVocabulary
import toy_text

FOREIGN = {
  'hf': ('hf_t5_tiny', hf_t5.read_backbone),
  't5x': ('t5x_ocdbt_tiny/unrolled', t5x.read_backbone),
}


@pytest.fixture(params=FOREIGN)
def foreign(request, shared_dir):
  """A folder that others wrote, and what its reader reads."""
  name, read = FOREIGN[request.param]
  folder = shared_dir / 'fixtures' / name
  return folder, *read(folder)


def _assert_equal(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_others_backbones_in_either_layout(foreign):
  folder, config, expected = foreign
  assert backbones.read_config(folder) == config
  found = backbones.load_backbone(folder, config)
  _assert_equal(found, expected)
  assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(found))
  unrolled = dataclasses.replace(config, scan_layers=False)
  found = backbones.load_backbone(folder, unrolled, dtype='bfloat16')
  expected = jax.tree.map(
    lambda x: np.asarray(x, 'bfloat16'),
    parameters.unstack_layers(expected, config),
  )
  _assert_equal(found, expected)


def test_others_backbones_on_a_mesh(foreign):
  folder, config, expected = foreign
  mesh = partitioning.make_mesh(2, 2, devices=jax.devices()[:4])
  found = backbones.load_backbone(folder, config, mesh=mesh)
  assert {len(x.devices()) for x in jax.tree.leaves(found)} == {4}
  kernel = found['encoder']['layers']['mlp']['wo']['kernel']
  assert not kernel.is_fully_replicated
  _assert_equal(jax.device_get(found), expected)


def test_another_backbone_is_named_before_arrays_are_read(foreign, tmp_path):
  folder, config, _ = foreign
  wanted = dataclasses.replace(
    config, mlp_dim=96, vocab_size=400, dropout_rate=0.3, dtype='bfloat16'
  )
  with pytest.raises(UserError) as error:
    backbones.check_backbone(folder, wanted)
  for name, saved in (('vocab_size', 384), ('mlp_dim', config.mlp_dim)):
    message = f'{name} is {saved}, wanted {getattr(wanted, name)}'
    assert message in str(error.value)
  assert 'dropout_rate' not in str(error.value)
  backbones.check_backbone(folder, dataclasses.replace(config, remat='full'))
  if (folder / 'config.json').exists():
    shutil.copy(folder / 'config.json', tmp_path)
    backbones.check_backbone(tmp_path, config)
    with pytest.raises(UserError, match='another backbone: vocab_size'):
      backbones.load_backbone(tmp_path, wanted)
    with pytest.raises(UserError, match='no weights'):
      backbones.load_backbone(tmp_path, config)


def test_what_shapes_do_not_tell_is_what_is_wanted(shared_dir):
  folder = shared_dir / 'fixtures' / 't5x_ocdbt_tiny' / 'unrolled'
  config = dataclasses.replace(
    backbones.read_config(folder),
    mlp_activations=('silu', 'linear'),
    relative_attention_max_distance=99,
  )
  backbones.check_backbone(folder, config)
  one = dataclasses.replace(config, mlp_activations=('relu',))
  with pytest.raises(UserError, match='mlp_activations is'):
    backbones.check_backbone(folder, one)


def test_a_native_backbone_keeps_its_vocabulary(tmp_path):
  params = toy_text.make_params(toy_text.make_model())['backbone']
  vocabulary = ByteVocabulary(extra_ids=0)
  backbones.save_backbone(
    tmp_path / 'b', params, toy_text.CONFIG, vocabulary=vocabulary
  )
  assert backbones.read_vocabulary(tmp_path / 'b') == vocabulary
  assert backbones.read_config(tmp_path / 'b') == toy_text.CONFIG
  found = backbones.load_backbone(tmp_path / 'b', toy_text.CONFIG)
  _assert_equal(jax.device_get(found), params)
  with pytest.raises(UserError, match='another vocabulary'):
    backbones.save_backbone(
      tmp_path / 'b',
      params,
      toy_text.CONFIG,
      vocabulary=ByteVocabulary(extra_ids=7),
    )


def test_adapters_alone_are_no_backbone(shared_dir):
  folder = shared_dir / 'fixtures' / 'peft_parity' / 'mhr' / 'adapter'
  with pytest.raises(UserError, match='a PEFT adapter, without a backbone'):
    backbones.read_config(folder)
