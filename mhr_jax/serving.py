"""A folder from which a model is served without this library.

  manifest.json          what the programs take and return, in order; tasks,
                         special ids, vocabulary, platforms, versions
  encode.stablehlo       inputs → a memory of them and an empty cache
  decode_step.stablehlo  memory, cache, one token a row → logits and cache
  score.stablehlo        inputs and targets → a log-probability a row
  weights.npz            every array by path; bfloat16 as uint16
  run.py                 greedy decoding in twenty lines; its header says how
  vocabulary/            the vocabulary's files, where there is one

The programs are what `jax.export` serialises; see `serving_programs`.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import inspect
from typing import Any
import zipfile

from etils import epath
import jax
from jax import export
import jax.numpy as jnp
import numpy as np

from mhr_jax import (
  checkpoints,
  fusing,
  run_files,
  serving_run,
  task_choice,
  tree_check,
)
from mhr_jax.errors import UserError
from mhr_jax.model import Params, RoutedT5
from mhr_jax.run_folder import VOCABULARY_FOLDER
from mhr_jax.serving_programs import (
  PLATFORMS,
  build_programs,
  describe_program,
)
from mhr_jax.t5 import parameters
from mhr_jax.task_table import TaskTable
from mhr_jax.tree_paths import leaves_by_path
from mhr_jax.vocabulary import Vocabulary

FORMAT_VERSION = 1
MANIFEST_FILE = 'manifest.json'
WEIGHTS_FILE = 'weights.npz'
RUNNER_FILE = 'run.py'
PROGRAM_SUFFIX = '.stablehlo'

_SPECIAL = ('pad_id', 'eos_id', 'decoder_start_token_id', 'vocab_size')


def export_stablehlo(
  folder: epath.PathLike,
  model: RoutedT5,
  params: Params,
  *,
  task_table: TaskTable | None = None,
  vocabulary: Vocabulary | None = None,
  task_id: int | str | None = None,
  platforms: Iterable[str] = PLATFORMS,
) -> None:
  """Writes a model as programs, weights and a script that runs them.

  Args:
    folder: absent or empty; it is there whole or not at all.
    model: what to serve.
    params: all its parameters; the weights keep their dtypes.
    task_table: which task id is which task; '0', '1', … by default.
    vocabulary: copied into the folder; the programs do not need it.
    task_id: a task, by id or by name, or 'average': its one low-rank pair a
      linear is all that is exported, and the programs take no task ids. By
      default all tasks are served, rows of one batch mixing them.
    platforms: what the programs run on.

  Raises:
    UserError: the folder holds something or cannot be written, there is no
      such task or platform, or the parameters or the task table are not the
      model's.
  """
  with run_files.new_folder(checkpoints.absolute(folder)) as place:
    tree_check.check_tree(params, model.abstract_params(), where='The tree')
    table = task_choice.known_tasks(model, task_table)
    tasks, served = _choices(model, table), None
    if task_id is not None:
      task = task_choice.choose_one_task(task_id, model, table)
      model, params = _of_task(model, params, task)
      tasks, served = (), _name(task, table)
    model, params = _stack(model, params)
    programs = build_programs(model, params, platforms)
    weights = leaves_by_path(params)
    for name, program in programs.items():
      path = place / f'{name}{PROGRAM_SUFFIX}'
      path.write_bytes(bytes(program.serialize()))
    _write_weights(place / WEIGHTS_FILE, weights)
    (place / RUNNER_FILE).write_text(inspect.getsource(serving_run))
    manifest = {
      'tasks': tasks,
      'task': served,
      **{name: getattr(model.config, name) for name in _SPECIAL},
      'vocabulary': vocabulary and vocabulary.save(place / VOCABULARY_FOLDER),
      **_describe(programs, weights),
    }
    run_files.write_json(place / MANIFEST_FILE, manifest)


def _choices(model: RoutedT5, table: TaskTable | None) -> tuple[str, ...]:
  """Returns the names of the tasks that rows choose from."""
  if table is None or model.adapters is None or not task_choice.routes(model):
    return ()
  if len(table) != model.adapters.n_tasks:
    raise UserError(
      f'The task table names {len(table)} tasks, the adapters are for'
      f' {model.adapters.n_tasks}: give one name a task.'
    )
  return table.names


def _name(task: fusing.Task, table: TaskTable | None) -> str:
  return str(task) if table is None or task == 'average' else table.names[task]


def _describe(
  programs: Mapping[str, export.Exported], weights: Mapping[str, Any]
) -> dict[str, Any]:
  first = next(iter(programs.values()))
  return {
    'platforms': first.platforms,
    'format_version': FORMAT_VERSION,
    'jax_version': jax.__version__,
    'calling_convention_version': first.calling_convention_version,
    'weights': {name: str(leaf.dtype) for name, leaf in weights.items()},
    'programs': {
      name: describe_program(name, program)
      for name, program in programs.items()
    },
  }


def _of_task(
  model: RoutedT5, params: Params, task: fusing.Task
) -> tuple[RoutedT5, Params]:
  """Returns the model that has only one task's adapter."""
  if model.adapters is None:
    return model, params
  added = {k: v for k, v in params.items() if k != 'backbone'}
  make = jax.jit(fusing.effective_adapters, static_argnums=(1, 2))
  one = make(added, task, model.adapters)
  config = model.adapters.without_routing(n_tasks=1)
  params = {'backbone': params['backbone'], 'adapters': one}
  return dataclasses.replace(model, adapters=config), params


def _stack(model: RoutedT5, params: Params) -> tuple[RoutedT5, Params]:
  """Returns the model with scanned layers: programs do not grow with depth."""
  config = model.config
  if config.scan_layers:
    return model, params
  stacked = parameters.stack_layers(params['backbone'], config)
  config = dataclasses.replace(config, scan_layers=True)
  return dataclasses.replace(model, config=config), params | {
    'backbone': stacked
  }


def _write_weights(path: epath.Path, weights: Mapping[str, Any]) -> None:
  """Writes what `np.load` reads, one array at a time."""
  with path.open('wb') as file, zipfile.ZipFile(file, 'w') as archive:
    for name, leaf in weights.items():
      array = np.asarray(leaf)
      if array.dtype == jnp.bfloat16:  # which NumPy's format has not got
        array = array.view(np.uint16)
      with archive.open(f'{name}.npy', 'w', force_zip64=True) as entry:
        np.lib.format.write_array(entry, array, allow_pickle=False)
