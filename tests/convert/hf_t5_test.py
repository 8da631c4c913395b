"""Tests of backbones in transformers' folders; tests/interop has it live."""

import dataclasses
import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as library

from mhr_jax.convert import hf_t5
from mhr_jax.errors import UserError
from mhr_jax.model import RoutedT5
from mhr_jax.t5 import config as config_lib
from mhr_jax.t5 import parameters
from mhr_jax.tree_paths import leaves_by_path
from mhr_jax.vocabulary import ByteVocabulary
import peak_memory

UNUSED = (
  'decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight'
)
ENCODER_COPY = 'encoder.embed_tokens.weight'


def make_config(family='t5_1_1', **changes):
  return config_lib.t5_config(
    f'{family}_tiny',
    vocab_size=50,
    emb_dim=20,
    num_heads=3,
    head_dim=4,
    mlp_dim=28,
    num_encoder_layers=3,
    num_decoder_layers=2,
    relative_attention_num_buckets=6,
    **changes,
  )


def draw_backbone(config, seed=0):
  shapes = RoutedT5(config).abstract_params()['backbone']
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes
  )


@pytest.fixture
def folder(tmp_path):
  """A folder of a small T5 1.1."""
  config = make_config()
  hf_t5.write_backbone(tmp_path / 'hf', config, draw_backbone(config))
  return tmp_path / 'hf'


def change_tensors(folder, change):
  """Writes the weights again after `change` was at the dictionary of them."""
  path = folder / 'model.safetensors'
  tensors = library.load_file(path)
  change(tensors)
  library.save_file(tensors, path, metadata={'format': 'pt'})


def change_config(folder, **changes):
  path = folder / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def assert_equal(actual, expected):
  actual, expected = leaves_by_path(actual), leaves_by_path(expected)
  assert actual.keys() == expected.keys()
  for path, leaf in expected.items():
    assert actual[path].dtype == leaf.dtype
    np.testing.assert_array_equal(actual[path], leaf, err_msg=path)


@pytest.mark.parity
def test_logits_of_transformers_own_folder(shared_dir, report_difference):
  folder = shared_dir / 'fixtures' / 'hf_t5_tiny'
  config, backbone = hf_t5.read_backbone(folder)
  with np.load(folder / 'fixture.npz') as arrays:
    fixture = dict(arrays)
  logits = RoutedT5(config).network.apply(
    {'params': backbone}, fixture['input_ids'], fixture['decoder_input_ids']
  )
  largest = report_difference(
    'backbone read from hf_t5_tiny: logits',
    'transformers 5.23, float32',
    logits,
    fixture['logits_f32'],
  )
  assert largest <= 1e-5


@pytest.mark.parity
def test_a_folder_of_transformers_is_written_as_it_was(shared_dir, tmp_path):
  folder = shared_dir / 'fixtures' / 'hf_t5_tiny'
  config, backbone = hf_t5.read_backbone(folder)
  hf_t5.write_backbone(tmp_path / 'hf', config, backbone)
  theirs = library.load_file(folder / 'model.safetensors')
  assert_equal(library.load_file(tmp_path / 'hf/model.safetensors'), theirs)
  said = json.loads((folder / 'config.json').read_text())
  written = json.loads((tmp_path / 'hf' / 'config.json').read_text())
  assert written.items() <= said.items()


@pytest.mark.parametrize('max_shard_bytes', [10**9, 5000])
@pytest.mark.parametrize('scan_layers', [True, False])
@pytest.mark.parametrize('family', ['t5_1_1', 't5_1_0'])
def test_what_was_written_is_read_bit_for_bit(
  tmp_path, family, scan_layers, max_shard_bytes
):
  config = make_config(family, scan_layers=scan_layers, dropout_rate=0.1)
  backbone = draw_backbone(config)
  where = tmp_path / 'hf'
  hf_t5.write_backbone(where, config, backbone, max_shard_bytes=max_shard_bytes)
  sharded = (where / 'model.safetensors.index.json').exists()
  assert sharded == (max_shard_bytes == 5000)
  scanned = dataclasses.replace(config, scan_layers=True)
  if not scan_layers:
    backbone = parameters.stack_layers(backbone, scanned)
  found_config, found = hf_t5.read_backbone(where)
  assert found_config == hf_t5.read_config(where) == scanned
  assert_equal(found, backbone)


def test_arrays_of_jax_and_other_types(tmp_path):
  config = make_config()
  backbone = draw_backbone(config)
  rounded = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), backbone)
  hf_t5.write_backbone(tmp_path / '32', config, rounded)
  hf_t5.write_backbone(tmp_path / '16', config, rounded, dtype='bfloat16')
  sizes = [
    (tmp_path / name / 'model.safetensors').stat().st_size
    for name in ('32', '16')
  ]
  assert sizes[0] > 1.8 * sizes[1]
  for name in ('32', '16'):
    _, found = hf_t5.read_backbone(tmp_path / name, dtype='bfloat16')
    assert_equal(found, rounded)
    _, found = hf_t5.read_backbone(tmp_path / name)
    assert_equal(found, jax.tree.map(lambda x: np.float32(x), rounded))


def test_files_in_half_precision_are_read(folder):
  def halve(tensors):
    tensors |= {k: v.astype(np.float16) for k, v in tensors.items()}

  change_tensors(folder, halve)
  _, found = hf_t5.read_backbone(folder)
  expected = jax.tree.map(
    lambda x: x.astype(np.float16).astype(np.float32),
    draw_backbone(make_config()),
  )
  assert_equal(found, expected)


def test_a_dtype_that_is_none_is_refused(folder):
  with pytest.raises(UserError, match='float16'):
    hf_t5.read_backbone(folder, dtype='float16')


def drop(tensors):
  del tensors['decoder.block.1.layer.2.DenseReluDense.wi_1.weight']


def add(tensors):
  tensors['decoder.block.2.layer.0.layer_norm.weight'] = np.ones(20, np.float32)


def widen(tensors):
  name = 'encoder.block.2.layer.0.SelfAttention.o.weight'
  tensors[name] = np.ones((20, 16), np.float32)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      drop,
      r'decoder.block.1.layer.2.DenseReluDense.wi_1.weight: the checkpoint has'
      r' no such array, the model wants \(28, 20\)',
    ),
    (
      add,
      r'decoder.block.2.layer.0.layer_norm.weight: the model has no such'
      r' parameter, the checkpoint has \(20,\)',
    ),
    (
      widen,
      r'encoder.block.2.layer.0.SelfAttention.o.weight: the checkpoint has'
      r' \(20, 16\), the model wants \(20, 12\)',
    ),
  ],
)
def test_every_leaf_is_accounted_for(folder, change, message):
  change_tensors(folder, change)
  with pytest.raises(UserError, match=message) as error:
    hf_t5.read_backbone(folder)
  assert str(folder) in str(error.value)
  assert len(str(error.value).splitlines()) == 2


def test_an_untied_folder_without_output_layer_is_refused(folder):
  change_tensors(folder, lambda tensors: tensors.pop('lm_head.weight'))
  with pytest.raises(UserError, match=r'lm_head.weight: .* wants \(50, 20\)'):
    hf_t5.read_backbone(folder)


def test_tied_but_not_scaled_gets_an_output_layer_of_its_own(folder):
  # As transformers 5 saves a fresh mT5.
  change_tensors(folder, lambda tensors: tensors.pop('lm_head.weight'))
  change_config(folder, model_type='mt5', tie_word_embeddings=True)
  config, found = hf_t5.read_backbone(folder)
  assert not config.logits_via_embedding
  kernel = found['decoder']['logits_dense']['kernel']
  embedding = draw_backbone(make_config())['token_embedder']['embedding']
  np.testing.assert_array_equal(kernel, embedding.T)


@pytest.mark.parametrize('tied', [True, False])
def test_equal_copies_of_the_embedding_are_accepted(tmp_path, tied):
  config = make_config('t5_1_0' if tied else 't5_1_1')
  backbone = draw_backbone(config)
  hf_t5.write_backbone(tmp_path / 'hf', config, backbone)
  names = [ENCODER_COPY, 'decoder.embed_tokens.weight']
  if tied:
    names.append('lm_head.weight')

  def copy(tensors):
    for name in names:
      tensors[name] = tensors['shared.weight'].copy()

  change_tensors(tmp_path / 'hf', copy)
  assert_equal(hf_t5.read_backbone(tmp_path / 'hf')[1], backbone)
  # Some converters keep one of the names, and not always the same.
  change_tensors(tmp_path / 'hf', lambda tensors: tensors.pop('shared.weight'))
  assert_equal(hf_t5.read_backbone(tmp_path / 'hf')[1], backbone)


def test_another_embedding_of_a_stack_is_refused(folder):
  def alter(tensors):
    tensors[ENCODER_COPY] = tensors['shared.weight'] + 1

  change_tensors(folder, alter)
  with pytest.raises(UserError, match='encoder.embed_tokens.weight is not equ'):
    hf_t5.read_backbone(folder)


def test_an_output_layer_of_its_own_that_is_scaled_is_refused(folder):
  change_config(folder, tie_word_embeddings=True)
  with pytest.raises(UserError, match='lm_head.weight.*tie_word_embeddings'):
    hf_t5.read_backbone(folder)


def test_what_early_versions_stored_unused_is_passed_over(folder):
  expected = hf_t5.read_backbone(folder)[1]

  def add_unused(tensors):
    tensors[UNUSED] = np.ones((6, 3), np.float32)

  change_tensors(folder, add_unused)
  assert_equal(hf_t5.read_backbone(folder)[1], expected)


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (None, r'config\.json is absent, so this is no folder of transformers'),
    ('{', r'config\.json is not whole JSON: .* line 1, column 2'),
    ('[]', r'config\.json holds no JSON object'),
  ],
)
def test_a_folder_that_is_none_of_transformers(tmp_path, content, message):
  if content is not None:
    (tmp_path / 'config.json').write_text(content)
  with pytest.raises(UserError, match=message):
    hf_t5.read_config(tmp_path)


def test_a_folder_without_weights_says_what_was_looked_for(folder):
  (folder / 'model.safetensors').unlink()
  message = r'neither model\.safetensors nor pytorch_model\.bin'
  with pytest.raises(UserError, match=message):
    hf_t5.read_backbone(folder)


def test_pickles_are_refused_unless_asked_for(folder):
  (folder / 'model.safetensors').rename(folder / 'pytorch_model.bin')
  message = r'pytorch_model\.bin.*allow_pickle=True'
  with pytest.raises(UserError, match=message):
    hf_t5.read_backbone(folder)


def test_nothing_is_overwritten(folder):
  config = make_config()
  before = {p.name: p.read_bytes() for p in folder.iterdir()}
  with pytest.raises(UserError, match='exists and is not an empty folder'):
    hf_t5.write_backbone(folder, config, draw_backbone(config, seed=1))
  assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_a_folder_appears_when_it_is_whole(tmp_path):
  config = make_config()
  backbone = draw_backbone(config)

  class Failing:
    shape, dtype = (50, 20), np.float32

    def __array__(self, *args, **kwargs):
      raise OSError('the disk is gone')

  where = tmp_path / 'deep' / 'hf'
  where.mkdir(parents=True)  # an empty folder may be there
  whole = backbone['token_embedder']['embedding']
  backbone['token_embedder']['embedding'] = Failing()
  with pytest.raises(UserError, match='hf cannot be written: the disk is gone'):
    hf_t5.write_backbone(where, config, backbone)
  assert list(tmp_path.rglob('*')) == [where.parent, where]
  backbone['token_embedder']['embedding'] = whole
  vocabulary = ByteVocabulary(7)
  hf_t5.write_backbone(where, config, backbone, vocabulary=vocabulary)
  assert_equal(hf_t5.read_backbone(where)[1], backbone)
  assert hf_t5.read_vocabulary(where) == vocabulary


def test_parameters_of_another_config_are_not_written(tmp_path):
  backbone = draw_backbone(make_config())
  other = dataclasses.replace(make_config(), num_decoder_layers=3)
  with pytest.raises(UserError, match=r'decoder/layers.*\(2, .*\(3, '):
    hf_t5.write_backbone(tmp_path / 'hf', other, backbone)
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
@pytest.mark.parametrize('max_shard_bytes', [10**9, 10**8])
def test_memory_is_hardly_more_than_the_backbone(
  tmp_path, folder, max_shard_bytes
):
  large, again = tmp_path / 'large', tmp_path / 'again'
  peak_memory.write_large(large, max_shard_bytes=max_shard_bytes)
  size = sum(file.stat().st_size for file in large.iterdir())
  assert size > 2.5e8
  read, written = peak_memory.measure(folder, large, again)
  for written_folder in (large, again):  # pytest would keep them
    shutil.rmtree(written_folder)
  assert 0.9 < read / size < 1.15  # either array of 92 MB is a third of it
  assert written / size < 1.2
