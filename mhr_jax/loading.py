"""Reading a model from whatever holds one: a run, or a backbone with adapters.

The format is told from the files (`convert.formats`); every reader is strict.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import logging
from typing import Any

from etils import epath
import jax

from mhr_jax import (
  adapter_folder,
  backbones,
  optimizer_state,
  partitioning,
  processes,
  run_folder,
)
from mhr_jax import vocabulary as vocabulary_lib
from mhr_jax.adapter_folder import AdapterBundle
from mhr_jax.convert import formats, mttl, peft, t5x_files, t5x_routed
from mhr_jax.errors import UserError
from mhr_jax.model import Params, RoutedT5
from mhr_jax.optimizer_state import OptimizerState
from mhr_jax.routing import Mixing
from mhr_jax.t5 import config as config_lib
from mhr_jax.t5 import storage
from mhr_jax.t5.config import T5Config
from mhr_jax.task_table import TaskTable
from mhr_jax.vocabulary import Vocabulary

OnMessage = Callable[[str], Any]

_log = logging.getLogger(__name__)

# What the arrays of a T5X checkpoint do not tell.
_ASSUMED = (
  'mlp_activations',
  'relative_attention_max_distance',
  'layer_norm_epsilon',
  'pad_id',
  'eos_id',
  'decoder_start_token_id',
)


@dataclasses.dataclass(frozen=True)
class LoadedModel:
  """A model with its parameters and what belongs to it.

  Attributes:
    model: backbone, adapters and routing as configured.
    params: all parameters.
    task_table: which id is which task, where that is known.
    vocabulary: None where there is none with the model.
    source: where it was read from, for messages.
    step: of a run's checkpoint, or T5X's of a routed model; else 0.
    optimizer: its state, where it was asked for and is there.
  """

  model: RoutedT5
  params: Params
  task_table: TaskTable | None = None
  vocabulary: Vocabulary | None = None
  source: str = 'The model'
  step: int = 0
  optimizer: OptimizerState | None = None

  @property
  def bundle(self) -> AdapterBundle:
    """The adapters alone.

    Raises:
      UserError: there are none.
    """
    if self.model.adapters is None:
      raise UserError(f'{self.source} has no adapters, only a backbone.')
    params, config = dict(self.params), self.model.config
    found = adapter_folder.checksum_backbone(params.pop('backbone'), config)
    return AdapterBundle(
      self.model.adapters, params, self.task_table, config, found
    )


def read_model(
  path: epath.PathLike,
  adapter: epath.PathLike | None = None,
  *,
  dtype: config_lib.Dtype | None = None,
  vocabulary: Vocabulary | epath.PathLike | None = None,
  tasks: Sequence[str] | None = None,
  config: T5Config | None = None,
  step: int | None = None,
  mesh: partitioning.Mesh | None = None,
  allow_pickle: bool = False,
  with_optimizer: bool = False,
  alpha: float | None = None,
  mixing: Mixing | None = None,
  on_message: OnMessage = _log.warning,
) -> LoadedModel:
  """Reads a model; see `api.load`, whose arguments these are."""
  if mesh is not None:
    processes.check_local(mesh, 'Loading a model to ask it')
  if dtype is not None:
    config_lib.check_dtype(dtype)
  kind = formats.recognise(path)
  if kind == 't5x':  # Once: T5X may be writing the next one.
    path = t5x_files.find_checkpoint(path)
  if formats.FORMATS[kind].holds == 'adapter':
    raise UserError(
      f'{path} is {formats.FORMATS[kind].name} alone. Say which backbone it is'
      f' for: mhr_jax.load(BACKBONE, adapter={str(path)!r}).'
    )
  if step is not None and (kind != 'run' or adapter is not None):
    raise UserError(
      f'step={step} chooses a checkpoint of a run with its own adapters. Of'
      " T5X's checkpoints, name one: FOLDER/checkpoint_N. Otherwise leave step"
      ' out.'
    )
  found = None
  if adapter is None:
    _refuse_for_adapters(path, alpha=alpha, mixing=mixing)
    found = _read_whole(
      path,
      kind,
      config,
      step=step,
      dtype=dtype,
      mesh=mesh,
      with_optimizer=with_optimizer,
      on_message=on_message,
    )
  if found is not None:
    table = _name_tasks(found.model, found.task_table, tasks, found.source)
    found = dataclasses.replace(found, task_table=table)
  else:
    found = _read_parts(
      path,
      adapter,
      dtype=dtype,
      tasks=tasks,
      config=config,
      mesh=mesh,
      allow_pickle=allow_pickle,
      alpha=alpha,
      mixing=mixing,
      on_message=on_message,
    )
  if vocabulary is None:
    return found
  return dataclasses.replace(found, vocabulary=_find_vocabulary(vocabulary))


def read_bundle(
  path: epath.PathLike,
  backbone: T5Config | None,
  *,
  tasks: Sequence[str] | None = None,
  allow_pickle: bool = False,
  alpha: float | None = None,
  mixing: Mixing | None = None,
  on_message: OnMessage = _log.warning,
) -> AdapterBundle:
  """Reads adapters alone.

  Args:
    path: a native adapter folder, a PEFT folder or an mttl checkpoint.
    backbone: that they are for; only a native folder knows it by itself.
    tasks: names in the order of the ids, where the file has none.
    allow_pickle: whether a pickle may be read.
    alpha: of the adapters, where an mttl checkpoint does not say.
    mixing: how their skills are mixed, likewise.
    on_message: called with sentences about what was assumed; by default they
      are logged as warnings.

  Raises:
    UserError: there are no adapters, they are for another backbone, or a file
      that says its alpha and mixing is given others.
  """
  kind = formats.recognise(path)
  if kind != 'mttl':
    _refuse_for_adapters(path, alpha=alpha, mixing=mixing)
  if kind == 'adapter':
    bundle = adapter_folder.load_adapter(path)
    if backbone is not None:
      backbones.check_same_config(
        bundle.backbone, backbone, where=f'{path} was trained on'
      )
  elif formats.FORMATS[kind].holds != 'adapter':
    raise UserError(
      f'{path} is {formats.FORMATS[kind].name}, no adapter. Load it by itself:'
      f' mhr_jax.load({str(path)!r}).'
    )
  elif backbone is None:
    raise UserError(
      f'{path} is {formats.FORMATS[kind].name}, which does not say which'
      ' backbone it is for: name it, too.'
    )
  elif kind == 'peft':
    bundle = peft.read_adapter(path, backbone, allow_pickle=allow_pickle)
  else:
    bundle = mttl.read_adapter(
      path,
      backbone,
      allow_pickle=allow_pickle,
      alpha=alpha,
      mixing=mixing,
      on_message=on_message,
    )
  table = _name_tasks(bundle.model, bundle.task_table, tasks, str(path))
  return dataclasses.replace(bundle, task_table=table)


def _refuse_for_adapters(path: epath.PathLike, **settings: Any) -> None:
  for name, value in settings.items():
    if value is not None:
      raise UserError(
        f'{name}={value!r} is for adapters of an mttl checkpoint, which may not'
        f' say it; {path} is none. Leave {name} out.'
      )


def find_config(
  path: epath.PathLike,
  adapter: epath.PathLike | None = None,
  *,
  on_message: OnMessage = _log.warning,
) -> T5Config:
  """Returns the config of a backbone, for an adapter; reads no array.

  What the shapes in a T5X checkpoint do not tell is taken from an adapter of
  ours, which knows its backbone; without one it is assumed, and said.

  Args:
    path: a backbone.
    adapter: that is to be put on it.
    on_message: called with a sentence about what was assumed.

  Raises:
    UserError: there is no backbone, or the adapter is for another one.
  """
  config = backbones.read_config(path)
  if not _is_bare_t5x(path):
    return config
  if adapter is not None and formats.recognise(adapter) == 'adapter':
    free = {name: getattr(config, name) for name in run_folder.FREE_FIELDS}
    known = adapter_folder.read_backbone_config(adapter)
    config = dataclasses.replace(known, **free)
    try:
      backbones.check_backbone(path, config)
    except UserError as error:
      raise UserError(f'{adapter} does not fit: {error}') from error
    return config
  assumed = (f'{name} {getattr(config, name)}' for name in _ASSUMED)
  on_message(
    f'{path}: a T5X checkpoint holds arrays alone. Assumed:'
    f' {", ".join(assumed)}. If it is another T5, say so: config=….'
  )
  return config


def count_parameters(params: Mapping[str, Any]) -> dict[str, int]:
  """Returns how many parameters each part has, by label."""
  return {
    label: sum(leaf.size for leaf in jax.tree.leaves(tree))
    for label, tree in params.items()
  }


def _read_whole(
  path: epath.PathLike,
  kind: formats.Format,
  config: T5Config | None,
  *,
  step: int | None,
  on_message: OnMessage,
  **how: Any,
) -> LoadedModel | None:
  """Reads what says itself that it has adapters; None for other formats."""
  if kind == 'run':
    if config is not None:
      raise UserError(f'{path} is a run folder, which has a config already.')
    return _read_run(path, step, **how)
  routed = t5x_routed.read_model(path) if kind == 't5x' else None
  if routed is None:
    return None
  if config is not None:
    backbones.check_same_config(routed.config, config, where=f'{path} is')
    routed = dataclasses.replace(routed, config=config)
  return _read_routed(path, routed, on_message=on_message, **how)


def _computing_in(model: RoutedT5, dtype: config_lib.Dtype | None) -> RoutedT5:
  if dtype is None:
    return model
  return dataclasses.replace(model, config=_config_in(model.config, dtype))


def _config_in(config: T5Config, dtype: config_lib.Dtype) -> T5Config:
  """Returns the config of a backbone that is read in a dtype."""
  wanted = storage.as_storage(dtype)
  storage.check_change(config.storage, wanted)
  return dataclasses.replace(config, dtype=dtype, storage=wanted)


def _read_run(
  path: epath.PathLike,
  step: int | None,
  *,
  dtype: config_lib.Dtype | None,
  mesh: partitioning.Mesh | None,
  with_optimizer: bool,
) -> LoadedModel:
  run = run_folder.load_run(path, step, mesh=mesh, backbone_dtype=dtype)
  model, params = _computing_in(run.model, dtype), dict(run.params)
  if dtype is not None:
    # A backbone that trained is saved with what trains, in float32.
    params['backbone'] = jax.tree.map(
      lambda x: x.astype(dtype), params['backbone']
    )
  optimizer = None
  if with_optimizer:
    optimizer = optimizer_state.read_from_run(path, run.step, run.model)
  return LoadedModel(
    model,
    params,
    run.task_table,
    run.vocabulary,
    str(path),
    run.step,
    optimizer,
  )


def _read_routed(
  path: epath.PathLike,
  model: RoutedT5,
  *,
  dtype: config_lib.Dtype | None,
  mesh: partitioning.Mesh | None,
  with_optimizer: bool,
  on_message: OnMessage,
) -> LoadedModel:
  """Reads a routed model that T5X trained."""
  model, dtype = _computing_in(model, dtype), dtype or 'float32'
  found = t5x_routed.read_checkpoint(
    path,
    model,
    dtype=dtype,
    with_optimizer=with_optimizer,
    on_message=on_message,
  )
  target = run_folder.restore_target(
    model, tuple(found.params), mesh=mesh, backbone_dtype=dtype
  )
  return LoadedModel(
    model,
    backbones.place(found.params, target),
    found.task_table,
    found.vocabulary,
    str(path),
    found.step,
    found.optimizer,
  )


def _read_parts(
  path: epath.PathLike,
  adapter: epath.PathLike | None,
  *,
  dtype: config_lib.Dtype | None,
  tasks: Sequence[str] | None,
  config: T5Config | None,
  mesh: partitioning.Mesh | None,
  allow_pickle: bool,
  on_message: OnMessage,
  **for_adapter: Any,
) -> LoadedModel:
  """Reads a backbone, and adapters where some are named."""
  if config is None:
    config = find_config(path, adapter, on_message=on_message)
  if dtype is not None:
    config = _config_in(config, dtype)
  bundle, source = None, str(path)
  if adapter is not None:  # It is small, and may not fit: before the backbone.
    bundle = read_bundle(
      adapter,
      config,
      tasks=tasks,
      allow_pickle=allow_pickle,
      on_message=on_message,
      **for_adapter,
    )
    source = f'{path} with {adapter}'
  elif tasks is not None:
    raise UserError(f'{path} has no adapters, so no tasks to name.')
  added = None if bundle is None else bundle.config
  model = RoutedT5(config, added)
  backbone = backbones.load_backbone(
    path,
    config,
    mesh=mesh,
    dtype=dtype,
    allow_pickle=allow_pickle,
  )
  params: dict[str, Any] = {'backbone': backbone}
  vocabulary = backbones.read_vocabulary(path)
  if bundle is None:
    return LoadedModel(model, params, None, vocabulary, source)
  _compare_checksums(bundle, backbone, config, source, on_message)
  target = run_folder.restore_target(model, tuple(bundle.params), mesh=mesh)
  params |= backbones.place(dict(bundle.params), target)
  return LoadedModel(model, params, bundle.task_table, vocabulary, source)


def _compare_checksums(
  bundle: AdapterBundle,
  backbone: Any,
  config: T5Config,
  source: str,
  on_message: OnMessage,
) -> None:
  """Says where adapters are put on another backbone than their own.

  That is no error: a copy in another dtype is another one, too.
  """
  if bundle.backbone_checksum is None:
    return
  found = adapter_folder.checksum_backbone(backbone, config)
  if found != bundle.backbone_checksum:
    on_message(
      f'{source}: the adapter comes from a backbone of the same shape with the'
      f' checksum {bundle.backbone_checksum}; this one has {found}. It is'
      ' another one, or the same in another dtype.'
    )


def _is_bare_t5x(path: epath.PathLike) -> bool:
  is_t5x = formats.recognise(path) == 't5x'
  return is_t5x and t5x_routed.find_description(path) is None


def _name_tasks(
  model: RoutedT5,
  table: TaskTable | None,
  tasks: Sequence[str] | None,
  source: str,
) -> TaskTable | None:
  """Returns the table of tasks, with the names given where it has none."""
  if tasks is None:
    return table
  named = TaskTable.from_names(tasks)
  if table is not None and table != named:
    raise UserError(
      f'{source} has names for its tasks: {", ".join(table.names[:4])}, ….'
      ' Leave tasks out.'
    )
  if model.adapters is None or len(named) != model.adapters.n_tasks:
    known = 0 if model.adapters is None else model.adapters.n_tasks
    raise UserError(
      f'{source} has {known} tasks; {len(named)} names are given.'
    )
  return named


def _find_vocabulary(vocabulary: Vocabulary | epath.PathLike) -> Vocabulary:
  """Returns a vocabulary: an object, a model file, 'bytes', or in a folder."""
  if isinstance(vocabulary, Vocabulary) or vocabulary == 'bytes':
    return vocabulary_lib.load_vocabulary(vocabulary)
  if epath.Path(vocabulary).is_dir():
    found = backbones.read_vocabulary(vocabulary)
    if found is None:
      raise UserError(f'{vocabulary} has no vocabulary in it.')
    return found
  return vocabulary_lib.load_vocabulary(vocabulary)
