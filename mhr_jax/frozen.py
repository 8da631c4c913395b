"""Subtrees that do not train: saved once a run, known by their checksum."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from etils import epath
import jax
import numpy as np

from mhr_jax import checkpoints, file_names, run_files
from mhr_jax.checksums import checksum
from mhr_jax.errors import UserError
from mhr_jax.t5.config import T5Config

FORMAT_VERSION = 1
FROZEN_FILE = 'frozen.json'
ARRAYS_FOLDER = 'arrays'


def save_frozen(
  folder: epath.PathLike, tree: Any, *, config: T5Config | None = None
) -> str:
  """Saves a subtree that does not train, once, and returns its checksum.

  Args:
    folder: for example `run_dir/backbone`.
    tree: the subtree.
    config: of the backbone, so that others can check what it is.

  Raises:
    UserError: the folder holds another one.
  """
  folder = checkpoints.absolute(folder)
  value = checksum(tree)
  facts = read_frozen(folder)
  if facts is not None:
    old = facts['checksum']
    if old != value:
      raise UserError(
        f'The frozen {folder.name} is not the one this run started with: its'
        f' checksum is {value}, {folder} has {old}. Start from the same'
        f' {folder.name}, or choose another run folder.'
      )
    return value
  checkpoints.save_tree(folder / ARRAYS_FOLDER, tree)
  facts = {
    'format_version': FORMAT_VERSION,
    'checksum': value,
    'parameters': sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree)),
    'config': None if config is None else dataclasses.asdict(config),
  }
  if jax.process_index() == 0:
    run_files.write_json(folder / FROZEN_FILE, facts)
  return value


def read_frozen(folder: epath.PathLike) -> dict[str, Any] | None:
  """Returns what `save_frozen` noted about a folder; None where it saved none.

  The keys are `checksum`, `parameters` and `config` (of a backbone).

  Raises:
    UserError: the file is damaged, or of a newer format.
  """
  path = checkpoints.absolute(folder) / FROZEN_FILE
  if not path.exists():
    return None
  facts = run_files.read_json(path)
  run_files.check_format(facts, FORMAT_VERSION, where=str(path))
  missing = {'checksum', 'config'} - set(facts)
  if missing:
    raise UserError(f'{path} lacks {", ".join(sorted(missing))}.')
  return facts


def restore_frozen(folder: epath.PathLike, target: Any) -> Any:
  """Returns the subtree that a folder holds (see `restore_tree`)."""
  facts = read_frozen(folder) or {}
  arrays = checkpoints.absolute(folder) / ARRAYS_FOLDER
  return checkpoints.restore_tree(
    arrays, target, expected=facts.get('checksum')
  )


def check_frozen(run_dir: epath.PathLike, frozen: Mapping[str, str]):
  """Compares the checksums a checkpoint recorded with those of the run folder.

  Raises:
    UserError: a frozen subtree is missing or another one.
  """
  for label, expected in frozen.items():
    folder = file_names.path_inside(
      checkpoints.absolute(run_dir), label, where=f'A checkpoint of {run_dir}'
    )
    facts = read_frozen(folder)
    if facts is None:
      raise UserError(f'{folder} is missing: the run is not whole.')
    if facts['checksum'] != expected:
      raise UserError(
        f'{folder} has the checksum {facts["checksum"]}, the checkpoint was'
        f' made with {expected}.'
      )
