"""Training from settings to a run folder: `mhr-jax train`, or a call.

    python -m mhr_jax.train --gin_file=runs/multi_task.gin --gin.RUN_DIR='"a"'

is the same as `mhr-jax train` with the same flags. From Python, `train` takes
the settings objects themselves.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import sys
from typing import Any, Literal, NamedTuple

from etils import epath

from mhr_jax import (
  checkpoints,
  configuration_values,
  dry_run,
  processes,
  reporting,
  run_files,
  run_folder,
  run_lock,
  trainer,
)
from mhr_jax.analysis import routing, skills
from mhr_jax.analysis.gradients import AlignmentSettings
from mhr_jax.analysis.routing_statistics import RoutingStatisticsSettings
from mhr_jax.data.loader import describe_cuts
from mhr_jax.data.mixture_settings import MixtureSettings
from mhr_jax.data.read_ahead import ReadAhead
from mhr_jax.errors import UserError
from mhr_jax.jobs import Adapters, HeldBackSettings, Job, build_job
from mhr_jax.model import MixIn, RoutedT5
from mhr_jax.optim import OptimizerSettings
from mhr_jax.t5.config import T5Config
from mhr_jax.task_data import TaskData
from mhr_jax.task_table import TaskTable
from mhr_jax.trainer import TrainSettings, TrainState
from mhr_jax.vocabulary import Vocabulary

SETTINGS_FILE = 'settings.json'

# What may change when a run resumes, without a word: it changes no number.
_FREE = (
  'alignment',
  'backbone_from',
  'data.data_dir',
  'data.modules',
  'data.prepare',
  'heldback',
  'mesh_shape',
  'mix_in',
  'mixture.cache_bytes',
  'routing_statistics',
  'settings.eval_every',
  'settings.keep',
  'settings.keep_every',
  'settings.log_every',
  'settings.save_every',
  'settings.writers',
  'start_from',
)


class Trained(NamedTuple):
  """A run after its last step.

  Attributes:
    model: the model.
    params: all parameters.
    task_table: which id is which task.
    vocabulary: of the data.
    run_dir: the run folder.
    step: steps done.
  """

  model: RoutedT5
  params: Mapping[str, Any]
  task_table: TaskTable
  vocabulary: Vocabulary
  run_dir: epath.Path
  step: int


def train(
  run_dir: str,
  *,
  backbone: T5Config,
  data: TaskData,
  mixture: MixtureSettings,
  settings: TrainSettings,
  method: str = 'mhr',
  adapters: Adapters | None = None,
  optimizer: OptimizerSettings | None = None,
  backbone_from: str | None = None,
  start_from: str | None = None,
  heldback: HeldBackSettings | None = None,
  alignment: AlignmentSettings | None = None,
  routing_statistics: RoutingStatisticsSettings | None = None,
  mesh_shape: Sequence[int] = (-1, 1),
  mix_in: MixIn = 'auto',
  split: str = 'train',
  config_change: Literal['refuse', 'allow'] = 'refuse',
  resume_from: int | None = None,
  mode: Literal['train', 'dry_run'] = 'train',
  config_text: str = '',
  command: str = '',
) -> Trained | None:
  """Trains a model on many tasks at once; resumes where the run stands.

  Args:
    run_dir: the run folder, local or in a bucket.
    backbone: the shape of the T5.
    data: the tasks; prepared first where they are not.
    mixture: how they become batches.
    settings: steps, seed, when to log and save; the method says what trains.
    method: a row of `methods.METHODS`; 'full' trains the backbone.
    adapters: called with n_tasks; `functools.partial(AdapterConfig, rank=4)`.
    optimizer: how parameters move.
    backbone_from: see `backbones.load_backbone`; None draws a backbone.
    start_from: a run on the same tasks to go on from; for -mu its average.
    heldback: evaluation on held-back examples, every `settings.eval_every`.
    alignment: of the tasks' gradients, measured on the way.
    routing_statistics: of what the routers do, measured on the way.
    mesh_shape: devices along data and along model; -1 is what is left.
    mix_in: see `RoutedT5`.
    split: of every task to train on.
    config_change: whether a run may resume with other settings.
    resume_from: the step of a checkpoint in place of the last; 0 starts anew.
    mode: 'dry_run' prints what would be trained, and trains nothing.
    config_text: the resolved configuration, kept in the run folder.
    command: what started the run, for the model card.

  Returns:
    The trained model; None after a dry run.

  Raises:
    UserError: something does not fit, or the folder holds another run.
  """
  asked: dict[str, Any] = {
    'backbone': backbone,
    'data': data,
    'mixture': mixture,
    'settings': settings,
    'method': method,
    'adapters': adapters,
    'optimizer': optimizer or OptimizerSettings(),
    'backbone_from': backbone_from,
    'start_from': start_from,
    'heldback': heldback,
    'alignment': alignment,
    'routing_statistics': routing_statistics,
    'mesh_shape': tuple(mesh_shape),
    'mix_in': mix_in,
    'split': split,
  }
  job = build_job(run_dir, **asked)
  if mode == 'dry_run':
    print(dry_run.describe(job))
    return None
  asked['adapters'] = job.model.adapters
  _check_settings(job.run_dir, asked, config_change)
  texts = {'config_text': config_text, 'command': command}
  return run_job(job, flat_settings(asked), resume_from=resume_from, **texts)


def run_job(
  job: Job,
  values: Mapping[str, str],
  *,
  config_text: str = '',
  command: str = '',
  resume_from: int | None = None,
) -> Trained:
  """Trains a job and leaves a run folder that explains itself.

  Raises:
    UserError: the folder holds another run, or another process trains in it.
  """
  with run_lock.run_lock(job.run_dir):
    params = _describe(job, values, config_text, command)
    state = _fit(job, params, values, resume_from)
    _save_routing(job, state.params)
  return Trained(
    job.model,
    state.params,
    job.task_table,
    job.vocabulary,
    job.run_dir,
    int(state.step),
  )


def _describe(
  job: Job, values: Mapping[str, str], config_text: str, command: str
) -> Mapping[str, Any]:
  """Writes what the run is; returns its parameters before the first step."""
  # Compared with what is there before anything there is written anew.
  run_folder.write_description(
    job.run_dir,
    model=job.model,
    task_table=job.task_table,
    vocabulary=job.vocabulary,
  )
  params = job.init_params()
  description = reporting.RunDescription(
    name=job.run_dir.name,
    summary=_summary(job),
    method=job.method.name,
    tasks=job.task_table,
    parameters=reporting.parameter_rows(params, trains=job.settings.trains),
    settings=values,
    command=command,
    config_text=config_text,
  )
  reporting.write_run_folder(job.run_dir, description)
  if processes.is_first():
    run_files.write_json(job.run_dir / SETTINGS_FILE, values)
  return params


def _fit(
  job: Job,
  params: Mapping[str, Any],
  values: Mapping[str, str],
  resume_from: int | None,
) -> TrainState:
  """Trains, from the last commit where there is one."""
  with (
    reporting.RunLog(
      job.run_dir,
      job.settings.steps,
      writers=job.settings.writers,
      settings=values,
    ) as log,
    ReadAhead(job.loader) as batches,
  ):
    log.say(
      f'{job.loader.n_examples} examples of {len(job.task_table)} tasks,'
      f' {job.loader.steps_per_epoch} steps an epoch,'
      f' {job.loader.padding_share:.0%} padding'
    )
    cuts = describe_cuts(job.loader.report())
    if cuts:
      log.say(cuts)
    return trainer.fit(
      job.model,
      params,
      batches,
      settings=job.settings,
      optimizer=job.optimizer,
      run_dir=job.run_dir,
      mesh=job.mesh,
      evaluate=job.make_evaluate(),
      probes=job.make_probes(),
      on_log=log,
      on_message=log.say,
      task_table=job.task_table,
      vocabulary=job.vocabulary,
      resume_from=resume_from,
    )


def _save_routing(job: Job, params: Mapping[str, Any]) -> None:
  """Keeps tasks' mixing weights and skills' likeness, for the report."""
  adapters = job.model.adapters
  if adapters is not None and adapters.has_routers:
    weights = routing.task_mixing_weights(params, adapters)
    alike = skills.skill_similarity(params)
    if processes.is_first():
      routing.save_routing(job.run_dir, weights, job.task_table)
      skills.save_skills(job.run_dir, alike)


def flat_settings(values: Mapping[str, Any]) -> dict[str, str]:
  """Returns settings as text, by a path such as `optimizer.b1`."""
  flat: dict[str, str] = {}

  def add(path: str, value: Any) -> None:
    if _has_fields(value):
      for field in dataclasses.fields(value):
        add(f'{path}.{field.name}', getattr(value, field.name))
    elif isinstance(value, Mapping):
      for key, item in value.items():
        add(f'{path}.{key}', item)
    else:
      flat[path] = repr(value)

  for name, value in values.items():
    add(name, value)
  return flat


def with_defaults(
  old: Mapping[str, str], values: Mapping[str, Any]
) -> dict[str, str]:
  """Returns older settings, with the defaults of fields they do not know.

  A run from before a field was there is the run that its default makes.

  Args:
    old: settings as text by path, as `flat_settings` returned them once.
    values: settings as they are now, as `flat_settings` takes them; of them
      only which fields there are and what these have for defaults is read.
  """
  found = dict(old)
  for name, value in values.items():
    for path, default in _unknown_fields(name, value, old):
      found |= flat_settings({path: default})
  return found


def _unknown_fields(
  path: str, value: Any, old: Mapping[str, str]
) -> Iterator[tuple[str, Any]]:
  """Yields path and default of the fields that older settings do not have."""
  if path in old:
    return
  if isinstance(value, Mapping):
    for key, item in value.items():
      yield from _unknown_fields(f'{path}.{key}', item, old)
  for field in dataclasses.fields(value) if _has_fields(value) else ():
    name = f'{path}.{field.name}'
    if any(key == name or key.startswith(f'{name}.') for key in old):
      yield from _unknown_fields(name, getattr(value, field.name), old)
    elif field.default is not dataclasses.MISSING:
      yield name, field.default
    elif field.default_factory is not dataclasses.MISSING:
      yield name, field.default_factory()


def _has_fields(value: Any) -> bool:
  return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _check_settings(
  run_dir: epath.Path, asked: Mapping[str, Any], config_change: str
) -> None:
  """Compares with the settings of the run that is in the folder already.

  Args:
    run_dir: the run folder.
    asked: the settings now, as `flat_settings` takes them.
    config_change: see `train`.

  Raises:
    UserError: they differ in what decides its numbers.
  """
  path = run_dir / SETTINGS_FILE
  if config_change == 'allow' or not checkpoints.committed_steps(run_dir):
    return
  if not path.exists():
    return
  old = with_defaults(run_files.read_json(path), asked)
  new = flat_settings(asked)
  changed = configuration_values.diff(_decisive(old), _decisive(new))
  if changed:
    raise UserError(
      f'{run_dir} holds a run with other settings:\n  '
      + '\n  '.join(changed)
      + "\nChoose another run_dir, or go on with config_change='allow'"
      ' (--allow_config_change).'
    )


def _decisive(values: Mapping[str, str]) -> dict[str, str]:
  return {
    key: value
    for key, value in values.items()
    if not any(key == free or key.startswith(f'{free}.') for free in _FREE)
  }


def _summary(job: Job) -> str:
  start = job.start_from or job.backbone_from or 'random numbers'
  return (
    f'`{job.method.name}` ({job.method.summary}), trained on'
    f' {len(job.task_table)} tasks, from {start}.'
  )


if __name__ == '__main__':
  from mhr_jax import cli

  sys.exit(cli.main(['train', *sys.argv[1:]]))
