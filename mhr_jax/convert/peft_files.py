"""PEFT's folders of one adapter: settings in JSON, tensors beside them.

Read against PEFT 0.21.2. Its folders know no task names; ours carry them in a
file of our own, `tasks.json`, which PEFT passes over.
"""

from collections.abc import Iterable, Mapping
import json
import re
from typing import Any

from etils import epath
import numpy as np

from mhr_jax import run_files, run_folder
from mhr_jax.adapters import AdapterConfig
from mhr_jax.convert import (
  hf_names,
  linear_tensors,
  tensor_files,
  torch_files,
)
from mhr_jax.errors import UserError
from mhr_jax.inventories import AdapterKind
from mhr_jax.t5.config import T5Config, list_linears
from mhr_jax.task_table import TaskTable

CONFIG_FILE = 'adapter_config.json'
TENSORS_FILE = 'adapter_model.safetensors'
PICKLE_FILE = 'adapter_model.bin'
SINGLE: dict[AdapterKind, str] = {'low_rank': 'peft-lora', 'ia3': 'peft-ia3'}
"""The format of one adapter, by its kind."""
_PREFIX = 'base_model.model.'

# What says nothing about the function that the tensors compute: which linears
# are adapted is read from the tensors' names, and checked.
_HARMLESS = frozenset(
  {
    'auto_mapping',
    'base_model_name_or_path',
    'exclude_modules',
    'inference_mode',
    'layers_pattern',
    'layers_to_transform',
    'peft_type',
    'peft_version',
    'revision',
    'target_modules',
    'task_type',
  }
)


def read_settings(folder: epath.Path) -> dict[str, Any]:
  """Returns a folder's settings.

  Raises:
    UserError: it has none, or they are no JSON object.
  """
  path = folder / CONFIG_FILE
  if not path.exists():
    raise UserError(f"{folder} is no PEFT adapter's: it has no {CONFIG_FILE}.")
  return run_files.read_json(path)


def check_settings(
  settings: Mapping[str, Any], known: Iterable[str], *, where: str
) -> None:
  """Refuses settings by which an adapter may compute something else.

  Args:
    settings: of the folder.
    known: those that the caller handles, or that only training reads.
    where: the file, for messages.

  Raises:
    UserError: another setting is neither absent, false nor empty.
  """
  passed = _HARMLESS | set(known)
  for name, value in settings.items():
    if name not in passed and value not in (None, False, '', [], {}):
      raise UserError(
        f'{where} sets {name}={value!r}, which has no equivalent here: the'
        ' adapter computes something else than what its tensors say on the'
        " backbone's linears, or may."
      )


def sort_tensors(
  tensors: Mapping[str, np.ndarray],
  suffixes: Mapping[str, str],
  backbone: T5Config,
  *,
  where: str,
) -> linear_tensors.LinearTensors:
  """Sorts a folder's tensors by linear, kind and layer.

  Args:
    tensors: by name.
    suffixes: of their names, by kind.
    backbone: whose linears they must be.
    where: the folder, for messages.

  Raises:
    UserError: a tensor is something else, or of a linear that is not there.
  """
  kinds = {suffix: kind for kind, suffix in suffixes.items()}
  found = linear_tensors.sort_tensors(
    tensors, kinds, backbone, prefix=_PREFIX, where=where
  )
  if found.rest:
    raise UserError(
      f'{where} holds tensors that have no equivalent here:'
      f" {linear_tensors.list_some(found.rest)}. Adapters on a T5's linears are"
      f' read ({", ".join(suffixes.values())}), and nothing else.'
    )
  return found


def get_count(settings: Mapping[str, Any], name: str, *, where: str) -> int:
  """Returns a setting that is a positive whole number."""
  value = settings.get(name)
  if not isinstance(value, int) or isinstance(value, bool) or value < 1:
    raise UserError(
      f'{where} has {name}={value!r}; a positive whole number is wanted.'
    )
  return value


def check_kind(config: AdapterConfig, kind: AdapterKind, what: str) -> None:
  """Refuses adapters of another kind than a format holds.

  Args:
    config: of the adapters.
    kind: that the format holds.
    what: the format, to begin a sentence with.

  Raises:
    UserError: names the format that holds them.
  """
  if config.kind != kind:
    single = SINGLE[config.kind]
    raise UserError(
      f'{what} holds adapters of the kind {kind!r}, and these are'
      f" {config.kind!r}: write a task's, or the 'average', as {single}, or all"
      " of them as 'native'."
    )


def check_single(config: AdapterConfig, what: str) -> None:
  """Refuses adapters that tasks mix, where a format holds a single one.

  Args:
    config: of the adapters.
    what: the format, to begin a sentence with.

  Raises:
    UserError: there are skills to mix.
  """
  if (config.n_skills, config.n_splits, config.mixing) != (1, 1, 'uniform'):
    raise UserError(
      f'{what} holds one adapter; here tasks mix theirs'
      f' ({config.n_tasks} tasks, {config.n_skills} skills, mixing='
      f"{config.mixing!r}). Say for which task to write it, or 'average'."
    )


def read_tensors(
  folder: epath.Path, *, allow_pickle: bool
) -> dict[str, np.ndarray]:
  """Returns a folder's tensors by name.

  Raises:
    UserError: there is no file of tensors, or it is a pickle and reading one
      was not allowed.
  """
  path = folder / TENSORS_FILE
  if path.exists():
    return tensor_files.read_tensors(path)
  path = folder / PICKLE_FILE
  if path.exists():
    return torch_files.read_state_dict(path, allow_pickle=allow_pickle)
  raise UserError(f'{folder} has neither {TENSORS_FILE} nor {PICKLE_FILE}.')


def read_tasks(folder: epath.Path) -> TaskTable | None:
  """Returns the task names of a folder that we wrote."""
  path = folder / run_files.TASKS_FILE
  return run_folder.read_tasks(path) if path.exists() else None


def write_folder(
  folder: epath.PathLike,
  settings: Mapping[str, Any],
  tensors: Mapping[str, np.ndarray],
  task_table: TaskTable | None,
) -> None:
  """Writes a folder that PEFT loads.

  Args:
    folder: absent or empty.
    settings: for `adapter_config.json`, without what all kinds share.
    tensors: by their names in the file.
    task_table: which task id is which task.

  Raises:
    UserError: the folder holds something, or cannot be written.
  """
  shared = {'task_type': 'SEQ_2_SEQ_LM', 'inference_mode': True}
  text = json.dumps({**settings, **shared}, indent=2, sort_keys=True)
  with run_files.new_folder(folder) as place:
    tensor_files.write_tensors(place / TENSORS_FILE, tensors)
    if task_table is not None:
      path = place / run_files.TASKS_FILE
      run_files.write_text(path, task_table.to_json() + '\n')
    run_files.write_text(place / CONFIG_FILE, text + '\n')


def name_tensors(
  path: str, arrays: Mapping[str, np.ndarray], suffixes: Mapping[str, str]
) -> dict[str, np.ndarray]:
  """Returns a linear's stacked arrays as a tensor a layer, by PEFT's names.

  Args:
    path: of the linear.
    arrays: [layer, …] by kind.
    suffixes: of the names, by kind.
  """
  return {
    f'{_PREFIX}{hf_names.module_name(path, layer)}.{suffixes[kind]}': tensor
    for kind, stacked in arrays.items()
    for layer, tensor in enumerate(stacked)
  }


def choose_target_modules(
  paths: Iterable[str], backbone: T5Config
) -> list[str] | str:
  """Returns PEFT's `target_modules` that match just these linears.

  Args:
    paths: the linears that are adapted.
    backbone: that has them.

  Returns:
    Short names such as ['q', 'v'], which match every module so called; where
    those would be too many, a regular expression, which PEFT matches with the
    whole of a module's name.
  """
  chosen, short = set(paths), {}
  for path in list_linears(backbone):
    name = hf_names.module_name(path, 0).rpartition('.')[2]
    short.setdefault(name, set()).add(path)
  if all(mine <= chosen or not mine & chosen for mine in short.values()):
    return sorted(name for name, mine in short.items() if mine <= chosen)
  modules = (hf_names.module_name(path, 0) for path in sorted(chosen))
  return '|'.join(re.escape(x).replace('0', r'\d+', 1) for x in modules)
