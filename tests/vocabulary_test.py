"""Ids are T5's; a vocabulary survives copying, pickling and a run folder."""

import copy
import io
import json
import pickle
import subprocess
import sys

import pytest
import sentencepiece

from mhr_jax import vocabulary as vocabulary_lib
from mhr_jax.errors import UserError
from mhr_jax.vocabulary import ByteVocabulary, SentencePieceVocabulary

_TEXTS = ['the cat sat on the mat', 'a dog ran after the cat', 'the end'] * 9


@pytest.fixture(scope='module')
def model() -> bytes:
  """A small unigram model, trained here."""
  buffer = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(_TEXTS),
    model_writer=buffer,
    vocab_size=40,
    hard_vocab_limit=False,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    minloglevel=2,
  )
  return buffer.getvalue()


def test_t5_ids(shared_dir):
  path = shared_dir / 'data/vocab/t5_vocab.model'
  vocabulary = SentencePieceVocabulary(path, extra_ids=100)
  ids = vocabulary.encode('translate English to German:')
  assert ids == [13959, 1566, 12, 2968, 10]
  assert vocabulary.vocab_size == 32_100
  assert vocabulary.encode('<extra_id_0>') == [32_099]
  assert vocabulary.encode('<extra_id_99>') == [32_000]
  assert vocabulary.decode([*ids, 1, 27]) == 'translate English to German:'


def test_sentinels_take_the_last_ids_descending(model):
  plain = SentencePieceVocabulary.from_bytes(model)
  vocabulary = SentencePieceVocabulary.from_bytes(model, extra_ids=3)
  assert vocabulary.vocab_size == plain.vocab_size + 3
  last = vocabulary.vocab_size - 1
  for i in range(3):
    assert vocabulary.encode(f'<extra_id_{i}>') == [last - i]
  assert vocabulary.encode(_TEXTS[0]) == plain.encode(_TEXTS[0])


@pytest.mark.parametrize('text', ['the cat sat', 'a mat', ''])
def test_decode_stops_at_the_end_and_skips_padding(model, text):
  vocabulary = SentencePieceVocabulary.from_bytes(model)
  ids = vocabulary.encode(text)
  assert vocabulary.decode([0, *ids, 0, 0]) == text
  assert vocabulary.decode([*ids, 1, 5, 6]) == text


def test_decode_of_ids_out_of_range_is_unknown(model):
  vocabulary = SentencePieceVocabulary.from_bytes(model)
  ids = [vocabulary.vocab_size, 10**6, -1]
  assert vocabulary.decode(ids) == vocabulary.decode([2, 2, 2])


@pytest.mark.parametrize('text', ['abc', 'Grüße, 世界', ''])
def test_bytes(text):
  vocabulary = ByteVocabulary(extra_ids=5)
  ids = vocabulary.encode(text)
  assert ids == [byte + 3 for byte in text.encode()]
  assert vocabulary.vocab_size == 264
  assert vocabulary.decode([0, *ids, 260, 1, 70]) == text


def test_spec_and_file_make_the_same_vocabulary(model, tmp_path):
  for made in (
    SentencePieceVocabulary.from_bytes(model, extra_ids=7),
    ByteVocabulary(2),
  ):
    spec = json.loads(json.dumps(made.save(tmp_path)))
    assert spec == made.spec()
    again = vocabulary_lib.from_spec(spec, tmp_path)
    assert again == made and hash(again) == hash(made)
    assert again.vocab_size == made.vocab_size


def test_another_file_in_its_place_is_an_error(model, tmp_path):
  spec = SentencePieceVocabulary.from_bytes(model, extra_ids=7).save(tmp_path)
  with pytest.raises(UserError, match='is not the vocabulary that was used'):
    vocabulary_lib.from_spec({**spec, 'extra_ids': 8}, tmp_path)


def test_copies_are_equal_and_settings_are_part_of_it(model):
  made = SentencePieceVocabulary.from_bytes(model, extra_ids=7)
  assert pickle.loads(pickle.dumps(made)) == made == copy.deepcopy(made)
  assert made != SentencePieceVocabulary.from_bytes(model, extra_ids=8)
  assert ByteVocabulary(1) != ByteVocabulary(2) == ByteVocabulary(2)


def test_errors_say_what_is_wrong(tmp_path):
  with pytest.raises(UserError, match='There is no vocabulary file'):
    SentencePieceVocabulary(tmp_path / 'absent.model')
  (tmp_path / 'bad.model').write_bytes(b'\xff' * 40)
  with pytest.raises(UserError, match=r'bad\.model is not a SentencePiece'):
    SentencePieceVocabulary(tmp_path / 'bad.model')
  with pytest.raises(UserError, match="'bytes'"):
    vocabulary_lib.from_spec({'kind': 'byte'}, tmp_path)


def test_other_special_ids_are_refused():
  buffer = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(_TEXTS),
    model_writer=buffer,
    vocab_size=40,
    hard_vocab_limit=False,
    minloglevel=2,
  )
  with pytest.raises(UserError, match=r'needs \(0, 1, 2\)'):
    SentencePieceVocabulary.from_bytes(buffer.getvalue())


def test_imports_no_tensorflow():
  code = (
    'import sys, mhr_jax.vocabulary, mhr_jax.metrics\n'
    'assert not {"tensorflow", "seqio"} & set(sys.modules)'
  )
  subprocess.run([sys.executable, '-c', code], check=True)


def test_a_description_without_a_number_of_sentinels_is_refused(tmp_path):
  spec = {'kind': 'bytes', 'extra_ids': None}
  with pytest.raises(UserError, match='extra_ids is None; a whole number'):
    vocabulary_lib.from_spec(spec, tmp_path)
