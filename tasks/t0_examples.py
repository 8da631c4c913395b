"""Examples from raw records and templates; what is left out is counted.

An example's id is `<row>/<template>`: the row of the record within its split,
and the template's name as T0 puts it into the name of a task. So all forms of
one record have the same beginning.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
import hashlib
import itertools
import logging
import random
from typing import Literal

from mhr_jax.data import sources
from mhr_jax.errors import UserError
from mhr_jax.tasks.promptsource import Drop, Rendered, Template
from mhr_jax.tasks.t0_raw import RawSplit, Record

_log = logging.getLogger(__name__)

Choices = Literal['keep', 'leave out']
Left = Drop | Literal['the target is no answer choice']


def load_forms(
  task: str,
  splits: Mapping[str, RawSplit],
  templates: Sequence[Template],
  category: str,
  *,
  drawn: Collection[str] = (),
  seed: int = 0,
) -> sources.TaskExamples:
  """Returns records in the form of templates, with their answer choices.

  Args:
    task: the task's name, for messages.
    splits: raw records by the name of the split they become.
    templates: every record comes in the form of each that applies to it.
    category: of the task.
    drawn: splits in which every record comes once, in the form of one of the
      templates that apply, drawn at random.
    seed: of these draws; the same in every process.
  """
  made = {}
  for name, split in splits.items():
    title = f'{task}, {name}'
    if name in drawn:
      made[name] = _drawn_forms(title, split, templates, seed)
    else:
      made[name] = _all_forms(title, split, templates)
  return sources.TaskExamples(made, category)


def load_training(
  task: str,
  split: RawSplit,
  template: Template,
  category: str,
  *,
  cap: int,
  validation: int,
) -> sources.TaskExamples:
  """Returns the first records of a training split in the form of a template.

  Held back for validation are those rows whose `validation <row>` has the
  smallest sha256, the same for all templates of a data set.

  Args:
    task: the task's name, for messages.
    split: the raw records.
    template: the form.
    category: of the task.
    cap: how many records count, from the beginning.
    validation: how many are held back; of few records a fifth at most.
  """
  n_rows = sum(1 for _ in itertools.islice(split.read(), cap))
  held_back = held_back_rows(n_rows, validation)

  def forms(name: str) -> Iterator[sources.TextExample]:
    report = _Report(f'{task}, {name}')
    for row, record in enumerate(itertools.islice(split.read(), cap)):
      if (row in held_back) == (name == 'validation'):
        yield from report.count(
          _form(template, record, row, choices='leave out')
        )
    report.close()

  made = {name: forms(name) for name in ('train', 'validation')}
  return sources.TaskExamples(made, category)


def held_back_rows(n_rows: int, validation: int) -> frozenset[int]:
  """Returns which rows of a training split are for validation."""
  ranked = sorted(range(n_rows), key=lambda row: _rank(f'validation {row}'))
  return frozenset(ranked[: min(validation, n_rows // 5)])


def _all_forms(
  title: str, split: RawSplit, templates: Sequence[Template]
) -> Iterator[sources.TextExample]:
  report = _Report(title)
  for row, record in enumerate(split.read()):
    for template in templates:
      yield from report.count(_form(template, record, row, choices='keep'))
  report.close()


def _drawn_forms(
  title: str, split: RawSplit, templates: Sequence[Template], seed: int
) -> Iterator[sources.TextExample]:
  report = _Report(title)
  for row, record in enumerate(split.read()):
    order = list(templates)
    random.Random(f'{seed}/{row}').shuffle(order)
    forms = [_form(each, record, row, choices='keep') for each in order]
    drawn = next((one for one in forms if not isinstance(one, str)), forms[0])
    yield from report.count(drawn)
  report.close()


def _form(
  template: Template, record: Record, row: int, *, choices: Choices
) -> sources.TextExample | Left:
  """Returns a record in the form of a template, or why there is none."""
  try:
    made = template.render(record.fields, seed=f'{row}/{template.name}')
  except UserError as e:
    raise UserError(f'{record.origin}: {e}') from e
  if not isinstance(made, Rendered):
    return made
  name = f'{row}/{template.slug}'
  if choices == 'leave out':
    return sources.TextExample(name, made.inputs, (made.targets,))
  if made.label is None:
    return 'the target is no answer choice'
  return sources.TextExample(
    name, made.inputs, (made.targets,), made.choices, made.label
  )


class _Report:
  """Counts what is made and what is left out, and says so at the end."""

  def __init__(self, title: str):
    self._title = title
    self._made = 0
    self._dropped: Counter[str] = Counter()

  def count(
    self, made: sources.TextExample | Left
  ) -> Iterator[sources.TextExample]:
    """Yields what was made; of what was not, counts why."""
    if isinstance(made, str):
      self._dropped[made] += 1
    else:
      self._made += 1
      yield made

  def close(self) -> None:
    """Reports.

    Raises:
      UserError: there were records, and nothing was made of them.
    """
    if not self._dropped:
      return
    reasons = '; '.join(f'{why}: {n}' for why, n in self._dropped.items())
    n_dropped = sum(self._dropped.values())
    if not self._made:
      raise UserError(
        f'{self._title}: not one of {n_dropped} records gives an example:'
        f' {reasons}.'
      )
    _log.warning(
      '%s: %d of %d examples are left out: %s.',
      self._title,
      n_dropped,
      n_dropped + self._made,
      reasons,
    )


def _rank(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()
