"""Backbones on disk: what a run starts from, whoever saved it."""

import dataclasses
from typing import Any

from etils import epath
import jax

from mhr_jax import checkpoints, frozen, partitioning, run_folder, tree_check
from mhr_jax.convert import formats, hf_t5, t5x, t5x_routed
from mhr_jax.errors import UserError
from mhr_jax.model import RoutedT5
from mhr_jax.t5 import parameters, storage
from mhr_jax.t5.config import Storage, T5Config
from mhr_jax.vocabulary import Vocabulary

# What the arrays of a T5X checkpoint, which has no config, do not tell.
_NOT_IN_SHAPES = (
  'decoder_start_token_id',
  'eos_id',
  'layer_norm_epsilon',
  'pad_id',
  'relative_attention_max_distance',
)


def save_backbone(
  folder: epath.PathLike,
  backbone: Any,
  config: T5Config,
  *,
  vocabulary: Vocabulary | None = None,
):
  """Saves a backbone from which `load_backbone` and runs can start.

  Args:
    folder: where to; made if absent.
    backbone: the parameters.
    config: of the backbone.
    vocabulary: saved beside it, with its model file.

  Raises:
    UserError: the folder holds another backbone or vocabulary.
  """
  stored = storage.storage_of(backbone)
  config = dataclasses.replace(config, storage=stored)
  run_folder.write_description(folder, vocabulary=vocabulary)
  frozen.save_frozen(folder, backbone, config=config)


def read_config(path: epath.PathLike) -> T5Config:
  """Returns the config of the backbone that a folder holds; reads no array.

  Args:
    path: see `load_backbone`.

  Raises:
    UserError: there is no backbone, or its folder does not say what it is.
  """
  path = checkpoints.absolute(path)
  native = _find_native(path)
  if native is not None:
    config = native[1]
    if config is None:
      raise UserError(
        f'{path / frozen.FROZEN_FILE} does not say of which shape the backbone'
        ' is: it was saved without its config.'
      )
    return config
  if _kind(path) == 'hf':
    return hf_t5.read_config(path)
  return t5x_routed.read_config(path) or t5x.infer_config(path)


def read_vocabulary(path: epath.PathLike) -> Vocabulary | None:
  """Returns the vocabulary that lies with a backbone; None without one."""
  path = checkpoints.absolute(path)
  if _find_native(path) is not None:
    return run_folder.read_vocabulary(path)
  if _kind(path) == 'hf':
    return hf_t5.read_vocabulary(path)
  return t5x_routed.read_vocabulary(path)


def check_backbone(path: epath.PathLike, config: T5Config) -> None:
  """Compares the backbone that a folder holds with a config; reads no array.

  Args:
    path: see `load_backbone`.
    config: the backbone wanted.

  Raises:
    UserError: there is no backbone, or it is another one.
  """
  path = checkpoints.absolute(path)
  native = _find_native(path)
  if native is not None and native[1] is None:
    return
  saved = read_config(path)
  if native is None and _kind(path) == 't5x' and _is_inferred(path):
    saved = _fill_in(saved, config)
  check_same_config(saved, config, where=f'{path} is')
  storage.check_change(saved.storage, config.storage)


def load_backbone(
  path: epath.PathLike,
  config: T5Config,
  *,
  mesh: partitioning.Mesh | None = None,
  dtype: str | None = None,
  allow_pickle: bool = False,
) -> Any:
  """Returns the backbone that a folder holds, for a model of `config`.

  Scanned and unrolled layers are converted into each other.

  Args:
    path: a folder of `save_backbone`; a run folder: its frozen backbone, or
      where the backbone trained, that of its last checkpoint; a folder of
      transformers; a checkpoint of T5X's, or a folder of such, of which the
      newest counts.
    config: the backbone wanted.
    mesh: where to put it; one device by default.
    dtype: of the parameters; by default as the config stores them.
    allow_pickle: whether weights of transformers may be read from a pickle.

  Raises:
    UserError: there is no backbone there, or it is another one.
  """
  path = checkpoints.absolute(path)
  native = _find_native(path)
  if native is not None:
    return _load_native(*native, config, mesh=mesh, dtype=dtype)
  check_backbone(path, config)
  read = _read_as('float32', dtype, config)
  layout = dataclasses.replace(config, storage='float32')
  target = run_folder.restore_target(
    RoutedT5(config=layout), ('backbone',), mesh=mesh, backbone_dtype=read
  )['backbone']
  found = _read_foreign(path, config, read, allow_pickle=allow_pickle)
  return _store(place(found, target), dtype, config, mesh)


def _read_as(saved: Storage, dtype: str | None, config: T5Config) -> str | None:
  """Returns the dtype to read arrays in; None for those that they have.

  What is to become int8 is made so of all the digits there are.
  """
  if saved == 'int8':
    return None
  wanted = dtype or config.storage
  return 'float32' if wanted == 'int8' else wanted


def _store(
  backbone: Any,
  dtype: str | None,
  config: T5Config,
  mesh: partitioning.Mesh | None,
) -> Any:
  """Stores what was read as the config says, unless a dtype was asked for."""
  if dtype is not None or storage.storage_of(backbone) == config.storage:
    return backbone
  target = run_folder.restore_target(
    RoutedT5(config=config), ('backbone',), mesh=mesh
  )['backbone']
  return place(storage.store(backbone, config.storage), target)


def check_same_config(saved: T5Config, config: T5Config, *, where: str) -> None:
  """Compares two configs in all that decides what a backbone computes.

  Args:
    saved: of what was found.
    config: what is wanted.
    where: what was found: how the message begins.

  Raises:
    UserError: they differ; the message has the fields and both values.
  """
  changed = [
    f'{name} is {getattr(saved, name)}, wanted {getattr(config, name)}'
    for name in differences(saved, config)
  ]
  if changed:
    raise UserError(f'{where} another backbone: {"; ".join(changed)}.')


def differences(a: T5Config, b: T5Config) -> list[str]:
  """Returns the fields in which two configs compute something else."""
  return [
    field.name
    for field in dataclasses.fields(T5Config)
    if field.name not in run_folder.FREE_FIELDS
    and getattr(a, field.name) != getattr(b, field.name)
  ]


def _load_native(
  folder: epath.Path,
  saved: T5Config | None,
  config: T5Config,
  *,
  mesh: partitioning.Mesh | None,
  dtype: str | None,
) -> Any:
  if saved is None:
    saved = dataclasses.replace(config, storage='float32')
  check_same_config(saved, config, where=f'{folder} is')
  wanted = config.storage if dtype is None else storage.as_storage(dtype)
  storage.check_change(saved.storage, wanted)
  scanned = saved.scan_layers
  layout = dataclasses.replace(
    config, scan_layers=scanned, storage=saved.storage
  )
  model = RoutedT5(config=layout)
  target = run_folder.restore_target(
    model,
    ('backbone',),
    mesh=mesh,
    backbone_dtype=_read_as(saved.storage, dtype, config),
  )
  if folder.name == 'trainable':
    step, run_dir = int(folder.parent.name), folder.parent.parent.parent
    backbone = checkpoints.read_trainable(run_dir, step, target)['backbone']
  else:
    backbone = frozen.restore_frozen(folder.parent, target['backbone'])
  if scanned != config.scan_layers:
    convert = parameters.unstack_layers
    if config.scan_layers:
      convert = parameters.stack_layers
    backbone = convert(backbone, config)
  return _store(backbone, dtype, config, mesh)


def _find_native(path: epath.Path) -> tuple[epath.Path, T5Config | None] | None:
  """Returns the folder of arrays and the config saved with it, if ours."""
  for folder in (path, path / 'backbone'):
    facts = frozen.read_frozen(folder)
    if facts is not None:
      config = facts['config']
      if config is not None:
        config = run_folder.config_from_json(config, where=str(folder))
      return folder / frozen.ARRAYS_FOLDER, config
  steps = checkpoints.committed_steps(path)
  if not steps:
    return None
  folder = path / checkpoints.CHECKPOINTS_FOLDER / str(steps[-1]) / 'trainable'
  return folder, run_folder.read_model(path).config


def _kind(path: epath.Path) -> formats.Format:
  """Returns 'hf' or 't5x', the formats of others that hold a backbone."""
  kind = formats.recognise(path)
  if kind in ('hf', 't5x'):
    return kind
  what = formats.FORMATS[kind].name
  if kind == 'run':
    raise UserError(f'{path} is {what} without a checkpoint: no backbone yet.')
  raise UserError(f'{path} is {what}, without a backbone.')


def _read_foreign(
  path: epath.Path, config: T5Config, dtype: Any, *, allow_pickle: bool
) -> Any:
  """Reads what others saved, into arrays of the host."""
  if _kind(path) == 'hf':
    _, found = hf_t5.read_backbone(path, dtype=dtype, allow_pickle=allow_pickle)
  else:
    _, found = t5x.read_backbone(path, config, dtype=dtype)
  if config.scan_layers:
    return found
  return parameters.unstack_layers(found, config)


def _is_inferred(path: epath.Path) -> bool:
  """Whether shapes alone tell the config of a T5X checkpoint."""
  return t5x_routed.find_description(path) is None


def _fill_in(inferred: T5Config, config: T5Config) -> T5Config:
  """Takes from `config` what the shapes of a checkpoint do not tell."""
  known = {name: getattr(config, name) for name in _NOT_IN_SHAPES}
  if len(inferred.mlp_activations) == len(config.mlp_activations):
    known['mlp_activations'] = config.mlp_activations
  return dataclasses.replace(inferred, **known)


def place(tree: Any, target: Any) -> Any:
  """Moves arrays of the host where they are to be, one by one.

  A caller that keeps no reference to them needs no room for two copies.

  Args:
    tree: the arrays.
    target: of `run_folder.restore_target`.

  Raises:
    UserError: a leaf is missing, extra or of another shape.
  """
  tree_check.check_tree(tree, target, where='What was read')
  leaves, structure = jax.tree.flatten(tree)
  places = [leaf.sharding for leaf in jax.tree.leaves(target)]
  del tree
  for i, place in enumerate(places):
    leaves[i] = partitioning.put(leaves[i], place)
  return jax.tree.unflatten(structure, leaves)
