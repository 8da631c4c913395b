"""Backbones in bfloat16 and in int8: what they compute, and files of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mhr_jax import backbones, frozen, fusing, partitioning, saving
from mhr_jax.checksums import checksum
from mhr_jax.errors import UserError
from mhr_jax.model import RoutedT5
from mhr_jax.t5 import storage
from mhr_jax.train_state import split_params
import toy_text


def _stored_as(kind, **changes):
  config = dataclasses.replace(toy_text.CONFIG, storage=kind, **changes)
  return dataclasses.replace(toy_text.make_model(), config=config)


def _batch():
  rng = np.random.default_rng(1)
  return {
    'encoder_input_tokens': rng.integers(1, 60, (4, 5), np.int32),
    'decoder_input_tokens': rng.integers(1, 60, (4, 3), np.int32),
    'task_ids': np.array([0, 1, 2, 1], np.int32),
  }


def _dequantised(tree):
  """The float32 backbone of one in int8, by a plain loop over its columns."""
  found = {}
  for name, value in tree.items():
    if isinstance(value, dict):
      found[name] = _dequantised(value)
    elif name == 'embedding':
      found[name] = np.array(value, np.float32)
      scales = np.asarray(tree['embedding_scale'])
      for row, scale in zip(found[name], scales, strict=True):
        row *= scale
    elif name == 'kernel':
      found[name] = np.array(value, np.float32)
      scales = np.asarray(tree['kernel_scale'])
      for where in np.ndindex(*scales.shape):
        found[name][(*where[:-1], slice(None), where[-1])] *= scales[where]
    elif not name.endswith('_scale'):
      found[name] = np.asarray(value)
  return found


@pytest.fixture(scope='module')
def params():
  return toy_text.make_params(toy_text.make_model())


def test_int8_is_nearest_and_symmetric():
  x = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
  x[1, :, 2] = 0
  whole, scale = jax.device_get(storage.quantise(jnp.asarray(x), -2))
  assert whole.dtype == np.int8 and scale.shape == (3, 4)
  for layer, column in np.ndindex(3, 4):
    true = x[layer, :, column]
    step = np.abs(true).max() / 127
    nearest = np.round(true / step) if step else np.zeros(5)
    np.testing.assert_array_equal(whole[layer, :, column], nearest)
    restored = whole[layer, :, column] * scale[layer, column]
    assert np.abs(restored - true).max() <= step / 2 + 1e-7
    assert not step or np.abs(whole[layer, :, column]).max() == 127


@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize('scanned', [False, True])
def test_int8_computes_what_its_numbers_compute(tied, scanned):
  shape = {'logits_via_embedding': tied, 'scan_layers': scanned}
  model = _stored_as('int8', **shape)
  whole = _stored_as('float32', **shape)
  true = toy_text.make_params(whole)
  held = {**true, 'backbone': storage.store(true['backbone'], 'int8')}
  found = jax.jit(model.logits)(held, _batch())
  numbers = {**true, 'backbone': _dequantised(held['backbone'])}
  expected = jax.jit(whole.logits)(numbers, _batch())
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  assert np.abs(found - jax.jit(whole.logits)(true, _batch())).max() > 1e-3


def test_bfloat16_computes_in_the_dtype_that_is_asked(params):
  model = _stored_as('bfloat16')
  backbone = storage.store(params['backbone'], 'bfloat16')
  rounded = jax.tree.map(lambda x: x.astype(np.float32), backbone)
  found = jax.jit(model.logits)({**params, 'backbone': backbone}, _batch())
  expected = jax.jit(toy_text.make_model().logits)(
    {**params, 'backbone': rounded}, _batch()
  )
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('kind', ['bfloat16', 'int8'])
def test_shapes_axes_and_shardings_are_those_of_what_is_stored(kind, params):
  model = _stored_as(kind)
  abstract = model.abstract_params()['backbone']
  held = storage.store(params['backbone'], kind)
  assert jax.tree.structure(abstract) == jax.tree.structure(held)
  same = jax.tree.map(
    lambda x, y: x.shape == y.shape and x.dtype == y.dtype, abstract, held
  )
  assert all(jax.tree.leaves(same))
  mesh = partitioning.make_mesh(4, 2)
  axes = {'backbone': model.logical_axes()['backbone']}
  places = partitioning.shardings(axes, mesh, {'backbone': abstract}).tree
  mlp = places['backbone']['encoder']['layers']['mlp']['wi_0']
  assert mlp['kernel'].spec[-1] == 'model'
  if kind == 'int8':
    assert mlp['kernel_scale'].spec[-1] == 'model'
  # Spread over a mesh or not: the same numbers, and the same checksum.
  spread = partitioning.put(params['backbone'], places_of_whole(mesh))
  again = storage.store(spread, kind)
  assert checksum(again) == checksum(held)


def places_of_whole(mesh):
  model = toy_text.make_model()
  axes = {'backbone': model.logical_axes()['backbone']}
  shapes = {'backbone': model.abstract_params()['backbone']}
  return partitioning.shardings(axes, mesh, shapes).tree['backbone']


@pytest.mark.parametrize('kind', ['bfloat16', 'int8'])
def test_a_file_of_it_holds_every_bit(kind, params, tmp_path):
  config = _stored_as(kind).config
  held = storage.store(params['backbone'], kind)
  # The config of the caller may be older: what the arrays are is written.
  backbones.save_backbone(tmp_path / 'b', held, toy_text.CONFIG)
  assert backbones.read_config(tmp_path / 'b') == config
  mesh = partitioning.make_mesh(2, 2, devices=jax.devices()[:4])
  for where in (None, mesh):
    found = backbones.load_backbone(tmp_path / 'b', config, mesh=where)
    jax.tree.map(np.testing.assert_array_equal, found, held)
    assert checksum(found) == frozen.read_frozen(tmp_path / 'b')['checksum']


def test_a_whole_one_becomes_int8_where_it_is_asked(params, tmp_path):
  config = _stored_as('int8').config
  backbones.save_backbone(tmp_path / 'b', params['backbone'], toy_text.CONFIG)
  mesh = partitioning.make_mesh(2, 2, devices=jax.devices()[:4])
  held = storage.store(params['backbone'], 'int8')
  for where in (None, mesh):
    found = backbones.load_backbone(tmp_path / 'b', config, mesh=where)
    jax.tree.map(np.testing.assert_array_equal, found, held)
  kernel = found['encoder']['layers']['mlp']['wi_0']['kernel']
  assert kernel.sharding.spec[-1] == 'model'


def test_rounded_numbers_are_never_taken_for_whole_ones(params, tmp_path):
  held = storage.store(params['backbone'], 'int8')
  config = _stored_as('int8').config
  backbones.save_backbone(tmp_path / 'b', held, config)
  for check in (backbones.check_backbone, backbones.load_backbone):
    with pytest.raises(UserError, match='stored as int8, and wanted as float'):
      check(tmp_path / 'b', toy_text.CONFIG)
  with pytest.raises(UserError, match='wanted as bfloat16'):
    backbones.load_backbone(tmp_path / 'b', config, dtype='bfloat16')
  with pytest.raises(UserError, match='no step is small enough'):
    split_params({'backbone': held}, ('backbone',))
  model = _stored_as('int8')
  with pytest.raises(UserError, match='fused into it'):
    fusing.fuse(held, config, params, model.adapters, 0)
  for format, dtype in (('hf', None), ('t5x', None), ('native', 'bfloat16')):
    with pytest.raises(UserError, match='as it is or not at all'):
      saving.check_request(format, RoutedT5(config), dtype=dtype)
  saving.check_request('peft-lora', model, 0)
