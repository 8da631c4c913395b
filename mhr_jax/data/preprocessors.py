"""The seqio side of a task: tokenising, references, metrics, vocabularies.

`STANDARD` is what tasks of this project use; a task with these preprocessors
over an `ExampleSource` is prepared without TensorFlow's pipeline. Any other
seqio preprocessors work too.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import seqio
import tensorflow_text as tf_text

from mhr_jax import metrics
from mhr_jax import vocabulary as vocabulary_lib
from mhr_jax.errors import UserError

# The feature that lists all acceptable targets of an example.
REFERENCES = 'references'

# Features of answer choices: their texts, and the index of the right one.
CHOICES = 'choices'
LABEL = 'label'

STANDARD = (seqio.preprocessors.tokenize, seqio.preprocessors.append_eos)


def references_or_text(
  output: str, example: dict[str, Any] | None = None, is_target: bool = False
) -> str | list[str]:
  """seqio postprocessor: a target becomes the list of its references.

  Args:
    output: decoded target or prediction.
    example: the example, with the feature `references` if it has several.
    is_target: whether `output` is the target.

  Returns:
    The references of a target; a prediction as it is.
  """
  if not is_target:
    return output
  if not example or REFERENCES not in example:
    return [output]
  return [as_text(reference) for reference in example[REFERENCES]]


def seqio_metric(name: str) -> Callable[..., dict[str, float]]:
  """Returns a metric of `mhr_jax.metrics` in the form that seqio calls."""
  metrics.check_name(name)

  def metric(
    targets: Sequence[Sequence[str]], predictions: Sequence[str]
  ) -> dict[str, float]:
    return {name: metrics.score_set(name, predictions, targets)}

  metric.__name__ = name
  return metric


def as_text(value: Any) -> str:
  """Returns text that seqio may hand over as bytes."""
  return value.decode('utf-8') if isinstance(value, bytes) else str(value)


class _SeqioVocabulary(seqio.Vocabulary):
  """A SentencePiece vocabulary of ours, which may lie in no file."""

  def __init__(self, vocabulary: vocabulary_lib.SentencePieceVocabulary):
    super().__init__(extra_ids=vocabulary.extra_ids)
    self.wrapped = vocabulary

  @property
  def bos_id(self):
    return None

  @property
  def eos_id(self):
    return self.wrapped.eos_id

  @property
  def unk_id(self):
    return self.wrapped.unk_id

  @property
  def vocab_size(self):
    return self.wrapped.vocab_size

  @property
  def _base_vocab_size(self):
    return self.wrapped.vocab_size

  @property
  def _tf_tokenizer(self):
    # Made anew each time: it belongs to the graph in which it was made.
    return tf_text.SentencepieceTokenizer(model=self.wrapped.full_model)

  def _encode(self, s):
    return self.wrapped.encode(s)

  def _decode(self, ids):
    return self.wrapped.decode(ids)

  def _encode_tf(self, s):
    return self._tf_tokenizer.tokenize(s)

  def _decode_tf(self, ids):
    return self._tf_tokenizer.detokenize(ids)

  def __eq__(self, other):
    return isinstance(other, _SeqioVocabulary) and other.wrapped == self.wrapped

  def __hash__(self):
    return hash(self.wrapped)


def to_seqio(vocabulary: vocabulary_lib.Vocabulary) -> seqio.Vocabulary:
  """Returns a vocabulary in the form that seqio's tasks take."""
  if isinstance(vocabulary, vocabulary_lib.SentencePieceVocabulary):
    return _SeqioVocabulary(vocabulary)
  return seqio.ByteVocabulary(vocabulary.extra_ids)


def from_seqio(vocabulary: seqio.Vocabulary) -> vocabulary_lib.Vocabulary:
  """Returns the TF-free form of a seqio vocabulary, with the same ids.

  Raises:
    UserError: it is neither SentencePiece nor bytes.
  """
  if isinstance(vocabulary, _SeqioVocabulary):
    return vocabulary.wrapped
  if isinstance(vocabulary, seqio.SentencePieceVocabulary):
    made = _read_vocabulary(
      vocabulary.sentencepiece_model_file, vocabulary.extra_ids
    )
    if vocabulary.sp_model == made.full_model:
      return made
  if isinstance(vocabulary, seqio.ByteVocabulary):
    return vocabulary_lib.ByteVocabulary(vocabulary.extra_ids)
  raise UserError(
    f'The vocabulary {vocabulary} cannot be used: give a'
    ' seqio.SentencePieceVocabulary without overrides, or a'
    ' seqio.ByteVocabulary.'
  )


@functools.lru_cache(maxsize=16)
def _read_vocabulary(path: str, extra_ids: int):
  return vocabulary_lib.SentencePieceVocabulary(path, extra_ids)
