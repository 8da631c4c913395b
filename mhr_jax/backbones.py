"""Backbones on disk: what a run starts from, whoever saved it."""

import dataclasses
from typing import Any

from etils import epath

from mhr_jax import checkpoints, frozen, partitioning, run_folder
from mhr_jax.errors import UserError
from mhr_jax.model import RoutedT5
from mhr_jax.t5 import parameters
from mhr_jax.t5.config import T5Config


def save_backbone(folder: epath.PathLike, backbone: Any, config: T5Config):
  """Saves a backbone from which `load_backbone` and runs can start."""
  frozen.save_frozen(folder, backbone, config=config)


def load_backbone(
  path: epath.PathLike,
  config: T5Config,
  *,
  mesh: partitioning.Mesh | None = None,
  dtype: str = 'float32',
) -> Any:
  """Returns the backbone that a folder holds, for a model of `config`.

  Scanned and unrolled layers are converted into each other.

  Args:
    path: a folder of `save_backbone`, or a run folder: its frozen backbone,
      or where the backbone trained, that of its last checkpoint.
    config: the backbone wanted.
    mesh: where to put it; one device by default.
    dtype: of the parameters.

  Raises:
    UserError: there is no backbone there, or it is another one.
  """
  folder, saved = _find_backbone(checkpoints.absolute(path))
  if saved is not None:
    _check_same_backbone(folder, saved, config)
  scanned = config.scan_layers if saved is None else saved.scan_layers
  layout = dataclasses.replace(config, scan_layers=scanned)
  model = RoutedT5(config=layout)
  target = run_folder.restore_target(
    model, ('backbone',), mesh=mesh, backbone_dtype=dtype
  )
  if folder.name == 'trainable':
    backbone = checkpoints.restore_tree(folder, target)['backbone']
  else:
    backbone = checkpoints.restore_tree(folder, target['backbone'])
  if scanned == config.scan_layers:
    return backbone
  convert = (
    parameters.stack_layers if config.scan_layers else parameters.unstack_layers
  )
  return convert(backbone, config)


def _find_backbone(path: epath.Path) -> tuple[epath.Path, T5Config | None]:
  """Returns the folder of arrays and the config saved with it."""
  for folder in (path, path / 'backbone'):
    facts = frozen.read_frozen(folder)
    if facts is not None:
      config = facts['config']
      if config is not None:
        config = run_folder.config_from_json(config, where=str(folder))
      return folder / frozen.ARRAYS_FOLDER, config
  steps = checkpoints.committed_steps(path)
  if not steps:
    raise UserError(
      f'{path} holds no backbone: neither {frozen.FROZEN_FILE}, nor'
      f' backbone/{frozen.FROZEN_FILE}, nor a checkpoint.'
    )
  folder = path / checkpoints.CHECKPOINTS_FOLDER / str(steps[-1]) / 'trainable'
  return folder, run_folder.read_model(path).config


def _check_same_backbone(where: epath.Path, saved: T5Config, config: T5Config):
  a, b = dataclasses.asdict(saved), dataclasses.asdict(config)
  changed = [
    f'{key} is {a[key]}, wanted {b[key]}'
    for key in b
    if a[key] != b[key] and key not in run_folder.FREE_FIELDS
  ]
  if changed:
    raise UserError(f'{where} is another backbone: {"; ".join(changed)}.')
