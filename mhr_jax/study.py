"""A study: backbone, multi-task training, zero-shot, few-shot, one table.

    backbone ─┬─ untrained scores
              └─ for each method's pre-training and seed
                   ├─ multi-task scores (and with shuffled task ids)
                   ├─ zero-shot: as the method serves unseen tasks
                   └─ few-shot: as the method adapts, on new draws a seed

A seed is one of pre-training; its few-shot examples are drawn by the same
seed, so every value behind a mean has a pre-training of its own. Each cell's
result is kept in `cells/`, and a study that is started again goes on with
those that are missing.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import Literal

from etils import epath
import jax

from mhr_jax import (
  adaptation,
  configuration_values,
  evaluation,
  few_shot,
  methods,
  run_files,
  train,
)
from mhr_jax.adaptation import AdaptationSettings
from mhr_jax.analysis import report
from mhr_jax.data import ordered, records
from mhr_jax.data.mixture_settings import MixtureSettings
from mhr_jax.errors import UserError
from mhr_jax.evaluation import EvaluationSettings
from mhr_jax.few_shot import FewShotSettings
from mhr_jax.jobs import Adapters
from mhr_jax.optim import OptimizerSettings
from mhr_jax.study_results import (
  SHUFFLED,
  Baseline,
  CellScores,
  StudyResults,
)
from mhr_jax.t5.config import T5Config
from mhr_jax.task_data import TaskData
from mhr_jax.task_table import TaskTable
from mhr_jax.trainer import TrainSettings

# What may differ when a study goes on: cells are by method and seed.
_MAY_GROW = ('baselines', 'methods', 'seeds')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
  """One kind of training run of a study.

  Attributes:
    data: the tasks.
    mixture: how they become batches.
    settings: steps and what else the trainer wants; the seed is the study's.
    optimizer: how parameters move.
  """

  data: TaskData
  mixture: MixtureSettings
  settings: TrainSettings
  optimizer: OptimizerSettings


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
    adaptation: how each method trains, by its name.
  """

  data: TaskData
  settings: FewShotSettings
  adaptation: Mapping[str, AdaptationSettings]
  split: str = 'few_shot'
  test_split: str = 'test'


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
    metric: of `metrics.METRICS`, whose mean over instances is reported.
    baselines: scores of something else, by name, phase ('multi_task',
      'zero_shot', 'few_shot') and task.

  Raises:
    UserError: a method is unknown or cannot be adapted as told.
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
  baselines: Mapping[str, Baseline] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    object.__setattr__(self, 'methods', tuple(self.methods))
    object.__setattr__(self, 'seeds', tuple(self.seeds))
    if not self.seeds or not self.methods:
      raise UserError('A study needs at least one seed and one method.')
    for name in self.methods:
      methods.get_method(name)
      if name not in self.few_shot.adaptation:
        raise UserError(
          f'few_shot.adaptation says nothing of {name!r}; it has'
          f' {", ".join(self.few_shot.adaptation) or "nothing"}.'
        )


def study(
  run_dir: str, *, settings: Study, config_text: str = '', command: str = ''
) -> StudyResults:
  """Runs a study, prints its table and writes its results and report.

  Args:
    run_dir: the study's folder; see `run_study`.
    settings: what to run.
    config_text: the resolved configuration, kept in every run folder.
    command: what started the study, for the model cards.

  Raises:
    UserError: something does not fit, or a folder holds another run.
  """
  results = run_study(
    run_dir, settings, config_text=config_text, command=command
  )
  path = results.write()
  results.print_tables()
  results.say(f'{path}\n{report.write_report(run_dir)}')
  return results


def run_study(
  run_dir: epath.PathLike, settings: Study, **origin: str
) -> StudyResults:
  """Runs what is missing of a study and returns all of its results.

  Args:
    run_dir: the study's folder: a run folder for each training, `cells/`, and
      the predictions of every evaluation.
    settings: what to run.
    **origin: `config_text` and `command`, see `study`.

  Raises:
    UserError: something does not fit, or a folder holds another run.
  """
  _check_settings(epath.Path(run_dir), settings)
  runner = _Runner(epath.Path(run_dir), settings, origin)
  runner.evaluate_untrained()
  for seed in settings.seeds:
    for name in dict.fromkeys(
      methods.get_method(name).pretrain_as for name in settings.methods
    ):
      runner.run_pretraining(methods.get_method(name), seed)
  return runner.results


def _check_settings(run_dir: epath.Path, settings: Study) -> None:
  """Notes what the cells of a folder were made with, or compares.

  Raises:
    UserError: they were made with other settings.
  """
  asked = {
    field.name: getattr(settings, field.name)
    for field in dataclasses.fields(settings)
    if field.name not in _MAY_GROW
  }
  asked['adapters'] = settings.adapters(n_tasks=1)
  values = train.flat_settings(asked)
  path = run_dir / train.SETTINGS_FILE
  if not path.exists():
    run_files.write_json(path, values)
    return
  changed = configuration_values.diff(run_files.read_json(path), values)
  if changed:
    raise UserError(
      f'{run_dir} holds a study with other settings:\n  '
      + '\n  '.join(changed)
      + '\nChoose another run_dir; seeds and methods alone may be added.'
    )


class _Runner:
  """Runs the cells of a study, each unless its result is there."""

  def __init__(
    self, run_dir: epath.Path, settings: Study, origin: Mapping[str, str]
  ):
    self._run_dir = run_dir
    self._origin = origin
    self._study = settings
    self.results = StudyResults(
      run_dir,
      suite=settings.suite,
      metric=settings.metric,
      seeds=tuple(settings.seeds),
      methods=tuple(settings.methods),
      baselines=settings.baselines,
    )

  def evaluate_untrained(self) -> None:
    """Scores the backbone alone on all test sets."""
    for phase, test in (
      ('multi_task', self._study.multi_task_test),
      ('zero_shot', self._study.zero_shot_test),
      ('few_shot', _few_shot_test(self._study.few_shot)),
    ):
      self.results.run(
        ('untrained', phase, self._study.seeds[0]),
        functools.partial(self._score_backbone, phase, test),
      )

  def run_pretraining(self, pretrained: methods.Method, seed: int) -> None:
    """Runs all cells that start from a method's pre-training with a seed."""

    @functools.cache
    def start() -> train.Trained:
      return self._train(
        self._study.multi_task,
        pretrained.name,
        seed,
        backbone_from=str(self._backbone.run_dir),
      )

    run, name = self.results.run, pretrained.name
    run((name, 'multi_task', seed), lambda: self._multi_task(start(), seed))
    if pretrained.has_routers:
      run(
        (f'{name}{SHUFFLED}', 'multi_task', seed),
        lambda: self._multi_task(start(), seed, task_ids='shuffled'),
      )
    for method in map(methods.get_method, self._study.methods):
      if method.pretrain_as == name:
        self._run_unseen(method, start, seed)

  def _run_unseen(
    self,
    method: methods.Method,
    start: Callable[[], train.Trained],
    seed: int,
  ) -> None:
    """Runs a method's cells on unseen tasks, from its pre-training."""
    if method.zero_shot is not None:
      self.results.run(
        (method.name, 'zero_shot', seed),
        lambda: self._zero_shot(method, start(), seed),
      )
    self.results.run(
      (method.name, 'few_shot', seed),
      lambda: self._few_shot(method, start(), seed),
    )

  def _score_backbone(self, phase: str, test: TestSet) -> CellScores:
    trained = self._backbone
    found = evaluation.evaluate_generation(
      trained.model,
      trained.params,
      test.batches(),
      trained.vocabulary,
      settings=self._study.evaluation,
      folder=self._run_dir / 'untrained' / phase,
    )
    return CellScores.of(found, self._study.metric)

  def _multi_task(
    self,
    start: train.Trained,
    seed: int,
    *,
    task_ids: Literal['right', 'shuffled'] = 'right',
  ) -> CellScores:
    found = evaluation.evaluate_generation(
      start.model,
      start.params,
      self._study.multi_task_test.batches(start.task_table),
      start.vocabulary,
      settings=dataclasses.replace(
        self._study.evaluation, task_ids=task_ids, seed=seed
      ),
      folder=start.run_dir / f'multi_task_{task_ids}',
    )
    return CellScores.of(found, self._study.metric)

  def _zero_shot(
    self, method: methods.Method, start: train.Trained, seed: int
  ) -> CellScores:
    if method.zero_shot == 'average_after_training':
      start = self._train(
        self._study.average,
        method.name,
        seed,
        start_from=str(start.run_dir),
      )
    found = adaptation.zero_shot(
      start.model,
      start.params,
      method,
      self._study.zero_shot_test.batches(),
      start.vocabulary,
      settings=self._study.evaluation,
      folder=start.run_dir / 'zero_shot',
    )
    assert found is not None
    return CellScores.of(found, self._study.metric)

  def _few_shot(
    self, method: methods.Method, start: train.Trained, seed: int
  ) -> CellScores:
    adapted = adaptation.adapt(
      start.model,
      start.params,
      method,
      self._cells[seed],
      start.vocabulary,
      settings=self._study.few_shot.adaptation[method.name],
      evaluate=self._study.evaluation,
      folder=self._run_dir / 'few_shot' / method.name / f'seed{seed}',
    )
    trained = jax.tree.leaves(adapted[0].trained)
    return CellScores.of_tasks(
      {of.task: of.scores.overall for of in adapted},
      self._study.metric,
      trainable_parameters=sum(leaf.size for leaf in trained),
    )

  @functools.cached_property
  def _backbone(self) -> train.Trained:
    return self._train(
      self._study.backbone_training, 'full', self._study.seeds[0]
    )

  @functools.cached_property
  def _cells(self) -> dict[int, list[few_shot.Cell]]:
    """The few-shot cells by seed: the same for all methods."""
    few = self._study.few_shot
    tasks = few_shot.open_few_shot_tasks(
      few.data.data_dir,
      few.data.resolve().tasks,
      train_split=few.split,
      test_split=few.test_split,
    )
    settings = dataclasses.replace(few.settings, seeds=tuple(self._study.seeds))
    cells = few_shot.build_cells(tasks, settings)
    return {
      seed: [cell for cell in cells if cell.seed == seed]
      for seed in self._study.seeds
    }

  def _train(
    self,
    training: Training,
    method: str,
    seed: int,
    *,
    backbone_from: str | None = None,
    start_from: str | None = None,
  ) -> train.Trained:
    """Trains, or goes on, or reads what is there; folder METHOD/seedN."""
    name = method if backbone_from or start_from else 'backbone'
    folder = self._run_dir / name / f'seed{seed}'
    self.results.say(
      f'{name}, seed {seed}: {training.settings.steps} steps in {folder}'
    )
    trained = train.train(
      str(folder),
      backbone=self._study.backbone,
      data=training.data,
      mixture=dataclasses.replace(training.mixture, seed=seed),
      settings=dataclasses.replace(training.settings, seed=seed),
      method=method,
      adapters=self._study.adapters,
      optimizer=training.optimizer,
      backbone_from=backbone_from,
      start_from=start_from,
      config_text=self._origin.get('config_text', ''),
      command=self._origin.get('command', ''),
    )
    assert trained is not None  # It is no dry run.
    return trained


def _few_shot_test(few: FewShot) -> TestSet:
  """Returns the unseen tasks' test instances, for the backbone alone."""
  return TestSet(
    data=few.data,
    input_length=few.settings.input_length,
    target_length=few.settings.target_length,
    split=few.test_split,
    limit=few.settings.test_limit,
    batch_size=few.settings.test_batch_size,
  )
