"""Backbones in folders of transformers: theirs read by us, ours by them."""

import json
import shutil
import sys

import jax
import numpy as np
import pytest
from safetensors import numpy as library

from mhr_jax.convert import hf_t5, torch_files
from mhr_jax.errors import UserError
from mhr_jax.model import RoutedT5
from mhr_jax.vocabulary import ByteVocabulary, SentencePieceVocabulary
import peak_memory
import random_t5

pytestmark = pytest.mark.interop

SIZES = {
  'vocab_size': 53,
  'd_model': 22,
  'd_kv': 5,
  'd_ff': 29,
  'num_heads': 3,
  'num_layers': 2,
  'relative_attention_num_buckets': 6,
  'relative_attention_max_distance': 11,
  'pad_token_id': 0,
  'decoder_start_token_id': 0,
}
GATED = {'feed_forward_proj': 'gated-gelu', 'tie_word_embeddings': False}
# Class, tied, what its config says beside.
MODELS = {
  'T5 1.0, tied': ('T5', True, {}),
  'T5 1.1, untied': ('T5', False, GATED),
  'T5 1.1, tied by transformers 5': ('T5', True, GATED),
  'T5, gated silu': ('T5', False, GATED | {'feed_forward_proj': 'gated-silu'}),
  'T5, plain tanh gelu': ('T5', True, {'feed_forward_proj': 'gelu_new'}),
  'mT5, untied': ('MT5', False, {}),
  'mT5, tied by transformers 5': ('MT5', True, {}),
  'byT5, encoder of thrice the depth': (
    'T5',
    False,
    GATED | {'vocab_size': 384, 'num_layers': 6, 'num_decoder_layers': 2},
  ),
  'T5, decoder of a third of the depth': (
    'T5',
    True,
    {'num_layers': 3, 'num_decoder_layers': 1},
  ),
  'T5, other special tokens': (
    'T5',
    False,
    GATED | {'pad_token_id': 0, 'eos_token_id': 4, 'decoder_start_token_id': 3},
  ),
}
TEXTS = (
  'translate English to German: Hello, world!',
  '  two  spaces\nnew line\ttab ',
  'naïve café ﬁ ½ 北京 🙂 Ⅻ',
  'Question: 3,141.59 + 2.71 = ? (A) 5.85; (B) 6.',
  '',
  '<extra_id_0>',
)


def build(transformers, name, seed=0):
  """Returns a model of theirs with random weights, in eval mode."""
  kind, tied, settings = MODELS[name]
  config = getattr(transformers, f'{kind}Config')(**SIZES | settings)
  model = getattr(transformers, f'{kind}ForConditionalGeneration')(config)
  random_t5.draw_weights(model, seed, tied=tied)
  return model.eval()


def load(transformers, folder):
  """Returns the model that transformers loads, and that it lacks nothing."""
  model, found = transformers.AutoModelForSeq2SeqLM.from_pretrained(
    folder, output_loading_info=True
  )
  for problem in ('missing_keys', 'unexpected_keys', 'mismatched_keys'):
    assert not found[problem]
  return model.eval()


def logits_of_both(torch, model, config, backbone):
  """Returns theirs and ours on a random batch with padding."""
  batch = random_t5.draw_batch(config, 0)
  with torch.no_grad():
    theirs = model(**random_t5.as_their_inputs(batch)).logits.numpy()
  ours = jax.jit(RoutedT5(config).logits)({'backbone': backbone}, batch)
  return theirs, ours


def assert_equal(actual, expected):
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize('name', MODELS)
def test_their_folders_give_their_logits(
  torch, transformers, tmp_path, report_difference, name
):
  build(transformers, name).save_pretrained(tmp_path)
  config, backbone = hf_t5.read_backbone(tmp_path)
  model = load(transformers, tmp_path)
  theirs, ours = logits_of_both(torch, model, config, backbone)
  case = f'folder of transformers, read: {name}'
  largest = report_difference(case, 'transformers, live', ours, theirs)
  assert largest <= 1e-5


@pytest.mark.parametrize('name', MODELS)
def test_our_folders_give_our_logits(
  torch, transformers, tmp_path, report_difference, name
):
  build(transformers, name).save_pretrained(tmp_path / 'theirs')
  config, backbone = hf_t5.read_backbone(tmp_path / 'theirs')
  hf_t5.write_backbone(tmp_path / 'ours', config, backbone)
  model = load(transformers, tmp_path / 'ours')
  theirs, ours = logits_of_both(torch, model, config, backbone)
  case = f'folder of ours, loaded by transformers: {name}'
  largest = report_difference(case, 'transformers, live', theirs, ours)
  assert largest <= 1e-5
  generation = model.generation_config
  assert generation.eos_token_id == config.eos_id
  assert generation.pad_token_id == config.pad_id
  assert generation.decoder_start_token_id == config.decoder_start_token_id
  config_again, again = hf_t5.read_backbone(tmp_path / 'ours')
  assert config_again == config
  assert_equal(again, backbone)


def save_whole(torch, model, folder):
  model.save_pretrained(folder)


def save_shards(torch, model, folder):
  model.save_pretrained(folder, max_shard_size='10KB')
  assert len(list(folder.glob('model-0*.safetensors'))) > 2


def save_pickle(torch, model, folder):
  model.config.save_pretrained(folder)
  torch.save(model.state_dict(), folder / 'pytorch_model.bin')


def save_old_pickle(torch, model, folder):
  """As versions of torch before 1.6 wrote it."""
  model.config.save_pretrained(folder)
  torch.save(
    model.state_dict(),
    folder / 'pytorch_model.bin',
    _use_new_zipfile_serialization=False,
  )


def save_pickled_shards(torch, model, folder):
  model.config.save_pretrained(folder)
  tensors = list(model.state_dict().items())
  files = {}
  for i in range(3):
    file = f'pytorch_model-0000{i + 1}-of-00003.bin'
    shard = dict(tensors[i::3])
    torch.save(shard, folder / file)
    files |= dict.fromkeys(shard, file)
  index = {'metadata': {}, 'weight_map': files}
  path = folder / 'pytorch_model.bin.index.json'
  path.write_text(json.dumps(index))


FORMS = {
  'whole': save_whole,
  'shards': save_shards,
  'pickle': save_pickle,
  'old pickle': save_old_pickle,
  'pickled shards': save_pickled_shards,
}


@pytest.mark.parametrize('name', ['T5 1.0, tied', 'mT5, untied'])
@pytest.mark.parametrize('form', FORMS)
def test_all_forms_of_a_folder_hold_the_same(
  torch, transformers, tmp_path, form, name
):
  model = build(transformers, name)
  folder = tmp_path / 'hf'
  folder.mkdir()
  FORMS[form](torch, model, folder)
  pickled = 'pickle' in form
  if pickled:
    with pytest.raises(UserError, match=r'pytorch_model.*allow_pickle'):
      hf_t5.read_backbone(folder)
  found = hf_t5.read_backbone(folder, allow_pickle=pickled)
  save_whole(torch, model, tmp_path / 'expected')
  expected = hf_t5.read_backbone(tmp_path / 'expected')
  assert found[0] == expected[0]
  assert_equal(found[1], expected[1])


def test_shards_of_ours_are_loaded(torch, transformers, tmp_path):
  model = build(transformers, 'T5 1.1, untied')
  model.save_pretrained(tmp_path / 'theirs')
  config, backbone = hf_t5.read_backbone(tmp_path / 'theirs')
  folder = tmp_path / 'ours'
  hf_t5.write_backbone(folder, config, backbone, max_shard_bytes=10_000)
  assert len(list(folder.glob('model-0*.safetensors'))) > 2
  loaded = load(transformers, folder).state_dict()
  expected = model.state_dict()
  assert loaded.keys() == expected.keys()
  assert all(torch.equal(loaded[name], expected[name]) for name in expected)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_half_precision(torch, transformers, tmp_path, dtype):
  model = build(transformers, 'T5 1.1, untied').to(getattr(torch, dtype))
  model.save_pretrained(tmp_path / 'theirs')
  config, backbone = hf_t5.read_backbone(tmp_path / 'theirs')
  model = model.float()
  model.save_pretrained(tmp_path / 'as_float32')
  assert_equal(backbone, hf_t5.read_backbone(tmp_path / 'as_float32')[1])
  if dtype == 'bfloat16':
    hf_t5.write_backbone(tmp_path / 'ours', config, backbone, dtype=dtype)
    loaded = load(transformers, tmp_path / 'ours')
    assert loaded.dtype == torch.bfloat16
    same = loaded.float().state_dict()
    assert all(torch.equal(same[k], v) for k, v in model.state_dict().items())


def test_the_named_activation_wins_in_their_config_too(transformers):
  config = transformers.T5Config.from_dict(
    {'feed_forward_proj': 'gated-gelu', 'dense_act_fn': 'silu'}
  )
  assert config.dense_act_fn == 'silu'


def test_state_dicts(torch, tmp_path):
  torch.manual_seed(0)
  tensors = {
    'matrix': torch.randn(3, 4).T,
    'brain': torch.randn(2, 3).to(torch.bfloat16).T,
    'half': torch.randn(2).half(),
    'step': torch.tensor(3),
    'parameter': torch.nn.Parameter(torch.ones(2)),
  }
  torch.save(tensors, tmp_path / 'plain.bin')
  torch.save({'state_dict': tensors, 'epoch': 3}, tmp_path / 'nested.ckpt')
  for file in ('plain.bin', 'nested.ckpt'):
    found = torch_files.read_state_dict(tmp_path / file, allow_pickle=True)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
      assert str(found[name].dtype) == str(tensor.dtype).removeprefix('torch.')
      np.testing.assert_array_equal(
        found[name].astype(np.float32), tensor.detach().float().numpy()
      )


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_memory_of_reading_a_pickle(torch, transformers, tmp_path):
  build(transformers, 'T5 1.1, untied').save_pretrained(tmp_path / 'tiny')
  large, again = tmp_path / 'large', tmp_path / 'again'
  peak_memory.write_large(large)
  tensors = library.load_file(large / 'model.safetensors')
  (large / 'model.safetensors').unlink()
  tied = torch.from_numpy(tensors.pop('shared.weight'))
  tensors = {k: torch.from_numpy(v) for k, v in tensors.items()}
  for name in ('shared', 'encoder.embed_tokens', 'decoder.embed_tokens'):
    tensors[f'{name}.weight'] = tied
  torch.save(tensors, large / 'pytorch_model.bin')
  size = (large / 'pytorch_model.bin').stat().st_size
  read, _ = peak_memory.measure(
    tmp_path / 'tiny', large, again, library='torch'
  )
  for written in (large, again):  # pytest would keep them
    shutil.rmtree(written)
  assert 0.9 < read / size < 1.3


def test_other_pickles_are_refused(torch, tmp_path):
  trace = tmp_path / 'trace'

  class Program:
    def __reduce__(self):
      return trace.write_text, ('run',)

  path = tmp_path / 'x.bin'
  for content, message in (
    ({'x': Program()}, 'not a file of tensors alone'),
    ([torch.ones(1)], 'holds no state dict, but a list'),
    ({'x': torch.ones(1), 'lr': 0.1}, 'lr is a float, not a tensor'),
  ):
    torch.save(content, path)
    with pytest.raises(UserError, match=message):
      torch_files.read_state_dict(path, allow_pickle=True)
  assert not trace.exists()
  path.write_bytes(b'PK\x03\x04 cut short')
  with pytest.raises(UserError, match='not a file of tensors alone'):
    torch_files.read_state_dict(path, allow_pickle=True)
  with pytest.raises(UserError, match='There is no file'):
    torch_files.read_state_dict(tmp_path / 'y.bin', allow_pickle=True)


@pytest.fixture(scope='module', params=['t5_vocab.model', 'ni_8k.model'])
def pieces(shared_dir, request):
  path = shared_dir / 'data' / 'vocab' / request.param
  return SentencePieceVocabulary(path, 100)


def sentinels(count):
  return [f'<extra_id_{i}>' for i in range(count)]


def test_their_tokenizer_of_our_files_gives_our_ids(
  transformers, tmp_path, pieces
):
  hf_t5.write_vocabulary(tmp_path, pieces)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  assert type(theirs).__name__ == 'T5Tokenizer'
  assert len(theirs) == pieces.vocab_size
  for text in TEXTS:
    ids = pieces.encode(text)
    assert theirs.encode(text) == [*ids, pieces.eos_id]
    if pieces.unk_id not in ids:  # which they show as '<unk>', and we as '⁇'
      assert theirs.decode(ids) == pieces.decode(ids)
  ids = theirs.convert_tokens_to_ids(sentinels(100))
  assert ids == [pieces.vocab_size - 1 - i for i in range(100)]
  assert (theirs.pad_token_id, theirs.eos_token_id, theirs.unk_token_id) == (
    pieces.pad_id,
    pieces.eos_id,
    pieces.unk_id,
  )


def test_the_tokenizer_file_that_they_save_alone(
  transformers, tmp_path, pieces
):
  hf_t5.write_vocabulary(tmp_path / 'ours', pieces)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / 'ours')
  theirs.save_pretrained(tmp_path / 'theirs')
  assert not (tmp_path / 'theirs' / 'spiece.model').exists()
  found = hf_t5.read_vocabulary(tmp_path / 'theirs')
  assert found.vocab_size == pieces.vocab_size
  for text in (*TEXTS, 'a <extra_id_5> b'):
    assert found.encode(text) == pieces.encode(text)
  for ids in (range(3, 90), [pieces.vocab_size - 1, 5, 40, 1, 7]):
    assert found.decode(ids) == pieces.decode(ids)
  theirs.add_tokens(['<new>'])
  theirs.save_pretrained(tmp_path / 'added')
  with pytest.raises(UserError, match="such as '<new>'"):
    hf_t5.read_vocabulary(tmp_path / 'added')
  # And on to a folder with a model file of its own.
  hf_t5.write_vocabulary(tmp_path / 'again', found)
  again = transformers.AutoTokenizer.from_pretrained(tmp_path / 'again')
  for text in TEXTS:
    assert again.encode(text) == theirs.encode(text)


def test_bytes(transformers, tmp_path):
  ours = ByteVocabulary(125)
  hf_t5.write_vocabulary(tmp_path / 'ours', ours)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / 'ours')
  assert type(theirs).__name__ == 'ByT5Tokenizer'
  assert len(theirs) == ours.vocab_size == 384
  for text in TEXTS[:-1]:
    assert theirs.encode(text) == [*ours.encode(text), ours.eos_id]
  theirs.save_pretrained(tmp_path / 'theirs')
  assert hf_t5.read_vocabulary(tmp_path / 'theirs') == ours
