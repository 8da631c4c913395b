"""A few examples of a task: drawing them, and training batches of them.

A record may be one of several forms of its example, such as templates of T0:
records whose `example_id` have the same part before the first '/'. Either
every record is an example of its own, or each example comes once an epoch, in
a form that is drawn anew.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any, Literal

import numpy as np

from mhr_jax.data import batching, mixing
from mhr_jax.data.layouts import Plan
from mhr_jax.data.loader import Loader, MixtureSettings
from mhr_jax.data.ordered import ExampleSource, split_choices
from mhr_jax.data.records import TaskSource
from mhr_jax.data.tokens import TokenTable
from mhr_jax.errors import UserError
from mhr_jax.task_table import TaskTable

Forms = Literal['all', 'one_each']

_DRAW_STREAM = 0x66657773
_FORM_STREAM = 0x666F726D


@dataclasses.dataclass(frozen=True)
class FewShot:
  """Examples drawn from a task.

  Attributes:
    train: the records to train on, the forms of an example one behind the
      other.
    held_back: further ones, for selection; no form of an example in `train`.
    indices: of all of them within the source, `train` first.
    forms: how many of `train` each example has, in order.
  """

  train: tuple[Mapping[str, Any], ...]
  held_back: tuple[Mapping[str, Any], ...]
  indices: tuple[int, ...]
  forms: tuple[int, ...]


def few_shot_examples(
  source: TaskSource | ExampleSource,
  k: int | None,
  seed: int,
  *,
  held_back: int = 0,
  forms: Forms = 'all',
) -> FewShot:
  """Draws examples without replacement, alike in every process.

  A smaller draw with the same seed is the beginning of a larger one.

  Args:
    source: the records to draw from.
    k: how many; None for all that there are.
    seed: of the draw.
    held_back: how many of the `k` to hold back from training.
    forms: 'all' takes every record for an example; 'one_each' takes all
      records of an example together, and `k` counts examples.

  Raises:
    UserError: there are not so many.
  """
  if forms == 'all':
    groups = [[index] for index in range(len(source))]
  else:
    groups = _known_groups(source)
  k = len(groups) if k is None else k
  if not 0 <= held_back < k:
    raise UserError(f'Of {k} examples {held_back} cannot be held back.')
  if k > len(groups):
    raise UserError(
      f'{k} examples are wanted, but {source.name!r} has {len(groups)} there.'
    )
  key = mixing.hash_words(seed, _DRAW_STREAM, mixing.key_of(source.name))
  drawn = [groups[i] for i in mixing.permute(np.arange(k), len(groups), key)]
  counts = tuple(len(group) for group in drawn[: k - held_back])
  indices = [index for group in drawn for index in group]
  examples = tuple(source.__getitems__(indices))
  n_train = sum(counts)
  return FewShot(examples[:n_train], examples[n_train:], tuple(indices), counts)


def group_forms(source: TaskSource | ExampleSource) -> list[list[int]]:
  """Returns the indices of each example's records, in order of appearance."""
  groups: dict[str, list[int]] = {}
  for index, example_id in enumerate(source.read_ids()):
    groups.setdefault(example_id.partition('/')[0], []).append(index)
  return list(groups.values())


# Every seed draws from the same few sources, one task behind the other.
_known_groups = functools.lru_cache(maxsize=4)(group_forms)


class FewShotLoader:
  """Training batches of a few examples, a pure function of the step.

  Every example comes once an epoch, in one of its forms, which is drawn anew
  by the seed, the epoch and the example. Where all records have answer
  choices, batches have them too, as `batching.lay_choices` lays them, and
  `choice_labels`, int32 [row].
  """

  def __init__(
    self,
    task: str,
    drawn: FewShot,
    *,
    batch_size: int,
    input_length: int,
    target_length: int,
    seed: int,
  ):
    """Makes the loader.

    Args:
      task: the task's name; its id is 0.
      drawn: the examples.
      batch_size: rows of a batch; may be larger than the examples are many.
      input_length: tokens of the inputs, EOS included; longer ones are cut.
      target_length: tokens of targets and of choices, likewise.
      seed: of the order and of all draws.
    """
    settings = MixtureSettings(
      batch_size, input_length, target_length, seed=seed
    )
    self._settings = settings
    self._loader = examples_loader(
      {task: drawn.train}, settings, task_table=TaskTable((task,))
    )
    self._key = mixing.key_of(task)
    self._forms = np.array(drawn.forms, np.int64)
    self._firsts = np.cumsum(self._forms) - self._forms
    self._order = mixing.MixtureOrder(
      [len(drawn.forms)], [1.0], seed=seed, task_keys=[self._key]
    )
    self._choices = _lay_all_choices(drawn.train, target_length)

  def batch(self, step: int) -> batching.Batch:
    """Returns the batch of a step; the first is 0."""
    settings = self._settings
    rows = np.arange(settings.batch_size)
    located = self._order.locate(step * settings.batch_size + rows)
    bits = mixing.hash_words(
      settings.seed, _FORM_STREAM, self._key, located.epochs, located.units
    )
    form = mixing.draw_below(bits, self._forms[located.units])
    records = self._firsts[located.units] + form
    plan = Plan(
      mixing.Located(located.tasks, located.epochs, records),
      rows,
      located.tasks,
      settings.input_length,
      settings.target_length,
    )
    own = {name: array[records] for name, array in self._choices.items()}
    return self._loader.build(plan) | own


def _lay_all_choices(
  examples: Sequence[Mapping[str, Any]], target_length: int
) -> batching.Batch:
  """Returns the choices of all examples, or nothing where one has none."""
  choices = [split_choices(example) for example in examples]
  if not all(choices):
    return {}
  count, width = batching.choice_widths(choices, target_length)
  laid = batching.lay_choices(choices, n_choices=count, length=width)
  labels = [example['label'] for example in examples]
  return laid | {'choice_labels': np.array(labels, np.int32)}


def examples_loader(
  examples: Mapping[str, Sequence[Mapping[str, Any]]],
  settings: MixtureSettings,
  *,
  task_table: TaskTable,
  process_index: int = 0,
  process_count: int = 1,
) -> Loader:
  """Makes a loader of examples in memory.

  Args:
    examples: of each task, with `inputs`, `targets` and `target_lengths` as
      `TaskSource` gives them.
    settings: how they become batches; epochs follow each other without a
      gap, so that a batch may be larger than the examples are many.
    task_table: gives the ids.
    process_index: which process this is.
    process_count: how many share the global batch.
  """
  return Loader(
    tuple(examples),
    [TokenTable.from_examples(each) for each in examples.values()],
    settings,
    task_ids=task_table.ids(examples),
    process_index=process_index,
    process_count=process_count,
  )
