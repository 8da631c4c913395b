"""The cells of a few-shot study: a task, a seed, its examples and batches.

A cell holds everything that does not depend on the method, so that all
methods see the same examples in the same order, and nothing is built twice.
"""

import collections
from collections.abc import Mapping, Sequence
import dataclasses
import itertools

from etils import epath
import numpy as np

from mhr_jax.data import few_shot, records
from mhr_jax.data.ordered import (
  EvalBatch,
  ExampleSource,
  eval_batches,
  report_cuts,
)
from mhr_jax.errors import UserError
from mhr_jax.setting_checks import check_fields

Source = records.TaskSource | ExampleSource
Batch = Mapping[str, np.ndarray]

SEED = '{seed}'
"""In a split's name: where the seed stands."""
TASK = '{task}'
"""In the name of what is tested on: where the task's name stands."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewShotSettings:
  """How a few examples of a task become training batches.

  Attributes:
    shots: examples of each task, held-back ones included; None takes the
      whole split, whatever its size.
    forms: what an example is: 'all' takes every record for one; with
      'one_each', records whose ids are the same before the first '/' (the
      templates of T0) are forms of one example, which comes once an epoch, in
      a form drawn anew.
    held_back: how many of the shots are for selection, not for training.
    seeds: one draw of examples, and one training, each.
    steps: of training.
    batch_size: of training; may be larger than the shots are many.
    input_length: tokens of the inputs, EOS included; longer ones are cut.
    target_length: tokens of the targets, likewise.
    test_batch_size: of evaluation.
    test_limit: the first so many test instances of each task; None for all.
  """

  input_length: int
  target_length: int
  shots: int | None = 32
  forms: few_shot.Forms = 'all'
  held_back: int = 0
  seeds: tuple[int, ...] = (0, 1, 2)
  steps: int = 100
  batch_size: int = 16
  test_batch_size: int = 100
  test_limit: int | None = None

  def __post_init__(self):
    object.__setattr__(self, 'seeds', tuple(self.seeds))
    counts = ('steps', 'batch_size', 'test_batch_size', 'test_limit', 'shots')
    check_fields(
      self,
      least=dict.fromkeys(counts, 1) | {'input_length': 2, 'target_length': 2},
    )
    if len(set(self.seeds)) != len(self.seeds) or not self.seeds:
      raise UserError(f'seeds must be different numbers, not {self.seeds}.')


@dataclasses.dataclass(frozen=True)
class FewShotTask:
  """Where a task's examples come from.

  Attributes:
    train: to draw the shots from; or of each seed, where its shots are given.
    test: to evaluate on: the same task, or several others, such as the
      templates that a data set is evaluated with.
  """

  train: Source | Mapping[int, Source]
  test: Source | tuple[Source, ...]

  def __post_init__(self):
    names = {source.name for source in self._trains}
    if not isinstance(self.test, tuple):
      names.add(self.test.name)
    if len(names) != 1:
      raise UserError(
        f'Shots of one task, and a test set of the same: not {sorted(names)}.'
      )

  @property
  def _trains(self) -> tuple[Source, ...]:
    if isinstance(self.train, Mapping):
      return tuple(self.train.values())
    return (self.train,)

  @property
  def tests(self) -> tuple[Source, ...]:
    """All sources to evaluate on."""
    return self.test if isinstance(self.test, tuple) else (self.test,)

  @property
  def name(self) -> str:
    """The task's name."""
    return self._trains[0].name

  def train_of(self, seed: int) -> Source:
    """Returns what the shots of a seed are drawn from.

    Raises:
      UserError: shots are given by seed, but not of this one.
    """
    if not isinstance(self.train, Mapping):
      return self.train
    if seed not in self.train:
      raise UserError(
        f'{self.name!r} has no shots of seed {seed}, only of'
        f' {", ".join(map(str, self.train))}.'
      )
    return self.train[seed]


@dataclasses.dataclass(frozen=True)
class Cell:
  """One task and one seed.

  Attributes:
    task: the task's name.
    seed: of the draw, the order and all that is random in training.
    batches: arrays of a batch with a leading axis of steps; with answer
      choices where all shots have them, laid as wide as the cell needs.
    test: the whole test set; cells of one task share it.
    held_back: the held-back shots; () without.
    shots: all shots, the held-back ones too, once each.
    indices: of the shots within their source.
  """

  task: str
  seed: int
  batches: Batch
  test: tuple[EvalBatch, ...]
  held_back: tuple[EvalBatch, ...]
  shots: tuple[EvalBatch, ...]
  indices: tuple[int, ...]

  @property
  def name(self) -> str:
    """Names the cell in messages and folders."""
    return f'{self.task}/seed{self.seed}'


def open_few_shot_tasks(
  data_dir: epath.PathLike,
  tasks: Sequence[str],
  *,
  train_split: str = 'train',
  test_split: str = 'test',
  test_tasks: Mapping[str, Sequence[str]] | None = None,
  seeds: Sequence[int] = (),
  vocabulary_fingerprint: str | None = None,
) -> list[FewShotTask]:
  """Opens prepared tasks for few-shot adaptation.

  Args:
    data_dir: the folder of all prepared data.
    tasks: the tasks' names.
    train_split: to draw the shots from; with '{seed}' in it, a split a seed,
      for benchmarks that say which examples a seed has.
    test_split: to evaluate on.
    test_tasks: the names of the tasks to evaluate each one on; by default
      itself.
    seeds: all that will be asked for, where `train_split` names them.
    vocabulary_fingerprint: of the model; by default any that all share.

  Raises:
    UserError: a task or a split is not there, or has another vocabulary.
  """

  def open_train(task: records.PreparedTask) -> Source | Mapping[int, Source]:
    if SEED not in train_split:
      return task.source(train_split)
    return {
      seed: task.source(train_split.replace(SEED, str(seed))) for seed in seeds
    }

  def open_test(task: records.PreparedTask) -> Source | tuple[Source, ...]:
    if test_tasks is None:
      return task.source(test_split)
    opened = records.open_tasks(
      data_dir,
      test_tasks[task.name],
      vocabulary_fingerprint=task.vocabulary_fingerprint,
    )
    return tuple(other.source(test_split) for other in opened)

  return [
    FewShotTask(open_train(task), open_test(task))
    for task in records.open_tasks(
      data_dir, tasks, vocabulary_fingerprint=vocabulary_fingerprint
    )
  ]


def build_cells(
  tasks: Sequence[FewShotTask], settings: FewShotSettings
) -> list[Cell]:
  """Draws the shots of every task and seed and lays out all batches.

  Args:
    tasks: where the examples come from.
    settings: how many, how long.

  Raises:
    UserError: a task has too few examples.
  """
  limit = settings.test_limit
  sizes = [
    sum(min(len(test), limit or len(test)) for test in task.tests)
    for task in tasks
  ]
  rows = min(settings.test_batch_size, max(sizes))
  cells = []
  for task in tasks:
    test = _ordered(task.tests, settings, rows, limit=limit)
    cells += [
      _build_cell(task, seed, test, settings) for seed in settings.seeds
    ]
  # Seeds share their tests.
  tests = {id(cell.test): cell.test for cell in cells}.values()
  shots = (cell.shots for cell in cells)
  collections.deque(report_cuts(itertools.chain(*tests, *shots)), maxlen=0)
  return cells


def _build_cell(
  task: FewShotTask,
  seed: int,
  test: tuple[EvalBatch, ...],
  settings: FewShotSettings,
) -> Cell:
  drawn = few_shot.few_shot_examples(
    task.train_of(seed),
    settings.shots,
    seed,
    held_back=settings.held_back,
    forms=settings.forms,
  )
  loader = few_shot.FewShotLoader(
    task.name,
    drawn,
    batch_size=settings.batch_size,
    input_length=settings.input_length,
    target_length=settings.target_length,
    seed=seed,
  )
  steps = [loader.batch(step) for step in range(settings.steps)]
  held_back = ExampleSource(task.name, drawn.held_back)
  shots = ExampleSource(task.name, drawn.train + drawn.held_back)
  return Cell(
    task=task.name,
    seed=seed,
    batches={name: np.stack([b[name] for b in steps]) for name in steps[0]},
    test=test,
    held_back=_ordered((held_back,), settings, max(1, len(held_back))),
    shots=_ordered((shots,), settings, len(shots)),
    indices=drawn.indices,
  )


def _ordered(
  sources: Sequence[Source],
  settings: FewShotSettings,
  rows: int,
  *,
  limit: int | None = None,
) -> tuple[EvalBatch, ...]:
  batches = eval_batches(
    sources,
    batch_size=rows,
    input_length=settings.input_length,
    target_length=settings.target_length,
    limit=limit,
  )
  return tuple(batches)
