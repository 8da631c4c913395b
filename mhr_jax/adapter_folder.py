"""Adapters alone, without the backbone they belong to: a few megabytes.

  adapter.json         the model's configuration (adapters, and the backbone
                       they fit), the task table, the arrays' checksum and,
                       where it is known, the backbone's
  adapter.safetensors  the arrays, by our paths: adapters/encoder/mlp/wo/a

Every format that holds adapters alone is read into an `AdapterBundle` and
written from one.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from etils import epath
from flax import traverse_util
import jax
import numpy as np

from mhr_jax import checkpoints, methods, run_files, run_folder, tree_check
from mhr_jax.adapters import AdapterConfig
from mhr_jax.checksums import checksum
from mhr_jax.convert import tensor_files
from mhr_jax.errors import UserError
from mhr_jax.fusing import Task, effective_adapters
from mhr_jax.model import RoutedT5
from mhr_jax.t5 import parameters
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
    backbone_checksum: `checksum_backbone` of the one that they were trained
      on; None where nobody said.

  Raises:
    UserError: the parts do not fit each other; the message names the leaves.
  """

  config: AdapterConfig
  params: Mapping[str, Any]
  task_table: TaskTable | None
  backbone: T5Config
  backbone_checksum: str | None = None

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
  tree_check.check_tree(params, wanted, where=where)


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
  return AdapterBundle(
    one,
    {'adapters': adapters},
    table,
    bundle.backbone,
    bundle.backbone_checksum,
  )


def checksum_backbone(backbone: Mapping[str, Any], config: T5Config) -> str:
  """Returns the checksum by which adapters know their backbone.

  It is `checksums.checksum` of the scanned form, so that one backbone has one
  checksum in either layout; in another dtype it has another.

  Args:
    backbone: the parameters, scanned or unrolled.
    config: says which.
  """
  if not config.scan_layers:
    backbone = parameters.stack_layers(backbone, config)
  return checksum(backbone)


def save_adapter(folder: epath.PathLike, bundle: AdapterBundle) -> None:
  """Writes adapters alone; the folder is there whole or not at all.

  Args:
    folder: absent or empty.
    bundle: what to write.

  Raises:
    UserError: the folder holds something, or cannot be written.
  """
  arrays = _as_arrays(bundle.params)
  table = bundle.task_table
  facts = {
    'format_version': FORMAT_VERSION,
    'model': run_folder.model_to_json(bundle.model),
    'tasks': None if table is None else list(table.names),
    'checksum': checksum(arrays),
    'backbone_checksum': bundle.backbone_checksum,
  }
  with run_files.new_folder(checkpoints.absolute(folder)) as place:
    tensor_files.write_tensors(place / ARRAYS_FILE, leaves_by_path(arrays))
    run_files.write_json(place / ADAPTER_FILE, facts)


def _as_arrays(params: Mapping[str, Any]) -> dict[str, Any]:
  return jax.tree.map(np.asarray, dict(params))


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
  (facts, model), where = _read_model(folder), str(folder / ADAPTER_FILE)
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
  table = None
  if facts['tasks'] is not None:
    table = run_folder.tasks_from_json(facts['tasks'], where=f'{where}: tasks')
  return AdapterBundle(
    model.adapters,
    params,
    table,
    model.config,
    facts.get('backbone_checksum'),  # Early files have none.
  )


def read_backbone_config(folder: epath.PathLike) -> T5Config:
  """Returns the backbone that an adapter fits; reads no array.

  Args:
    folder: see `load_adapter`.

  Raises:
    UserError: the folder is none of ours, of a newer format or cut short.
  """
  return _read_model(checkpoints.absolute(folder))[1].config


def _read_model(folder: epath.Path) -> tuple[dict[str, Any], RoutedT5]:
  facts = _read_facts(folder)
  where = f'{folder / ADAPTER_FILE}: model'
  return facts, run_folder.model_from_json(facts['model'], where=where)


def _read_facts(folder: epath.Path) -> dict[str, Any]:
  path = folder / ADAPTER_FILE
  if not path.exists():
    raise UserError(
      f'{folder} holds no adapter of ours: it has no {ADAPTER_FILE}.'
    )
  facts = run_files.read_json(path)
  run_files.check_format(facts, FORMAT_VERSION, where=str(path))
  missing = {'model', 'tasks', 'checksum'} - set(facts)
  if missing:
    raise UserError(f'{path} lacks {", ".join(sorted(missing))}.')
  return facts
