"""Adapters from the checkpoints of the authors' code, mttl.

A state dict with `lora_a`, `lora_b` and, where routing is learned,
`selector.module_logits` under the modules of transformers' T5; LoRA,
Polytropon and multi-head routing. Source: microsoft/mttl at c66b20d6,
mttl/models/adapters.py and mttl/models/modifiers (poly.py, routing.py).
"""

from collections.abc import Callable, Iterator, Mapping
import logging
import re
from typing import Any, NamedTuple

from etils import epath
from flax import traverse_util
import numpy as np

from mhr_jax import checkpoints
from mhr_jax.adapter_folder import AdapterBundle
from mhr_jax.adapters import AdapterConfig
from mhr_jax.convert import (
  hf_names,
  linear_tensors,
  mttl_routers,
  tensor_files,
  torch_files,
)
from mhr_jax.errors import UserError
from mhr_jax.routing import (
  GATED_MIXINGS,
  LEARNED_MIXINGS,
  LOGITS,
  Mixing,
  MixingForm,
)
from mhr_jax.t5.config import T5Config
from mhr_jax.task_table import TaskTable

_log = logging.getLogger(__name__)

_PREFIX = 'model.'  # of the trainer's attribute
_UNIFORM = 'module_probs'
_GRANULARITY = 'router_granularity'
_KINDS = {
  'lora_a': 'a',
  'lora_b': 'b',
  'selector.module_logits': LOGITS,
  'selector.module_probs': _UNIFORM,
}
_PATTERNS = ('*.ckpt', '*.pt', '*.pth', '*.safetensors')
# Parts of other formats: where one lies, something beside it is missing.
_PARTS = re.compile(
  r'((adapter_)?model|adapter)\b.*\.safetensors|.*\.(bin|npz)'
)
# Names that transformers' T5 has for one table that is tied.
_TIED = (
  'encoder.embed_tokens.weight',
  'decoder.embed_tokens.weight',
  'lm_head.weight',
)


def read_adapter(
  path: epath.PathLike,
  backbone: T5Config,
  *,
  task_table: TaskTable | None = None,
  allow_pickle: bool = False,
  alpha: float | None = None,
  mixing: Mixing | None = None,
  on_message: Callable[[str], Any] = _log.warning,
) -> AdapterBundle:
  """Reads the adapters of an mttl checkpoint.

  What shapes do not tell is read from the checkpoint's `hyper_parameters`,
  where it has any. Routers that linears share lie under one of their names, or
  under all: without `router_granularity`, the widest scope that explains what
  is there is taken.

  Args:
    path: a checkpoint of Lightning or a state dict, pickled or in the
      safetensors format, or a folder with one such file.
    backbone: that the adapters are for.
    task_table: which row of the routing logits is which task.
    allow_pickle: whether a pickled file may be read.
    alpha: the adapters' alpha; by default `lora_alpha` of the checkpoint, or 1
      as in mttl.
    mixing: by default what the checkpoint's settings say; without settings
      'sigmoid' where there are routing logits.
    on_message: called with sentences about what was assumed or left out; by
      default they are logged as warnings.

  Raises:
    UserError: a tensor has no equivalent, is missing or misshapen, or tensors
      of a shared router differ.
  """
  path = _find_file(checkpoints.absolute(path))
  tensors, settings = _read_file(path, allow_pickle)
  found = linear_tensors.sort_tensors(
    tensors, _KINDS, backbone, where=str(path)
  )
  ignored = _check_rest(found, backbone)
  for message in _list_remarks(ignored, settings, alpha):
    on_message(f'{path}: {message}')
  splits, skills, rank, flat = _read_inventories(found)
  routers = mttl_routers.read_routers(
    found, splits, skills, settings.get(_GRANULARITY)
  )
  form = _choose_form(found, settings, mixing, learned=routers is not None)
  n_tasks, scope = 1 if task_table is None else len(task_table), 'module'
  if routers is not None:
    n_tasks, scope = routers.n_tasks, routers.scope
    flat |= {f'routers/{k}/{LOGITS}': x for k, x in routers.arrays.items()}
  elif form.mixing == 'private':
    n_tasks = skills
  config = AdapterConfig(
    n_tasks=n_tasks,
    n_skills=skills,
    n_splits=splits,
    rank=rank,
    alpha=settings.get('lora_alpha', 1.0) if alpha is None else alpha,
    targets=linear_tensors.choose_targets(found.linears, backbone),
    router_scope=scope,
    mixing=form.mixing,
    normalisation=form.normalisation,
    shared_skill=form.shared_skill,
  )
  params = traverse_util.unflatten_dict(flat, sep='/')
  return AdapterBundle(config, params, task_table, backbone)


def _list_remarks(
  ignored: int, settings: Mapping[str, Any], alpha: float | None
) -> Iterator[str]:
  """Yields what a person should know of what was left out or assumed."""
  if ignored:
    yield (
      f'{ignored} tensors of the backbone are left out; the adapters are read,'
      ' for the backbone that you name.'
    )
  if alpha is None and 'lora_alpha' not in settings:
    yield (
      'it does not tell alpha; 1 is assumed, as in mttl. Say another: alpha=….'
    )
  if settings.get('module_logits_dropout'):
    yield (
      f'module_logits_dropout={settings["module_logits_dropout"]} is left out;'
      ' mttl drops gates in evaluation, too, so its outputs vary.'
    )


def list_files(path: epath.Path) -> list[epath.Path]:
  """Returns the files of mttl's kinds that lie at a path, or are it."""
  if path.is_dir():
    found = sorted(file for x in _PATTERNS for file in path.glob(x))
  else:
    found = [path]
  return [file for file in found if not _PARTS.fullmatch(file.name)]


def _find_file(path: epath.Path) -> epath.Path:
  if not path.is_dir():
    return path
  files = list_files(path)
  if len(files) != 1:
    raise UserError(
      f'{path} has {len(files)} files of the kinds {", ".join(_PATTERNS)}. Name'
      ' the one to read.'
    )
  return files[0]


def _read_file(
  path: epath.Path, allow_pickle: bool
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Returns tensors without the trainer's prefix, and the settings."""
  settings = {}
  if path.suffix == '.safetensors':
    tensors = tensor_files.read_tensors(path)
  else:
    tensors = torch_files.read_state_dict(path, allow_pickle=allow_pickle)
    settings = torch_files.read_hyper_parameters(
      path, allow_pickle=allow_pickle
    )
  if settings.get('lora_warmup'):
    raise UserError(
      f'{path} has lora_warmup={settings["lora_warmup"]!r}: its adapters are'
      ' scaled by a count of steps that mttl does not save.'
    )
  return {k.removeprefix(_PREFIX): x for k, x in tensors.items()}, settings


def _check_rest(found: linear_tensors.LinearTensors, backbone: T5Config) -> int:
  """Returns how many tensors are the backbone's; others are refused."""
  names = {leaf.name for leaf in hf_names.list_leaves(backbone)} | set(_TIED)
  wrapped = {
    f'{hf_names.module_name(path, layer)}.layer.weight'
    for path, linear in found.linears.items()
    for layer in range(linear.layers)
  }
  others = set(found.rest) - names - wrapped
  if others:
    raise UserError(
      f'{found.where} holds tensors that have no equivalent here:'
      f" {linear_tensors.list_some(others)}. Low-rank adapters on a T5's"
      ' linears and their routing logits are read.'
    )
  return len(found.rest)


class _Inventories(NamedTuple):
  splits: int
  skills: int
  rank: int
  arrays: dict[str, np.ndarray]


def _read_inventories(found: linear_tensors.LinearTensors) -> _Inventories:
  path = next(iter(found.linears))
  name, first = found.layers(path, 'a')[0]
  if first.ndim not in (2, 4):
    raise UserError(
      f'{found.where}: {name} has the shape {first.shape}; [in, rank] or'
      ' [split, skill, in / split, rank] is wanted.'
    )
  lead = first.shape[:-2]
  splits, skills = lead or (1, 1)
  rank = first.shape[-1]
  flat = {}
  for path, linear in found.linears.items():
    ins, outs = linear.in_features // splits, linear.out_features // splits
    a = found.stack(path, 'a', (*lead, ins, rank))
    b = found.stack(path, 'b', (*lead, rank, outs))
    shape = (linear.layers, splits, skills)
    flat[f'adapters/{path}/a'] = a.reshape(*shape, ins, rank)
    flat[f'adapters/{path}/b'] = b.reshape(*shape, rank, outs)
  return _Inventories(splits, skills, rank, flat)


def _choose_form(
  found: linear_tensors.LinearTensors,
  settings: Mapping[str, Any],
  mixing: Mixing | None,
  *,
  learned: bool,
) -> MixingForm:
  if mixing is None:
    mixing = (
      _learned_mixing(settings) if learned else _fixed_mixing(found, settings)
    )
  if learned != (mixing in LEARNED_MIXINGS):
    has = 'has' if learned else 'has no'
    raise UserError(
      f'{found.where} {has} routing logits, and mixing={mixing!r} was asked'
      ' for.'
    )
  if mixing not in GATED_MIXINGS:
    return MixingForm(mixing)
  return MixingForm(
    mixing,
    'sqrt' if settings.get('poly_average_correction') else 'sum',
    bool(settings.get('poly_use_shared_skill')),
  )


def _learned_mixing(settings: Mapping[str, Any]) -> Mixing:
  if settings.get('module_logits_l2_norm'):
    return 'l2_norm'
  if settings.get('module_logits_straight_through'):
    return 'straight_through'
  if settings.get('module_logits_relaxed_bernoulli'):
    return 'relaxed_bernoulli'
  return 'sigmoid'


def _fixed_mixing(
  found: linear_tensors.LinearTensors, settings: Mapping[str, Any]
) -> Mixing:
  path = next(iter(found.linears))
  _, first = found.layers(path, 'a')[0]
  selector = settings.get('router_selector')
  averaged = any(found.by_layer(x, _UNIFORM) for x in found.linears)
  if first.ndim == 2 or averaged or selector == 'average':
    return 'uniform'
  if selector == 'private' or settings.get('model_modifier') == 'skilled':
    return 'private'
  raise UserError(
    f'{found.where} has several skills and neither routing logits nor a'
    " router_selector that does without them. Say mixing='private' (one skill"
    " a task) or 'uniform' (their average)."
  )
