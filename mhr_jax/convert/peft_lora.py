"""PEFT's `LORA` adapters: one low-rank pair a linear, lora_alpha / r.

Source: peft/tuners/lora, layer.py and config.py, of PEFT 0.21.2.
"""

from collections.abc import Mapping
import math
import re
from typing import Any, NamedTuple

from flax import traverse_util
import numpy as np

from mhr_jax import adapters as adapters_lib
from mhr_jax import run_files
from mhr_jax.adapter_folder import AdapterBundle
from mhr_jax.adapters import AdapterConfig
from mhr_jax.convert import hf_names, linear_tensors, peft_files
from mhr_jax.errors import UserError
from mhr_jax.t5.config import T5Config
from mhr_jax.task_table import TaskTable

_SUFFIXES = {'a': 'lora_A.weight', 'b': 'lora_B.weight'}
# Handled here, or of training, or (as bias) refused by the tensors they bring.
_KNOWN = (
  'alpha_pattern',
  'bias',
  'eva_config',
  'init_lora_weights',
  'lora_alpha',
  'lora_dropout',
  'megatron_core',
  'qalora_group_size',
  'r',
  'rank_pattern',
  'runtime_config',
  'use_rslora',
)
# These leave the backbone's weights as they are.
_PLAIN_STARTS = (True, False, 'gaussian', 'eva', 'orthogonal')


class _Pair(NamedTuple):
  """One adapter of one layer.

  Attributes:
    a: [rank, in].
    b: [out, rank].
    alpha: such that alpha / rank is the scale.
  """

  a: np.ndarray
  b: np.ndarray
  alpha: float

  @property
  def scale(self) -> float:
    return self.alpha / len(self.a)


def from_peft(
  settings: Mapping[str, Any],
  tensors: Mapping[str, np.ndarray],
  backbone: T5Config,
  task_table: TaskTable | None,
  *,
  where: str,
) -> AdapterBundle:
  """Makes a bundle of a LORA folder's content.

  Where linears differ in rank, narrow ones get columns of zeros; where they
  differ in scale, b makes up for it. `use_rslora` is another alpha.

  Args:
    settings: of `adapter_config.json`.
    tensors: by name.
    backbone: that they are for.
    task_table: of the tasks that share the adapter; one without a name if
      None.
    where: the folder, for messages.

  Returns:
    The bundle: one skill, uniform mixing, alpha as PEFT's.

  Raises:
    UserError: a setting or a tensor has no equivalent, or a tensor is missing
      or of another shape.
  """
  _check_settings(settings, where)
  found = peft_files.sort_tensors(tensors, _SUFFIXES, backbone, where=where)
  pairs = {path: _take_pairs(found, path, settings) for path in found.linears}
  widest = max((x for xs in pairs.values() for x in xs), key=lambda x: len(x.a))
  rank = len(widest.a)
  flat = {}
  for path, layers in pairs.items():
    same = [_widen(pair, rank, widest.scale) for pair in layers]
    flat[f'adapters/{path}/a'] = np.stack([a for a, _ in same])[:, None, None]
    flat[f'adapters/{path}/b'] = np.stack([b for _, b in same])[:, None, None]
  config = AdapterConfig(
    n_tasks=1 if task_table is None else len(task_table),
    n_skills=1,
    n_splits=1,
    rank=rank,
    alpha=widest.alpha,
    targets=linear_tensors.choose_targets(found.linears, backbone),
    mixing='uniform',
  )
  params = traverse_util.unflatten_dict(flat, sep='/')
  return AdapterBundle(config, params, task_table, backbone)


def _check_settings(settings: Mapping[str, Any], where: str) -> None:
  peft_files.check_settings(settings, _KNOWN, where=where)
  peft_files.get_count(settings, 'r', where=where)
  start = settings.get('init_lora_weights', True)
  if not isinstance(start, (str, bool)) or start not in _PLAIN_STARTS:
    raise UserError(
      f'{where} has init_lora_weights={start!r}: such an adapter is for a'
      ' backbone whose weights were changed when it was made. Convert it in'
      ' PEFT first, with save_pretrained(…,'
      ' path_initial_model_for_weight_conversion=…).'
    )
  if not settings.get('lora_alpha'):
    raise UserError(f'{where} has no lora_alpha.')
  file = f'{where}/{peft_files.CONFIG_FILE}'
  name = f'{file}: lora_alpha'
  run_files.check_kind(settings['lora_alpha'], float, where=name)
  for name, kind in (('rank_pattern', int), ('alpha_pattern', float)):
    _check_patterns(settings.get(name) or {}, kind, f'{file}: {name}')


def _check_patterns(patterns: Any, kind: type, where: str) -> None:
  run_files.check_kind(patterns, dict, where=where)
  for pattern, value in patterns.items():
    run_files.check_kind(value, kind, where=f'{where}: {pattern}')
    try:
      re.compile(pattern)
    except re.error as error:
      raise UserError(
        f'{where}: {pattern!r} is no regular expression: {error}.'
      ) from error


def _take_pairs(
  found: linear_tensors.LinearTensors, path: str, settings: Mapping[str, Any]
) -> list[_Pair]:
  """Returns a linear's adapters, layer after layer."""
  linear, pairs = found.linears[path], []
  layers = zip(found.layers(path, 'a'), found.layers(path, 'b'), strict=True)
  for layer, (a, b) in enumerate(layers):
    module = hf_names.module_name(path, layer)
    rank = _look_up(settings, 'rank_pattern', module, 'r')
    alpha = _look_up(settings, 'alpha_pattern', module, 'lora_alpha')
    found.check_shape(a, (rank, linear.in_features))
    found.check_shape(b, (linear.out_features, rank))
    if settings.get('use_rslora'):
      alpha *= math.sqrt(rank)
    pairs.append(
      _Pair(a.array.astype(np.float32), b.array.astype(np.float32), alpha)
    )
  return pairs


def _look_up(settings, patterns, module, default):
  """Returns a module's own value of a setting; patterns match as PEFT's do."""
  for pattern, value in (settings.get(patterns) or {}).items():
    if re.match(rf'(.*\.)?({pattern})$', module):
      return value
  return settings[default]


def _widen(
  pair: _Pair, rank: int, scale: float
) -> tuple[np.ndarray, np.ndarray]:
  """Returns a [in, rank] and b [rank, out] of a wider adapter, the same map."""
  more = ((0, rank - len(pair.a)), (0, 0))
  a, b = np.pad(pair.a, more).T, np.pad(pair.b.T, more)
  return a, b if pair.scale == scale else b * np.float32(pair.scale / scale)


def to_peft(
  bundle: AdapterBundle,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Returns the settings and the tensors of a LORA folder, bit for bit.

  Args:
    bundle: one adapter without routing, such as
      `adapter_folder.effective_bundle` returns.

  Raises:
    UserError: there are skills to mix, or adapters of another kind.
  """
  config = bundle.config
  peft_files.check_kind(config, 'low_rank', 'A LORA folder')
  peft_files.check_single(config, 'A LORA folder')
  inventories = adapters_lib.list_inventories(bundle.params['adapters'])
  tensors = {}
  for path, pair in inventories.items():
    arrays = {
      name: np.asarray(array)[:, 0, 0].swapaxes(-2, -1)
      for name, array in pair.items()
    }
    tensors |= peft_files.name_tensors(path, arrays, _SUFFIXES)
  whole = float(config.alpha).is_integer()
  settings = {
    'peft_type': 'LORA',
    'r': config.rank,
    'lora_alpha': int(config.alpha) if whole else config.alpha,
    'lora_dropout': 0.0,
    'bias': 'none',
    'fan_in_fan_out': False,
    'init_lora_weights': True,
    'use_dora': False,
    'use_rslora': False,
    'target_modules': peft_files.choose_target_modules(
      inventories, bundle.backbone
    ),
  }
  return settings, tensors
