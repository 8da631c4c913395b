"""State dicts with mttl's names and shapes, of our random adapters."""

import numpy as np

from mhr_jax.convert import hf_names
from mhr_jax.t5 import config as config_lib


def to_state_dict(bundle, *, prefix='model.', names='all'):
  """Returns what mttl would save.

  Args:
    bundle: with routers of any scope, or none.
    prefix: of the trainer's attribute that holds the model.
    names: 'all' puts a shared router under every linear that has it, as a
      module's state dict does, 'first' under the first, as parameters are
      listed.
  """
  tensors, seen = {}, set()
  for path, linear in config_lib.list_linears(bundle.backbone).items():
    inventory = _find(bundle.params['adapters'], path)
    if inventory is None:
      continue
    for layer in range(linear.layers):
      module = f'{prefix}{hf_names.module_name(path, layer)}'
      a, b = (inventory[name][layer] for name in ('a', 'b'))
      if bundle.config.n_skills == 1:
        a, b = a[0, 0], b[0, 0]
      tensors |= {f'{module}.lora_a': a, f'{module}.lora_b': b}
      router = _router(path, layer, bundle.config.router_scope)
      logits = _logits(bundle, path, layer)
      if logits is not None and (names == 'all' or router not in seen):
        seen.add(router)
        tensors[f'{module}.selector.module_logits'] = logits
  return {name: np.ascontiguousarray(x) for name, x in tensors.items()}


def _find(tree, path):
  for part in path.split('/'):
    if part not in tree:
      return None
    tree = tree[part]
  return tree


def _router(path, layer, scope):
  """Returns what linears with the same router have in common."""
  stack, _, rest = path.partition('/')
  return {
    'module': (path, layer),
    'layer': (stack, rest.partition('/')[0], layer),
    'block': (stack, layer),
    'stack': stack,
    'model': 'model',
  }[scope]


def _logits(bundle, path, layer):
  """Returns [task, split · skill] of a linear of a layer."""
  if 'routers' not in bundle.params:
    return None
  parts = path.split('/')
  scope = bundle.config.router_scope
  router = {
    'module': path,
    'layer': '/'.join(parts[:2]),
    'block': parts[0],
    'stack': parts[0],
    'model': 'model',
  }[scope]
  logits = _find(bundle.params['routers'], router)['routing_logits']
  logits = logits if scope in ('stack', 'model') else logits[layer]
  return logits.reshape(len(logits), -1)
