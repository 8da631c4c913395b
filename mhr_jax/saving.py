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
  save_cards,
  serving,
  task_choice,
)
from mhr_jax.adapter_folder import AdapterBundle
from mhr_jax.convert import (
  formats,
  hf_config,
  hf_t5,
  peft,
  peft_files,
  t5x,
  t5x_files,
  t5x_routed,
)
from mhr_jax.errors import UserError, nearest
from mhr_jax.fusing import Task
from mhr_jax.inventories import AdapterKind
from mhr_jax.loading import LoadedModel
from mhr_jax.model import RoutedT5
from mhr_jax.t5 import config as config_lib
from mhr_jax.t5.config import T5Config
from mhr_jax.task_table import TaskTable

SaveFormat = Literal[
  'native',
  'peft-poly',
  'peft-lora',
  'peft-ia3',
  'hf',
  't5x',
  'run',
  'stablehlo',
]
SAVE_FORMATS: tuple[str, ...] = get_args(SaveFormat)
ADAPTER_FORMATS = ('native', 'peft-poly', 'peft-lora', 'peft-ia3')
"""The formats of adapters alone; a backbone alone is written 'native' too."""

# The kind of adapter that they hold.
_PEFT: dict[str, AdapterKind] = {
  'peft-poly': 'low_rank',
  'peft-lora': 'low_rank',
  'peft-ia3': 'ia3',
}
_SINGLE = tuple(peft_files.SINGLE.values())
_WRITERS = {
  'peft-poly': peft.write_poly,
  'peft-lora': peft.write_lora,
  'peft-ia3': peft.write_ia3,
}


class Saved(NamedTuple):
  """What was written.

  Attributes:
    folder: where.
    what: in a few words.
    logits_change: where an adapter was fused into the backbone, the largest
      absolute difference of the logits on fixed tokens, between the model as
      it was and what was written, its dtype included.
  """

  folder: str
  what: str
  logits_change: float | None = None


def check_request(
  format: str,
  model: RoutedT5,
  task: str | int | None = None,
  *,
  task_table: TaskTable | None = None,
  dtype: str | None = None,
  base_model: str | None = None,
) -> None:
  """Refuses what a format cannot hold; needs no array to tell.

  Args:
    format: one of `SAVE_FORMATS`.
    model: to be written.
    task: see `api.Model.save`, as for `dtype` and `base_model`.
    task_table: the names of the tasks, where they have some.

  Raises:
    UserError: there is no such format, it has nothing like the model or the
      task, or it does not use a setting that is given.
  """
  if format not in SAVE_FORMATS:
    raise UserError(
      f'There is no format {format!r}.{nearest(format, SAVE_FORMATS)}'
    )
  if model.adapters is None and format in _PEFT:
    raise UserError(f'{format} holds adapters, and there are none to write.')
  if model.adapters is not None and format in _PEFT:
    peft_files.check_kind(model.adapters, _PEFT[format], format)
  if base_model is not None and format not in _PEFT:
    raise UserError(
      f'{format} has no place for base_model, which PEFT reads: leave it out.'
    )
  if dtype is not None:
    _check_dtype(dtype, format, model)
  _check_storage(dtype, format, model)
  _check_task(task, format, model, task_table)
  if format == 'hf':
    hf_config.to_json(model.config, dtype=dtype or 'float32')


def _check_storage(dtype: str | None, format: str, model: RoutedT5) -> None:
  """Refuses to write rounded numbers as if they were whole ones."""
  if model.config.storage != 'int8':
    return
  if dtype is not None or format in ('hf', 't5x'):
    raise UserError(
      'The backbone is stored as int8, which is written as it is or not at'
      " all: 'native', 'run' and 'stablehlo' without dtype hold it. The"
      ' adapters alone can be written and put on the backbone that it was made'
      ' from.'
    )


def _check_dtype(dtype: str, format: str, model: RoutedT5) -> None:
  config_lib.check_dtype(dtype)
  if format == 'run':
    raise UserError(
      "'run' holds the backbone as it was loaded: leave dtype out."
    )
  if format == 'stablehlo':
    raise UserError(
      'Programs compute in the dtype that the model was loaded in: leave dtype'
      f' out here, and mhr_jax.load(…, dtype={dtype!r}).'
    )
  if model.adapters is not None and format in ADAPTER_FORMATS:
    raise UserError(
      f'dtype is of a backbone; {format} holds adapters alone, in float32:'
      ' leave dtype out.'
    )


def _check_task(
  task: str | int | None,
  format: str,
  model: RoutedT5,
  task_table: TaskTable | None,
) -> None:
  if task is not None and format == 'run':
    raise UserError("'run' holds all tasks: leave task out.")
  if task is not None and format == 'peft-poly':
    raise UserError(
      "'peft-poly' holds all tasks and their routing: leave task out, or write"
      " that task's adapter as 'peft-lora'."
    )
  if task is not None or format in ('hf', *_SINGLE):
    table = task_choice.known_tasks(model, task_table)
    task_choice.choose_one_task(task, model, table)


def check_target(
  path: epath.PathLike, format: str, *, step: int = 0, holds_all: bool = False
) -> None:
  """Refuses a folder that is not free: nothing is overwritten.

  Args:
    path: where something is to be written. For 't5x' it may hold checkpoints
      of earlier steps.
    format: one of `SAVE_FORMATS`.
    step: of the checkpoint, for 't5x'.
    holds_all: see the function of that name, for 't5x'.

  Raises:
    UserError: see above.
  """
  path = checkpoints.absolute(path)
  if format == 't5x':
    t5x_files.check_free(path, step)
    if not holds_all:
      t5x_routed.check_plain_folder(path)
  if not path.exists() or (path.is_dir() and not any(path.iterdir())):
    return
  kind = _kind(path)
  if format != 't5x' or kind != 't5x':
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
      all of them; 'peft-lora' and 'peft-ia3' hold one.
    base_model: what `adapter_config.json` of PEFT calls the backbone.

  Raises:
    UserError: see `check_request` and `check_target`.
  """
  table = bundle.task_table
  check_request(
    format, bundle.model, task, task_table=table, base_model=base_model
  )
  if format not in ADAPTER_FORMATS:
    raise UserError(
      f'{format} holds a backbone, too: name one. Adapters alone are written as'
      f' {", ".join(ADAPTER_FORMATS)}.'
    )
  check_target(path, format)
  if task is not None or format in _SINGLE:
    table = task_choice.known_tasks(bundle.model, table)
    chosen = task_choice.choose_one_task(task, bundle.model, table)
    bundle = adapter_folder.effective_bundle(bundle, chosen)
  if format == 'native':
    adapter_folder.save_adapter(path, bundle)
  else:
    _WRITERS[format](path, bundle, base_model=base_model)
  config = bundle.config
  kind = f'rank {config.rank}' if config.kind == 'low_rank' else '(IA)³'
  what = (
    f'adapters alone: tasks {config.n_tasks}, skills {config.n_skills}, splits'
    f' {config.n_splits}, {kind}'
  )
  save_cards.write_card(
    path,
    format,
    bundle.params,
    what=what,
    adapters=config,
    task_table=bundle.task_table,
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
  check_request(
    format,
    model,
    task,
    task_table=loaded.task_table,
    dtype=dtype,
    base_model=base_model,
  )
  whole = holds_all(model, task)
  check_target(path, format, step=loaded.step, holds_all=whole)
  if model.adapters is not None and format in ADAPTER_FORMATS:
    return save_bundle(loaded.bundle, path, format, task, base_model=base_model)
  table = task_choice.known_tasks(model, loaded.task_table)
  if format == 'stablehlo':
    return _with_card(_save_programs(loaded, path, task, table), format, loaded)
  if format == 'run' or (format == 't5x' and whole):
    return _with_card(_save_whole(loaded, path, format, dtype), format, loaded)
  chosen = task_choice.choose_one_task(task, model, table)
  backbone, change, what = loaded.params['backbone'], None, 'the backbone'
  if model.adapters is not None:
    backbone, change = _fuse(loaded, chosen, dtype)
    whose = 'the average adapter'
    if chosen != 'average' and table is not None:
      whose = f'the adapter of {table.names[chosen]}'
    what = f'the backbone with {whose} fused into it'
  elif dtype is not None:
    backbone = _cast(backbone, dtype)
  if format == 't5x':
    written = t5x.write_checkpoint(
      path, model.config, backbone, step=loaded.step
    )
    what += _left_out(model.config, t5x.infer_config(written))
  else:
    _write_backbone(loaded, backbone, path, format)
    save_cards.write_card(path, format, {'backbone': backbone}, what=what)
  return Saved(str(path), what, change)


def _with_card(saved: Saved, format: str, loaded: LoadedModel) -> Saved:
  """Writes the card of a whole model; returns what was saved."""
  save_cards.write_card(
    saved.folder,
    format,
    loaded.params,
    what=saved.what,
    adapters=loaded.model.adapters,
    task_table=loaded.task_table,
  )
  return saved


def holds_all(model: RoutedT5, task: str | int | None) -> bool:
  """Whether a T5X checkpoint has adapters and routers beside the backbone."""
  return model.adapters is not None and task is None


def _save_whole(
  loaded: LoadedModel,
  path: epath.PathLike,
  format: str,
  dtype: str | None,
) -> Saved:
  """Writes all parameters, from which training can go on."""
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
  what = f'{", ".join(params)} at step {step}'
  if step != loaded.step:
    what += (
      f' (the optimizer made {step} updates; step {loaded.step} counts those of'
      ' the checkpoint that it started from, too)'
    )
  if loaded.optimizer is None:
    return Saved(
      str(path), f"{what}; no optimizer state: a start, which can't be resumed"
    )
  return Saved(str(path), f"{what}; the optimizer's state, to resume from")


def _cast(tree: Any, dtype: str) -> Any:
  return jax.tree.map(lambda x: x.astype(dtype), tree)


def _left_out(config: T5Config, told: T5Config) -> str:
  """Returns what the arrays of a T5X checkpoint, all it has, do not tell."""
  fields = backbones.differences(told, config)
  listed = ', '.join(f'{name}={getattr(config, name)}' for name in fields)
  return f'; not in its files: {listed}' if fields else ''


def _fuse(
  loaded: LoadedModel, task: Task, dtype: str | None
) -> tuple[Any, float]:
  """Returns the fused backbone, and by how much it changed the logits."""
  model, params = loaded.model, loaded.params
  assert model.adapters is not None
  backbone = fusing.fuse(
    params['backbone'], model.config, params, model.adapters, task
  )
  if dtype is not None:
    backbone = _cast(backbone, dtype)
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
  if format == 'native':
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
  return Saved(
    str(path), 'programs and weights, to run with JAX, NumPy and flatbuffers'
  )
