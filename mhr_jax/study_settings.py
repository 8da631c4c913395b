"""What a study is made of: the settings of `mhr-jax study`."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Literal

from mhr_jax import commands, few_shot, methods
from mhr_jax.adaptation import AdaptationSettings
from mhr_jax.analysis.gradients import AlignmentSettings
from mhr_jax.analysis.routing_statistics import RoutingStatisticsSettings
from mhr_jax.data import ordered, records
from mhr_jax.data.mixture_settings import MixtureSettings
from mhr_jax.errors import UserError, nearest
from mhr_jax.evaluation import EvaluationSettings
from mhr_jax.few_shot import FewShotSettings
from mhr_jax.jobs import Adapters
from mhr_jax.optim import OptimizerSettings
from mhr_jax.setting_checks import check_fields
from mhr_jax.t5.config import T5Config
from mhr_jax.task_data import TaskData
from mhr_jax.task_table import TaskTable
from mhr_jax.trainer import TrainSettings

PHASES = ('multi_task', 'zero_shot', 'few_shot')
SHUFFLED = ', shuffled task ids'
UNTRAINED = 'untrained'

Baseline = Mapping[str, Mapping[str, float]]  # phase, task
MeanOver = Literal['instances', 'tasks', 'categories']


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
  """One kind of training run of a study.

  Attributes:
    data: the tasks.
    mixture: how they become batches.
    settings: steps and what else the trainer wants; the seed is the study's.
    optimizer: how parameters move.
    alignment: of the tasks' gradients, measured on the way; None for none.
    routing_statistics: measured on the way; None for none.
  """

  data: TaskData
  mixture: MixtureSettings
  settings: TrainSettings
  optimizer: OptimizerSettings
  alignment: AlignmentSettings | None = None
  routing_statistics: RoutingStatisticsSettings | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TestSet:
  """Instances that a study evaluates on.

  Attributes:
    data: the tasks.
    input_length: tokens of the inputs; longer ones are cut.
    target_length: tokens of the targets, likewise.
    split: of every task.
    limit: the first so many instances of each task; None for all.
    batch_size: rows of an evaluation batch.
  """

  data: TaskData
  input_length: int
  target_length: int
  split: str = 'test'
  limit: int | None = None
  batch_size: int = 100

  def __post_init__(self):
    check_fields(
      self,
      least=dict.fromkeys(('limit', 'batch_size'), 1)
      | dict.fromkeys(('input_length', 'target_length'), 2),
    )

  def batches(
    self, task_table: TaskTable | None = None
  ) -> list[ordered.EvalBatch]:
    """Returns all batches; ids are those of `task_table`."""
    found = self.data.resolve()
    tasks = records.open_tasks(self.data.data_dir, found.tasks)
    return list(
      ordered.eval_batches(
        [task.source(self.split) for task in tasks],
        batch_size=self.batch_size,
        input_length=self.input_length,
        target_length=self.target_length,
        task_table=task_table,
        limit=self.limit,
      )
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewShot:
  """The few-shot part of a study.

  Attributes:
    data: the unseen tasks.
    settings: shots, steps and lengths; its seeds are the study's.
    split: of every task, to draw shots from.
    test_split: of every task, to evaluate on.
    test_tasks: what to evaluate on, with '{task}' for the one adapted to; see
      `commands.adapt`.
    adaptation: how each method trains, by its name.
    draws: seeds of draws of examples, each for every pre-training; () draws
      once a pre-training, by its own seed.
  """

  data: TaskData
  settings: FewShotSettings
  adaptation: Mapping[str, AdaptationSettings]
  split: str = 'few_shot'
  test_split: str = 'test'
  test_tasks: str = few_shot.TASK
  draws: Sequence[int] = ()

  def __post_init__(self):
    object.__setattr__(self, 'draws', tuple(self.draws))
    check_fields(self)

  def seeds_of(self, seed: int) -> tuple[int, ...]:
    """Returns the seeds of the draws that a pre-training is adapted to."""
    return tuple(self.draws) or (seed,)

  def tests(self) -> dict[str, tuple[str, ...]] | None:
    """Returns what each task is evaluated on, prepared; None for itself."""
    tasks = self.data.resolve().tasks
    return commands.resolve_tests(self.data, tasks, self.test_tasks)

  def test_set(self) -> TestSet:
    """Returns the unseen tasks' test instances, for the backbone alone."""
    tests = self.tests()
    data = self.data
    if tests is not None:
      names = dict.fromkeys(name for of in tests.values() for name in of)
      data = dataclasses.replace(data, tasks=tuple(names))
    return TestSet(
      data=data,
      input_length=self.settings.input_length,
      target_length=self.settings.target_length,
      split=self.test_split,
      limit=self.settings.test_limit,
      batch_size=self.settings.test_batch_size,
    )


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Two rows that are compared in pairs, in one phase.

  Attributes:
    claim: what the comparison is there to decide.
    left: a method; also `METHOD, shuffled task ids`, or 'untrained'.
    right: another one.
    phase: 'multi_task', 'zero_shot', 'few_shot', or 'alignment/PART' of
      `alignment_phases`.
  """

  claim: str
  left: str
  right: str
  phase: str


def alignment_phases() -> tuple[str, ...]:
  """Returns what of the gradients' alignment can be compared.

  'last' is the last measurement of a pre-training, 'mean' that along it.
  """
  return tuple(
    f'alignment/{of}/{when}'
    for of in ('inventories', 'effective')
    for when in ('last', 'mean')
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
  """What a study is made of.

  Attributes:
    suite: its name.
    methods: rows of the table of methods.
    seeds: one pre-training each.
    backbone: the shape of the T5.
    adapters: makes the `AdapterConfig` from `n_tasks`.
    backbone_training: how the backbone is trained; its seed is the first.
    multi_task: how adapters are pre-trained.
    average: how the averaged adapter trains on for the zero-shot of -mu.
    multi_task_test: held-back instances of the training tasks.
    zero_shot_test: unseen tasks, described in their inputs.
    few_shot: unseen tasks, with a few examples.
    evaluation: how texts are written.
    metric: of `evaluation.metrics`, what is reported.
    mean_over: what the score of a phase is the mean over: all instances, the
      tasks' means, or the categories' means of tasks' means.
    comparisons: 'all' compares all methods in all phases; else claims, as
      {claim: (left, right, phase)}; see `Comparison`.
    baselines: scores of something else, by name, phase ('multi_task',
      'zero_shot', 'few_shot') and task.

  Raises:
    UserError: a method is unknown or cannot be adapted as told, or a
      comparison is of something that the study has not got.
  """

  suite: str
  methods: Sequence[str]
  seeds: Sequence[int]
  backbone: T5Config
  adapters: Adapters
  backbone_training: Training
  multi_task: Training
  average: Training
  multi_task_test: TestSet
  zero_shot_test: TestSet
  few_shot: FewShot
  evaluation: EvaluationSettings
  metric: str = 'exact_match'
  mean_over: MeanOver = 'instances'
  comparisons: Mapping[str, tuple[str, str, str]] | Literal['all'] = 'all'
  baselines: Mapping[str, Baseline] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    object.__setattr__(self, 'methods', tuple(self.methods))
    object.__setattr__(self, 'seeds', tuple(self.seeds))
    check_fields(self)
    if not self.seeds or not self.methods:
      raise UserError('A study needs at least one seed and one method.')
    for name in self.methods:
      methods.get_method(name)
      if name not in self.few_shot.adaptation:
        raise UserError(
          f'few_shot.adaptation says nothing of {name!r}; it has'
          f' {", ".join(self.few_shot.adaptation) or "nothing"}.'
        )
    if self.metric not in self.evaluation.metrics:
      raise UserError(
        f'The study reports {self.metric!r}, but EvaluationSettings.metrics'
        f' is {self.evaluation.metrics}: name it there too.'
      )
    self.chosen_comparisons()

  def pretrainings(self) -> tuple[str, ...]:
    """Returns the methods whose pre-training serves those of the study."""
    rows = map(methods.get_method, self.methods)
    return tuple(dict.fromkeys(row.pretrain_as for row in rows))

  def chosen_comparisons(self) -> tuple[Comparison, ...]:
    """Returns the claims, but for those of methods that are left out.

    Raises:
      UserError: a claim is not of three names, or of an unknown row or phase.
    """
    if isinstance(self.comparisons, str):
      if self.comparisons != 'all':
        raise UserError(
          "comparisons is 'all' or {claim: (left, right, phase)}, not"
          f' {self.comparisons!r}.'
        )
      return ()
    found = [_comparison(*item) for item in self.comparisons.items()]
    here = {UNTRAINED, *self.methods, *self.pretrainings()}
    return tuple(
      one
      for one in found
      if {side.removesuffix(SHUFFLED) for side in (one.left, one.right)} <= here
    )


def _comparison(claim: str, value: Sequence[str]) -> Comparison:
  if isinstance(value, str) or len(value) != 3:
    raise UserError(
      f'The comparison {claim!r} is (left, right, phase), not {value!r}.'
    )
  found = Comparison(claim, *value)
  for side in (found.left, found.right):
    name = side.removesuffix(SHUFFLED)
    if name != UNTRAINED:
      methods.get_method(name)
  phases = (*PHASES, *alignment_phases())
  if found.phase not in phases:
    raise UserError(
      f'The comparison {claim!r} is of no phase {found.phase!r}.'
      f'{nearest(found.phase, phases)}'
    )
  return found
