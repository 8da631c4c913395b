"""The backbone's parameters as a tree: logical axes, and its two layouts.

Scanned, `encoder/layers/…` holds every layer stacked on axis 0; unrolled,
`encoder/layers_0/…`, `encoder/layers_1/…` hold one each, as in T5X's published
checkpoints. Conversion between the two is exact.
"""

from collections.abc import Callable, Mapping
import re
from typing import Any

import jax
import jax.numpy as jnp

from mhr_jax.t5 import config as config_lib
from mhr_jax.t5 import storage

STACKS: tuple[config_lib.Stack, ...] = ('encoder', 'decoder')
_LAYER = re.compile(r'layers_(\d+)')


def stack_layers(
  params: Mapping[str, Any], config: config_lib.T5Config
) -> dict[str, Any]:
  """Returns unrolled parameters in scanned form.

  Args:
    params: the backbone with `layers_N` subtrees.
    config: the backbone; says how many layers there are.

  Returns:
    The same leaves, those of layers stacked on a new axis 0.

  Raises:
    ValueError: params have other layers than config.
  """

  def stack(subtree: Mapping[str, Any], depth: int) -> dict[str, Any]:
    found = sorted(name for name in subtree if _LAYER.fullmatch(name))
    names = [f'layers_{i}' for i in range(depth)]
    if found != sorted(names):
      raise ValueError(f'Expected layers_0 to layers_{depth - 1}, not {found}.')
    layers = [subtree[name] for name in names]
    rest = {k: v for k, v in subtree.items() if k not in names}
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    return rest | {'layers': stacked}

  return _map_stacks(stack, params, config)


def unstack_layers(
  params: Mapping[str, Any], config: config_lib.T5Config
) -> dict[str, Any]:
  """Returns scanned parameters in unrolled form.

  Args:
    params: the backbone with stacked `layers`.
    config: the backbone; says how many layers there are.

  Returns:
    The same leaves, one `layers_N` subtree a layer.

  Raises:
    ValueError: params have other layers than config.
  """

  def unstack(subtree: Mapping[str, Any], depth: int) -> dict[str, Any]:
    layers = subtree['layers']
    found = {leaf.shape[0] for leaf in jax.tree.leaves(layers)}
    if found != {depth}:
      raise ValueError(f'Expected {depth} stacked layers, not {found}.')
    rest = {k: v for k, v in subtree.items() if k != 'layers'}
    return rest | {
      f'layers_{i}': jax.tree.map(lambda leaf, i=i: leaf[i], layers)
      for i in range(depth)
    }

  return _map_stacks(unstack, params, config)


def _map_stacks(
  convert: Callable[[Mapping[str, Any], int], dict[str, Any]],
  params: Mapping[str, Any],
  config: config_lib.T5Config,
) -> dict[str, Any]:
  depths = {name: config.num_layers(name) for name in STACKS}
  converted = {name: convert(params[name], depths[name]) for name in STACKS}
  return {**params, **converted}


_NORM = {'scale': ('embed',)}
_ATTENTION = {
  'query': {'kernel': ('embed', 'joined_kv')},
  'key': {'kernel': ('embed', 'joined_kv')},
  'value': {'kernel': ('embed', 'joined_kv')},
  'out': {'kernel': ('joined_kv', 'embed')},
}
_POSITIONS = {'rel_embedding': ('heads', 'relpos_buckets')}


def linear_axes(linear: str) -> tuple[str, ...]:
  """Returns the names of the axes of a linear's kernel, without layers.

  Args:
    linear: the last part of its path, such as 'query', 'wi_0' or 'wo'.
  """
  if linear == 'wo':
    return ('mlp', 'embed')
  return _ATTENTION.get(linear, {'kernel': ('embed', 'mlp')})['kernel']


def _layer_axes(config: config_lib.T5Config, stack: str) -> dict[str, Any]:
  mlp = {name: {'kernel': ('embed', 'mlp')} for name in config.mlp_inputs}
  axes: dict[str, Any] = {
    'pre_mlp_layer_norm': _NORM,
    'mlp': mlp | {'wo': {'kernel': ('mlp', 'embed')}},
  }
  if config.relative_positions == 'layer':
    axes['relpos_bias'] = _POSITIONS
  if stack == 'encoder':
    return axes | {
      'pre_attention_layer_norm': _NORM,
      'attention': _ATTENTION,
    }
  return axes | {
    'pre_self_attention_layer_norm': _NORM,
    'self_attention': _ATTENTION,
    'pre_cross_attention_layer_norm': _NORM,
    'encoder_decoder_attention': _ATTENTION,
  }


def _stack_axes(
  config: config_lib.T5Config, stack: config_lib.Stack
) -> dict[str, Any]:
  layer = _layer_axes(config, stack)
  axes: dict[str, Any] = {f'{stack}_norm': _NORM}
  if config.relative_positions == 'stack':
    axes['relpos_bias'] = _POSITIONS
  if not config.scan_layers:
    depth = config.num_layers(stack)
    return axes | {f'layers_{i}': layer for i in range(depth)}
  stacked = jax.tree.map(
    lambda names: ('layers', *names), layer, is_leaf=_is_axes
  )
  return axes | {'layers': stacked}


def _is_axes(node: Any) -> bool:
  return isinstance(node, tuple)


def logical_axes(config: config_lib.T5Config) -> dict[str, Any]:
  """Returns the names of every parameter's axes.

  Args:
    config: the backbone; `scan_layers` says which layout.

  Returns:
    A tree with the parameters' structure; a leaf is a tuple with one name an
    axis, such as ('layers', 'embed', 'joined_kv'). Names are T5X's.
  """
  axes: dict[str, Any] = {stack: _stack_axes(config, stack) for stack in STACKS}
  axes['token_embedder'] = {'embedding': ('vocab', 'embed')}
  if not config.logits_via_embedding:
    axes['decoder']['logits_dense'] = {'kernel': ('embed', 'vocab')}
  return storage.add_scale_axes(axes) if config.storage == 'int8' else axes
