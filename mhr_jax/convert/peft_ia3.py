"""PEFT's `IA3` adapters: one scale of features a linear.

PEFT scales a linear's output, or, where it is among `feedforward_modules`, its
input. Here outputs alone are scaled; but what goes into T5 1.1's `wo` is
gelu(wi_0) · wi_1, so that a scale of it is one of wi_1's output. Source:
peft/tuners/ia3, layer.py and config.py, of PEFT 0.21.2.
"""

from collections.abc import Mapping
import re
from typing import Any

from flax import traverse_util
import numpy as np

from mhr_jax import adapters as adapters_lib
from mhr_jax.adapter_folder import AdapterBundle
from mhr_jax.adapters import AdapterConfig
from mhr_jax.convert import hf_names, linear_tensors, peft_files
from mhr_jax.errors import UserError
from mhr_jax.inventories import SCALE
from mhr_jax.t5.config import T5Config, list_linears
from mhr_jax.task_table import TaskTable

_SUFFIXES = {SCALE: 'ia3_l'}
_KNOWN = ('feedforward_modules', 'init_ia3_weights')


def from_peft(
  settings: Mapping[str, Any],
  tensors: Mapping[str, np.ndarray],
  backbone: T5Config,
  task_table: TaskTable | None,
  *,
  where: str,
) -> AdapterBundle:
  """Makes a bundle of an IA3 folder's content.

  Args:
    settings: of `adapter_config.json`.
    tensors: by name.
    backbone: that they are for.
    task_table: of the tasks that share the adapter; one without a name if
      None.
    where: the folder, for messages.

  Returns:
    The bundle: kind 'ia3', one skill, uniform mixing.

  Raises:
    UserError: a setting or a tensor has no equivalent, or a tensor is missing
      or of another shape.
  """
  peft_files.check_settings(settings, _KNOWN, where=where)
  found = peft_files.sort_tensors(tensors, _SUFFIXES, backbone, where=where)
  scales: dict[str, np.ndarray] = {}
  for path, linear in found.linears.items():
    if _scales_inputs(settings, path, where):
      scaled = _source_of_input(path, backbone, where)
      scale = found.stack(path, SCALE, (1, linear.in_features))[:, 0]
    else:
      scaled = path
      scale = found.stack(path, SCALE, (linear.out_features, 1))[..., 0]
    scales[scaled] = scales.get(scaled, np.float32(1)) * scale
  ordered = [path for path in list_linears(backbone) if path in scales]
  flat = {
    f'adapters/{path}/{SCALE}': scales[path][:, None, None] for path in ordered
  }
  config = AdapterConfig(
    n_tasks=1 if task_table is None else len(task_table),
    n_skills=1,
    targets=linear_tensors.choose_targets(ordered, backbone),
    mixing='uniform',
    kind='ia3',
  )
  params = traverse_util.unflatten_dict(flat, sep='/')
  return AdapterBundle(config, params, task_table, backbone)


def _scales_inputs(settings: Mapping[str, Any], path: str, where: str) -> bool:
  """Whether PEFT scales what goes into a linear; matches as PEFT does.

  Raises:
    UserError: the setting is neither names nor a regular expression.
  """
  named: Any = settings.get('feedforward_modules') or []
  module = hf_names.module_name(path, 0)
  if isinstance(named, list) and all(isinstance(x, str) for x in named):
    return any(module.endswith(name) for name in named)
  try:
    return re.fullmatch(named, module) is not None
  except (re.error, TypeError) as error:
    raise UserError(
      f'{where}/{peft_files.CONFIG_FILE}: feedforward_modules={named!r} is'
      f' neither a list of names nor a regular expression ({error}).'
    ) from error


def _source_of_input(path: str, backbone: T5Config, where: str) -> str:
  """Returns the linear whose output, scaled, is a linear's input, scaled."""
  sublayer, _, name = path.rpartition('/')
  if name == 'wo':
    for source, activation in zip(
      backbone.mlp_inputs, backbone.mlp_activations, strict=True
    ):
      if activation == 'linear':
        return f'{sublayer}/{source}'
  raise UserError(
    f'{where} scales the input of {path} (feedforward_modules), which is no'
    " linear's output, and outputs alone are scaled here. Train it in PEFT with"
    ' feedforward_modules=[], or merge it there (merge_and_unload) and convert'
    ' the model.'
  )


def to_peft(
  bundle: AdapterBundle,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Returns the settings and the tensors of an IA3 folder, bit for bit.

  Args:
    bundle: one adapter of the kind 'ia3' without routing, such as
      `adapter_folder.effective_bundle` returns.

  Raises:
    UserError: there are skills to mix, or adapters of another kind.
  """
  config = bundle.config
  peft_files.check_kind(config, 'ia3', 'An IA3 folder')
  peft_files.check_single(config, 'An IA3 folder')
  inventories = adapters_lib.list_inventories(bundle.params['adapters'])
  tensors = {}
  for path, inventory in inventories.items():
    columns = np.asarray(inventory[SCALE])[:, 0, 0, :, None]
    tensors |= peft_files.name_tensors(path, {SCALE: columns}, _SUFFIXES)
  settings = {
    'peft_type': 'IA3',
    'feedforward_modules': [],
    'fan_in_fan_out': False,
    'init_ia3_weights': True,
    'target_modules': peft_files.choose_target_modules(
      inventories, bundle.backbone
    ),
  }
  return settings, tensors
