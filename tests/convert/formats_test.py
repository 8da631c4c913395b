"""Formats are told from the files alone; what is not known is described."""

import zipfile

import pytest

from mhr_jax.convert import formats
from mhr_jax.errors import UserError


@pytest.mark.parametrize(
  'file, expected',
  [
    ('model.json', 'run'),
    ('frozen.json', 'backbone'),
    ('adapter.json', 'adapter'),
    ('adapter_config.json', 'peft'),
    ('config.json', 'hf'),
    ('best.ckpt', 'mttl'),
    ('state.safetensors', 'mttl'),
  ],
)
def test_a_folder_is_told_by_a_file(tmp_path, file, expected):
  (tmp_path / file).write_text('{}')
  assert formats.recognise(tmp_path) == expected
  assert formats.recognise(str(tmp_path)) == expected


def test_adapters_win_over_the_config_of_their_model(tmp_path):
  (tmp_path / 'config.json').write_text('{}')
  (tmp_path / 'adapter_config.json').write_text('{}')
  assert formats.recognise(tmp_path) == 'peft'


def test_a_file_of_torch_is_an_mttl_checkpoint(tmp_path):
  with zipfile.ZipFile(tmp_path / 'last', 'w') as file:
    file.writestr('a/data.pkl', b'')
  assert formats.recognise(tmp_path / 'last') == 'mttl'
  (tmp_path / 'notes.txt').write_text('text')
  with pytest.raises(UserError, match='is a file of no format'):
    formats.recognise(tmp_path / 'notes.txt')


@pytest.mark.parametrize(
  'file',
  [
    'model.safetensors',
    'model-00001-of-00002.safetensors',
    'adapter_model.safetensors',
    'pytorch_model.bin',
    'arrays.npz',
  ],
)
def test_weights_without_what_belongs_to_them_are_unknown(tmp_path, file):
  (tmp_path / file).write_bytes(b'PK\x03\x04')
  with pytest.raises(UserError, match=f'it holds {file}'):
    formats.recognise(tmp_path)
  with pytest.raises(UserError, match='name the folder that it lies in'):
    formats.recognise(tmp_path / file)


@pytest.mark.parametrize('form', ['unrolled', 'scanned'])
def test_checkpoints_of_t5x_and_the_folders_that_hold_them(shared_dir, form):
  fixtures = shared_dir / 'fixtures'
  current = fixtures / 't5x_ocdbt_tiny' / form
  for folder in (current, current / 'checkpoint_3'):
    assert formats.recognise(folder) == 't5x'
  older = fixtures / 't5x_legacy_tiny' / 'checkpoint_3'
  assert formats.recognise(older) == 't5x'


def test_what_others_wrote(shared_dir):
  fixtures = shared_dir / 'fixtures'
  assert formats.recognise(fixtures / 'hf_t5_tiny') == 'hf'
  assert formats.recognise(fixtures / 'peft_parity/mhr/adapter') == 'peft'


def test_nothing_there_names_what_is_near(tmp_path):
  (tmp_path / 'backbone_small').mkdir()
  with pytest.raises(UserError, match="Did you mean 'backbone_small'"):
    formats.recognise(tmp_path / 'backbone_smal')
  with pytest.raises(UserError, match=f'exists is {tmp_path}'):
    formats.recognise(tmp_path / 'a' / 'b' / 'c')


def test_an_unknown_folder_says_what_lies_there(tmp_path):
  with pytest.raises(UserError, match='it holds nothing. Recognised would be'):
    formats.recognise(tmp_path)
  (tmp_path / 'seed_0').mkdir()
  (tmp_path / 'seed_0' / 'model.json').write_text('{}')
  (tmp_path / 'results.json').write_text('{}')
  with pytest.raises(UserError) as error:
    formats.recognise(tmp_path)
  message = str(error.value)
  assert 'holds results.json, seed_0/. seed_0 in it is a run folder' in message
  for found in formats.FORMATS.values():
    assert f'{found.name} ({found.told_by})' in message
