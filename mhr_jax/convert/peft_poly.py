"""PEFT's `POLY` adapters: Polytropon and multi-head routing.

The same inventories, mixed in the same way, with a router for every linear of
every layer, sigmoid gates (relaxed Bernoulli ones in training) and the scale
1 / r. Source: peft/tuners/poly, layer.py and router.py, of PEFT 0.21.2.
"""

from collections.abc import Mapping
from typing import Any

from flax import traverse_util
import numpy as np

from mhr_jax import adapters as adapters_lib
from mhr_jax.adapter_folder import AdapterBundle
from mhr_jax.adapters import AdapterConfig
from mhr_jax.convert import linear_tensors, peft_files
from mhr_jax.errors import UserError
from mhr_jax.routing import LOGITS, router_of
from mhr_jax.t5.config import T5Config
from mhr_jax.task_table import TaskTable

_SUFFIXES = {
  'a': 'poly_lora_A',
  'b': 'poly_lora_B',
  LOGITS: 'poly_router.module_logits',
}
_KNOWN = ('r', 'n_tasks', 'n_skills', 'n_splits', 'poly_type', 'init_weights')
_MIXINGS = ('sigmoid', 'relaxed_bernoulli', 'uniform')


def from_peft(
  settings: Mapping[str, Any],
  tensors: Mapping[str, np.ndarray],
  backbone: T5Config,
  task_table: TaskTable | None,
  *,
  where: str,
) -> AdapterBundle:
  """Makes a bundle of a POLY folder's content.

  Args:
    settings: of `adapter_config.json`.
    tensors: by name.
    backbone: that they are for.
    task_table: which task id is which task.
    where: the folder, for messages.

  Returns:
    The bundle: alpha 1, and PEFT's mixing 'relaxed_bernoulli', which is
    'sigmoid' but in training.

  Raises:
    UserError: a setting or a tensor has no equivalent, or a tensor is missing
      or of another shape.
  """
  peft_files.check_settings(settings, _KNOWN, where=where)
  kind = settings.get('poly_type', 'poly')
  if kind != 'poly':
    raise UserError(f"{where} has poly_type={kind!r}; only 'poly' is read.")
  tasks, skills, splits, rank = (
    peft_files.get_count(settings, name, where=where)
    for name in ('n_tasks', 'n_skills', 'n_splits', 'r')
  )
  found = peft_files.sort_tensors(tensors, _SUFFIXES, backbone, where=where)
  flat = {}
  for path, linear in found.linears.items():
    ins, outs = linear.in_features // splits, linear.out_features // splits
    a_shape, b_shape = (splits, skills, ins, rank), (splits, skills, rank, outs)
    flat[f'adapters/{path}/a'] = found.stack(path, 'a', a_shape)
    flat[f'adapters/{path}/b'] = found.stack(path, 'b', b_shape)
    logits = found.stack(path, LOGITS, (tasks, splits * skills))
    flat[f'routers/{path}/{LOGITS}'] = logits.reshape(
      linear.layers, tasks, splits, skills
    )
  config = AdapterConfig(
    n_tasks=tasks,
    n_skills=skills,
    n_splits=splits,
    rank=rank,
    targets=linear_tensors.choose_targets(found.linears, backbone),
    mixing='relaxed_bernoulli',
  )
  params = traverse_util.unflatten_dict(flat, sep='/')
  return AdapterBundle(config, params, task_table, backbone)


def to_peft(
  bundle: AdapterBundle,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Returns the settings and the tensors of a POLY folder.

  PEFT has no alpha: it goes into b. A router that linears share is repeated
  for each of them.

  Args:
    bundle: with learned routing that PEFT has, or uniform over some skills.

  Raises:
    UserError: the routing has no equivalent in PEFT.
  """
  config = bundle.config
  peft_files.check_kind(config, 'low_rank', 'A POLY folder')
  _check_expressible(config)
  inventories = adapters_lib.list_inventories(bundle.params['adapters'])
  routers = traverse_util.flatten_dict(
    bundle.params.get('routers', {}), sep='/'
  )
  tensors = {}
  for path, inventory in inventories.items():
    arrays = {
      'a': np.asarray(inventory['a']),
      'b': np.asarray(inventory['b']) * np.float32(config.alpha),
      LOGITS: _expand_logits(routers, path, len(inventory['a']), config),
    }
    tensors |= peft_files.name_tensors(path, arrays, _SUFFIXES)
  settings = {
    'peft_type': 'POLY',
    'poly_type': 'poly',
    'r': config.rank,
    'n_tasks': config.n_tasks,
    'n_skills': config.n_skills,
    'n_splits': config.n_splits,
    'init_weights': True,
    'target_modules': peft_files.choose_target_modules(
      inventories, bundle.backbone
    ),
  }
  return settings, tensors


def _expand_logits(
  routers: Mapping[str, Any], path: str, layers: int, config: AdapterConfig
) -> np.ndarray:
  """Returns [layer, task, split · skill], whatever the router's scope is."""
  width = config.n_splits * config.n_skills
  if config.mixing == 'uniform':
    # Gates of 1/2: weights of 1 / n_skills, but for the 1e-12 in their sum.
    return np.zeros((layers, config.n_tasks, width), np.float32)
  logits = np.asarray(
    routers[f'{router_of(path, config.router_scope)}/{LOGITS}']
  )
  if logits.ndim == 3:
    logits = np.broadcast_to(logits, (layers, *logits.shape))
  return logits.reshape(layers, config.n_tasks, width)


def _check_expressible(config: AdapterConfig) -> None:
  if config.mixing == 'uniform' and config.n_skills == 1:
    raise UserError(
      'This is one adapter without routing: a LoRA, not a POLY. Write it as'
      ' peft-lora.'
    )
  if config.mixing not in _MIXINGS:
    wrong = f'mixing={config.mixing!r}'
  elif config.normalisation != 'sum':
    wrong = f'normalisation={config.normalisation!r}'
  elif config.shared_skill:
    wrong = 'shared_skill=True'
  else:
    return
  raise UserError(
    f"PEFT's POLY has no {wrong}: its weights are sigmoid gates over their sum."
    " Write the adapter of one task, or the 'average', as peft-lora, which is"
    ' exact.'
  )
