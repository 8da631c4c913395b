"""P3's rendered and cached tasks, as `bigscience/P3` lies on disk.

    <folder>/<task>/<split>.tfrecord-00000-of-0000N
                    info.<split>.json   shards, features
                    stats.<split>.json  counts
                    COMPLETED           the last file to be written

It is the form in which seqio caches tasks. A record has `inputs` and `targets`
(ids of T5's 32,000 pieces), `inputs_pretokenized` and `targets_pretokenized`
(their texts) and, where a template has them, `answer_choices`. A task
`<task>_score_eval` has one record a choice instead: `idx` (example, choice),
`is_correct`, `weight`, and the choice as its target.

The texts are read and not the ids, so that any vocabulary may be used; where
the ids are those of the vocabulary at hand the result is the same.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath
import tensorflow as tf

from mhr_jax import json_text
from mhr_jax.data import sources
from mhr_jax.errors import UserError
from mhr_jax.tasks.t0_examples import Choices

SCORED = '_score_eval'
# What T0 wrote where a template gave no target.
_NO_TARGET = '<NO LABEL>'

Fields = Mapping[str, Sequence[Any]]


class Scored(NamedTuple):
  """One record of a task for scoring: an example with one of its choices."""

  example: int
  choice: int
  inputs: str
  targets: str
  is_correct: bool


def list_cached_tasks(folder: epath.Path) -> list[str]:
  """Returns the names of the tasks that are whole.

  Raises:
    UserError: there is no such folder, or it holds no task.
  """
  if not folder.is_dir():
    raise UserError(f'There is no folder {folder}: it should hold P3.')
  found = sorted(
    path.name for path in folder.iterdir() if (path / 'COMPLETED').exists()
  )
  if not found:
    raise UserError(
      f'{folder} holds no task of P3: each would be a folder <task>/ there with'
      ' <split>.tfrecord-00000-of-0000N and a file COMPLETED.'
    )
  return found


def find_shards(folder: epath.Path, split: str) -> tuple[epath.Path, ...]:
  """Returns the files of a split, in their order; none without that split.

  Args:
    folder: of one task.
    split: its name.

  Raises:
    UserError: shards are missing.
  """
  shards = tuple(sorted(folder.glob(f'{split}.tfrecord-*-of-*')))
  wanted = _n_shards(folder / f'info.{split}.json')
  if wanted is None:
    wanted = int(shards[0].name.rpartition('-')[2]) if shards else 0
  if len(shards) != wanted:
    raise UserError(
      f'{folder} has {len(shards)} of the {wanted} shards of {split!r}: the'
      ' rest were not copied.'
    )
  return shards


def read_examples(
  shards: Sequence[epath.Path], form: str, *, choices: Choices
) -> Iterator[sources.TextExample]:
  """Yields the examples of a task that is not for scoring.

  Left out are records that T0 marked as having no target, and, where choices
  are kept, those whose target is none of their choices.

  Args:
    shards: the files of a split.
    form: the template's name, for the examples' ids.
    choices: whether examples have their `answer_choices`.

  Raises:
    UserError: a file is damaged, or a record lacks a field.
  """
  for row, (origin, fields) in enumerate(read_records(shards)):
    inputs = _text(fields, 'inputs_pretokenized', origin)
    targets = _text(fields, 'targets_pretokenized', origin)
    example = sources.TextExample(f'{row}/{form}', inputs, (targets,))
    if not inputs or targets in ('', _NO_TARGET):
      continue
    if choices == 'leave out':
      yield example
      continue
    texts = tuple(
      text.decode('utf-8') for text in _values(fields, 'answer_choices', origin)
    )
    if targets in texts:
      yield example._replace(choices=texts, label=texts.index(targets))


def read_scored(
  shards: Sequence[epath.Path], form: str
) -> Iterator[sources.TextExample]:
  """Yields the examples of a task for scoring, each with its choices.

  Records with the same example in `idx` are one example. One of which no choice
  is correct has no label and is left out. The whole split is held in memory.

  Args:
    shards: the files of a split.
    form: the template's name, for the examples' ids.

  Raises:
    UserError: a file is damaged, or a record lacks a field.
  """
  groups: dict[int, list[Scored]] = {}
  for origin, fields in read_records(shards):
    one = _scored(fields, origin)
    groups.setdefault(one.example, []).append(one)
  for example, group in sorted(groups.items()):
    group.sort(key=lambda one: one.choice)
    right = [i for i, one in enumerate(group) if one.is_correct]
    if right:
      texts = tuple(one.targets for one in group)
      name = f'{example}/{form}'
      target = (texts[right[0]],)
      yield sources.TextExample(name, group[0].inputs, target, texts, right[0])


def read_records(
  shards: Sequence[epath.Path],
) -> Iterator[tuple[str, dict[str, Sequence[Any]]]]:
  """Yields the records of a split: where each stands, and its fields.

  Raises:
    UserError: a file is damaged.
  """
  for path in shards:
    read = 0
    try:
      for serialized in tf.data.TFRecordDataset(
        [str(path)]
      ).as_numpy_iterator():
        example = tf.train.Example.FromString(serialized)
        yield f'{path}, record {read}', _fields(example)
        read += 1
    except (tf.errors.OpError, ValueError) as e:
      raise UserError(
        f'{path} is damaged behind record {read}: {type(e).__name__}: {e}.'
      ) from e


def _fields(example: Any) -> dict[str, Sequence[Any]]:
  fields = {}
  for key, feature in example.features.feature.items():
    kind = feature.WhichOneof('kind')
    fields[key] = getattr(feature, kind).value if kind else ()
  return fields


def _scored(fields: Fields, origin: str) -> Scored:
  idx = _values(fields, 'idx', origin)
  if len(idx) != 2:
    raise UserError(
      f'{origin}: `idx` has {len(idx)} numbers; a task for scoring has two, the'
      ' example and the choice.'
    )
  return Scored(
    int(idx[0]),
    int(idx[1]),
    _text(fields, 'inputs_pretokenized', origin),
    _text(fields, 'targets_pretokenized', origin),
    bool(_values(fields, 'is_correct', origin)[0]),
  )


def _text(fields: Fields, key: str, origin: str) -> str:
  """Returns a text without the blank that T0 cached before its targets."""
  return _values(fields, key, origin)[0].decode('utf-8').strip()


def _values(fields: Fields, key: str, origin: str) -> Sequence[Any]:
  if not fields.get(key):
    raise UserError(
      f'{origin}: there is no field {key!r}; it has'
      f' {", ".join(sorted(fields))}.'
    )
  return fields[key]


def _n_shards(path: epath.Path) -> int | None:
  """Returns how many shards a split has by its info file, if that is there."""
  if not path.exists():
    return None
  try:
    return int(json_text.parse(path.read_bytes())['num_shards'])
  except (ValueError, KeyError, TypeError, OverflowError) as e:
    raise UserError(f'{path}: no `num_shards` can be read: {e!r}.') from e
