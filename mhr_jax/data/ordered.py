"""Batches for evaluation: every example exactly once, in order."""

import collections
from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import logging
from typing import Any

from jaxtyping import Float32
import numpy as np

from mhr_jax.data.batching import Batch, assemble
from mhr_jax.data.records import TaskSource
from mhr_jax.data.tokens import TokenTable
from mhr_jax.errors import UserError
from mhr_jax.task_table import TaskTable

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class EvalRecord:
  """An example as evaluation reports it.

  Attributes:
    task: the task's name.
    category: the task's category, if it has one.
    index: of the example within the task's split.
    example_id: names the example within its task.
    inputs: the text of the inputs.
    targets: the texts of all references.
    cut: which of 'inputs', 'targets' (the first reference) and 'choices' (any
      of them) were cut.
    metric: the task's own metric, if it names one.
    choices: the texts of all answer choices; () without.
    choice_tokens: their token ids, without EOS.
    label: index of the right choice; -1 without choices.
  """

  task: str
  category: str | None
  index: int
  example_id: str
  inputs: str
  targets: tuple[str, ...]
  cut: tuple[str, ...] = ()
  metric: str | None = None
  choices: tuple[str, ...] = ()
  choice_tokens: tuple[tuple[int, ...], ...] = ()
  label: int = -1


@dataclasses.dataclass(frozen=True)
class EvalBatch:
  """This process's rows of an evaluation batch.

  Attributes:
    arrays: what `batching.assemble` makes; the target is the first reference.
      Rows that only fill up the batch have loss weights 0.
    row_weights: 1 for examples, 0 for rows that fill up.
    records: the examples of the rows with weight 1, in order.
  """

  arrays: Batch
  row_weights: Float32[np.ndarray, 'row']
  records: tuple[EvalRecord, ...]


class ExampleSource:
  """Examples in memory as a source for `eval_batches`."""

  def __init__(
    self,
    name: str,
    examples: Sequence[Mapping[str, Any]],
    *,
    category: str | None = None,
    metric: str | None = None,
  ):
    """Makes the source.

    Args:
      name: of the task.
      examples: as `TaskSource` gives them.
      category: of the task.
      metric: the task's own, of `metrics`.
    """
    self.name = name
    self.category = category
    self.metric = metric
    self._examples = list(examples)

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, index: int) -> Mapping[str, Any]:
    return self._examples[index]

  def __getitems__(self, indices: Sequence[int]) -> list[Mapping[str, Any]]:
    return [self._examples[index] for index in indices]

  def read_ids(self) -> list[str]:
    """Returns the `example_id` of every example."""
    return [example['example_id'] for example in self._examples]


def eval_batches(
  sources: Sequence[TaskSource | ExampleSource],
  *,
  batch_size: int,
  input_length: int,
  target_length: int,
  task_table: TaskTable | None = None,
  limit: int | None = None,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[EvalBatch]:
  """Yields every example once, task by task in the order of the records.

  All processes yield equally many batches; their rows together are the global
  batches, filled up at the very end with copies of weight 0.

  Args:
    sources: the tasks' records.
    batch_size: rows of the global batch.
    input_length: tokens of the inputs; longer ones are cut.
    target_length: tokens of the first reference, likewise.
    task_table: gives the ids; without one all ids are 0.
    limit: the first so many examples of each task.
    process_index: which process this is.
    process_count: how many share the global batch.

  Raises:
    UserError: a task is not in the table, or the batch cannot be shared.
  """
  if batch_size < 1 or batch_size % process_count:
    raise UserError(
      f'{process_count} processes cannot share a batch of {batch_size} rows.'
    )
  names = [source.name for source in sources]
  ids = task_table.ids(names) if task_table else np.zeros(len(names), np.int32)
  sizes = [
    len(source) if limit is None else min(limit, len(source))
    for source in sources
  ]
  places = [
    (task, index) for task, size in enumerate(sizes) for index in range(size)
  ]
  rows = batch_size // process_count
  for start in range(0, len(places), batch_size):
    first = start + process_index * rows
    mine = places[first : first + rows]
    filled = mine + [places[0]] * (rows - len(mine))
    yield _make_batch(
      sources, filled, len(mine), ids, (input_length, target_length)
    )


def _make_batch(sources, places, n_real, ids, widths) -> EvalBatch:
  examples = _read(sources, places)
  table = TokenTable.from_examples(examples)
  rows = np.arange(len(places))
  inputs = table.input_spans(rows)
  targets = table.target_spans(rows, np.zeros_like(rows))
  arrays = assemble(
    inputs,
    targets,
    rows=rows,
    task_ids=ids[[task for task, _ in places]],
    input_length=widths[0],
    target_length=widths[1],
    segments=False,
  )
  weights = (rows < n_real).astype(np.float32)
  arrays['decoder_loss_weights'] *= weights[:, None]
  found = [
    _record(
      sources[task],
      index,
      examples[row],
      widths,
    )
    for row, (task, index) in enumerate(places[:n_real])
  ]
  return EvalBatch(arrays, weights, tuple(found))


def _read(sources, places) -> list[Mapping[str, Any]]:
  """Reads examples, a task's all at once."""
  examples: list[Any] = [None] * len(places)
  for task in sorted({task for task, _ in places}):
    rows = [row for row, place in enumerate(places) if place[0] == task]
    found = sources[task].__getitems__([places[row][1] for row in rows])
    for row, example in zip(rows, found, strict=True):
      examples[row] = example
  return examples


def _record(source, index, example, widths) -> EvalRecord:
  choices = split_choices(example)
  longest = {
    'inputs': len(example['inputs']),
    'targets': max(example['target_lengths'][:1], default=0),
    'choices': max(map(len, choices), default=0),
  }
  room = (widths[0], widths[1], widths[1])
  cut = tuple(
    name
    for (name, length), width in zip(longest.items(), room, strict=True)
    if length >= width
  )
  return EvalRecord(
    task=source.name,
    category=source.category,
    index=index,
    example_id=example['example_id'],
    inputs=example['inputs_pretokenized'],
    targets=tuple(example['targets_pretokenized']),
    cut=cut,
    metric=source.metric,
    choices=tuple(example.get('choices_pretokenized', ())),
    choice_tokens=choices,
    label=int(example.get('label', -1)),
  )


def report_cuts(batches: Iterable[EvalBatch]) -> Iterator[EvalBatch]:
  """Passes batches on; says at the end how many examples were cut in them.

  A prediction from half an input is a prediction all the same: nobody would
  know.
  """
  cuts: collections.Counter[str] = collections.Counter()
  total = 0
  for batch in batches:
    total += len(batch.records)
    cuts.update(name for record in batch.records for name in record.cut)
    yield batch
  if cuts:
    counts = ', '.join(f'{count:,} in {name}' for name, count in cuts.items())
    _log.warning(
      'Of %s instances some are longer than batches are wide and are cut: %s'
      ' (input_length, target_length).',
      f'{total:,}',
      counts,
    )


def split_choices(example: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
  """Returns the token ids of each answer choice of an example, if any."""
  flat = [int(i) for i in example.get('choices', ())]
  ends = np.cumsum(example.get('choice_lengths', ()), dtype=int).tolist()
  return tuple(
    tuple(flat[start:end]) for start, end in zip([0, *ends], ends, strict=False)
  )
