"""Text to token ids and back, without TensorFlow.

Ids are seqio's: 0 pads, 1 ends a sequence, 2 is unknown, and with `extra_ids`
the sentinels `<extra_id_0>`, `<extra_id_1>`, … take the last ids in descending
order, as published T5 checkpoints have them.

A vocabulary describes itself (`spec`) and copies its model file (`save`), so
that prepared data and run folders need nothing from outside.
"""

from collections.abc import Iterable, Mapping
import functools
import hashlib
import threading
from typing import Any
import uuid

from etils import epath
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from mhr_jax import file_names
from mhr_jax.errors import UserError, nearest
from mhr_jax.setting_checks import check_count

PAD_ID = 0
EOS_ID = 1
UNK_ID = 2

_MOST_EXTRA_IDS = 100_000
_BYTE_OFFSET = 3  # bytes follow the three special ids
# Loading a model is not thread-safe in the sentencepiece library.
_LOAD_LOCK = threading.Lock()


class Vocabulary:
  """What the two vocabularies share: special ids, equality, decoding.

  Attributes:
    extra_ids: how many sentinels stand at the end of the vocabulary.
    pad_id: 0.
    eos_id: 1; `encode` does not append it, `decode` stops before it.
    unk_id: 2.
  """

  pad_id = PAD_ID
  eos_id = EOS_ID
  unk_id = UNK_ID

  def __init__(self, extra_ids: int = 0):
    check_count('extra_ids', extra_ids, least=0)
    if extra_ids is None:  # which a file may say
      raise UserError('extra_ids is None; a whole number is wanted.')
    if extra_ids > _MOST_EXTRA_IDS:
      raise UserError(
        f'extra_ids is {extra_ids}; at most {_MOST_EXTRA_IDS:,} (T5 has 100).'
      )
    self.extra_ids = extra_ids

  @property
  def vocab_size(self) -> int:
    """Number of ids, sentinels included."""
    raise NotImplementedError

  @property
  def fingerprint(self) -> str:
    """sha256 (hex) of all that decides the ids."""
    raise NotImplementedError

  def encode(self, text: str) -> list[int]:
    """Returns the ids of `text`, without an end of sequence."""
    raise NotImplementedError

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text of `ids` up to the first end of sequence.

    Padding and ids beyond the vocabulary never raise: the former vanish, the
    latter read as unknown.
    """
    known = []
    for i in map(int, ids):
      if i == EOS_ID:
        break
      if i != PAD_ID:
        known.append(i if 0 <= i < self.vocab_size else UNK_ID)
    return self._decode(known)

  def _decode(self, ids: list[int]) -> str:
    raise NotImplementedError

  def spec(self) -> dict[str, Any]:
    """Returns a JSON dictionary from which `from_spec` makes it again."""
    raise NotImplementedError

  def save(self, folder: epath.PathLike) -> dict[str, Any]:
    """Copies what the spec needs into `folder` and returns the spec."""
    raise NotImplementedError

  def __eq__(self, other: object) -> bool:
    return (
      isinstance(other, Vocabulary) and other.fingerprint == self.fingerprint
    )

  def __hash__(self) -> int:
    return hash(self.fingerprint)


class SentencePieceVocabulary(Vocabulary):
  """A SentencePiece model with T5's sentinels at its end.

  Equal in ids to `seqio.SentencePieceVocabulary(path, extra_ids)`; with
  `extra_ids=100`, the T5 model has the 32,100 ids that its checkpoints expect.

  Attributes:
    model: the contents of the model file.
    full_model: the same with the sentinels in it.
  """

  def __init__(self, path: epath.PathLike, extra_ids: int = 0):
    """Reads a model file.

    Args:
      path: the SentencePiece `.model` file, local or in a bucket.
      extra_ids: how many sentinels to add.

    Raises:
      UserError: there is no such file, it is not a SentencePiece model, or
        its special ids are not pad 0, end of sequence 1, unknown 2.
    """
    path = epath.Path(path)
    try:
      model = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
      raise UserError(f'There is no vocabulary file {path}.') from None
    self._init(model, extra_ids, origin=str(path))

  @classmethod
  def from_bytes(
    cls, model: bytes, extra_ids: int = 0
  ) -> 'SentencePieceVocabulary':
    """Makes a vocabulary from the contents of a model file."""
    self = cls.__new__(cls)
    self._init(model, extra_ids, origin='the given bytes')
    return self

  def _init(self, model: bytes, extra_ids: int, *, origin: str) -> None:
    super().__init__(extra_ids)
    self.model = model
    self.full_model = _with_sentinels(model, extra_ids, origin)
    self._processor = _load(self.full_model, origin)
    found = tuple(
      getattr(self._processor, name)()
      for name in ('pad_id', 'eos_id', 'unk_id')
    )
    if found != (PAD_ID, EOS_ID, UNK_ID):
      raise UserError(
        f'{origin} has pad, end of sequence and unknown at ids {found}; T5'
        ' needs (0, 1, 2): train it with pad_id=0, eos_id=1, unk_id=2.'
      )

  def __reduce__(self):
    return SentencePieceVocabulary.from_bytes, (self.model, self.extra_ids)

  def __repr__(self) -> str:
    return (
      f'SentencePieceVocabulary({self.vocab_size} ids, {self.extra_ids} of them'
      f' sentinels, {self.fingerprint[:12]})'
    )

  @property
  def vocab_size(self) -> int:
    return self._processor.get_piece_size()

  @functools.cached_property
  def fingerprint(self) -> str:
    digest = hashlib.sha256(f'sentencepiece {self.extra_ids}\n'.encode())
    digest.update(self.model)
    return digest.hexdigest()

  def encode(self, text: str) -> list[int]:
    return self._processor.encode(text)

  def _decode(self, ids: list[int]) -> str:
    return self._processor.decode(ids)

  def spec(self) -> dict[str, Any]:
    return {
      'kind': 'sentencepiece',
      'file': f'sentencepiece-{hashlib.sha256(self.model).hexdigest()[:16]}.model',
      'extra_ids': self.extra_ids,
      'fingerprint': self.fingerprint,
    }

  def save(self, folder: epath.PathLike) -> dict[str, Any]:
    spec = self.spec()
    path = epath.Path(folder) / spec['file']
    if not path.exists() or path.read_bytes() != self.model:
      path.parent.mkdir(parents=True, exist_ok=True)
      # Whole or not at all, whoever else writes it at this moment.
      partial = path.parent / f'{path.name}.{uuid.uuid4().hex}.partial'
      partial.write_bytes(self.model)
      partial.replace(path)
    return spec


class ByteVocabulary(Vocabulary):
  """UTF-8 bytes, as ByT5 has them: byte b is id b + 3.

  Equal in ids to `seqio.ByteVocabulary(extra_ids)`. Special ids, sentinels and
  broken UTF-8 vanish when decoding.
  """

  @property
  def vocab_size(self) -> int:
    return _BYTE_OFFSET + 256 + self.extra_ids

  @property
  def fingerprint(self) -> str:
    return hashlib.sha256(f'bytes {self.extra_ids}'.encode()).hexdigest()

  def __repr__(self) -> str:
    return f'ByteVocabulary(extra_ids={self.extra_ids})'

  def encode(self, text: str) -> list[int]:
    return [byte + _BYTE_OFFSET for byte in text.encode('utf-8')]

  def _decode(self, ids: list[int]) -> str:
    values = (i - _BYTE_OFFSET for i in ids)
    return bytes(b for b in values if 0 <= b < 256).decode('utf-8', 'ignore')

  def spec(self) -> dict[str, Any]:
    return {
      'kind': 'bytes',
      'extra_ids': self.extra_ids,
      'fingerprint': self.fingerprint,
    }

  def save(self, folder: epath.PathLike) -> dict[str, Any]:
    del folder  # nothing to copy
    return self.spec()


def from_spec(spec: Mapping[str, Any], folder: epath.PathLike) -> Vocabulary:
  """Makes the vocabulary that `Vocabulary.spec` described.

  Args:
    spec: what `spec` or `save` returned.
    folder: where `save` put the model file.

  Raises:
    UserError: the kind is unknown, the file is absent or is another one.
  """
  kind, extra_ids = spec.get('kind'), spec.get('extra_ids', 0)
  if kind == 'sentencepiece':
    name = spec.get('file')
    where = f'The vocabulary in {folder}'
    path = file_names.path_inside(folder, name, where=where)
    vocabulary = SentencePieceVocabulary(path, extra_ids)
  elif kind == 'bytes':
    path, vocabulary = 'the byte vocabulary', ByteVocabulary(extra_ids)
  else:
    known = ('sentencepiece', 'bytes')
    raise UserError(
      f'There is no kind of vocabulary {kind!r}.{nearest(str(kind), known)}'
    )
  if spec.get('fingerprint', vocabulary.fingerprint) != vocabulary.fingerprint:
    raise UserError(
      f'{path} is not the vocabulary that was used: its fingerprint is'
      f' {vocabulary.fingerprint[:12]}, expected'
      f' {str(spec["fingerprint"])[:12]}.'
    )
  return vocabulary


def load_vocabulary(
  vocabulary: Vocabulary | epath.PathLike, *, extra_ids: int = 100
) -> Vocabulary:
  """Returns a vocabulary given as an object, a model file, or 'bytes'.

  Args:
    vocabulary: the object itself, the path of a SentencePiece model, or the
      word `bytes`.
    extra_ids: the sentinels to add, where an object is not given.
  """
  if isinstance(vocabulary, Vocabulary):
    return vocabulary
  if vocabulary == 'bytes':
    return ByteVocabulary(extra_ids)
  return SentencePieceVocabulary(vocabulary, extra_ids)


def _with_sentinels(model: bytes, extra_ids: int, origin: str) -> bytes:
  """Returns the model with T5's sentinels appended to its pieces."""
  try:
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
  except Exception as e:  # protobuf's DecodeError differs between its backends
    raise UserError(f'{origin} is not a SentencePiece model: {e}') from e
  for i in reversed(range(extra_ids)):
    proto.pieces.add(
      piece=f'▁<extra_id_{i}>',
      score=0.0,
      type=sentencepiece_model_pb2.ModelProto.SentencePiece.USER_DEFINED,
    )
  return proto.SerializeToString()


def _load(model: bytes, origin: str) -> sentencepiece.SentencePieceProcessor:
  with _LOAD_LOCK:
    processor = sentencepiece.SentencePieceProcessor()
    try:
      processor.LoadFromSerializedProto(model)
    except RuntimeError as e:
      raise UserError(f'{origin} is not a SentencePiece model: {e}') from e
  return processor
