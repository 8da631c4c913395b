"""Writing a model in a format: ours, PEFT's, transformers', T5X's, StableHLO.

What a format cannot hold is refused by name, before any work starts.
"""

import dataclasses
from typing import Any, Literal, NamedTuple, get_args

from etils import epath
import jax

from mhr_jax import (
  adapter_folder,
  backbones,
  checkpoints,
  evaluation,
  fusing,
  run_writing,
  serving,
  task_choice,
)
from mhr_jax.adapter_folder import AdapterBundle
from mhr_jax.convert import formats, hf_t5, peft, t5x, t5x_routed
from mhr_jax.errors import UserError, nearest
from mhr_jax.fusing import Task
from mhr_jax.loading import LoadedModel
from mhr_jax.model import RoutedT5
from mhr_jax.t5.config import T5Config
from mhr_jax.task_table import TaskTable

SaveFormat = Literal[
  'native', 'peft-poly', 'peft-lora', 'hf', 't5x', 'run', 'stablehlo'
]
SAVE_FORMATS: tuple[str, ...] = get_args(SaveFormat)
ADAPTER_FORMATS = ('native', 'peft-poly', 'peft-lora')
"""The formats of adapters alone; a backbone alone is written 'native' too."""

# Of what an adapter may replace what it finds.
_REPLACED: dict[str, formats.Format] = {
  'native': 'adapter',
  'peft-poly': 'peft',
  'peft-lora': 'peft',
}


class Saved(NamedTuple):
  """What was written.

  Attributes:
    folder: where.
    what: in a few words.
    logits_change: where an adapter was fused into the backbone, the largest
      absolute difference of the logits on fixed tokens, before and after.
  """

  folder: str
  what: str
  logits_change: float | None = None


def check_target(
  path: epath.PathLike, format: str, *, has_adapters: bool
) -> None:
  """Refuses a format that is none, and a folder that is not free for it.

  Adapters replace adapters of the same format, and a folder of T5X
  checkpoints takes another one; nothing else is overwritten.

  Args:
    path: where something is to be written.
    format: one of `SAVE_FORMATS`.
    has_adapters: whether what is to be written has some.

  Raises:
    UserError: see above; or adapters are wanted and there are none.
  """
  if format not in SAVE_FORMATS:
    raise UserError(
      f'There is no format {format!r}.{nearest(format, SAVE_FORMATS)}'
    )
  if not has_adapters and format in ('peft-poly', 'peft-lora'):
    raise UserError(f'{format} holds adapters, and there are none to write.')
  path = checkpoints.absolute(path)
  if not path.exists() or (path.is_dir() and not any(path.iterdir())):
    return
  free = 't5x' if format == 't5x' else None
  if has_adapters:
    free = _REPLACED.get(format, free)
  kind = _kind(path)
  if kind is None or kind != free:
    there = 'something else' if kind is None else formats.FORMATS[kind].name
    raise UserError(
      f'{path} holds {there} already, and nothing is overwritten. Choose a new'
      ' or empty folder.'
    )


def _kind(path: epath.Path) -> formats.Format | None:
  try:
    return formats.recognise(path)
  except UserError:
    return None


def save_bundle(
  bundle: AdapterBundle,
  path: epath.PathLike,
  format: str,
  task: str | int | None = None,
  *,
  base_model: str | None = None,
) -> Saved:
  """Writes adapters alone.

  Args:
    bundle: the adapters.
    path: see `check_target`.
    format: one of `ADAPTER_FORMATS`.
    task: whose adapter to write, alone: a name, an id or 'average'. By default
      all of them; 'peft-lora' holds one.
    base_model: what `adapter_config.json` of PEFT calls the backbone.

  Raises:
    UserError: see `check_target`; or the format has nothing like it.
  """
  check_target(path, format, has_adapters=True)
  if format not in ADAPTER_FORMATS:
    raise UserError(
      f'{format} holds a backbone, too: name one. Adapters alone are written as'
      f' {", ".join(ADAPTER_FORMATS)}.'
    )
  if format == 'peft-poly' and task is not None:
    raise UserError(
      "'peft-poly' holds all tasks and their routing: leave task out, or write"
      " that task's adapter as 'peft-lora'."
    )
  if task is not None or format == 'peft-lora':
    table = task_choice.known_tasks(bundle.model, bundle.task_table)
    chosen = task_choice.choose_one_task(task, bundle.model, table)
    bundle = adapter_folder.effective_bundle(bundle, chosen)
  if format == 'native':
    adapter_folder.save_adapter(path, bundle)
  else:
    write = peft.write_poly if format == 'peft-poly' else peft.write_lora
    write(path, bundle, base_model=base_model)
  config = bundle.config
  what = (
    f'adapters alone: tasks {config.n_tasks}, skills {config.n_skills}, splits'
    f' {config.n_splits}, rank {config.rank}'
  )
  return Saved(str(path), what)


def save_model(
  loaded: LoadedModel,
  path: epath.PathLike,
  format: str,
  task: str | int | None = None,
  *,
  dtype: str | None = None,
  base_model: str | None = None,
) -> Saved:
  """Writes a model in a format; see `api.Model.save`, whose arguments these are."""
  model = loaded.model
  check_target(path, format, has_adapters=model.adapters is not None)
  if model.adapters is not None and format in ADAPTER_FORMATS:
    return save_bundle(loaded.bundle, path, format, task, base_model=base_model)
  table = task_choice.known_tasks(model, loaded.task_table)
  if format == 'stablehlo':
    return _save_programs(loaded, path, task, table)
  if format == 'run' or (format == 't5x' and holds_all(loaded.model, task)):
    return _save_whole(loaded, path, format, task, dtype)
  if format == 't5x':
    t5x_routed.check_plain_folder(path)
  chosen = task_choice.choose_one_task(task, model, table)
  backbone, change, what = loaded.params['backbone'], None, 'the backbone'
  if model.adapters is not None:
    backbone, change = _fuse(loaded, chosen)
    whose = 'the average adapter'
    if chosen != 'average' and table is not None:
      whose = f'the adapter of {table.names[chosen]}'
    what = f'the backbone with {whose} fused into it'
  if dtype is not None:
    backbone = _cast(backbone, dtype)
  _write_backbone(loaded, backbone, path, format)
  if format == 't5x':
    what += _left_out(model.config, t5x.infer_config(path))
  return Saved(str(path), what, change)


def holds_all(model: RoutedT5, task: str | int | None) -> bool:
  """Whether a T5X checkpoint has adapters and routers beside the backbone."""
  return model.adapters is not None and task is None


def _save_whole(
  loaded: LoadedModel,
  path: epath.PathLike,
  format: str,
  task: str | int | None,
  dtype: str | None,
) -> Saved:
  """Writes all parameters, from which training can go on."""
  if format == 'run' and (task is not None or dtype is not None):
    raise UserError(
      "'run' holds all tasks, and the backbone as it was loaded: leave task and"
      ' dtype out.'
    )
  params = dict(loaded.params)
  if dtype is not None:
    params['backbone'] = _cast(params['backbone'], dtype)
  write = run_writing.write_run
  if format == 't5x':
    write = t5x_routed.write_checkpoint
  step = write(
    path,
    loaded.model,
    params,
    step=loaded.step,
    task_table=loaded.task_table,
    vocabulary=loaded.vocabulary,
    optimizer=loaded.optimizer,
  )
  if loaded.optimizer is None:
    means = "no optimizer state: a start, which can't be resumed"
  else:
    means = "the optimizer's state, to resume from"
  return Saved(str(path), f'{", ".join(params)} at step {step}; {means}')


def _cast(tree: Any, dtype: str) -> Any:
  return jax.tree.map(lambda x: x.astype(dtype), tree)


def _left_out(config: T5Config, told: T5Config) -> str:
  """Returns what the arrays of a T5X checkpoint, all it has, do not tell."""
  fields = backbones.differences(told, config)
  listed = ', '.join(f'{name}={getattr(config, name)}' for name in fields)
  return f'; not in its files: {listed}' if fields else ''


def _fuse(loaded: LoadedModel, task: Task) -> tuple[Any, float]:
  """Returns the fused backbone, and by how much it changed the logits."""
  model, params = loaded.model, loaded.params
  assert model.adapters is not None
  backbone = fusing.fuse(
    params['backbone'], model.config, params, model.adapters, task
  )
  config = dataclasses.replace(model.config, dtype='float32')
  before = dataclasses.replace(model, config=config), params
  if task == 'average':
    before = evaluation.average_model(*before)
  change = fusing.largest_logits_change(
    config,
    before,
    (RoutedT5(config), {'backbone': backbone}),
    task_id=0 if task == 'average' else task,
  )
  return backbone, change


def _write_backbone(
  loaded: LoadedModel, backbone: Any, path: epath.PathLike, format: str
) -> None:
  config, vocabulary = loaded.model.config, loaded.vocabulary
  if format == 't5x':
    t5x.write_checkpoint(path, config, backbone, step=loaded.step)
  elif format == 'native':
    backbones.save_backbone(path, backbone, config, vocabulary=vocabulary)
  else:
    dtype = str(backbone['token_embedder']['embedding'].dtype)
    hf_t5.write_backbone(
      path, config, backbone, dtype=dtype, vocabulary=vocabulary
    )


def _save_programs(
  loaded: LoadedModel,
  path: epath.PathLike,
  task: str | int | None,
  table: TaskTable | None,
) -> Saved:
  chosen = None
  if task is not None:
    chosen = task_choice.choose_one_task(task, loaded.model, table)
  serving.export_stablehlo(
    path,
    loaded.model,
    loaded.params,
    task_table=loaded.task_table,
    vocabulary=loaded.vocabulary,
    task_id=chosen,
  )
  return Saved(str(path), 'programs and weights, to run with jax alone')
