"""Backbones from and to T5X's checkpoints, without T5X.

Read are both forms of its files (`t5x_files`), of both of its networks
(`t5x_names`); written is the form that T5X writes today.
"""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

from etils import epath
from flax import traverse_util
import numpy as np

from mhr_jax import tree_check
from mhr_jax.convert import t5x_files, t5x_names, t5x_tree
from mhr_jax.errors import UserError, nearest
from mhr_jax.t5 import config as config_lib
from mhr_jax.t5 import parameters
from mhr_jax.t5.config import T5Config
from mhr_jax.tree_paths import leaves_by_path

_Shapes = Mapping[str, tuple[int, ...]]

_EMBEDDING = 'token_embedder/embedding'
_LOGITS = 'decoder/logits_dense/kernel'
_TABLE = 'relpos_bias/rel_embedding'
_SHARED_TABLE = f'encoder/{_TABLE}'
_QUERY = 'attention/query/kernel'
# The activations that T5's versions with these hidden projections have.
_ACTIVATIONS = {'wi': ('relu',), 'wi_0': ('gelu', 'linear')}


def is_checkpoint(folder: epath.PathLike) -> bool:
  """Whether a folder is `checkpoint_N` as T5X wrote it, or holds such."""
  return t5x_files.holds_checkpoint(folder)


def infer_config(folder: epath.PathLike) -> T5Config:
  """Returns the backbone that a checkpoint holds, as its shapes tell.

  Shapes do not tell all. Assumed are what published T5s have: the gelu of two
  hidden projections and the relu of one, relative positions up to distance
  128, and the ids 0, 1 and 0 of padding, end and the decoder's start.

  Args:
    folder: `checkpoint_N`, or a folder of several, of which the newest counts.

  Returns:
    The config, scanned.

  Raises:
    UserError: there is no checkpoint, or it is no T5's.
  """
  with t5x_files.open_part(folder) as target:
    return _infer(target.shapes, target.where)


def read_backbone(
  folder: epath.PathLike,
  config: T5Config | None = None,
  *,
  dtype: str = 'float32',
) -> tuple[T5Config, dict[str, Any]]:
  """Returns the backbone of a checkpoint, in the scanned layout.

  Leaves are read one after the other, the largest first, straight into their
  places: reading needs little more memory than the backbone. Adapters, routers
  and optimizer state are left out (see `t5x_routed`).

  Args:
    folder: `checkpoint_N`, or a folder of several, of which the newest counts.
    config: the backbone expected; by default `infer_config`'s.
    dtype: of the arrays returned, 'float32' or 'bfloat16'.

  Returns:
    The config, scanned, and its parameters: NumPy arrays.

  Raises:
    UserError: there is no checkpoint, or a leaf is missing, extra, of another
      shape or not readable.
  """
  config_lib.check_dtype(dtype)
  with t5x_files.open_part(folder) as target:
    if config is None:
      config = _infer(target.shapes, target.where)
    config = dataclasses.replace(config, scan_layers=True)
    shapes = {
      name: shape
      for name, shape in target.shapes.items()
      if not t5x_tree.is_added(name)
    }
    layout = t5x_names.find_layout(shapes)
    leaves = list(t5x_names.list_leaves(config, layout))
    tree_check.check_tree(
      t5x_files.as_tree(shapes),
      t5x_files.as_tree({leaf.name: leaf.shape for leaf in leaves}),
      where=target.where,
    )
    arrays = {
      path: np.empty(shape, dtype)
      for path, shape in t5x_names.scanned_shapes(config).items()
    }
    # A leaf in hand is in memory twice: the large ones while others are not.
    for leaf in sorted(leaves, key=lambda leaf: -math.prod(leaf.shape)):
      t5x_names.as_t5x(arrays[leaf.path], leaf)[...] = target.read(leaf.name)
  return config, traverse_util.unflatten_dict(arrays, sep='/')


def _infer(shapes: _Shapes, where: str) -> T5Config:
  layout = t5x_names.find_layout(shapes)

  def in_layer(name: str) -> str:
    return t5x_names.in_layer('encoder', name, layout)

  def find(*names: str) -> tuple[int, ...]:
    for name in names:
      if len(shapes.get(name, ())) > 1:
        return shapes[name]
    raise UserError(
      f'{where} is no T5 of T5X: its {names[0]} is'
      f' {shapes.get(names[0], "absent")}.{nearest(names[0], shapes)}'
    )

  vocab_size, emb_dim, *_ = find(_EMBEDDING)
  num_heads, *_, buckets = find(_SHARED_TABLE, in_layer(_TABLE))
  joined_kv = find(in_layer(_QUERY))[-1]
  wi = 'wi_0' if in_layer('mlp/wi_0/kernel') in shapes else 'wi'
  return T5Config(
    vocab_size=vocab_size,
    emb_dim=emb_dim,
    num_heads=num_heads,
    head_dim=joined_kv if layout.heads_apart else joined_kv // num_heads,
    mlp_dim=find(in_layer(f'mlp/{wi}/kernel'))[-1],
    num_encoder_layers=t5x_names.count_layers('encoder', shapes, layout),
    num_decoder_layers=t5x_names.count_layers('decoder', shapes, layout),
    mlp_activations=_ACTIVATIONS[wi],
    logits_via_embedding=_LOGITS not in shapes,
    relative_positions='stack' if _SHARED_TABLE in shapes else 'layer',
    relative_attention_num_buckets=buckets,
  )


def write_checkpoint(
  folder: epath.PathLike,
  config: T5Config,
  backbone: Mapping[str, Any],
  *,
  step: int = 0,
) -> epath.Path:
  """Writes `checkpoint_<step>` in T5X's current form, whole or not at all.

  It is unrolled, as published T5s are; where every layer has a table of
  relative positions, it is T5X's scanned network. There is no optimizer
  state.

  Args:
    folder: what holds the checkpoints.
    config: the backbone.
    backbone: its parameters, scanned or unrolled as config says; they keep
      their types.
    step: the step at which T5X goes on.

  Returns:
    The checkpoint's folder.

  Raises:
    UserError: the folder is one checkpoint, or holds that step or a later
      one; or the parameters are not config's.
  """
  arrays = leaves_by_path(backbone)
  tree_check.check_tree(
    arrays,
    t5x_files.as_tree(_our_shapes(config)),
    where='The backbone to write',
  )
  layout = t5x_names.layout_of(config)
  if layout.scanned and not config.scan_layers:
    arrays = leaves_by_path(parameters.stack_layers(backbone, config))
  target = {}
  for leaf in t5x_names.list_leaves(config, layout):
    if leaf.name in arrays:
      target[leaf.name] = np.asarray(arrays[leaf.name])
    else:
      target[leaf.name] = t5x_names.as_t5x(arrays[leaf.path], leaf)
  return t5x_files.write_state(
    folder, traverse_util.unflatten_dict(target, sep='/'), step=step
  )


def _our_shapes(config: T5Config) -> _Shapes:
  if config.scan_layers:
    return t5x_names.scanned_shapes(config)
  # Unrolled, the names are T5X's.
  unrolled = t5x_names.list_leaves(config, t5x_names.UNROLLED)
  return {leaf.name: leaf.shape for leaf in unrolled}
