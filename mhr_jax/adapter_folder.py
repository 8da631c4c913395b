"""Adapters alone, without the backbone they belong to: a few megabytes.

  adapter.json         the model's configuration (adapters, and the backbone
                       they fit), the task table, the arrays' checksum
  adapter.safetensors  the arrays, by our paths: adapters/encoder/mlp/wo/a

Every format that holds adapters alone is read into an `AdapterBundle` and
written from one.
"""

from collections.abc import Mapping
import dataclasses
import json
from typing import Any

from etils import epath
from flax import traverse_util
import jax
import numpy as np

from mhr_jax import checkpoints, methods, run_files, run_folder
from mhr_jax.adapters import AdapterConfig
from mhr_jax.checksums import checksum
from mhr_jax.convert import tensor_files
from mhr_jax.errors import UserError
from mhr_jax.fusing import Task, effective_adapters
from mhr_jax.model import RoutedT5
from mhr_jax.t5.config import T5Config, list_linears
from mhr_jax.task_table import TaskTable
from mhr_jax.tree_paths import leaves_by_path

FORMAT_VERSION = 1
ADAPTER_FILE = 'adapter.json'
ARRAYS_FILE = 'adapter.safetensors'


@dataclasses.dataclass(frozen=True)
class AdapterBundle:
  """Adapters and routers, and what makes sense of them.

  Attributes:
    config: which linears are adapted and how.
    params: {'adapters': …} and, where routing is learned, 'routers'.
    task_table: which task id is which task; None where nobody said.
    backbone: the shape of the backbone that they fit.

  Raises:
    UserError: the parts do not fit each other; the message names the leaves.
  """

  config: AdapterConfig
  params: Mapping[str, Any]
  task_table: TaskTable | None
  backbone: T5Config

  def __post_init__(self):
    check_params(self.config, self.params, self.backbone, where='The adapter')
    table = self.task_table
    if table is not None and len(table) != self.config.n_tasks:
      raise UserError(
        f'The task table names {len(table)} tasks, the adapter is for'
        f' {self.config.n_tasks}: give one name a task.'
      )

  @property
  def model(self) -> RoutedT5:
    """The model that takes these parameters and a backbone's."""
    return RoutedT5(self.backbone, self.config)


def check_params(
  config: AdapterConfig,
  params: Mapping[str, Any],
  backbone: T5Config,
  *,
  where: str,
) -> None:
  """Compares adapters and routers with what a config asks for.

  Args:
    config: of the adapters.
    params: arrays, or their shapes.
    backbone: what is adapted.
    where: what the parameters are or where they lie, for the message.

  Raises:
    UserError: a leaf is missing, extra or of another shape.
  """
  linears = list_linears(backbone)
  wanted = jax.eval_shape(
    lambda key: methods.init_added(key, config, linears), jax.random.key(0)
  )
  checkpoints.check_tree(params, wanted, where=where)


def effective_bundle(bundle: AdapterBundle, task: Task) -> AdapterBundle:
  """Returns the one LoRA that a task's mixture amounts to, exactly.

  Args:
    bundle: adapters with any routing.
    task: a task's id, or 'average' for all skills weighed alike (the paper's
      -mu).

  Returns:
    Adapters of one task, one skill and one split with the rank and the alpha
    of `bundle`; the task table has that task's name, or 'average'.

  Raises:
    UserError: there is no such task.
  """
  config, table = bundle.config, bundle.task_table
  adapters = effective_adapters(bundle.params, task, config)
  if table is not None:
    table = TaskTable((task if isinstance(task, str) else table.names[task],))
  one = dataclasses.replace(config.without_routing(1), router_scope='module')
  return AdapterBundle(one, {'adapters': adapters}, table, bundle.backbone)


def save_adapter(folder: epath.PathLike, bundle: AdapterBundle) -> None:
  """Writes adapters alone; the folder has them whole or is none.

  Args:
    folder: made if absent; an adapter that it holds is replaced.
    bundle: what to write.

  Raises:
    UserError: the folder holds something else.
  """
  folder = checkpoints.absolute(folder)
  claim_folder(folder, (ADAPTER_FILE, ARRAYS_FILE))
  arrays = _as_arrays(bundle.params)
  tensor_files.write_tensors(folder / ARRAYS_FILE, leaves_by_path(arrays))
  table = bundle.task_table
  facts = {
    'format_version': FORMAT_VERSION,
    'model': run_folder.model_to_json(bundle.model),
    'tasks': None if table is None else list(table.names),
    'checksum': checksum(arrays),
  }
  run_files.write_json(folder / ADAPTER_FILE, facts)


def _as_arrays(params: Mapping[str, Any]) -> dict[str, Any]:
  return jax.tree.map(np.asarray, dict(params))


def claim_folder(folder: epath.Path, ours: tuple[str, ...]) -> None:
  """Makes a folder to write files to, unless it holds something else.

  Args:
    folder: to write to.
    ours: names of the files that will be written, and may be replaced.

  Raises:
    UserError: it is a file, or a folder with other things in it.
  """
  if folder.exists() and not folder.is_dir():
    raise UserError(f'{folder} is a file; name a folder to write to.')
  folder.mkdir(parents=True, exist_ok=True)
  temporary = {f'.{name}.tmp' for name in ours}
  others = sorted(
    path.name
    for path in folder.iterdir()
    if path.name not in ours and path.name not in temporary
  )
  if others:
    raise UserError(
      f'{folder} holds something else: {", ".join(others[:4])}. Choose a new'
      ' or empty folder.'
    )


def load_adapter(folder: epath.PathLike) -> AdapterBundle:
  """Reads what `save_adapter` wrote.

  Args:
    folder: with `adapter.json` and `adapter.safetensors`.

  Returns:
    The bundle; its arrays are NumPy's.

  Raises:
    UserError: the folder is none of ours, of a newer format, cut short or
      altered, or its arrays are not those of its configuration.
  """
  folder = checkpoints.absolute(folder)
  facts, where = _read_facts(folder), str(folder / ADAPTER_FILE)
  model = run_folder.model_from_json(facts['model'], where=f'{where}: model')
  if model.adapters is None:
    raise UserError(f'{where} describes a model without adapters.')
  arrays = tensor_files.read_tensors(folder / ARRAYS_FILE)
  params = traverse_util.unflatten_dict(arrays, sep='/')
  at = str(folder / ARRAYS_FILE)
  check_params(model.adapters, params, model.config, where=at)
  found = checksum(params)
  if found != facts['checksum']:
    raise UserError(
      f'{at} was altered or damaged after it was written: its checksum is'
      f' {found}, {ADAPTER_FILE} has {facts["checksum"]}. Copy it again.'
    )
  tasks = facts['tasks']
  table = None if tasks is None else TaskTable(tuple(tasks))
  return AdapterBundle(model.adapters, params, table, model.config)


def _read_facts(folder: epath.Path) -> dict[str, Any]:
  path = folder / ADAPTER_FILE
  if not path.exists():
    raise UserError(
      f'{folder} holds no adapter of ours: it has no {ADAPTER_FILE}.'
    )
  facts = read_json(path)
  version = facts.get('format_version', 0)
  if version > FORMAT_VERSION:
    raise UserError(
      f'{path} has format {version}; this version of mhr_jax reads up to'
      f' {FORMAT_VERSION}. Install a newer one.'
    )
  missing = {'model', 'tasks', 'checksum'} - set(facts)
  if missing:
    raise UserError(f'{path} lacks {", ".join(sorted(missing))}.')
  return facts


def read_json(path: epath.Path) -> dict[str, Any]:
  """Returns the object in a JSON file.

  Raises:
    UserError: it is not whole, or no object.
  """
  try:
    value = json.loads(path.read_text())
  except ValueError as error:
    raise UserError(f'{path} is not whole JSON: {error}.') from error
  if not isinstance(value, dict):
    raise UserError(f'{path} holds no JSON object.')
  return value
