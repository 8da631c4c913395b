"""A generated suite in which tasks share operations, not whole tasks.

A task edits a string of 4 to 6 letters by two or three text operations out of
twelve, at most one of each slot: select (`tail`, `init`, `alternate`,
`consonants`), order (`reverse`, `left`, `right`, `swap`), map (`upper`,
`successor`, `mirror`, `star`). 40 compositions are for training; 8 others,
of operations that training has, are held out.

Forms of a task: `id`, the string alone, so that only the task's id (its
routing) says what to do; and `instructed`, the operations' symbols before the
string: `<tail><reverse>abcd`.

What it tests:
  * few-shot on `id`: whether skills learnt on other compositions can be put
    together anew from a few examples. Held-out tasks are new as compositions
    and old in their parts, so a method that finds the parts has an advantage.
  * zero-shot on `instructed`: whether the averaged adapter follows names in a
    composition that it never saw.

What it does not test: a method without a task id (`lora`) cannot know the task
in the `id` form, so its multi-task score there is low by construction and
says nothing about adapters. Strings are short and a test set has 200 of them:
differences within the spread over seeds mean nothing.

The backbone is trained on `skills_operations`: every operation by itself,
named, and copying the bare string. It never sees a composition. A string is in
one split of its task only; tasks draw their strings independently, so the
same string may occur in several tasks.

Everything follows from `SuiteSettings`, the seed included; nothing is read or
downloaded. The vocabulary, 48 SentencePiece pieces, is made in memory and is
stored beside the prepared data.
"""

from collections.abc import Mapping
import functools
from typing import Literal

from mhr_jax.data import registry, sources
from mhr_jax.tasks import skills_suite
from mhr_jax.tasks.skills_suite import Composition, SuiteSettings

Form = Literal['id', 'instructed']


def register(
  *, name: str = 'skills', settings: SuiteSettings | None = None
) -> dict[str, tuple[str, ...]]:
  """Registers the suite's tasks and mixtures with seqio.

  Tasks are `<name>_<form>_<operations>` and `<name>_operation_<operation>`;
  mixtures `<name>_{train,heldout}_{id,instructed}` and `<name>_operations`.
  Training tasks and single operations have the splits train, validation and
  test; held-out tasks few_shot, validation and test.

  Args:
    name: the prefix of all names, to register suites of several seeds.
    settings: sizes and seed; the defaults if not given.

  Returns:
    The tasks of each mixture by the mixture's name.

  Raises:
    UserError: the names are taken by a suite with other settings.
  """
  settings = settings or SuiteSettings()
  drawn = skills_suite.draw_tasks(settings)
  fitting = _sizes(settings, train=settings.train_examples)
  adapting = _sizes(settings, few_shot=settings.few_shot_examples)
  mixtures = {}
  for form in ('id', 'instructed'):
    mixtures[f'{name}_train_{form}'] = [
      _add(f'{name}_{form}', task, form, fitting, settings.seed)
      for task in drawn.train
    ]
    mixtures[f'{name}_heldout_{form}'] = [
      _add(f'{name}_{form}', task, form, adapting, settings.seed)
      for task in drawn.heldout
    ]
  single = {**fitting, 'train': settings.operation_examples}
  mixtures[f'{name}_operations'] = [
    _add(f'{name}_operation', (operation,), 'instructed', single, settings.seed)
    for operation in (skills_suite.COPY, *skills_suite.OPERATIONS)
  ]
  for mixture, tasks in mixtures.items():
    registry.add_mixture(mixture, tasks, module=__name__)
  return {mixture: tuple(tasks) for mixture, tasks in mixtures.items()}


def load_examples(
  composition: Composition, form: Form, sizes: Mapping[str, int], seed: int
) -> sources.TaskExamples:
  """Returns the examples of one task by split."""
  pairs = skills_suite.make_examples(composition, sizes, form=form, seed=seed)
  splits = {
    split: [
      sources.TextExample(f'{split}-{i}', inputs, (target,))
      for i, (inputs, target) in enumerate(examples)
    ]
    for split, examples in pairs.items()
  }
  slots = [
    slot
    for slot, operations in skills_suite.SLOTS.items()
    if set(operations) & set(composition)
  ]
  return sources.TaskExamples(splits, category='+'.join(slots) or 'copy')


def _sizes(settings: SuiteSettings, **first: int) -> dict[str, int]:
  return {
    **first,
    'validation': settings.validation_examples,
    'test': settings.test_examples,
  }


def _add(
  prefix: str,
  composition: Composition,
  form: Form,
  sizes: dict[str, int],
  seed: int,
) -> str:
  name = f'{prefix}_{"_".join(composition)}'
  load = functools.partial(load_examples, composition, form, sizes, seed)
  registry.add_task(
    name,
    sources.ExampleSource(load, splits=tuple(sizes)),
    _vocabulary(),
    module=__name__,
  )
  return name


@functools.cache
def _vocabulary():
  return skills_suite.make_vocabulary()
