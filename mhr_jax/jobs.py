"""A training job: everything `train` needs, built from settings and checked.

Nothing here allocates parameters or writes files, so a dry run builds the same
job as a real one.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
from typing import Any

from etils import epath
import jax

from mhr_jax import (
  backbones,
  methods,
  metric_writers,
  partitioning,
  run_folder,
)
from mhr_jax.adapters import AdapterConfig
from mhr_jax.analysis import gradients, routing_statistics
from mhr_jax.analysis.gradients import AlignmentSettings
from mhr_jax.analysis.routing_statistics import RoutingStatisticsSettings
from mhr_jax.data import ordered, records
from mhr_jax.data.loader import Loader, build_loader
from mhr_jax.data.mixture_settings import MixtureSettings
from mhr_jax.errors import UserError
from mhr_jax.evaluation import EvaluationSettings, make_evaluate
from mhr_jax.methods import Method
from mhr_jax.model import MixIn, RoutedT5
from mhr_jax.optim import OptimizerSettings
from mhr_jax.setting_checks import check_fields
from mhr_jax.t5 import storage
from mhr_jax.t5.config import Storage, T5Config
from mhr_jax.task_data import TaskData
from mhr_jax.task_table import TaskTable
from mhr_jax.trainer import Probe, TrainSettings
from mhr_jax.vocabulary import Vocabulary

# An `AdapterConfig` but for the number of tasks, which the data says.
Adapters = Callable[..., AdapterConfig]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldBackSettings:
  """Evaluation on held-back examples of the training tasks, while training.

  Attributes:
    split: of every task.
    limit: the first so many examples of each task; None for all.
    batch_size: rows of an evaluation batch.
    texts: also write texts and score them, so; None measures the loss alone.
  """

  split: str = 'validation'
  limit: int | None = 20
  batch_size: int = 64
  texts: EvaluationSettings | None = None

  def __post_init__(self):
    check_fields(self, least={'limit': 1, 'batch_size': 1})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """What is trained, on what, and how.

  Attributes:
    run_dir: the run folder.
    method: a row of the table of methods.
    model: backbone, adapters and routers.
    data: the tasks by name.
    mixture: the tasks in the order of their ids.
    task_table: their ids.
    split: of every task, to train on.
    loader: batches by step.
    vocabulary: of the prepared data.
    settings: steps, seed, what trains, when to save.
    optimizer: how parameters move.
    mesh: the devices.
    backbone_from: where the backbone comes from; None draws one.
    start_from: a run to go on from instead, with all its parameters.
    heldback: evaluation while training; None for none.
    alignment: of the tasks' gradients, while training; None for none.
    routing_statistics: while training; None for none.
  """

  run_dir: epath.Path
  method: Method
  model: RoutedT5
  data: TaskData
  mixture: records.Mixture
  task_table: TaskTable
  split: str
  loader: Loader
  vocabulary: Vocabulary
  settings: TrainSettings
  optimizer: OptimizerSettings
  mesh: partitioning.Mesh
  backbone_from: str | None = None
  start_from: str | None = None
  heldback: HeldBackSettings | None = None
  alignment: AlignmentSettings | None = None
  routing_statistics: RoutingStatisticsSettings | None = None

  def init_params(self) -> dict[str, Any]:
    """Draws or loads all parameters, as they are before the first step."""
    key = jax.random.key(self.settings.seed)
    if self.start_from is not None:
      params = run_folder.load_run(self.start_from, mesh=self.mesh).params
      stored = self.model.config.storage
      params['backbone'] = storage.store(params['backbone'], stored)
      if not self.method.shares_pretraining:
        return params
      return methods.start_params(
        self.method, params, self.model.adapters, phase='average'
      )
    if self.backbone_from is None:
      return self.model.init(key)
    backbone = backbones.load_backbone(
      self.backbone_from, self.model.config, mesh=self.mesh
    )
    return {'backbone': backbone} | self.model.init_added(key)

  def make_evaluate(self) -> Callable[[int, Any], Mapping[str, float]] | None:
    """Returns what the trainer calls to evaluate, if anything."""
    settings = self.heldback
    if settings is None or not self.settings.eval_every:
      return None
    return make_evaluate(
      self.model,
      lambda: self.heldback_batches(settings),
      self.vocabulary,
      settings=settings.texts,
    )

  def make_probes(self) -> tuple[Probe, ...]:
    """Returns what else the trainer measures on the way."""
    probes = []
    alignment, statistics = self.alignment, self.routing_statistics
    if alignment is not None and alignment.every and len(self.task_table) > 1:
      batches = self.alignment_batches(alignment)
      measure = gradients.make_alignment(self.model, batches, alignment.wrt)
      probes.append(Probe(alignment.every, measure))
    adapters = self.model.adapters
    if statistics is not None and adapters is not None and adapters.has_routers:
      measure = routing_statistics.make_routing_statistics(adapters.mixing_form)
      probes.append(Probe(statistics.every, measure))
    return tuple(probes)

  def alignment_batches(
    self, settings: AlignmentSettings
  ) -> list[gradients.TaskBatches]:
    """Returns the examples on which gradient alignment is measured."""
    names = gradients.choose_tasks(
      self.task_table.names, settings.tasks, settings.seed
    )
    tasks = records.open_tasks(self.data.data_dir, names)
    return gradients.build_task_batches(
      [task.source(settings.split) for task in tasks],
      self.task_table,
      settings,
      input_length=self.loader.settings.input_length,
      target_length=self.loader.settings.target_length,
    )

  def heldback_batches(
    self, settings: HeldBackSettings
  ) -> Iterable[ordered.EvalBatch]:
    """Returns the batches of the held-back examples, from the first one."""
    tasks = records.open_tasks(self.data.data_dir, self.mixture.tasks)
    return ordered.eval_batches(
      [task.source(settings.split) for task in tasks],
      batch_size=settings.batch_size,
      input_length=self.loader.settings.input_length,
      target_length=self.loader.settings.target_length,
      task_table=self.task_table,
      limit=settings.limit,
    )


def build_job(
  run_dir: epath.PathLike,
  *,
  backbone: T5Config,
  data: TaskData,
  mixture: MixtureSettings,
  settings: TrainSettings,
  method: str,
  adapters: Adapters | None,
  optimizer: OptimizerSettings,
  backbone_from: str | None,
  start_from: str | None,
  heldback: HeldBackSettings | None,
  alignment: AlignmentSettings | None,
  routing_statistics: RoutingStatisticsSettings | None,
  mesh_shape: Sequence[int],
  mix_in: MixIn,
  split: str,
) -> Job:
  """Prepares the data where it is missing and builds everything else.

  See `train.train` for the arguments.

  Raises:
    UserError: settings do not fit each other, the data or the devices.
  """
  metric_writers.check_installed(settings.writers)
  row = methods.get_method(method)
  _check_accumulation(settings, mixture)
  _check_start(row, backbone_from, start_from, backbone.storage)
  if backbone_from is not None:
    backbones.check_backbone(backbone_from, backbone)
  found = data.resolve()
  tasks = records.open_tasks(data.data_dir, found.tasks)
  vocabulary = tasks[0].vocabulary
  _check_vocabulary(vocabulary, backbone)
  if heldback is not None and settings.eval_every:
    _check_heldback(heldback, tasks)
  if alignment is not None and alignment.every:
    _check_alignment(alignment, tasks)
  table = TaskTable(found.tasks)
  mesh = partitioning.make_mesh(*mesh_shape)
  process_index, process_count = partitioning.data_shard(mesh)
  loader = build_loader(
    data.data_dir,
    data.mixture_name or found.tasks,
    split,
    mixture,
    task_table=table,
    process_index=process_index,
    process_count=process_count,
  )
  phase: methods.Phase = 'average' if row.shares_pretraining else 'pretrain'
  trains = methods.trained_labels(row, phase)
  if 'backbone' in trains:
    backbone = dataclasses.replace(backbone, storage='float32')
  base = _base_adapters(row, adapters, start_from, table)
  config = methods.adapter_config(row, base, phase=phase)
  return Job(
    run_dir=epath.Path(run_dir),
    method=row,
    model=RoutedT5(backbone, config, mix_in),
    data=data,
    mixture=found,
    task_table=table,
    split=split,
    loader=loader,
    vocabulary=vocabulary,
    settings=_settings_of(settings, config, trains),
    optimizer=optimizer,
    mesh=mesh,
    backbone_from=backbone_from,
    start_from=start_from,
    heldback=heldback,
    alignment=alignment,
    routing_statistics=routing_statistics,
  )


def _settings_of(
  settings: TrainSettings,
  adapters: AdapterConfig | None,
  trains: tuple[str, ...],
) -> TrainSettings:
  """Returns the settings of a method: what trains, and whether it anneals.

  A method without routers has no routing to anneal: that of `private` is what
  keeps its tasks' adapters apart.
  """
  routed = adapters is not None and adapters.has_routers
  return dataclasses.replace(
    settings,
    trains=trains,
    anneal_steps=settings.anneal_steps if routed else 0,
  )


def _base_adapters(
  method: Method,
  adapters: Adapters | None,
  start_from: str | None,
  table: TaskTable,
) -> AdapterConfig:
  """Returns the adapters' settings: those of the run that this one goes on.

  The averaged adapter has no routing, so its tasks may be any.

  Raises:
    UserError: that run routes other tasks.
  """
  if start_from is None:
    return (adapters or AdapterConfig)(n_tasks=len(table))
  averaged = method.shares_pretraining
  if not averaged and run_folder.read_task_table(start_from) != table:
    raise UserError(f'{start_from} was trained on other tasks.')
  found = run_folder.read_model(start_from).adapters
  found = found or AdapterConfig(n_tasks=len(table))
  return dataclasses.replace(found, n_tasks=len(table))


def _check_start(
  method: Method,
  backbone_from: str | None,
  start_from: str | None,
  wanted: Storage,
) -> None:
  """Refuses a method that does not train so, and folders that are not there."""
  if method.shares_pretraining and start_from is None:
    raise UserError(
      f'{method.name} shares the pre-training of {method.pretrain_as}: train'
      f" with method='{method.pretrain_as}' and adapt with"
      f" method='{method.name}'."
    )
  if start_from is not None and backbone_from is not None:
    raise UserError('Give backbone_from or start_from, not both.')
  if method.shares_pretraining and not method.trains_average:
    raise UserError(
      f'{method.name} trains on new tasks only (`mhr-jax adapt`).'
    )
  for name, folder in (
    ('backbone_from', backbone_from),
    ('start_from', start_from),
  ):
    if folder is not None and not epath.Path(folder).exists():
      raise UserError(f'{name}: there is no folder {folder}.')
  if start_from is not None:
    saved = run_folder.read_model(start_from)  # says so where it is no run
    run_folder.check_pretraining(start_from, method)
    storage.check_change(saved.config.storage, wanted)


def _check_accumulation(
  settings: TrainSettings, mixture: MixtureSettings
) -> None:
  if mixture.batch_size % settings.accumulation:
    raise UserError(
      f'TrainSettings.accumulation is {settings.accumulation}, which does not'
      f' divide MixtureSettings.batch_size, {mixture.batch_size}.'
    )


def _check_heldback(
  heldback: HeldBackSettings, tasks: Sequence[records.PreparedTask]
) -> None:
  """Says before training what its first evaluation would fail at."""
  remedy = (
    'Set HeldBackSettings.split, or TrainSettings.eval_every = 0 for none.'
  )
  _check_split('Evaluation while training', heldback.split, tasks, remedy)


def _check_alignment(
  alignment: AlignmentSettings, tasks: Sequence[records.PreparedTask]
) -> None:
  """Says before training what the first measurement would fail at."""
  remedy = 'Set AlignmentSettings.split, or AlignmentSettings.every = 0.'
  _check_split('Gradient alignment', alignment.split, tasks, remedy)


def _check_split(
  what: str, split: str, tasks: Sequence[records.PreparedTask], remedy: str
) -> None:
  split = split.partition('[')[0]
  for task in tasks:
    if split not in task.splits:
      raise UserError(
        f'{what}: task {task.name!r} has no split {split!r}, only'
        f' {", ".join(task.splits)}. {remedy}'
      )


def _check_vocabulary(vocabulary: Vocabulary, backbone: T5Config) -> None:
  if vocabulary.vocab_size > backbone.vocab_size:
    raise UserError(
      f'The data has {vocabulary.vocab_size} token ids, the backbone'
      f' {backbone.vocab_size}: set its vocab_size to at least'
      f' {vocabulary.vocab_size} (a multiple of 128 is fastest).'
    )
