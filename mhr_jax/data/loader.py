"""Batches of a mixture as a pure function of the global step.

    records ─ store ──────────────────────────┐
    mixing ─ layouts ─ plan of a global batch ─┴─ this process's rows ─ batch

A `Loader` holds no position: `batch(step)` is the same whenever and wherever
it is called, so a run resumes exactly and on any number of processes, whose
rows together are always the same global batch. What is random about an
example (which reference, which spans are corrupted) is drawn here, from the
seed, the task, the epoch and the example's index.
"""

from collections.abc import Sequence
import dataclasses
import functools

from etils import epath
from jaxtyping import Int32
import numpy as np

from mhr_jax.data import mixing, records
from mhr_jax.data.batching import Batch, assemble
from mhr_jax.data.corruption import SpanCorruption, corrupt_spans
from mhr_jax.data.layouts import (
  BucketLayout,
  Layout,
  PackedLayout,
  PaddedLayout,
  Plan,
  Sizes,
)
from mhr_jax.data.mixture_settings import MixtureSettings
from mhr_jax.data.store import TokenStore
from mhr_jax.data.tokens import TokenTable, join_spans
from mhr_jax.errors import UserError
from mhr_jax.task_table import TaskTable

_REFERENCE_STREAM = 0x72656665
_CORRUPTION_STREAM = 0x73706163
_SAMPLED_STEPS = 64


@dataclasses.dataclass(frozen=True)
class TaskReport:
  """What a task contributes.

  Attributes:
    name: the task.
    examples: how many there are.
    rate: its share of the examples seen.
    cut_inputs: examples whose inputs are cut (under span corruption: texts of
      which a window is taken).
    cut_targets: examples of which a reference is cut.
  """

  name: str
  examples: int
  rate: float
  cut_inputs: int
  cut_targets: int


def describe_cuts(report: Sequence[TaskReport]) -> str | None:
  """Says how many sequences are longer than batches are wide; None for none."""
  cut = [row for row in report if row.cut_inputs or row.cut_targets]
  if not cut:
    return None
  inputs = sum(row.cut_inputs for row in cut)
  targets = sum(row.cut_targets for row in cut)
  return (
    f'{inputs:,} inputs and {targets:,} targets are too long, in {len(cut)}'
    ' tasks; they are cut (MixtureSettings.input_length, target_length)'
  )


class Loader:
  """This process's rows of every global batch; made by `build_loader`."""

  def __init__(
    self,
    tasks: Sequence[str],
    sources: Sequence[records.TaskSource | TokenTable],
    settings: MixtureSettings,
    *,
    task_ids: Int32[np.ndarray, 'task'],
    rates: Sequence[float] | None = None,
    corruption: SpanCorruption | None = None,
    process_index: int = 0,
    process_count: int = 1,
  ):
    """Makes the loader.

    Args:
      tasks: the tasks' names.
      sources: their records, or their token ids.
      settings: how they become batches.
      task_ids: the id of each task.
      rates: of each task; by default as the settings say.
      corruption: what objective 'span_corruption' does; None for 'targets'.
      process_index: which process this is.
      process_count: how many share the global batch.
    """
    if settings.batch_size % process_count:
      raise UserError(
        f'{process_count} processes cannot share a batch of'
        f' {settings.batch_size} rows: make it a multiple.'
      )
    if (settings.objective == 'span_corruption') != (corruption is not None):
      raise UserError(
        "Objective 'span_corruption' is for prepared tasks, whose vocabulary"
        ' gives the sentinels.'
      )
    self.tasks = tuple(tasks)
    self.settings = settings
    self._ids = np.asarray(task_ids, np.int32)
    self._keys = np.array([mixing.key_of(task) for task in tasks], np.int64)
    self._store = TokenStore(sources, cache_bytes=settings.cache_bytes)
    self._order = mixing.MixtureOrder(
      self._store.sizes,
      _rates(self._store.sizes, settings) if rates is None else rates,
      seed=settings.seed,
      task_keys=self._keys,
    )
    self._corruption = corruption
    self._longest = 0
    if corruption is not None:
      self._longest = corruption.longest_text(
        settings.input_length, settings.target_length
      )
    rows = settings.batch_size // process_count
    self._mine = (process_index * rows, (process_index + 1) * rows)
    self._layout = self._make_layout()

  @property
  def rates(self) -> dict[str, float]:
    """Each task's share of the examples."""
    return dict(zip(self.tasks, self._order.rates.tolist(), strict=True))

  @property
  def n_examples(self) -> int:
    """Examples of all tasks together."""
    return sum(self._store.sizes)

  @property
  def steps_per_epoch(self) -> int:
    """Steps that hold as many rows as all tasks' examples need once."""
    return -(-self._layout.n_rows // self.settings.batch_size)

  @functools.cached_property
  def padding_share(self) -> float:
    """The share of a batch's cells that is padding, over the first steps.

    Where a reference is drawn, the longest one counts.
    """
    filled = cells = 0
    for step in range(min(self.steps_per_epoch, _SAMPLED_STEPS)):
      plan = self.plan(step)
      inputs, targets = self._sizes.of(plan.examples)
      filled += int(inputs.sum() + targets.sum())
      width = plan.input_length + plan.target_length
      cells += len(plan.row_tasks) * width
    return 1 - filled / cells

  def batch(self, step: int) -> Batch:
    """Returns this process's rows of the batch of a step.

    Args:
      step: of training; the first is 0.

    Returns:
      The arrays of `batching.assemble`, host-local.
    """
    return self.build(self.plan(step).local(*self._mine))

  def plan(self, step: int) -> Plan:
    """Returns which examples stand where in the global batch of a step."""
    return self._layout.plan(step)

  def report(self) -> list[TaskReport]:
    """Returns each task's size and rate, and how many examples are cut.

    Reads all records of tasks whose lengths are not known.
    """
    lengths, settings = self._lengths, self.settings
    if self._longest:
      cut_inputs = self._text_lengths() > self._longest
      cut_targets = np.zeros_like(cut_inputs)
    else:
      cut_inputs = lengths.inputs >= settings.input_length
      cut_targets = self._target_lengths() >= settings.target_length
    starts = self._sizes.bases[:-1]
    counts = [np.add.reduceat(cut, starts) for cut in (cut_inputs, cut_targets)]
    rows = (self.tasks, self._store.sizes, self._order.rates, *counts)
    return [
      TaskReport(name, size, float(rate), int(one), int(other))
      for name, size, rate, one, other in zip(*rows, strict=True)
    ]

  @functools.cached_property
  def _lengths(self):
    return self._store.lengths()

  def _target_lengths(self):
    if self.settings.reference == 'first':
      return self._lengths.first
    return self._lengths.longest

  def _text_lengths(self):
    return self._lengths.inputs.astype(np.int64) + self._target_lengths()

  @functools.cached_property
  def _sizes(self) -> Sizes:
    settings = self.settings
    if self._corruption:
      text = np.minimum(self._text_lengths(), self._longest)
      inputs, targets = self._corruption.lengths(text)
    else:
      inputs, targets = self._lengths.inputs, self._target_lengths()
    return Sizes(
      np.minimum(inputs.astype(np.int64) + 1, settings.input_length),
      np.minimum(targets.astype(np.int64) + 1, settings.target_length),
      np.concatenate([[0], np.cumsum(self._store.sizes)]),
    )

  def _make_layout(self) -> Layout:
    settings = self.settings
    widths = {
      'batch_size': settings.batch_size,
      'input_length': settings.input_length,
      'target_length': settings.target_length,
    }
    if settings.packing == 'none':
      return PaddedLayout(self._order, **widths)
    if settings.packing == 'length_buckets':
      return BucketLayout(
        self._order,
        self._sizes,
        batch_size=settings.batch_size,
        buckets=settings.buckets(),
        seed=settings.seed,
      )
    return PackedLayout(
      self._order,
      self._sizes,
      **widths,
      seed=settings.seed,
      task_keys=self._keys,
    )

  def build(self, plan: Plan) -> Batch:
    """Returns the rows of a plan, of this loader or of one's own making."""
    examples = plan.examples
    table, rows = self._store.fetch(examples.tasks, examples.units)
    inputs = table.input_spans(rows)
    targets = table.target_spans(rows, self._choices(plan, table, rows))
    if self._corruption:
      inputs, targets = corrupt_spans(
        join_spans(inputs, targets),
        self._corruption,
        seeds=self._bits(plan, _CORRUPTION_STREAM),
        longest=self._longest,
      )
    return assemble(
      inputs,
      targets,
      rows=plan.rows,
      task_ids=self._ids[plan.row_tasks],
      input_length=plan.input_length,
      target_length=plan.target_length,
      segments=self.settings.packing == 'within_task',
    )

  def _bits(self, plan: Plan, stream: int):
    """Returns random bits of each example, the same wherever it is drawn."""
    each = plan.examples
    return mixing.hash_words(
      self.settings.seed,
      stream,
      self._keys[each.tasks],
      each.epochs,
      each.units,
    )

  def _choices(self, plan: Plan, table: TokenTable, rows):
    if self.settings.reference == 'first':
      return np.zeros_like(rows)
    bits = self._bits(plan, _REFERENCE_STREAM)
    return mixing.draw_below(bits, table.n_references(rows))


def _rates(sizes: Sequence[int], settings: MixtureSettings):
  if settings.rates == 'mixture':
    raise UserError("rates = 'mixture' needs the name of a mixture.")
  return mixing.task_rates(
    sizes,
    kind=settings.rates,
    cap=settings.cap,
    temperature=settings.temperature,
  )


def build_loader(
  data_dir: epath.PathLike,
  tasks: str | Sequence[str],
  split: str,
  settings: MixtureSettings,
  *,
  task_table: TaskTable | None = None,
  process_index: int = 0,
  process_count: int = 1,
) -> Loader:
  """Makes the loader of prepared tasks.

  Args:
    data_dir: the folder of all prepared data.
    tasks: the name of a prepared mixture, or names of prepared tasks.
    split: of every task; parts as 'train[:90%]' too.
    settings: how the tasks become batches.
    task_table: gives the ids; by default the tasks in their order.
    process_index: which process this is.
    process_count: how many share the global batch.

  Raises:
    UserError: a task, split or id is not there, or the settings do not fit.
  """
  rates = None
  if isinstance(tasks, str):
    mixture = records.open_mixture(data_dir, tasks)
    tasks = mixture.tasks
    rates = mixture.rates if settings.rates == 'mixture' else None
  opened = records.open_tasks(data_dir, tasks)
  corruption = None
  if settings.objective == 'span_corruption':
    vocabulary = opened[0].vocabulary
    corruption = SpanCorruption(
      first_sentinel=vocabulary.vocab_size - 1,
      n_sentinels=vocabulary.extra_ids,
      density=settings.noise_density,
      mean_span_length=settings.mean_span_length,
    )
  table = task_table or TaskTable(tuple(tasks))
  return Loader(
    tasks,
    [task.source(split) for task in opened],
    settings,
    task_ids=table.ids(tasks),
    rates=rates,
    corruption=corruption,
    process_index=process_index,
    process_count=process_count,
  )
