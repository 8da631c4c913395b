"""`mhr-jax convert` and `export`: from any format that is read to any other.

One piece of work under two names: `convert` for what others saved, with an
adapter if need be; `export` for a run of ours.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, NamedTuple

from etils import epath

from mhr_jax import (
  api,
  backbones,
  loading,
  run_folder,
  saving,
  task_choice,
)
from mhr_jax.adapter_folder import AdapterBundle
from mhr_jax.convert import formats, t5x_files, t5x_routed
from mhr_jax.errors import UserError
from mhr_jax.loading import LoadedModel
from mhr_jax.model import RoutedT5
from mhr_jax.t5 import config as config_lib
from mhr_jax.t5.config import Dtype
from mhr_jax.task_table import TaskTable

Say = Callable[[str], Any]

# Of what reads a model, what adapters alone need too.
_FOR_ADAPTERS = ('tasks', 'allow_pickle', 'alpha', 'mixing', 'on_message')


def convert(
  source: epath.PathLike,
  target: epath.PathLike,
  format: saving.SaveFormat,
  *,
  adapter: epath.PathLike | None = None,
  task: str | None = None,
  dtype: Dtype | None = None,
  base_model: str | None = None,
  with_optimizer: bool = False,
  say: Say = print,
  **reading: Any,
) -> saving.Saved:
  """Reads what lies at `source` and writes it in another format.

  What can be told from configurations, task tables and adapters, which are
  small, is checked before a backbone is read. Where adapters alone are
  written, their backbone's arrays are not read at all.

  Args:
    source: a run; a routed model that T5X trained; a backbone; or a native
      adapter alone, to be written as adapters.
    target: see `api.Model.save`, as for `base_model`.
    format: one of `saving.SAVE_FORMATS`.
    adapter: to put on the backbone at `source`, whose own are left out.
    task: a name, an id in digits, or 'average'.
    dtype: of a backbone as written ('native', 'hf', 't5x'); for 'stablehlo',
      of the backbone and of what the programs compute.
    base_model: for PEFT.
    with_optimizer: write its state, too ('t5x' without a task); 'run' has it
      wherever it is to be had.
    say: is told what is done, line by line.
    **reading: of `api.load`: `vocabulary`, `tasks`, `config`, `mesh`,
      `allow_pickle` and, for a run, `step`.

  Returns:
    What was written, as `api.Model.save` returns it.

  Raises:
    UserError: something is not there, does not fit or has no equivalent, a
      setting is of no use to the format, or the target is not free.
  """
  if dtype is not None:
    config_lib.check_dtype(dtype)
  kind = formats.recognise(source)
  if kind == 't5x':
    source = t5x_files.find_checkpoint(source)
  if formats.FORMATS[kind].holds == 'adapter':
    _check_alone(source, kind, adapter, target, format)
  _check_step(source, kind, adapter, reading.get('step'))
  reading['on_message'] = _each_once(say)
  say(f'reading {source}: {formats.FORMATS[kind].name}')
  if adapter is not None:
    say(
      f'reading {adapter}: {formats.FORMATS[formats.recognise(adapter)].name}'
    )
  bundle = None
  if adapter is not None or kind == 'adapter':
    bundle = _read_bundle(source, adapter, reading)
  request = _Request(
    source, target, format, adapter, dtype, base_model, with_optimizer
  )
  found = _look_at(source, kind, bundle, reading)
  chosen = _check(request, found, task)
  if bundle is not None and format in saving.ADAPTER_FORMATS:
    saved = _write_adapters(request, bundle, chosen, say)
  else:
    saved = _write_model(request, found, chosen, reading, say)
  say(f'  {saved.what}')
  if saved.logits_change is not None:
    say(f'  fusing changed the logits by {saved.logits_change:.2g} at most')
  return saved


class _Request(NamedTuple):
  """What is asked for; see `convert`."""

  source: epath.PathLike
  target: epath.PathLike
  format: saving.SaveFormat
  adapter: epath.PathLike | None
  dtype: Dtype | None
  base_model: str | None
  with_optimizer: bool

  @property
  def stored(self) -> Dtype | None:
    """In what is written; programs compute in what is read instead."""
    return None if self.format == 'stablehlo' else self.dtype


def _check(
  request: _Request, found: LoadedModel, task: str | None
) -> str | int | None:
  """Refuses what cannot be written; returns the task chosen."""
  table = task_choice.known_tasks(found.model, found.task_table)
  chosen = task_choice.parse_task(task, table.names if table else ())
  format = request.format
  saving.check_request(
    format,
    found.model,
    chosen,
    task_table=table,
    dtype=request.stored,
    base_model=request.base_model,
  )
  whole = format == 't5x' and saving.holds_all(found.model, chosen)
  _check_optimizer(request.with_optimizer, whole or format == 'run')
  saving.check_target(request.target, format, step=found.step, holds_all=whole)
  return chosen


def _write_adapters(
  request: _Request, bundle: AdapterBundle, task: str | int | None, say: Say
) -> saving.Saved:
  say(f'  {_in_words(bundle.params)}; of the backbone, its config alone')
  say(f'writing {request.target}: {request.format}')
  return saving.save_bundle(
    bundle,
    request.target,
    request.format,
    task,
    base_model=request.base_model,
  )


def _write_model(
  request: _Request,
  found: LoadedModel,
  task: str | int | None,
  reading: Mapping[str, Any],
  say: Say,
) -> saving.Saved:
  format = request.format
  # Fusing sums in float32 and rounds at the end; what trains stays float32.
  late = found.model.adapters is not None and format != 'stablehlo'
  model = api.load(
    request.source,
    request.adapter,
    None if late else request.dtype,
    with_optimizer=request.with_optimizer or format == 'run',
    **reading,
  )
  if request.with_optimizer and model.loaded.optimizer is None:
    raise UserError(f'{request.source} has no optimizer state to write.')
  if format != 'stablehlo':
    model = _computing_in(model, found.model.config.dtype)
  say(f'  {_in_words(model.loaded.params)}; {_rest_in_words(model)}')
  say(f'  logits: {model.logits_checksum(task)}')
  say(f'writing {request.target}: {format}')
  return model.save(
    request.target,
    format,
    task,
    dtype=request.stored,
    base_model=request.base_model,
  )


def export(
  run_dir: epath.PathLike,
  target: epath.PathLike,
  format: saving.SaveFormat,
  **options: Any,
) -> saving.Saved:
  """Writes a run in another format: `convert` for runs alone.

  Args:
    run_dir: the run.
    target: see `convert`.
    format: see `convert`.
    **options: see `convert`.

  Raises:
    UserError: see `convert`; or it is no run.
  """
  kind = formats.recognise(run_dir)
  if kind != 'run':
    raise UserError(
      f'{run_dir} is {formats.FORMATS[kind].name}, no run: mhr-jax convert'
      f' {run_dir} {target} --format={format} takes any format.'
    )
  return convert(run_dir, target, format, **options)


def _look_at(
  source: epath.PathLike,
  kind: formats.Format,
  bundle: AdapterBundle | None,
  reading: Mapping[str, Any],
) -> LoadedModel:
  """Returns what will be read, without its arrays."""
  if bundle is not None:
    return LoadedModel(bundle.model, {}, bundle.task_table)
  config, where, step = reading.get('config'), None, 0
  if kind == 'run':
    where = epath.Path(source)
    step = run_folder.find_step(where, reading.get('step'))
  elif kind == 't5x' and t5x_routed.read_model(source) is not None:
    where = t5x_routed.find_description(source)
    with t5x_files.open_part(source, 'state') as state:
      step = int(state.read('step'))
  if where is None:
    return LoadedModel(RoutedT5(config or backbones.read_config(source)), {})
  table, names = run_folder.read_task_table(where), reading.get('tasks')
  if table is None and names is not None:
    table = TaskTable(tuple(names))
  return LoadedModel(run_folder.read_model(where), {}, table, step=step)


def _each_once(say: Say) -> Say:
  """Returns what says a sentence that is not of those said already."""
  said = set()

  def tell(sentence: str) -> None:
    if sentence not in said:
      said.add(sentence)
      say(f'  {sentence}')

  return tell


def _computing_in(model: api.Model, dtype: Dtype) -> api.Model:
  """Returns a model whose parameters are what they are, their use another."""
  loaded = model.loaded
  config = dataclasses.replace(loaded.model.config, dtype=dtype)
  routed = dataclasses.replace(loaded.model, config=config)
  return api.Model(dataclasses.replace(loaded, model=routed))


def _check_step(
  source: epath.PathLike,
  kind: formats.Format,
  adapter: epath.PathLike | None,
  step: int | None,
) -> None:
  if step is not None and (kind != 'run' or adapter is not None):
    raise UserError(
      f'step chooses a checkpoint of a run, adapters and all; {source} is read'
      f' as {formats.FORMATS[kind].name if adapter is None else "a backbone"}.'
    )


def _check_alone(
  source: epath.PathLike,
  kind: formats.Format,
  adapter: epath.PathLike | None,
  target: epath.PathLike,
  format: str,
) -> None:
  """Refuses adapters without a backbone where one is needed."""
  name = formats.FORMATS[kind].name
  if adapter is not None:
    raise UserError(f'{source} is {name}, no backbone to put {adapter} on.')
  if kind != 'adapter' or format not in saving.ADAPTER_FORMATS:
    raise UserError(
      f'{source} is {name} alone. Name its backbone: mhr-jax convert BACKBONE'
      f' {target} --adapter={source} --format={format}.'
    )


def _check_optimizer(wanted: bool, whole: bool) -> None:
  if wanted and not whole:
    raise UserError(
      "The optimizer's state goes with adapters and routers as they are: into"
      " 'run', or into 't5x' without a task."
    )


def _read_bundle(
  source: epath.PathLike,
  adapter: epath.PathLike | None,
  reading: Mapping[str, Any],
) -> AdapterBundle:
  """Reads adapters, and of their backbone no more than its config."""
  given = {name: reading[name] for name in _FOR_ADAPTERS if name in reading}
  if adapter is None:
    return loading.read_bundle(source, None, **given)
  config = reading.get('config') or loading.find_config(source, adapter)
  return loading.read_bundle(adapter, config, **given)


def _in_words(params: Mapping[str, Any]) -> str:
  counts = loading.count_parameters(params)
  listed = ', '.join(f'{count:,} in {label}' for label, count in counts.items())
  return f'parameters: {listed}'


def _rest_in_words(model: api.Model) -> str:
  vocabulary, step = model.loaded.vocabulary, model.loaded.step
  texts = 'no vocabulary' if vocabulary is None else repr(vocabulary)
  parts = [f'{len(model.tasks)} tasks', texts]
  return '; '.join([*parts, f'step {step}'] if step else parts)
