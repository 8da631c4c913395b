"""Vocabularies from and to the tokenizer files of a transformers folder."""

import base64
from collections.abc import Iterator, Mapping
import re
from typing import Any

from etils import epath
from sentencepiece import sentencepiece_model_pb2

from mhr_jax import run_files
from mhr_jax.errors import UserError, blaming
from mhr_jax.vocabulary import (
  EOS_ID,
  PAD_ID,
  UNK_ID,
  ByteVocabulary,
  SentencePieceVocabulary,
  Vocabulary,
)

MODEL_FILE = 'spiece.model'
TOKENIZER_FILE = 'tokenizer.json'
SETTINGS_FILE = 'tokenizer_config.json'
ADDED_FILE = 'added_tokens.json'

_BYTES = 'ByT5Tokenizer'
_PIECES = 'T5Tokenizer'
_DEFAULT_SENTINELS = {_BYTES: 125, _PIECES: 100}
_SENTINEL = re.compile(r'▁?<extra_id_\d+>')
# Where versions of transformers list the sentinels.
_LISTS = ('extra_special_tokens', 'additional_special_tokens')
_SPECIAL = {'pad_token': PAD_ID, 'eos_token': EOS_ID, 'unk_token': UNK_ID}


def read_vocabulary(folder: epath.PathLike) -> Vocabulary | None:
  """Returns the vocabulary of a transformers folder; None where there is none.

  Plain text has the ids that transformers gives it. Beside a sentinel they may
  differ by a piece for the space, which versions of transformers treat
  differently.

  Args:
    folder: with `spiece.model`; or `tokenizer.json` alone, as transformers 5
      saves it; or a `tokenizer_config.json` that names ByT5's tokenizer.

  Raises:
    UserError: a file cannot be read, `tokenizer.json` is of another kind, or
      tokens were added, which has no equivalent here.
  """
  folder = epath.Path(folder)
  with blaming(f'The tokenizer of {folder}', "one of transformers' T5"):
    return _read_vocabulary(folder)


def _read_vocabulary(folder: epath.Path) -> Vocabulary | None:
  settings = _read_object(folder / SETTINGS_FILE)
  added = _read_object(folder / ADDED_FILE)
  for i, token in (settings.get('added_tokens_decoder') or {}).items():
    added[token['content']] = int(i)
  if settings.get('tokenizer_class') == _BYTES:
    vocabulary = ByteVocabulary(_count_sentinels(settings, _BYTES))
  elif (folder / MODEL_FILE).exists():
    sentinels = _count_sentinels(settings, _PIECES)
    vocabulary = SentencePieceVocabulary(folder / MODEL_FILE, sentinels)
  elif tokenizer := _read_object(folder / TOKENIZER_FILE):
    vocabulary = _from_tokenizer(tokenizer, str(folder / TOKENIZER_FILE))
    for token in tokenizer.get('added_tokens') or ():
      added[token['content']] = token['id']
  else:
    config = _read_object(folder / 'config.json')
    of_bytes = config.get('tokenizer_class') == _BYTES
    return ByteVocabulary(_DEFAULT_SENTINELS[_BYTES]) if of_bytes else None
  _check_added(added, vocabulary, folder)
  return vocabulary


def _check_added(
  added: Mapping[str, int], vocabulary: Vocabulary, folder: epath.Path
) -> None:
  beyond = [name for name, i in added.items() if i >= vocabulary.vocab_size]
  if beyond:
    raise UserError(
      f'The tokenizer of {folder} has {len(beyond)} tokens added to the'
      f' {vocabulary.vocab_size} of its vocabulary, such as {beyond[0]!r}; that'
      ' has no equivalent here. For token ids alone, without text, remove the'
      ' tokenizer files from a copy of the folder.'
    )


def _read_object(path: epath.Path) -> dict[str, Any]:
  return run_files.read_json(path) if path.exists() else {}


def _count_sentinels(settings: Mapping[str, Any], kind: str) -> int:
  listed = {
    str(token['content'] if isinstance(token, dict) else token)
    for name in _LISTS
    for token in settings.get(name) or ()
  }
  count = sum(1 for token in listed if _SENTINEL.fullmatch(token))
  return count or settings.get('extra_ids', _DEFAULT_SENTINELS[kind])


def _from_tokenizer(
  tokenizer: Mapping[str, Any], where: str
) -> SentencePieceVocabulary:
  """Returns the SentencePiece vocabulary that a `tokenizer.json` was made of.

  Pieces, scores and the normaliser's table are in it. What the model file
  noted of its making is not, so the fingerprint is another.
  """
  model = tokenizer.get('model') or {}
  tables = list(_find_charsmaps(tokenizer.get('normalizer')))
  if model.get('type') != 'Unigram' or model.get('unk_id') != UNK_ID:
    raise UserError(
      f"{where} holds a {model.get('type')} tokenizer; T5's is Unigram with"
      f' unk_id {UNK_ID}.'
    )
  pieces = model['vocab']
  count = 0
  while count < len(pieces) and _SENTINEL.fullmatch(pieces[-1 - count][0]):
    count += 1
  proto = sentencepiece_model_pb2.ModelProto()
  kinds = proto.SentencePiece
  special = {
    PAD_ID: kinds.CONTROL,
    EOS_ID: kinds.CONTROL,
    UNK_ID: kinds.UNKNOWN,
  }
  for i, (piece, score) in enumerate(pieces[: len(pieces) - count]):
    kind = special.get(i, kinds.NORMAL)
    proto.pieces.add(piece=piece, score=score, type=kind)
  for name, i in (('pad', PAD_ID), ('eos', EOS_ID), ('unk', UNK_ID)):
    setattr(proto.trainer_spec, f'{name}_id', i)
    setattr(proto.trainer_spec, f'{name}_piece', pieces[i][0])
  proto.trainer_spec.bos_id = -1
  proto.trainer_spec.model_type = proto.trainer_spec.UNIGRAM
  if tables:
    proto.normalizer_spec.precompiled_charsmap = base64.b64decode(tables[0])
  model = proto.SerializeToString(deterministic=True)
  return SentencePieceVocabulary.from_bytes(model, count)


def _find_charsmaps(normalizer: Any) -> Iterator[str]:
  if not isinstance(normalizer, Mapping):
    return
  if normalizer.get('precompiled_charsmap'):
    yield normalizer['precompiled_charsmap']
  for part in normalizer.get('normalizers') or ():
    yield from _find_charsmaps(part)


def write_vocabulary(folder: epath.PathLike, vocabulary: Vocabulary) -> None:
  """Writes the files that transformers' AutoTokenizer makes it of.

  Args:
    folder: of `write_backbone`.
    vocabulary: SentencePiece or bytes.

  Raises:
    UserError: the folder has another vocabulary.
  """
  folder = epath.Path(folder)
  settings: dict[str, Any] = {'extra_ids': vocabulary.extra_ids}
  if isinstance(vocabulary, SentencePieceVocabulary):
    path = folder / MODEL_FILE
    if path.exists() and path.read_bytes() != vocabulary.model:
      raise UserError(f'{path} is another vocabulary; choose another folder.')
    folder.mkdir(parents=True, exist_ok=True)
    path.write_bytes(vocabulary.model)
    pieces = sentencepiece_model_pb2.ModelProto.FromString(
      vocabulary.model
    ).pieces
    settings |= {name: pieces[i].piece for name, i in _SPECIAL.items()}
    settings['tokenizer_class'] = _PIECES
  elif isinstance(vocabulary, ByteVocabulary):
    settings['tokenizer_class'] = _BYTES
  else:
    raise UserError(f'transformers has no tokenizer for {vocabulary!r}.')
  run_files.write_json(folder / SETTINGS_FILE, settings)
