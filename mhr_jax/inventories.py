"""Inventories: what the adapters of a linear are, kind by kind.

  kind      leaves, a layer                        the linear computes
  low_rank  a [split, skill, in/split, rank],      x W + (x a) b
            b [split, skill, rank, out/split]
  ia3       scale [split, skill, out/split]        (x W) · scale

All in which the kinds differ before the network is here: shapes, axes and how
an inventory is mixed into one adapter. Whoever stores, counts, trains or moves
adapters maps over their leaves.

Sources: Hu et al. 2022 (arXiv:2106.09685) for low-rank pairs; Liu et al. 2022
(arXiv:2205.05638), section 3.3, for (IA)³. Their inventories: the authors'
code, microsoft/mttl, `SkilledLoRA` at c66b20d6 and `PolyIA3Linear` at
ce4ca51d.
"""

from collections.abc import Mapping
from typing import Literal, Protocol

from jax import numpy as jnp
from jaxtyping import Array, Float

from mhr_jax import placement

AdapterKind = Literal['low_rank', 'ia3']

SCALE = 'scale'
"""The leaf of (IA)³: what each output feature is multiplied by."""

Inventory = Mapping[str, Float[Array, '...']]

_LEAF_AXES: dict[str, tuple[str, ...]] = {
  'a': ('in', 'rank'),
  'b': ('rank', 'out'),
  SCALE: ('out',),
}
_LEAVES: dict[str, tuple[str, ...]] = {'low_rank': ('a', 'b'), 'ia3': (SCALE,)}


class InventorySize(Protocol):
  """What decides an inventory's shapes, such as an `AdapterConfig`."""

  @property
  def kind(self) -> AdapterKind: ...
  @property
  def n_skills(self) -> int: ...
  @property
  def n_splits(self) -> int: ...
  @property
  def rank(self) -> int: ...


def split_features(
  kind: AdapterKind, in_features: int, out_features: int
) -> tuple[int, ...]:
  """Returns the features of a linear that n_splits must divide."""
  axes = {axis for leaf in _LEAVES[kind] for axis in _LEAF_AXES[leaf]}
  features = {'in': in_features, 'out': out_features}
  return tuple(size for axis, size in features.items() if axis in axes)


def leaf_shapes(
  size: InventorySize, in_features: int, out_features: int
) -> dict[str, tuple[int, ...]]:
  """Returns the shapes of one linear's leaves in one layer, by name."""
  block = {
    'in': in_features // size.n_splits,
    'out': out_features // size.n_splits,
    'rank': size.rank,
  }
  return {
    leaf: (
      size.n_splits,
      size.n_skills,
      *(block[axis] for axis in _LEAF_AXES[leaf]),
    )
    for leaf in _LEAVES[size.kind]
  }


def leaf_axes(
  kind: AdapterKind, in_axis: str, out_axis: str
) -> dict[str, tuple[str, ...]]:
  """Returns the logical axes of one linear's leaves, stacked over layers.

  Args:
    kind: of the adapters.
    in_axis: the name of the input features' axis, that of the kernel.
    out_axis: likewise, of the output features.
  """
  names = {'in': in_axis, 'out': out_axis, 'rank': 'rank'}
  lead = ('layers', 'split', 'skill')
  return {
    leaf: (*lead, *(names[axis] for axis in _LEAF_AXES[leaf]))
    for leaf in _LEAVES[kind]
  }


def read_features(inventory: Inventory) -> tuple[int, int]:
  """Returns a linear's features, in and out, from its stacked leaves.

  The input's are 0 for (IA)³, which says nothing of them.
  """
  if SCALE in inventory:
    _, splits, _, out_block = inventory[SCALE].shape
    return 0, splits * out_block
  _, splits, _, in_block, _ = inventory['a'].shape
  return splits * in_block, splits * inventory['b'].shape[-1]


def mix_adapter(
  inventory: Inventory,
  weights: Float[Array, '... batch split skill'],
  scale: float = 1.0,
) -> dict[str, Float[Array, '...']]:
  """Mixes one linear's inventory into one adapter an example.

  The same function serves all layers at once, with a leading layer axis on
  every argument, and one layer inside the network, without.

  Of (IA)³ the change that a skill makes is what is mixed: 1 + Σ w (scale - 1).
  Where the weights sum to 1 that is Σ w scale, as mttl has it. Where they do
  not, the linear itself is not weighed with them; and a matrix product in an
  accelerator's fast float32 rounds the change and not the 1.

  Args:
    inventory: `a` [..., split, skill, in/split, rank] and `b` [..., split,
      skill, rank, out/split], or `scale` [..., split, skill, out/split].
    weights: the mixing weights; batch 1 gives one adapter for all examples.
    scale: factor on a low-rank pair's product; goes into b.

  Returns:
    `a` [..., batch, in, rank] and `b` [..., batch, rank, out], or `scale`
    [..., batch, out].
  """
  leaf = next(iter(inventory.values()))
  weights = jnp.moveaxis(weights.astype(leaf.dtype), -2, -3)
  if SCALE in inventory:
    changes = (inventory[SCALE] - 1)[..., None]
    change = _mix_blocks(weights, changes, features=-2)[..., 0]
    change = jnp.moveaxis(change, -3, -2)
    return {SCALE: 1 + change.reshape(*change.shape[:-2], -1)}
  a = _mix_blocks(weights, inventory['a'], features=-2)
  b = _mix_blocks(weights * scale, inventory['b'], features=-1)
  *lead, splits, batch, in_block, rank = a.shape
  a = jnp.moveaxis(a, -4, -3)
  b = jnp.moveaxis(b, -4, -2)
  return {
    'a': a.reshape(*lead, batch, splits * in_block, rank),
    'b': b.reshape(*lead, batch, rank, splits * b.shape[-1]),
  }


def _mix_blocks(weights, blocks, *, features):
  """[..., split, batch, skill] x [..., split, skill, x, y] -> [..., x, y].

  One matrix product a layer and split: two to three times as fast on CPU as
  the einsum with x and y apart, in both directions. Spread over devices, x and
  y stay apart, since either may be what is spread.

  Args:
    weights: the mixing weights.
    blocks: one leaf of an inventory.
    features: which axis has the features, -2 or -1.
  """
  if placement.is_spread():
    return _mix_spread_blocks(weights, blocks, features)
  *lead, x, y = blocks.shape
  mixed = weights @ blocks.reshape(*lead, x * y)
  return mixed.reshape(*mixed.shape[:-1], x, y)


def _mix_spread_blocks(weights, blocks, features):
  """Mixes an inventory that lies on many devices; none of it is gathered.

  Every device mixes the features that it holds for all rows of the batch,
  whose weights are small, and the rows then go where they are read.
  """
  data, model = placement.DATA_AXIS, placement.MODEL_AXIS
  weights = placement.constrain_axis(weights, -2, None)
  mixed = jnp.einsum('...bk,...kxy->...bxy', weights, blocks)
  mixed = placement.constrain_axis(mixed, -3, None)
  splits = blocks.shape[-4]
  if splits == 1 or splits % placement.axis_size(model) == 0:
    return placement.constrain_axis(mixed, -3, data)
  # Joined, features would lie over `model` in an order that nobody reads.
  # Rows move first, then features: at once, XLA would replicate everything.
  lead = [placement.LEAVE] * (mixed.ndim - 4)
  sides = (model, None) if features == -2 else (None, model)
  mixed = placement.constrain(mixed, *lead, None, data, *sides)
  return placement.constrain(mixed, *lead, None, data)


def cast_adapter(
  adapter: Mapping[str, Float[Array, '...']], dtype: jnp.dtype
) -> dict[str, Float[Array, '...']]:
  """Returns a mixed adapter in the network's dtype.

  An (IA)³ scale has float32 at least: next to 1, bfloat16 has steps of 1/128.
  """
  wide = jnp.promote_types(dtype, jnp.float32)
  return {
    leaf: x.astype(wide if leaf == SCALE else dtype)
    for leaf, x in adapter.items()
  }
