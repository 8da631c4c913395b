"""PEFT's IA3 folders without PEFT: there and back, and what is refused."""

import json

import jax
import numpy as np
import pytest

from mhr_jax import adapter_folder, api, saving
from mhr_jax.convert import peft, tensor_files
from mhr_jax.errors import UserError
from mhr_jax.loading import LoadedModel
from mhr_jax.model import RoutedT5
import random_adapters

CONFIG = random_adapters.BACKBONE
TARGETS = '(encoder/mlp/wi_1|decoder/.*/key)'


def draw_bundle(**settings):
  return random_adapters.draw_bundle(
    kind='ia3', rank=1, targets=TARGETS, **settings
  )


def write_their(folder, tensors, **settings):
  """Writes a folder as PEFT would, of scales by module."""
  settings = {'peft_type': 'IA3'} | settings
  (folder / 'adapter_config.json').write_text(json.dumps(settings))
  named = {
    f'base_model.model.{name}.ia3_l': np.asarray(scale, np.float32)
    for name, scale in tensors.items()
  }
  tensor_files.write_tensors(folder / 'adapter_model.safetensors', named)


def mlp_scales(shape, name='wo'):
  """Returns scales of a linear of every layer of the encoder."""
  rng = np.random.default_rng(3)
  return {
    f'encoder.block.{i}.layer.1.DenseReluDense.{name}': rng.normal(size=shape)
    for i in range(2)
  }


def test_there_and_back_bit_for_bit(tmp_path):
  bundle = draw_bundle()
  saved = saving.save_bundle(bundle, tmp_path / 'one', 'peft-ia3', 3)
  assert saved.what.endswith('skills 1, splits 1, (IA)³')
  settings = json.loads((tmp_path / 'one/adapter_config.json').read_text())
  assert settings['peft_type'] == 'IA3'
  assert settings['feedforward_modules'] == []
  back = peft.read_adapter(tmp_path / 'one', CONFIG)
  one = adapter_folder.effective_bundle(bundle, 3)
  assert back.config.kind == 'ia3' and back.task_table == one.task_table
  jax.tree.map(np.testing.assert_array_equal, back.params, one.params)
  tensors = tensor_files.read_tensors(
    tmp_path / 'one' / 'adapter_model.safetensors'
  )
  name = 'base_model.model.encoder.block.1.layer.1.DenseReluDense.wi_1.ia3_l'
  scale = one.params['adapters']['encoder']['mlp']['wi_1']['scale'][1, 0, 0]
  np.testing.assert_array_equal(tensors[name], scale[:, None])


def test_a_scaled_input_of_wo_is_a_scaled_wi_1(tmp_path):
  tensors = mlp_scales((1, 28)) | mlp_scales((28, 1), 'wi_1')
  write_their(tmp_path, tensors, feedforward_modules=['wo'])
  bundle = peft.read_adapter(tmp_path, CONFIG)
  assert bundle.config.targets == ('encoder/mlp/wi_1',)
  scale = bundle.params['adapters']['encoder']['mlp']['wi_1']['scale']
  for layer, drawn in enumerate(mlp_scales(28).values()):
    np.testing.assert_allclose(scale[layer, 0, 0], drawn**2, rtol=1e-6)


@pytest.mark.parametrize(
  'settings, shape, message',
  [
    ({'feedforward_modules': ['wo']}, (20, 1), r'\(1, 28\) is what'),
    ({'feedforward_modules': []}, (1, 28), r'\(20, 1\) is what'),
    ({'feedforward_modules': 3}, (1, 28), 'feedforward_modules=3 is neither'),
    ({'feedforward_modules': '('}, (1, 28), 'nor a regular expression'),
    ({'modules_to_save': ['shared']}, (1, 28), 'no equivalent'),
  ],
)
def test_settings_and_shapes_that_do_not_fit(
  tmp_path, settings, shape, message
):
  write_their(tmp_path, mlp_scales(shape), **settings)
  with pytest.raises(UserError, match=message):
    peft.read_adapter(tmp_path, CONFIG)


def test_scaled_inputs_of_other_linears_are_refused(tmp_path):
  tensors = mlp_scales((1, 20), 'wi_0')
  write_their(tmp_path, tensors, feedforward_modules=['wi_0'])
  with pytest.raises(UserError, match='input of encoder/mlp/wi_0.*merge'):
    peft.read_adapter(tmp_path, CONFIG)


@pytest.mark.parametrize(
  'kind, format, message',
  [
    ('ia3', 'peft-lora', "'low_rank', and these are 'ia3'.* as peft-ia3"),
    ('ia3', 'peft-poly', "as peft-ia3, or all of them as 'native'"),
    ('low_rank', 'peft-ia3', "'ia3', and these are 'low_rank'.* as peft-lora"),
  ],
)
def test_a_format_of_another_kind_names_the_right_one(
  tmp_path, kind, format, message
):
  settings = {'kind': kind, 'rank': 1, 'targets': TARGETS}
  bundle = random_adapters.draw_bundle(**settings)
  with pytest.raises(UserError, match=message):
    saving.save_bundle(bundle, tmp_path, format, 0)
  one = adapter_folder.effective_bundle(bundle, 0)
  write = getattr(peft, f'write_{format.removeprefix("peft-")}')
  with pytest.raises(UserError, match='of the kind'):
    write(tmp_path, one)
  assert not list(tmp_path.iterdir())


def test_all_tasks_are_no_ia3_folder(tmp_path):
  bundle = draw_bundle()
  with pytest.raises(UserError, match='Which task'):
    saving.save_bundle(bundle, tmp_path, 'peft-ia3')
  with pytest.raises(UserError, match='An IA3 folder holds one adapter'):
    peft.write_ia3(tmp_path, bundle)


def test_a_model_gives_the_scales_of_a_task():
  bundle = draw_bundle()
  model = RoutedT5(CONFIG, bundle.config)
  loaded = LoadedModel(model, dict(bundle.params), bundle.task_table)
  found = api.Model(loaded).effective_lora('task 2')
  one = adapter_folder.effective_bundle(bundle, 2).params['adapters']
  assert found.keys() == {
    'encoder/mlp/wi_1',
    'decoder/self_attention/key',
    'decoder/encoder_decoder_attention/key',
  }
  np.testing.assert_array_equal(
    found['encoder/mlp/wi_1']['scale'],
    one['encoder']['mlp']['wi_1']['scale'][:, 0, 0],
  )
