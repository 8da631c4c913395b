"""A few examples of a task: drawing them, and training batches of them."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from mhr_jax.data import mixing
from mhr_jax.data.loader import Loader, MixtureSettings
from mhr_jax.data.ordered import ExampleSource
from mhr_jax.data.records import TaskSource
from mhr_jax.data.tokens import TokenTable
from mhr_jax.errors import UserError
from mhr_jax.task_table import TaskTable

_DRAW_STREAM = 0x66657773


@dataclasses.dataclass(frozen=True)
class FewShot:
  """Examples drawn from a task.

  Attributes:
    train: the examples to train on.
    held_back: further ones, for selection; never among `train`.
    indices: of all of them within the source, `train` first.
  """

  train: tuple[Mapping[str, Any], ...]
  held_back: tuple[Mapping[str, Any], ...]
  indices: tuple[int, ...]


def few_shot_examples(
  source: TaskSource | ExampleSource,
  k: int,
  seed: int,
  *,
  held_back: int = 0,
) -> FewShot:
  """Draws examples without replacement, alike in every process.

  A smaller draw with the same seed is the beginning of a larger one.

  Args:
    source: the records to draw from.
    k: how many to train on.
    seed: of the draw.
    held_back: how many of the `k` to hold back from training.

  Raises:
    UserError: there are not so many.
  """
  if not 0 <= held_back < k:
    raise UserError(f'Of {k} examples {held_back} cannot be held back.')
  if k > len(source):
    raise UserError(
      f'{k} examples are wanted, but {source.name!r} has {len(source)} there.'
    )
  key = mixing.hash_words(seed, _DRAW_STREAM, mixing.key_of(source.name))
  indices = mixing.permute(np.arange(k), len(source), key).tolist()
  examples = tuple(source[i] for i in indices)
  n_train = k - held_back
  return FewShot(examples[:n_train], examples[n_train:], tuple(indices))


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
