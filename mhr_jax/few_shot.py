"""The cells of a few-shot study: a task, a seed, its examples and batches.

A cell holds everything that does not depend on the method, so that all
methods see the same examples in the same order, and nothing is built twice.
"""

from collections.abc import Mapping, Sequence
import dataclasses

from etils import epath
import numpy as np

from mhr_jax.data import few_shot, records
from mhr_jax.data.loader import MixtureSettings
from mhr_jax.data.ordered import EvalBatch, ExampleSource, eval_batches
from mhr_jax.errors import UserError
from mhr_jax.task_table import TaskTable

Source = records.TaskSource | ExampleSource
Batch = Mapping[str, np.ndarray]

SEED = '{seed}'
"""In a split's name: where the seed stands."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewShotSettings:
  """How a few examples of a task become training batches.

  Attributes:
    shots: examples of each task, held-back ones included; None takes the
      whole split, whatever its size.
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
  held_back: int = 0
  seeds: tuple[int, ...] = (0, 1, 2)
  steps: int = 100
  batch_size: int = 16
  test_batch_size: int = 100
  test_limit: int | None = None

  def __post_init__(self):
    object.__setattr__(self, 'seeds', tuple(self.seeds))
    for name in ('steps', 'batch_size', 'test_batch_size'):
      if getattr(self, name) < 1:
        raise UserError(f'{name} is {getattr(self, name)}; at least 1.')
    if len(set(self.seeds)) != len(self.seeds) or not self.seeds:
      raise UserError(f'seeds must be different numbers, not {self.seeds}.')


@dataclasses.dataclass(frozen=True)
class FewShotTask:
  """Where a task's examples come from.

  Attributes:
    train: to draw the shots from; or of each seed, where its shots are given.
    test: to evaluate on.
  """

  train: Source | Mapping[int, Source]
  test: Source

  def __post_init__(self):
    given = isinstance(self.train, Mapping)
    for source in self.train.values() if given else (self.train,):
      if source.name != self.test.name:
        raise UserError(
          f'Shots of {source.name!r} cannot be tested on {self.test.name!r}.'
        )

  @property
  def name(self) -> str:
    """The task's name."""
    return self.test.name

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
    batches: arrays of a batch with a leading axis of steps.
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
  seeds: Sequence[int] = (),
) -> list[FewShotTask]:
  """Opens prepared tasks for few-shot adaptation.

  Args:
    data_dir: the folder of all prepared data.
    tasks: the tasks' names.
    train_split: to draw the shots from; with '{seed}' in it, a split a seed,
      for benchmarks that say which examples a seed has.
    test_split: to evaluate on.
    seeds: all that will be asked for, where `train_split` names them.

  Raises:
    UserError: a task or a split is not there.
  """

  def open_train(task: records.PreparedTask) -> Source | Mapping[int, Source]:
    if SEED not in train_split:
      return task.source(train_split)
    return {
      seed: task.source(train_split.replace(SEED, str(seed))) for seed in seeds
    }

  return [
    FewShotTask(open_train(task), task.source(test_split))
    for task in records.open_tasks(data_dir, tasks)
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
  sizes = [len(task.test) for task in tasks]
  sizes = sizes if limit is None else [min(size, limit) for size in sizes]
  rows = min(settings.test_batch_size, max(sizes))
  cells = []
  for task in tasks:
    test = _ordered(task.test, settings, rows, limit=limit)
    cells += [
      _build_cell(task, seed, test, settings) for seed in settings.seeds
    ]
  return cells


def _build_cell(
  task: FewShotTask,
  seed: int,
  test: tuple[EvalBatch, ...],
  settings: FewShotSettings,
) -> Cell:
  train = task.train_of(seed)
  shots = len(train) if settings.shots is None else settings.shots
  drawn = few_shot.few_shot_examples(
    train, shots, seed, held_back=settings.held_back
  )
  loader = few_shot.examples_loader(
    {task.name: drawn.train},
    MixtureSettings(
      batch_size=settings.batch_size,
      input_length=settings.input_length,
      target_length=settings.target_length,
      seed=seed,
    ),
    task_table=TaskTable((task.name,)),
  )
  steps = [loader.batch(step) for step in range(settings.steps)]
  held_back = ExampleSource(task.name, drawn.held_back)
  shots = ExampleSource(task.name, drawn.train + drawn.held_back)
  return Cell(
    task=task.name,
    seed=seed,
    batches={name: np.stack([b[name] for b in steps]) for name in steps[0]},
    test=test,
    held_back=_ordered(held_back, settings, max(1, settings.held_back)),
    shots=_ordered(shots, settings, len(shots)),
    indices=drawn.indices,
  )


def _ordered(
  source: Source,
  settings: FewShotSettings,
  rows: int,
  *,
  limit: int | None = None,
) -> tuple[EvalBatch, ...]:
  batches = eval_batches(
    [source],
    batch_size=rows,
    input_length=settings.input_length,
    target_length=settings.target_length,
    limit=limit,
  )
  return tuple(batches)
