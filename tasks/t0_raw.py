"""Raw records of T0's data sets, with the fields of Hugging Face.

A folder of JSON lines, one folder a data set:

    <folder>/<dataset>[_<subset>]/<split>.jsonl    one record a line
                                  templates.yaml   if not given elsewhere

`<split>.raw.jsonl` goes before `<split>.jsonl`. Few-shot draws are splits too:
`few_shot_seed<S>`, and of ANLI's rounds `few_shot_r1_seed<S>`. Story Cloze may
lie there as it is handed out, `cloze_test_{val,test}__spring2016*.csv`.

T-Few's repository has draws of all held-out sets, `data/few_shot`:

    <t_few>/<its name of the set>/<shots>_shot/<S>_seed.jsonl
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import csv
import dataclasses
import functools
import logging
import re
from typing import Any, NamedTuple, Protocol

from etils import epath

from mhr_jax import json_text
from mhr_jax.errors import UserError, nearest
from mhr_jax.tasks import promptsource
from mhr_jax.tasks.promptsource import Template
from mhr_jax.tasks.t0_datasets import HeldOutSet, set_name

_log = logging.getLogger(__name__)


class Record(NamedTuple):
  """One raw record: where it stands, for messages, and its fields."""

  origin: str
  fields: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class RawSplit:
  """One split of raw records.

  Attributes:
    read: reads them from the beginning, lazily.
    files: where they lie, to be fingerprinted.
    lacks: fields of the data set that its records have not here.
  """

  read: Callable[[], Iterator[Record]]
  files: tuple[epath.Path, ...]
  lacks: tuple[str, ...] = ()


class RawSets(Protocol):
  """Where the raw records of data sets are found."""

  def find(self, dataset: str, subset: str | None) -> dict[str, RawSplit]:
    """Returns the splits of a data set; none if it is not there."""
    ...

  def remedy(self, dataset: str, subset: str | None) -> str:
    """Returns what to do about a data set that is not there."""
    ...


@dataclasses.dataclass(frozen=True)
class JsonLines:
  """A folder of JSON lines; see above."""

  folder: epath.Path

  def __post_init__(self):
    if not self.folder.is_dir():
      raise UserError(
        f'There is no folder {self.folder}: it should hold a folder'
        ' <dataset>_<subset> with <split>.jsonl for every data set.'
      )

  def find(self, dataset: str, subset: str | None) -> dict[str, RawSplit]:
    """Returns the splits of a data set; none if it is not there."""
    folder = self.folder / set_name(dataset, subset)
    if not folder.is_dir():
      return {}
    found = {}
    # `x.raw.jsonl` comes behind `x.jsonl` and takes its place.
    for ending in ('.jsonl', '.raw.jsonl'):
      for path in sorted(folder.glob(f'*{ending}')):
        split = path.name.removesuffix(ending)
        if not split.endswith('.raw'):
          found[split] = _split(read_json_lines, path)
    if dataset == 'story_cloze':
      for split, part in (('validation', 'val'), ('test', 'test')):
        for path in sorted(folder.glob(f'cloze_test_{part}__spring2016*.csv')):
          found.setdefault(split, _split(read_story_cloze, path))
    return found

  def remedy(self, dataset: str, subset: str | None) -> str:
    """Returns what to do about a data set that is not there."""
    name = set_name(dataset, subset)
    return f'Its records would be {self.folder / name}/<split>.jsonl.'


def find_t_few_draws(
  folder: epath.Path, held_out: HeldOutSet
) -> dict[str, RawSplit]:
  """Returns T-Few's few-shot draws of a data set, as splits.

  Args:
    folder: `data/few_shot` of T-Few's repository.
    held_out: the data set.

  Raises:
    UserError: there is no such folder, or it has no draws of the data set.
  """
  if not folder.is_dir():
    raise UserError(
      f"There is no folder {folder}: T-Few's draws lie in data/few_shot of its"
      ' repository.'
    )
  draws = folder / held_out.t_few / f'{held_out.shots}_shot'
  found = {}
  for path in sorted(draws.glob('*_seed.jsonl')):
    seed = path.name.removesuffix('_seed.jsonl')
    found[f'few_shot_seed{seed}'] = _split(read_json_lines, path)
  if not found:
    raise UserError(
      f'There is no {draws}/*_seed.jsonl with draws of {held_out.name}: give the'
      " folder data/few_shot of T-Few's repository, or leave it out where the"
      " draws lie in the data set's own folder."
    )
  return found


def find_templates(
  templates: epath.Path | None,
  folder: epath.Path | None,
  dataset: str,
  subset: str | None,
) -> list[Template]:
  """Returns the templates of a data set.

  Args:
    templates: a folder as PromptSource's `promptsource/templates`.
    folder: where that is not given, the folder of the data sets, in each of
      which lies a `templates.yaml`.
    dataset: its name.
    subset: its configuration, if it has one.

  Raises:
    UserError: there are none, or their file is damaged.
  """
  name = 'templates.yaml'
  if templates is not None:
    parts = [dataset, *([subset] if subset else []), name]
    return promptsource.read_templates(templates.joinpath(*parts))
  path = (folder or epath.Path()) / set_name(dataset, subset) / name
  if not path.exists():
    raise UserError(
      f"There is no {path}. Put PromptSource's templates there, or give"
      " `templates`, the folder promptsource/templates of PromptSource's"
      ' repository.'
    )
  return promptsource.read_templates(path)


def labelled(split: RawSplit, held_out: HeldOutSet) -> RawSplit:
  """Returns a split that is read with a check of every record's label.

  Templates do not check it: with a label of -1 most of them take the last
  choice to be right.
  """
  read = functools.partial(_read_labelled, split.read, held_out)
  return dataclasses.replace(split, read=read)


def read_json_lines(path: epath.Path) -> Iterator[Record]:
  """Yields the records of a file.

  Raises:
    UserError: a line is no JSON object in UTF-8; the message has its number.
  """
  for number, line in enumerate(_text_lines(path), 1):
    origin = f'{path}:{number}'
    if not line.strip():
      continue
    try:
      fields = json_text.parse(line)
    except ValueError as e:
      raise UserError(f'{origin}: not JSON: {e}.') from None
    if not isinstance(fields, dict):
      raise UserError(f'{origin}: a record is a JSON object.')
    yield Record(origin, fields)


def read_story_cloze(path: epath.Path) -> Iterator[Record]:
  """Yields the records of a Story Cloze file in the form it is handed out in.

  Raises:
    UserError: a column is missing, or a row lacks one or has no right ending;
      the message has the line's number.
  """
  try:
    yield from _read_endings(path, csv.DictReader(_text_lines(path)))
  except csv.Error as e:  # a quote that is not closed, mostly
    raise UserError(f'{path}: no table of commas and quotes: {e}.') from None


def _read_endings(path: epath.Path, rows: csv.DictReader) -> Iterator[Record]:
  columns = {
    'story_id': 'InputStoryid',
    **{f'input_sentence_{i}': f'InputSentence{i}' for i in range(1, 5)},
    **{f'sentence_quiz{i}': f'RandomFifthSentenceQuiz{i}' for i in (1, 2)},
    'answer_right_ending': 'AnswerRightEnding',
  }
  absent = sorted(set(columns.values()) - set(rows.fieldnames or ()))
  if absent:
    raise UserError(f'{path}:1: there is no column {absent[0]!r}.')
  for row in rows:
    origin = f'{path}:{rows.line_num}'
    fields: dict[str, Any] = {key: row[name] for key, name in columns.items()}
    right = columns['answer_right_ending']
    if row[right] not in ('1', '2'):
      raise UserError(
        f'{origin}: the column {right!r} holds {row[right]!r}, not 1 or 2: the'
        ' file with right endings is needed, cloze_test_{val,test}__spring2016.'
      )
    fields['answer_right_ending'] = int(row[right])
    yield Record(origin, fields)


def usable_templates(
  templates: Sequence[Template], split: RawSplit, title: str
) -> list[Template]:
  """Returns those templates whose fields the records have; says which not."""
  lacking = {
    template.name: sorted(template.fields() & set(split.lacks))
    for template in templates
  }
  usable = [template for template in templates if not lacking[template.name]]
  if len(usable) < len(templates):
    left = '; '.join(
      f'{name!r} reads {", ".join(fields)}'
      for name, fields in lacking.items()
      if fields
    )
    _log.warning(
      '%s: %d of %d templates are left out, their fields are not in these'
      ' records: %s. Scores are over the others, and not comparable with those'
      ' over all.',
      title,
      len(templates) - len(usable),
      len(templates),
      left,
    )
  return usable


def few_shot_splits(
  splits: Mapping[str, RawSplit], suffix: str
) -> dict[str, RawSplit]:
  """Returns those splits that are few-shot draws, by `few_shot_seed<S>`.

  Args:
    splits: of a data set.
    suffix: `_r1` and so on for ANLI's rounds, else empty.
  """
  found = {}
  for name, split in splits.items():
    match = re.fullmatch(rf'few_shot{suffix}_(seed\d+)', name)
    if match:
      found[f'few_shot_{match[1]}'] = split
  return found


def _read_labelled(
  read: Callable[[], Iterator[Record]], held_out: HeldOutSet
) -> Iterator[Record]:
  """Yields records.

  Raises:
    UserError: one has no label, or one that its data set has not.
  """
  key, known = held_out.label_field, held_out.labels
  for record in read():
    if key not in record.fields:
      raise UserError(
        f'{record.origin}: there is no field {key!r}, the label of'
        f' {held_out.name}.{nearest(key, record.fields)}'
      )
    label = record.fields[key]
    if not any(label == one and type(label) is type(one) for one in known):
      listed = ', '.join(map(repr, known))
      message = (
        f'{record.origin}: {key!r} is {label!r}; {held_out.name} has the labels'
        f' {listed}.'
      )
      if label in (-1, '', None):
        message += (
          ' This is how a split with hidden labels is published: only those'
          f' with labels can be used, such as {held_out.test_split!r}.'
        )
      raise UserError(message)
    yield record


def _text_lines(path: epath.Path) -> Iterator[str]:
  """Yields the lines of a file.

  Raises:
    UserError: one is not UTF-8; the message has its number.
  """
  with path.open('rb') as f:
    for number, line in enumerate(f, 1):
      try:
        yield line.decode('utf-8')
      except UnicodeDecodeError as e:
        raise UserError(
          f'{path}:{number}: no text in UTF-8: {e.reason} at byte {e.start} of'
          ' the line. Write the file again as UTF-8.'
        ) from None


def _split(
  read: Callable[[epath.Path], Iterator[Record]], path: epath.Path
) -> RawSplit:
  return RawSplit(functools.partial(read, path), (path,))
