"""The 13 single-layer cases of the authors' code, in our names and shapes.

Reference: microsoft/mttl at c66b20d6 (the camera-ready code), run in float64;
`fixtures/mttl_parity` of the shared folder. Everything is read under
`jax.enable_x64` by the tests that use it: arrays here are NumPy's.
"""

from collections.abc import Callable
import dataclasses
import json
from typing import Any

import numpy as np

NAMES = (
  'mhr_eval',
  'mhr_train_relaxed',
  'mhr_train_sigmoid',
  'mhr_alpha16',
  'mhr_l2norm',
  'mhr_straight_through',
  'mhr_avg_correction',
  'mhr_shared_skill',
  'poly_eval',
  'average_selector',
  'skilled_private',
  'mhr_beam_repeat2',
  'lora',
)
_LEAVES = {'A': 'a', 'B': 'b', 'module_logits': 'routing_logits'}
# From here on, a gradient is the 1 / 1e-12 of a row that rounded to nothing.
_RUNAWAY = 1e9

Leaves = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class MttlCase:
  """One case.

  Attributes:
    name: of `NAMES`.
    settings: keyword arguments of `AdapterConfig`.
    x: [rows, length, in]; rows are one or more contiguous ones an example.
    kernel: [in, out].
    leaves: `a` [split, skill, in/split, rank], `b` [split, skill, rank,
      out/split] and, where routing is learned, `routing_logits` [task, split,
      skill], as the reference has them.
    arrange: turns `leaves` into those that a layer is handed; differentiate
      through it. It is the identity but for 'skilled_private'.
    task_ids: [batch] of the arranged leaves.
    noise: [batch, split, skill] in (0, 1), or None where none was drawn.
    mixing_weights: [batch, split, skill], or None where not recorded.
    y: [rows, length, out].
    cotangent: of y, or None where no gradients were recorded.
    gradients: of `leaves`, with NaN where the reference's are runaway.
  """

  name: str
  settings: dict[str, Any]
  x: np.ndarray
  kernel: np.ndarray
  leaves: Leaves
  arrange: Callable[[Leaves], Leaves]
  task_ids: np.ndarray
  noise: np.ndarray | None
  mixing_weights: np.ndarray | None
  y: np.ndarray
  cotangent: np.ndarray | None
  gradients: Leaves


def load_case(shared_dir, name: str) -> MttlCase:
  """Reads a case of `NAMES`."""
  folder = shared_dir / 'fixtures' / 'mttl_parity'
  meta = json.loads((folder / 'meta.json').read_text())[name]
  with np.load(folder / 'fixtures.npz') as file:
    arrays = {
      key.partition('/')[2]: file[key]
      for key in file.files
      if key.startswith(f'{name}/')
    }
  task_ids = arrays.get('task_ids', np.zeros(len(arrays['x']), int))
  settings, arrange = _settings(meta, name), dict
  if name == 'skilled_private':
    settings |= {'n_tasks': len(task_ids), 'n_skills': len(task_ids)}
    arrange = _as_the_reference_scrambles(task_ids)
    task_ids = np.arange(len(task_ids))
  return MttlCase(
    name=name,
    settings=settings,
    x=arrays['x'],
    kernel=arrays['W'].T,
    leaves=_leaves(arrays, '', settings['n_splits']),
    arrange=arrange,
    task_ids=task_ids,
    noise=arrays.get('u'),
    mixing_weights=arrays.get('mixing'),
    y=arrays['y'],
    cotangent=arrays.get('cotangent'),
    gradients={
      leaf: np.where(abs(value) < _RUNAWAY, value, np.nan)
      for leaf, value in _leaves(arrays, 'd', settings['n_splits']).items()
    },
  )


def _leaves(arrays, prefix, n_splits):
  found = {
    ours: arrays[prefix + theirs]
    for theirs, ours in _LEAVES.items()
    if prefix + theirs in arrays
  }
  for leaf in ('a', 'b'):
    if leaf in found and found[leaf].ndim == 2:  # plain LoRA
      found[leaf] = found[leaf][None, None]
  if 'routing_logits' in found:
    logits = found['routing_logits']
    found['routing_logits'] = logits.reshape(len(logits), n_splits, -1)
  return found


def _settings(meta, name):
  settings = {
    'n_tasks': meta['n_tasks'],
    'n_skills': meta['n_skills'],
    'n_splits': meta['n_splits'],
    'rank': meta['lora_rank'],
    'alpha': meta['lora_alpha'],
    'mixing': _mixing(meta),
  }
  if name == 'lora':
    settings |= {'n_skills': 1, 'n_splits': 1, 'mixing': 'uniform'}
  # Only where asked for, so that the other cases hold the defaults too.
  if meta['poly_average_correction']:
    settings['normalisation'] = 'sqrt'
  if meta['poly_use_shared_skill']:
    settings['shared_skill'] = True
  return settings


def _mixing(meta):
  if meta['router_selector'] != 'poly':
    return {'average': 'uniform', 'private': 'private'}[meta['router_selector']]
  if meta['module_logits_l2_norm']:
    return 'l2_norm'
  if meta['module_logits_straight_through']:
    return 'straight_through'
  relaxed = meta['module_logits_relaxed_bernoulli']
  return 'relaxed_bernoulli' if relaxed else 'sigmoid'


def _as_the_reference_scrambles(task_ids):
  """Returns private adapters, one an example, as the reference gets them.

  Its selector joins the rows of all examples' b in the order [rank, example]
  and cuts them apart as [example, rank]: at rank > 1 an example gets rows of
  others. Done here to the leaves, so that the layer itself is compared.
  """

  def arrange(leaves):
    a, b = leaves['a'], leaves['b']
    b = b[:, task_ids].swapaxes(1, 2)
    splits, rank, batch, features = b.shape
    return {
      'a': a[:, task_ids],
      'b': b.reshape(splits, batch, rank, features),
    }

  return arrange
