"""The generated skills suite as plain Python: operations, tasks, examples.

See `mhr_jax.tasks.skills` for what the suite tests. Nothing here needs seqio.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import itertools
import random
import re

from sentencepiece import sentencepiece_model_pb2

from mhr_jax.errors import UserError, nearest
from mhr_jax.vocabulary import SentencePieceVocabulary

LETTERS = 'abcdefghijklmnop'
_VOWELS = 'aeio'
_LENGTHS = (4, 5, 6)
# Compositions that agree on these are one function.
_PROBES = ('abcdef', 'ponmlk', 'aeiobc', 'bcdf', 'fghij', 'hello', 'kaboom')

COPY = 'copy'

_SUCCESSOR = str.maketrans(LETTERS, LETTERS[1:] + LETTERS[:1])
_MIRROR = str.maketrans(LETTERS, LETTERS[::-1])
_CONSONANTS = str.maketrans('', '', _VOWELS)
_STAR = str.maketrans(_VOWELS, '*' * len(_VOWELS))

_FUNCTIONS: Mapping[str, Callable[[str], str]] = {
  COPY: lambda text: text,
  'tail': lambda text: text[1:],
  'init': lambda text: text[:-1],
  'alternate': lambda text: text[::2],
  'consonants': lambda text: text.translate(_CONSONANTS),
  'reverse': lambda text: text[::-1],
  'left': lambda text: text[1:] + text[:1],
  'right': lambda text: text[-1:] + text[:-1],
  'swap': lambda text: re.sub('(.)(.)', r'\2\1', text),
  'upper': str.upper,
  'successor': lambda text: text.translate(_SUCCESSOR),
  'mirror': lambda text: text.translate(_MIRROR),
  'star': lambda text: text.translate(_STAR),
}

# Every slot's operations by name; a composition applies the slots in order.
SLOTS: Mapping[str, tuple[str, ...]] = {
  'select': ('tail', 'init', 'alternate', 'consonants'),
  'order': ('reverse', 'left', 'right', 'swap'),
  'map': ('upper', 'successor', 'mirror', 'star'),
}
OPERATIONS = tuple(itertools.chain.from_iterable(SLOTS.values()))

Composition = tuple[str, ...]


def apply_operation(operation: str, text: str) -> str:
  """Returns the text after one operation.

  >>> [apply_operation(name, 'abcde') for name in SLOTS['select']]
  ['bcde', 'abcd', 'ace', 'bcd']
  >>> [apply_operation(name, 'abcde') for name in SLOTS['order']]
  ['edcba', 'bcdea', 'eabcd', 'badce']
  >>> [apply_operation(name, 'abcde') for name in SLOTS['map']]
  ['ABCDE', 'bcdef', 'ponml', '*bcd*']
  """
  if operation not in _FUNCTIONS:
    raise UserError(
      f'There is no operation {operation!r}.{nearest(operation, _FUNCTIONS)}'
    )
  return _FUNCTIONS[operation](text)


def apply_composition(composition: Composition, text: str) -> str:
  """Returns the text after each operation in turn."""
  for operation in composition:
    text = apply_operation(operation, text)
  return text


@dataclasses.dataclass(frozen=True)
class SuiteSettings:
  """Sizes of the suite; all of it follows from these and the seed.

  Attributes:
    seed: draws the tasks and their strings.
    n_train_tasks: compositions to train on together.
    n_heldout_tasks: other compositions, of operations that training has.
    train_examples: of each training task.
    operation_examples: training examples of each single operation.
    validation_examples: of each task.
    few_shot_examples: the pool of each held-out task to draw few-shot
      examples from.
    test_examples: of each task.
  """

  seed: int = 0
  n_train_tasks: int = 40
  n_heldout_tasks: int = 8
  train_examples: int = 1000
  operation_examples: int = 4000
  validation_examples: int = 50
  few_shot_examples: int = 128
  test_examples: int = 200

  def __post_init__(self):
    most = len(compositions())
    if not 1 <= self.n_train_tasks <= most - self.n_heldout_tasks:
      raise UserError(
        f'There are {most} compositions: {self.n_train_tasks} training and'
        f' {self.n_heldout_tasks} held-out tasks cannot be drawn from them.'
      )


@dataclasses.dataclass(frozen=True)
class SuiteTasks:
  """The compositions of a suite, each sorted."""

  train: tuple[Composition, ...]
  heldout: tuple[Composition, ...]


def compositions() -> list[Composition]:
  """Returns all compositions of two or three operations, one a slot.

  Of those that are the same function, the first and shortest is kept; those
  that equal a single operation are left out.
  """
  known = {_behaviour((name,)) for name in (COPY, *OPERATIONS)}
  found = []
  choices = itertools.product(*[(None, *names) for names in SLOTS.values()])
  chosen = [tuple(name for name in names if name) for names in choices]
  for composition in sorted(chosen, key=len):
    behaviour = _behaviour(composition)
    if len(composition) >= 2 and behaviour not in known:
      known.add(behaviour)
      found.append(composition)
  return found


def draw_tasks(settings: SuiteSettings) -> SuiteTasks:
  """Draws training and held-out compositions.

  Every operation of a held-out task occurs in two training tasks or more, so
  that what is new about it is the composition alone.

  Raises:
    UserError: no draw of this size has that property.
  """
  rng = random.Random(f'skills tasks {settings.seed}')
  pool = compositions()
  for _ in range(1000):
    pool.sort(key=lambda _: rng.random())
    heldout = pool[: settings.n_heldout_tasks]
    train = pool[settings.n_heldout_tasks :][: settings.n_train_tasks]
    used = list(itertools.chain.from_iterable(train))
    if all(used.count(name) >= 2 for task in heldout for name in task):
      return SuiteTasks(tuple(sorted(train)), tuple(sorted(heldout)))
  raise UserError(
    f'{settings.n_train_tasks} training tasks do not hold every operation'
    ' twice: ask for more of them.'
  )


def make_examples(
  composition: Composition,
  sizes: Mapping[str, int],
  *,
  form: str,
  seed: int,
) -> dict[str, list[tuple[str, str]]]:
  """Returns (input, target) pairs of a task by split.

  The strings are distinct within the task, over all splits, and the same in
  both forms.

  Args:
    composition: the operations, or `('copy',)`.
    sizes: the number of examples of each split, in order.
    form: `id`, the string alone, or `instructed`, the operations' symbols
      before it.
    seed: draws the strings.
  """
  if form not in ('id', 'instructed'):
    raise UserError(f"The form is 'id' or 'instructed', not {form!r}.")
  named = form == 'instructed' and composition != (COPY,)
  prefix = ''.join(map(symbol, composition)) if named else ''
  strings = _distinct_strings(composition, seed)
  return {
    split: [
      (prefix + text, apply_composition(composition, text))
      for text in itertools.islice(strings, size)
    ]
    for split, size in sizes.items()
  }


def symbol(operation: str) -> str:
  """Returns how an operation is named in an instructed input."""
  return f'<{operation}>'


def make_vocabulary() -> SentencePieceVocabulary:
  """Returns the suite's vocabulary: a SentencePiece model, made in memory.

  One id a letter, a capital, the star and an operation's symbol: 48 in all.
  """
  model = sentencepiece_model_pb2.ModelProto()
  kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
  special = [
    ('<pad>', kinds.CONTROL),
    ('</s>', kinds.CONTROL),
    ('<unk>', kinds.UNKNOWN),
  ]
  symbols = [(symbol(name), kinds.USER_DEFINED) for name in OPERATIONS]
  letters = [(c, kinds.NORMAL) for c in LETTERS + LETTERS.upper() + '*']
  for i, (piece, kind) in enumerate([*special, *symbols, *letters]):
    model.pieces.add(piece=piece, score=-float(i), type=kind)
  trainer = model.trainer_spec
  trainer.model_type = sentencepiece_model_pb2.TrainerSpec.CHAR
  trainer.vocab_size = len(model.pieces)
  trainer.pad_id, trainer.eos_id, trainer.unk_id, trainer.bos_id = 0, 1, 2, -1
  model.normalizer_spec.name = 'identity'
  model.normalizer_spec.add_dummy_prefix = False
  model.normalizer_spec.remove_extra_whitespaces = False
  return SentencePieceVocabulary.from_bytes(
    model.SerializeToString(deterministic=True)
  )


def _behaviour(composition: Sequence[str]) -> tuple[str, ...]:
  return tuple(apply_composition(tuple(composition), p) for p in _PROBES)


def _distinct_strings(composition: Composition, seed: int) -> Iterator[str]:
  """Yields strings without end; none whose result is empty."""
  # random() alone keeps its sequence over Python's versions.
  rng = random.Random(f'skills strings {seed} {"+".join(composition)}')
  seen = set()
  while True:
    length = _LENGTHS[int(rng.random() * len(_LENGTHS))]
    indices = (int(rng.random() * len(LETTERS)) for _ in range(length))
    text = ''.join(LETTERS[i] for i in indices)
    if text not in seen and apply_composition(composition, text):
      seen.add(text)
      yield text
