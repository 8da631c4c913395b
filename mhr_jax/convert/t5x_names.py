"""T5X's parameters of a T5, beside ours: names, shapes, order of the axes.

T5X has two such networks. Its T5 1.1 (t5x/examples/t5) is unrolled and has our
names and shapes; published checkpoints are its. The other one
(t5x/examples/scalable_t5) has attention's kernels unflattened and a
relative-position table in every layer; where it is scanned, it stacks layers
on axis 1, under 'encoder/encoder'. A third one is ours: a routed model that
T5X trains with `scan_layers` has our names.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import re
from typing import Any, NamedTuple

import numpy as np

from mhr_jax.t5 import parameters
from mhr_jax.t5.config import T5Config
from mhr_jax.tree_paths import leaves_by_path

_LAYERS_AXIS = 1
_QUERY = 'attention/query/kernel'
_NORM = 'pre_mlp_layer_norm/scale'


class Layout(NamedTuple):
  """How one of T5X's networks lays its parameters out.

  Attributes:
    scanned: a leaf holds all layers, stacked on axis 1; else one layer's.
    heads_apart: attention's kernels have one axis for heads and one for a
      head's features; else one for both.
    ours: scanned as we do, under 'encoder/layers' on axis 0.
  """

  scanned: bool
  heads_apart: bool
  ours: bool = False


UNROLLED = Layout(scanned=False, heads_apart=False)
SCANNED = Layout(scanned=True, heads_apart=True)
OURS = Layout(scanned=True, heads_apart=False, ours=True)


class Leaf(NamedTuple):
  """A leaf of T5X's, beside the parameter of ours that it is, or is part of.

  Attributes:
    name: T5X's, such as 'encoder/layers_0/attention/query/kernel'.
    shape: T5X's.
    path: ours in the scanned layout: 'encoder/layers/attention/query/kernel'.
    layer: the layer of ours that it is; None where it is the whole.
    stacked: whether T5X's has the layers on axis 1, and ours on axis 0.
  """

  name: str
  shape: tuple[int, ...]
  path: str
  layer: int | None
  stacked: bool


def in_layer(stack: str, name: str, layout: Layout) -> str:
  """Returns T5X's name of a parameter of the first layer, or of all layers.

  >>> in_layer('decoder', 'mlp/wo/kernel', UNROLLED)
  'decoder/layers_0/mlp/wo/kernel'
  >>> in_layer('decoder', 'mlp/wo/kernel', SCANNED)
  'decoder/decoder/mlp/wo/kernel'
  """
  if layout.ours:
    return f'{stack}/layers/{name}'
  return f'{stack}/{stack if layout.scanned else "layers_0"}/{name}'


def find_layout(shapes: Mapping[str, tuple[int, ...]]) -> Layout:
  """Returns the layout of a checkpoint, by T5X's names and shapes."""
  if any(name.startswith('encoder/layers/') for name in shapes):
    return OURS
  scanned = any(name.startswith('encoder/encoder/') for name in shapes)
  flat = Layout(scanned, heads_apart=False)
  query = shapes.get(in_layer('encoder', _QUERY, flat), ())
  return Layout(scanned, heads_apart=len(query) == 3 + scanned)


def count_layers(
  stack: str, shapes: Mapping[str, tuple[int, ...]], layout: Layout
) -> int:
  """Returns the layers of a stack, by T5X's names and shapes."""
  if layout.scanned:
    norm = shapes.get(in_layer(stack, _NORM, layout), ())
    axis = 0 if layout.ours else _LAYERS_AXIS
    return norm[axis] if len(norm) > _LAYERS_AXIS else 0
  found = (re.match(rf'{stack}/layers_(\d+)/', name) for name in shapes)
  return 1 + max((int(layer[1]) for layer in found if layer), default=-1)


def layout_of(config: T5Config) -> Layout:
  """Returns the layout in which T5X itself would train a backbone."""
  return UNROLLED if config.relative_positions == 'stack' else SCANNED


def scanned_shapes(config: T5Config) -> dict[str, tuple[int, ...]]:
  """Returns the shape of every parameter by its path, scanned layout."""
  return {
    path: tuple(sizes.values())
    for path, sizes in _sizes_by_axis(config).items()
  }


def _sizes_by_axis(config: T5Config) -> dict[str, dict[str, int]]:
  config = dataclasses.replace(config, scan_layers=True)
  axes = leaves_by_path(
    parameters.logical_axes(config), is_leaf=lambda x: isinstance(x, tuple)
  )
  sizes: dict[str, int] = {
    'vocab': config.vocab_size,
    'embed': config.emb_dim,
    'mlp': config.mlp_dim,
    'joined_kv': config.joined_kv,
    'heads': config.num_heads,
    'relpos_buckets': config.relative_attention_num_buckets,
  }
  found = {}
  for path, names in axes.items():
    if path.startswith('encoder/'):
      sizes['layers'] = config.num_encoder_layers
    else:
      sizes['layers'] = config.num_decoder_layers
    found[path] = {name: sizes[name] for name in names}
  return found


def list_leaves(config: T5Config, layout: Layout) -> Iterator[Leaf]:
  """Yields every leaf that a T5X checkpoint of a backbone has.

  Args:
    config: the backbone.
    layout: the checkpoint's.
  """
  for path, sizes in _sizes_by_axis(config).items():
    depth = sizes.pop('layers', None)
    shape = list(sizes.values())
    if layout.heads_apart and 'joined_kv' in sizes:
      at = list(sizes).index('joined_kv')
      shape[at : at + 1] = [config.num_heads, config.head_dim]
    if depth is None:
      yield Leaf(path, tuple(shape), path, None, False)
    elif layout.ours:
      yield Leaf(path, (depth, *shape), path, None, False)
    elif layout.scanned:
      stack = path.partition('/')[0]
      shape.insert(_LAYERS_AXIS, depth)
      name = path.replace('/layers/', f'/{stack}/')
      yield Leaf(name, tuple(shape), path, None, True)
    else:
      for layer in range(depth):
        name = path.replace('/layers/', f'/layers_{layer}/')
        yield Leaf(name, tuple(shape), path, layer, False)


def as_t5x(array: Any, leaf: Leaf) -> np.ndarray:
  """Returns what T5X's leaf holds of a parameter of ours; a view, of NumPy's.

  Args:
    array: the parameter at `leaf.path`, in the scanned layout.
    leaf: which leaf.
  """
  array = np.asarray(array)
  if leaf.layer is not None:
    array = array[leaf.layer]
  if not leaf.stacked:
    return array.reshape(leaf.shape)
  shape = list(leaf.shape)
  depth = shape.pop(_LAYERS_AXIS)
  return np.moveaxis(array.reshape(depth, *shape), 0, _LAYERS_AXIS)
