"""Tests of vocabularies in transformers' folders; tests/interop has it live."""

import json

import pytest

from mhr_jax.convert import hf_t5
from mhr_jax.errors import UserError
from mhr_jax.vocabulary import ByteVocabulary, SentencePieceVocabulary


@pytest.fixture(scope='module')
def pieces(shared_dir):
  return SentencePieceVocabulary(shared_dir / 'data/vocab/ni_8k.model', 100)


def write_settings(folder, **settings):
  (folder / 'tokenizer_config.json').write_text(json.dumps(settings))


@pytest.mark.parametrize('extra_ids', [0, 100, 7])
def test_a_vocabulary_comes_back_as_it_was_written(tmp_path, pieces, extra_ids):
  for i, vocabulary in enumerate(
    (
      SentencePieceVocabulary.from_bytes(pieces.model, extra_ids),
      ByteVocabulary(extra_ids),
    )
  ):
    hf_t5.write_vocabulary(tmp_path / str(i), vocabulary)
    assert hf_t5.read_vocabulary(tmp_path / str(i)) == vocabulary


@pytest.mark.parametrize(
  ('settings', 'extra_ids'),
  [
    (None, 100),  # T5 as first published: spiece.model alone
    ({'tokenizer_class': 'T5Tokenizer'}, 100),
    ({'extra_ids': 30}, 30),
    ({'extra_ids': 0, 'additional_special_tokens': None}, 0),  # mT5
    ({'additional_special_tokens': ['<extra_id_0>', '<extra_id_1>']}, 2),
    ({'extra_special_tokens': ['<pad>', '</s>', '<extra_id_0>']}, 1),
    ({'additional_special_tokens': [{'content': '<extra_id_0>'}]}, 1),
  ],
)
def test_how_many_sentinels_a_model_file_gets(
  tmp_path, pieces, settings, extra_ids
):
  (tmp_path / 'spiece.model').write_bytes(pieces.model)
  if settings is not None:
    write_settings(tmp_path, **settings)
  vocabulary = hf_t5.read_vocabulary(tmp_path)
  assert vocabulary.extra_ids == extra_ids
  assert vocabulary.vocab_size == 8000 + extra_ids


@pytest.mark.parametrize(
  ('settings', 'extra_ids'),
  [
    ({}, 125),
    ({'extra_ids': 125}, 125),
    # As transformers 5 saves it.
    (
      {
        'extra_ids': 0,
        'extra_special_tokens': [f'<extra_id_{i}>' for i in range(125)],
      },
      125,
    ),
  ],
)
def test_bytes(tmp_path, settings, extra_ids):
  write_settings(tmp_path, tokenizer_class='ByT5Tokenizer', **settings)
  assert hf_t5.read_vocabulary(tmp_path) == ByteVocabulary(extra_ids)


def test_bytes_by_the_word_of_the_config_alone(tmp_path):
  assert hf_t5.read_vocabulary(tmp_path) is None
  config = tmp_path / 'config.json'
  config.write_text('{"model_type": "t5"}')
  assert hf_t5.read_vocabulary(tmp_path) is None
  config.write_text('{"tokenizer_class": "ByT5Tokenizer"}')
  assert hf_t5.read_vocabulary(tmp_path) == ByteVocabulary(125)


def test_another_vocabulary_is_not_overwritten(tmp_path, pieces):
  (tmp_path / 'spiece.model').write_bytes(b'another')
  with pytest.raises(UserError, match='spiece.model is another vocabulary'):
    hf_t5.write_vocabulary(tmp_path, pieces)
  assert (tmp_path / 'spiece.model').read_bytes() == b'another'


def test_another_kind_of_tokenizer_is_refused(tmp_path):
  tokenizer = {'model': {'type': 'BPE', 'vocab': {}}}
  (tmp_path / 'tokenizer.json').write_text(json.dumps(tokenizer))
  with pytest.raises(UserError, match='tokenizer.json holds a BPE tokenizer'):
    hf_t5.read_vocabulary(tmp_path)


def test_added_tokens_are_refused_by_name(tmp_path, pieces):
  hf_t5.write_vocabulary(tmp_path, pieces)
  tokens = {
    '8099': {'content': '<extra_id_0>'},
    '8100': {'content': '{'},
  }
  message = "has 1 tokens added to the 8100 of its vocabulary, such as '{'"
  write_settings(tmp_path, extra_ids=100, added_tokens_decoder=tokens)
  with pytest.raises(UserError, match=message):
    hf_t5.read_vocabulary(tmp_path)
  write_settings(tmp_path, extra_ids=100)
  (tmp_path / 'added_tokens.json').write_text('{"{": 8100}')
  with pytest.raises(UserError, match=message):
    hf_t5.read_vocabulary(tmp_path)
