"""`mhr-jax convert` and `export`: from any format that is read to any other.

One piece of work under two names: `convert` for what others saved, with an
adapter if need be; `export` for a run of ours.
"""

from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from mhr_jax import api, backbones, loading, run_folder, saving, task_choice
from mhr_jax.adapter_folder import AdapterBundle
from mhr_jax.convert import formats, t5x_routed
from mhr_jax.errors import UserError
from mhr_jax.t5 import config as config_lib
from mhr_jax.t5.config import Dtype

Say = Callable[[str], Any]

# Of what reads a model, what adapters alone need too.
_FOR_ADAPTERS = ('tasks', 'allow_pickle', 'on_message')


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

  Adapters alone are written without reading the arrays of their backbone.

  Args:
    source: a run, a backbone, or a native adapter alone.
    target: see `api.Model.save`, as for `task`, `dtype` and `base_model`.
    format: one of `saving.SAVE_FORMATS`.
    adapter: to put on the backbone.
    task: a name, an id in digits, or 'average'.
    dtype: of a backbone, as written.
    base_model: for PEFT.
    with_optimizer: write its state, too ('t5x' without a task); 'run' has it
      wherever it is to be had.
    say: is told what is done, line by line.
    **reading: further arguments of `api.load`.

  Raises:
    UserError: something is not there, does not fit or has no equivalent.
  """
  if dtype is not None:
    config_lib.check_dtype(dtype)
  kind = formats.recognise(source)
  alone = formats.FORMATS[kind].holds == 'adapter'
  has_adapters = alone or adapter is not None or _has_adapters(source, kind)
  whole = format == 'run' or (format == 't5x' and has_adapters and task is None)
  _check_optimizer(with_optimizer, whole)
  saving.check_target(target, format, has_adapters=has_adapters)
  if alone:
    _check_alone(source, kind, adapter, target, format)
  say(f'reading {source}: {formats.FORMATS[kind].name}')
  if adapter is not None:
    say(
      f'reading {adapter}: {formats.FORMATS[formats.recognise(adapter)].name}'
    )
  reading['on_message'] = lambda sentence: say(f'  {sentence}')
  if alone or (adapter is not None and format in saving.ADAPTER_FORMATS):
    bundle = _read_bundle(source, adapter, reading)
    say(f'  {_in_words(bundle.params)}; of the backbone, its config alone')
    table = task_choice.known_tasks(bundle.model, bundle.task_table)
    chosen = task_choice.parse_task(task, table.names if table else ())
    say(f'writing {target}: {format}')
    saved = saving.save_bundle(
      bundle, target, format, chosen, base_model=base_model
    )
  else:
    # Fusing sums in float32 and rounds at the end; what trains stays float32.
    late = whole or (has_adapters and format in ('hf', 't5x'))
    reading['dtype'] = None if late else dtype
    reading['with_optimizer'] = with_optimizer or format == 'run'
    model = _read_model(source, adapter, reading, with_optimizer)
    say(f'  {_in_words(model.loaded.params)}; {_rest_in_words(model)}')
    chosen = task_choice.parse_task(task, model.tasks)
    say(f'  logits: {model.logits_checksum(chosen)}')
    say(f'writing {target}: {format}')
    saved = model.save(
      target, format, chosen, dtype=dtype, base_model=base_model
    )
  say(f'  {saved.what}')
  if saved.logits_change is not None:
    say(f'  fusing changed the logits by {saved.logits_change:.2g} at most')
  return saved


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
      f' {run_dir} {target} --to={format} takes any format.'
    )
  return convert(run_dir, target, format, **options)


def _has_adapters(source: epath.PathLike, kind: formats.Format) -> bool:
  model = None
  if kind == 'run':
    model = run_folder.read_model(source)
  elif kind == 't5x':
    model = t5x_routed.read_model(source)
  return model is not None and model.adapters is not None


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
      f' {target} --adapter={source} --to={format}.'
    )


def _check_optimizer(wanted: bool, whole: bool) -> None:
  if wanted and not whole:
    raise UserError(
      "The optimizer's state goes with adapters and routers as they are: into"
      " 'run', or into 't5x' without a task."
    )


def _read_model(
  source: epath.PathLike,
  adapter: epath.PathLike | None,
  reading: Mapping[str, Any],
  needs_optimizer: bool,
) -> api.Model:
  model = api.load(source, adapter, **reading)
  if needs_optimizer and model.loaded.optimizer is None:
    raise UserError(f'{source} has no optimizer state to write.')
  return model


def _read_bundle(
  source: epath.PathLike,
  adapter: epath.PathLike | None,
  reading: Mapping[str, Any],
) -> AdapterBundle:
  """Reads adapters, and of their backbone no more than its config."""
  given = {name: reading[name] for name in _FOR_ADAPTERS if name in reading}
  if adapter is None:
    return loading.read_bundle(source, None, **given)
  config = reading.get('config') or backbones.read_config(source)
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
