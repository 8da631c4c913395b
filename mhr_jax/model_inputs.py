"""From tokens or texts that people hand in to the arrays of a batch.

Everything here runs on the host, in NumPy, and checks what it is given: inside
jit a token that is not in the vocabulary would be a silent NaN.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from jaxtyping import Bool, Int32
import numpy as np

from mhr_jax.errors import UserError
from mhr_jax.t5.config import T5Config
from mhr_jax.vocabulary import Vocabulary

# Widths are rounded up to multiples of this: texts of many lengths, few
# compiled programs.
_WIDTH_STEP = 16


def check_tokens(
  name: str, tokens: Any, config: T5Config, *, rows: int | None = None
) -> Int32[np.ndarray, 'row length']:
  """Returns token ids as int32, checked.

  Args:
    name: of the argument, for messages.
    tokens: [row, length].
    config: says how many ids there are.
    rows: how many rows there must be.

  Raises:
    UserError: not a table of whole numbers, without rows or columns, an id is
      not in the vocabulary, or the number of rows is another.
  """
  found = _as_table(name, tokens)
  if found.ndim != 2 or not np.issubdtype(found.dtype, np.integer):
    raise UserError(
      f'{name} is a table of token ids [row, length], not {found.dtype} of'
      f' shape {found.shape}.'
    )
  if not found.size:
    raise UserError(
      f'{name} has the shape {found.shape}: one row and one token at least are'
      ' needed.'
    )
  if rows is not None and len(found) != rows:
    raise UserError(f'{name} has {len(found)} rows, input_ids has {rows}.')
  wrong = (found < 0) | (found >= config.vocab_size)
  if wrong.any():
    row, position = np.argwhere(wrong)[0]
    raise UserError(
      f'{name}[{row}, {position}] is {found[row, position]}; the vocabulary'
      f' has ids 0 to {config.vocab_size - 1}.'
    )
  return found.astype(np.int32)


def make_mask(
  attention_mask: Any | None,
  input_ids: Int32[np.ndarray, 'row length'],
  config: T5Config,
) -> Bool[np.ndarray, 'row length']:
  """Returns which input tokens are read; by default, all but padding.

  Raises:
    UserError: the mask has another shape than the tokens.
  """
  if attention_mask is None:
    return input_ids != config.pad_id
  mask = _as_table('attention_mask', attention_mask)
  if mask.shape != input_ids.shape:
    raise UserError(
      f'attention_mask has shape {mask.shape}, input_ids {input_ids.shape}.'
    )
  return mask != 0


def _as_table(name: str, values: Any) -> np.ndarray:
  try:
    return np.asarray(values)
  except ValueError:  # of NumPy's, about rows of different lengths
    raise UserError(
      f'{name} has rows of different lengths. Fill them up to one length with'
      ' the id of padding (0 in a mask).'
    ) from None


def list_texts(texts: str | Iterable[str]) -> list[str]:
  """Returns the texts of a call; one alone is a list of one.

  Raises:
    UserError: it is neither a text nor a list of texts.
  """
  if isinstance(texts, str):
    return [texts]
  return _strings(texts, 'texts is a text or a list of texts')


def _strings(values: Any, wanted: str) -> list[str]:
  if isinstance(values, str) or not isinstance(values, Iterable):
    raise UserError(f'{wanted}, not {values!r}.')
  found = list(values)
  for i, value in enumerate(found):
    if not isinstance(value, str):
      raise UserError(f'{wanted}; element {i} is {value!r}.')
  return found


def encode_texts(
  texts: Iterable[str],
  vocabulary: Vocabulary,
  *,
  eos_id: int,
  length: int | None = None,
) -> list[list[int]]:
  """Returns the tokens of each text, EOS at the end.

  Args:
    texts: any texts.
    vocabulary: makes ids of them.
    eos_id: ends each one.
    length: where to cut, EOS included; None cuts nothing.

  Raises:
    UserError: there is no room for even one token.
  """
  if length is not None and length < 1:
    raise UserError(f'A text needs room for 1 token at least, not {length}.')
  kept = None if length is None else length - 1
  return [[*vocabulary.encode(text)[:kept], eos_id] for text in texts]


def pad_rows(
  rows: Sequence[Sequence[int]], pad_id: int, *, n_rows: int | None = None
) -> Int32[np.ndarray, 'row length']:
  """Lays token ids into a table that is as wide as needed, rounded up.

  Args:
    rows: of any lengths.
    pad_id: fills what is left.
    n_rows: rows of the table; those beyond `rows` are padding.
  """
  width = max(map(len, rows), default=1)
  width = -(-width // _WIDTH_STEP) * _WIDTH_STEP
  table = np.full((n_rows or len(rows), width), pad_id, np.int32)
  for out, row in zip(table, rows, strict=False):
    out[: len(row)] = row
  return table


def target_arrays(
  targets: Sequence[Sequence[int]], config: T5Config, *, n_rows: int
) -> dict[str, np.ndarray]:
  """Returns the arrays of a batch that say what is to be predicted.

  Args:
    targets: token ids of each row, with their EOS.
    config: says which ids start and pad.
    n_rows: rows of the batch; those beyond `targets` have no weight.

  Returns:
    `decoder_target_tokens`, `decoder_input_tokens` (moved right by one) and
    `decoder_loss_weights` (1 at every token of a target) [row, length].
  """
  wanted = pad_rows(targets, config.pad_id, n_rows=n_rows)
  start = np.full((n_rows, 1), config.decoder_start_token_id, np.int32)
  lengths = np.zeros(n_rows, np.int32)
  lengths[: len(targets)] = [len(target) for target in targets]
  weights = np.arange(wanted.shape[1]) < lengths[:, None]
  return {
    'decoder_target_tokens': wanted,
    'decoder_input_tokens': np.concatenate([start, wanted[:, :-1]], axis=1),
    'decoder_loss_weights': weights.astype(np.float32),
  }


def is_one_list(choices: Any) -> bool:
  """Whether choices are for all texts alike: a list that begins with a text."""
  listed = not isinstance(choices, str) and isinstance(choices, Sequence)
  return listed and bool(choices) and isinstance(choices[0], str)


def list_choices(
  choices: Sequence[str] | Sequence[Sequence[str]], n_texts: int
) -> list[list[str]]:
  """Returns one list of choices a text.

  Args:
    choices: one list for all texts, or one list a text.
    n_texts: how many texts there are.

  Raises:
    UserError: a text has no choices, there are lists for other texts, or what
      is given is no list of texts.
  """
  wanted = 'choices is a list of texts, or one such list a text'
  if is_one_list(choices):
    return [_strings(choices, wanted)] * n_texts
  if (
    isinstance(choices, str) or not isinstance(choices, Sequence) or not choices
  ):
    raise UserError(f'{wanted}, not {choices!r}.')
  lists = [
    _strings(each, f'{wanted}: choices[{i}] is a list of texts')
    for i, each in enumerate(choices)
  ]
  if len(lists) != n_texts:
    raise UserError(
      f'There are {len(lists)} lists of choices for {n_texts} texts: give one'
      ' for all, or one a text.'
    )
  if not all(lists):
    raise UserError(f'Text {lists.index([])} has no choices.')
  return lists


def cut_in_batches(rows: int, batch_size: int) -> Iterator[tuple[slice, int]]:
  """Yields the rows of each batch, and how many it is padded to.

  Raises:
    UserError: a batch of less than one row.
  """
  if batch_size < 1:
    raise UserError(f'batch_size is {batch_size}; at least 1.')
  for start in range(0, rows, batch_size):
    yield slice(start, start + batch_size), min(rows, batch_size)
