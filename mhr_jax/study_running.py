"""Running what is missing of a study: trainings, evaluations, few-shot groups.

Which pre-training serves which method is read from the table of methods. A
pre-training is trained, continued or read when the first cell that needs it is
missing, and never when none is.
"""

from collections.abc import Callable, Iterable
import dataclasses
import functools
from typing import Any, Literal

from etils import epath
import jax

from mhr_jax import (
  adaptation,
  adapter_soup,
  evaluation,
  few_shot,
  methods,
  reporting,
  train,
)
from mhr_jax.data.ordered import EvalBatch
from mhr_jax.study_cells import Cells, CellScores
from mhr_jax.study_settings import SHUFFLED, UNTRAINED, Study, TestSet, Training

_ALIGNMENT = 'alignment/'

Start = Callable[[], train.Trained]


class Runner:
  """Runs the cells of a study, each unless its result is there."""

  def __init__(
    self,
    run_dir: epath.PathLike,
    settings: Study,
    cells: Cells,
    *,
    config_text: str = '',
    command: str = '',
  ):
    """Starts nothing yet.

    Args:
      run_dir: the study's folder.
      settings: what to run.
      cells: where results go.
      config_text: the resolved configuration, kept in every run folder.
      command: what started the study, for the model cards.
    """
    self._run_dir = epath.Path(run_dir)
    self._study = settings
    self._cells = cells
    self._origin = {'config_text': config_text, 'command': command}

  def run(self) -> None:
    """Runs all cells that are missing, seed by seed."""
    self._evaluate_untrained()
    for seed in self._study.seeds:
      for name in self._study.pretrainings():
        self._run_pretraining(methods.get_method(name), seed)

  def _evaluate_untrained(self) -> None:
    """Scores the backbone alone on all test sets."""
    for phase, test in (
      ('multi_task', self._study.multi_task_test),
      ('zero_shot', self._study.zero_shot_test),
      ('few_shot', self._study.few_shot.test_set()),
    ):
      self._cells.run(
        (UNTRAINED, phase, self._study.seeds[0]),
        functools.partial(self._score_backbone, phase, test),
      )

  def _run_pretraining(self, pretrained: methods.Method, seed: int) -> None:
    """Runs all cells that start from a method's pre-training with a seed."""

    @functools.cache
    def start() -> train.Trained:
      return self._train(
        self._study.multi_task,
        pretrained.name,
        seed,
        backbone_from=str(self._backbone.run_dir),
      )

    run, name = self._cells.run, pretrained.name
    run((name, 'multi_task', seed), lambda: self._multi_task(start(), seed))
    if pretrained.has_routers:
      run(
        (f'{name}{SHUFFLED}', 'multi_task', seed),
        lambda: self._multi_task(start(), seed, task_ids='shuffled'),
      )
    if self._study.multi_task.alignment is not None:
      self._cells.run_alignment(
        name, seed, lambda: alignment_of(start().run_dir)
      )
    for method in map(methods.get_method, self._study.methods):
      if method.pretrain_as == name:
        self._run_unseen(method, start, seed)

  def _run_unseen(
    self, method: methods.Method, start: Start, seed: int
  ) -> None:
    """Runs a method's cells on unseen tasks, from its pre-training."""
    if method.zero_shot is not None:
      self._cells.run(
        (method.name, 'zero_shot', seed),
        lambda: self._zero_shot(method, start(), seed),
      )
    self._cells.run(
      (method.name, 'few_shot', seed),
      lambda: self._few_shot(method, start, seed),
    )

  def _score_backbone(self, phase: str, test: TestSet) -> CellScores:
    trained, batches = self._backbone, test.batches()
    found = evaluation.evaluate_generation(
      trained.model,
      trained.params,
      batches,
      trained.vocabulary,
      settings=self._study.evaluation,
      folder=self._run_dir / UNTRAINED / phase,
    )
    return CellScores.of(found, self._study.metric, categories_of(batches))

  def _multi_task(
    self,
    start: train.Trained,
    seed: int,
    *,
    task_ids: Literal['right', 'shuffled'] = 'right',
  ) -> CellScores:
    batches = self._study.multi_task_test.batches(start.task_table)
    found = evaluation.evaluate_generation(
      start.model,
      start.params,
      batches,
      start.vocabulary,
      settings=dataclasses.replace(
        self._study.evaluation, task_ids=task_ids, seed=seed
      ),
      folder=start.run_dir / f'multi_task_{task_ids}',
    )
    return CellScores.of(found, self._study.metric, categories_of(batches))

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
    batches = self._study.zero_shot_test.batches()
    found = adaptation.zero_shot(
      start.model,
      start.params,
      method,
      batches,
      start.vocabulary,
      settings=self._study.evaluation,
      soups=self._soups(method, start, self._study.zero_shot_test.input_length),
      folder=start.run_dir / f'{method.name}_zero_shot',
    )
    assert found is not None
    return CellScores.of(found, self._study.metric, categories_of(batches))

  def _few_shot(
    self, method: methods.Method, start: Start, seed: int
  ) -> CellScores:
    """Adapts to all tasks and draws, a group of cells at a time."""
    settings = self._study.few_shot.adaptation[method.name]
    cells = self._few_shot_cells(seed)
    key = (method.name, 'few_shot', seed)
    parts: list[dict[str, Any]] = []
    for index, group in enumerate(
      adaptation.split_groups(cells, settings.side_by_side)
    ):
      new = self._cells.run_part(
        key,
        index,
        lambda group=group: self._adapt(method, start(), seed, group),
      )
      parts += new[: len(cells) - len(parts)]  # The rest fills up the group.
    tests = (batch for cell in cells for batch in cell.test)
    return CellScores.of_parts(parts, self._study.metric, categories_of(tests))

  def _adapt(
    self,
    method: methods.Method,
    start: train.Trained,
    seed: int,
    group: list[few_shot.Cell],
  ) -> list[dict[str, Any]]:
    adapted = adaptation.adapt(
      start.model,
      start.params,
      method,
      group,
      start.vocabulary,
      settings=self._study.few_shot.adaptation[method.name],
      evaluate=self._study.evaluation,
      soups=self._soups(
        method, start, self._study.few_shot.settings.input_length
      ),
      folder=self._run_dir / 'few_shot' / method.name / f'seed{seed}',
    )
    return [
      {
        'draw': of.seed,
        'tasks': of.scores.tasks,  # One, or those it is evaluated on.
        'trainable_parameters': sum(
          leaf.size for leaf in jax.tree.leaves(of.trained)
        ),
      }
      for of in adapted
    ]

  def _soups(
    self, method: methods.Method, start: train.Trained, input_length: int
  ) -> adapter_soup.SoupChooser | None:
    """Returns what chooses a method's soups; None where it starts from none."""
    return adapter_soup.build_chooser(
      method,
      self._study.few_shot.adaptation[method.name].soup,
      start,
      run_dir=start.run_dir,
      data_dir=self._study.multi_task.data.data_dir,
      input_length=input_length,
    )

  @functools.cached_property
  def _backbone(self) -> train.Trained:
    return self._train(
      self._study.backbone_training, 'full', self._study.seeds[0]
    )

  @functools.cached_property
  def _few_shot_tasks(self) -> list[few_shot.FewShotTask]:
    few = self._study.few_shot
    return few_shot.open_few_shot_tasks(
      few.data.data_dir,
      few.data.resolve().tasks,
      train_split=few.split,
      test_split=few.test_split,
      test_tasks=few.tests(),
      seeds=sorted(
        {draw for seed in self._study.seeds for draw in few.seeds_of(seed)}
      ),
    )

  @functools.lru_cache(maxsize=2)  # noqa: B019 - as long as the study runs.
  def _few_shot_cells(self, seed: int) -> list[few_shot.Cell]:
    """The few-shot cells of a pre-training seed: the same for all methods."""
    few = self._study.few_shot
    settings = dataclasses.replace(few.settings, seeds=few.seeds_of(seed))
    return few_shot.build_cells(self._few_shot_tasks, settings)

  def _train(
    self,
    training: Training,
    method: str,
    seed: int,
    **start: Any,
  ) -> train.Trained:
    """Trains, or goes on, or reads what is there; folder METHOD/seedN.

    `start` says where it begins: `backbone_from` or `start_from`; a backbone
    begins nowhere.
    """
    name = method if start else 'backbone'
    folder = self._run_dir / name / f'seed{seed}'
    self._cells.say(
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
      alignment=training.alignment,
      routing_statistics=training.routing_statistics,
      **start,
      **self._origin,
    )
    assert trained is not None  # It is no dry run.
    return trained


def categories_of(batches: Iterable[EvalBatch]) -> dict[str, str]:
  """Returns the categories of the tasks that have one."""
  return {
    record.task: record.category
    for batch in batches
    for record in batch.records
    if record.category is not None
  }


def alignment_of(run_dir: epath.PathLike) -> dict[str, float]:
  """Returns what a run's `metrics.jsonl` holds of its gradients' alignment.

  By `PART/last` and `PART/mean` along training, for every number whose name
  begins with 'alignment/'; {} where none was measured.
  """
  found: dict[str, list[float]] = {}
  for line in reporting.read_metrics(run_dir):
    for name, value in line.items():
      if name.startswith(_ALIGNMENT) and value is not None:
        found.setdefault(name.removeprefix(_ALIGNMENT), []).append(value)
  numbers: dict[str, float] = {}
  for part, values in found.items():
    numbers |= {
      f'{part}/last': values[-1],
      f'{part}/mean': sum(values) / len(values),
    }
  return numbers
