"""T0's tasks from P3: rendered, tokenised and cached, as it is published.

    part 'train'     t0_<dataset>_<template>, splits train and validation, and
                     the mixture t0_train: as `t0_training` registers them
    part 'heldout'   t0_<dataset>_<template>, split test, and the mixtures
                     t0_<dataset>_templates and t0_heldout: as `t0` does

The folder has one folder a task (`p3_cache`); which data set a task is of is
read off its name. A training task has the first `cap` of its cached records,
where raw records are capped before templates leave some out. Held-out tasks are
read from `<task>_score_eval`, or from `<task>` with its answer choices where
that is absent; which templates are for a data set's original task only
PromptSource's files say. P3 has no few-shot draws: those are of raw records.
"""

from collections.abc import Collection, Iterator, Sequence
import functools
import itertools
import logging
from typing import Literal

from etils import epath

from mhr_jax import vocabulary as vocabulary_lib
from mhr_jax.data import registry, sources
from mhr_jax.errors import UserError
from mhr_jax.tasks import p3_cache, t0, t0_raw
from mhr_jax.tasks.promptsource import Template, clean
from mhr_jax.tasks.t0_datasets import (
  HELD_OUT_SETS,
  VALIDATION_EXAMPLES,
  CapRule,
  HeldOutSet,
  cap,
  choose_held_out_sets,
  choose_training_sets,
  find_training_set,
  task_name,
)
from mhr_jax.tasks.t0_examples import held_back_rows
from mhr_jax.vocabulary import Vocabulary

_log = logging.getLogger(__name__)


def register(
  folder: epath.PathLike,
  *,
  part: Literal['train', 'heldout'],
  vocabulary: Vocabulary | epath.PathLike,
  extra_ids: int = 100,
  name: str = 't0',
  templates: epath.PathLike | None = None,
  datasets: Sequence[str] | None = None,
  cap_rule: CapRule = 'mttl',
  validation_examples: int = VALIDATION_EXAMPLES,
) -> dict[str, tuple[str, ...]]:
  """Registers the training tasks or the held-out tasks of a folder.

  Args:
    folder: holds one folder a task.
    part: which tasks.
    vocabulary: a vocabulary, the path of a SentencePiece model, or 'bytes'.
    extra_ids: sentinels behind the pieces of a model that is given by path.
    name: the prefix of all names.
    templates: the folder `promptsource/templates` of PromptSource's
      repository; for the held-out tasks.
    datasets: names of data sets; by default all 38 training sets, or those
      held-out sets that are there.
    cap_rule: how many records a training task has, see `t0_datasets.cap`.
    validation_examples: held back of each training task.

  Returns:
    The tasks of each mixture by the mixture's name.

  Raises:
    UserError: a data set's tasks are not there, or the options do not fit.
  """
  vocabulary = vocabulary_lib.load_vocabulary(vocabulary, extra_ids=extra_ids)
  root = t0.absolute(folder)
  there = p3_cache.list_cached_tasks(root)
  if part == 'train':
    rates = _add_training(
      root,
      there,
      prefix=name,
      vocabulary=vocabulary,
      datasets=datasets,
      cap_rule=cap_rule,
      validation=validation_examples,
    )
    registry.add_mixture(f'{name}_train', rates, module=__name__)
    return {f'{name}_train': tuple(rates)}
  if part != 'heldout':
    raise UserError(f"part is 'train' or 'heldout', not {part!r}.")
  if templates is None:
    raise UserError(
      'The held-out tasks of P3 need `templates`, the folder promptsource/'
      "templates of PromptSource's repository: it says which of them are for"
      " a data set's original task."
    )
  mixtures = {}
  for held_out in choose_held_out_sets(datasets):
    found = t0_raw.find_templates(
      t0.absolute(templates), None, held_out.dataset, held_out.subset
    )
    used = t0.used_templates(found, held_out)
    tasks = _add_held_out(root, there, held_out, used, name, vocabulary)
    if tasks:
      mixtures[f'{name}_{held_out.name}_templates'] = tuple(tasks)
    elif datasets is not None:
      raise UserError(f'{root} holds no task of {held_out.name}.')
  if not mixtures:
    known = ', '.join(each.name for each in HELD_OUT_SETS)
    raise UserError(f'{root} holds no task of the held-out sets: {known}.')
  mixtures[f'{name}_heldout'] = tuple(itertools.chain(*mixtures.values()))
  for mixture, tasks in mixtures.items():
    registry.add_mixture(mixture, tasks, module=__name__)
  return mixtures


def load_training(
  shards: Sequence[epath.Path],
  form: str,
  category: str,
  *,
  limit: int,
  validation: int,
) -> sources.TaskExamples:
  """Returns the examples of a training task by split.

  Args:
    shards: the files of its training split.
    form: the template's name.
    category: of the task.
    limit: how many examples count, from the beginning.
    validation: how many of them are held back.
  """

  def read() -> Iterator[sources.TextExample]:
    examples = p3_cache.read_examples(shards, form, choices='leave out')
    return itertools.islice(examples, limit)

  held_back = held_back_rows(sum(1 for _ in read()), validation)

  def forms(name: str) -> Iterator[sources.TextExample]:
    for row, example in enumerate(read()):
      if (row in held_back) == (name == 'validation'):
        yield example

  return sources.TaskExamples(
    {name: forms(name) for name in ('train', 'validation')}, category
  )


def load_held_out(
  shards: Sequence[epath.Path],
  form: str,
  category: str,
  *,
  kind: Literal['scored', 'plain'],
) -> sources.TaskExamples:
  """Returns the examples of a held-out task, with their choices.

  Args:
    shards: the files of the split.
    form: the template's name.
    category: of the task.
    kind: whether it is a task for scoring, with a record a choice.
  """
  if kind == 'scored':
    examples = p3_cache.read_scored(shards, form)
  else:
    examples = p3_cache.read_examples(shards, form, choices='keep')
  return sources.TaskExamples({'test': examples}, category)


def _add_training(
  folder: epath.Path,
  there: Sequence[str],
  *,
  prefix: str,
  vocabulary: Vocabulary,
  datasets: Sequence[str] | None,
  cap_rule: CapRule,
  validation: int,
) -> dict[str, float]:
  """Registers the training tasks and returns their rates.

  Raises:
    UserError: there are none of a data set, or one has no training split.
  """
  rates: dict[str, float] = {}
  for one in choose_training_sets(datasets):
    tasks = [task for task in there if find_training_set(task) == one]
    if not tasks:
      raise UserError(
        f'{folder} holds no task of {one.name}. It should have those of all 38'
        ' data sets; `datasets` names those to register where it has a part.'
      )
    if len(tasks) != one.n_templates:
      _log.warning(
        '%s has %d tasks of %s; PromptSource has %d templates.',
        folder,
        len(tasks),
        one.name,
        one.n_templates,
      )
    limit = cap(one.train_size, one.n_templates, cap_rule)
    for task in tasks:
      shards = p3_cache.find_shards(folder / task, 'train')
      if not shards:
        raise UserError(f'{folder / task} has no training split.')
      load = functools.partial(
        load_training,
        shards,
        task.removeprefix(clean(one.name) + '_'),
        one.name,
        limit=limit,
        validation=validation,
      )
      source = sources.ExampleSource(
        load, splits=('train', 'validation'), files=shards
      )
      new = f'{prefix}_{task}'
      registry.add_task(new, source, vocabulary, module=__name__)
      rates[new] = float(max(limit - validation, 1))
  return rates


def _add_held_out(
  folder: epath.Path,
  there: Collection[str],
  held_out: HeldOutSet,
  templates: Sequence[Template],
  prefix: str,
  vocabulary: Vocabulary,
) -> list[str]:
  """Registers the tasks of a held-out set and returns their names."""
  added, absent = [], []
  # P3's tasks of a round of ANLI have plain names of splits.
  split = held_out.test_split.removesuffix(held_out.suffix or ' ')
  for template in templates:
    task = task_name(
      held_out.dataset, held_out.subset, template.name, held_out.suffix
    )
    kind: Literal['scored', 'plain'] = 'plain'
    cached = task
    if task + p3_cache.SCORED in there:
      kind, cached = 'scored', task + p3_cache.SCORED
    shards = p3_cache.find_shards(folder / cached, split)
    if not shards:
      absent.append(task)
      continue
    load = functools.partial(
      load_held_out, shards, template.slug, held_out.name, kind=kind
    )
    source = sources.ExampleSource(load, splits=('test',), files=shards)
    new = f'{prefix}_{task}'
    registry.add_task(
      new, source, vocabulary, module=__name__, metrics=t0.METRICS
    )
    added.append(new)
  if added and absent:
    _log.warning('%s has no split %r of %s.', folder, split, ', '.join(absent))
  return added
