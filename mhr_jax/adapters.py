"""Adapters: inventories of them, and mixing an inventory into one adapter.

The second stage of the data flow. A linear's inventory holds `n_skills`
low-rank pairs (a, b), each cut into `n_splits` blocks of features with their
own mixing weights. Mixing averages a and b apart, block by block, and joins
the blocks: every example gets one plain LoRA, `y = x W + (x a) b`, with the
scale alpha / rank already in b. With one split this is Polytropon, with one
skill too it is LoRA. Adapters of the kind 'ia3' are vectors instead: every
example gets one scale of the output's features, `y = (x W) · scale`. What
the kinds differ in is in `mhr_jax.inventories`.

References: Caccia et al. 2023 (arXiv:2211.03831), section 3; the authors'
code, microsoft/mttl at c66b20d6, mttl/models/adapters.py (`SkilledLoRA`).
"""

from collections.abc import Mapping
import dataclasses
import re
from typing import Any, NamedTuple, Protocol

from flax import traverse_util
import jax
from jax import numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray, PyTree

from mhr_jax import inventories, routing
from mhr_jax.errors import UserError, nearest
from mhr_jax.inventories import AdapterKind, mix_adapter
from mhr_jax.setting_checks import check_fields

Adapters = PyTree[Float[Array, '...']]


class LinearShape(NamedTuple):
  """A linear of the network: one in each of `layers` layers.

  Where it was read from (IA)³ alone, `in_features` is 0: not known.
  """

  layers: int
  in_features: int
  out_features: int


class LinearLike(Protocol):
  """Anything with the fields of `LinearShape`, such as `t5.config.Linear`."""

  @property
  def layers(self) -> int: ...
  @property
  def in_features(self) -> int: ...
  @property
  def out_features(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
  """Which linears are adapted, by what, and how tasks are routed.

  Attributes:
    n_tasks: rows of the routing logits.
    n_skills: adapters in a linear's inventory (K).
    n_splits: blocks of features with routing of their own (S); must divide
      the input and output features of every adapted linear; of 'ia3', which
      has no input side, the output features.
    rank: of each low-rank pair; 'ia3' has none.
    alpha: a low-rank pair's output is scaled by alpha / rank; 'ia3' has none.
    targets: regular expressions; a linear is adapted when one of them
      matches the whole of its path, such as 'encoder/attention/query'.
    router_scope: which linears share a router.
    mixing: how routing logits become weights (`routing.MixingForm`).
    normalisation: likewise; of the gates of a `mixing` that has gates.
    shared_skill: likewise.
    router_init: how routing logits are drawn (`routing.init_routers`).
    kind: what an adapter is: a low-rank pair, added, or an (IA)³ scale of the
      output's features (`mhr_jax.inventories`). Methods set it themselves.
  """

  n_tasks: int
  n_skills: int = 8
  n_splits: int = 1
  rank: int = 1
  alpha: float = 1.0
  targets: tuple[str, ...] = ('.*',)
  router_scope: routing.RouterScope = 'module'
  mixing: routing.Mixing = 'sigmoid'
  normalisation: routing.Normalisation = 'sum'
  shared_skill: bool = False
  router_init: routing.RouterInit = 'uniform'
  kind: AdapterKind = 'low_rank'

  def __post_init__(self):
    targets = self.targets
    targets = (targets,) if isinstance(targets, str) else tuple(targets)
    object.__setattr__(self, 'targets', targets)
    counts = ('n_tasks', 'n_skills', 'n_splits', 'rank')
    check_fields(self, least=dict.fromkeys(counts, 1), above={'alpha': 0})
    if self.kind == 'ia3' and (self.rank, self.alpha) != (1, 1):
      raise UserError(
        f"kind='ia3' has no rank and no alpha, and rank={self.rank},"
        f' alpha={self.alpha} are set: leave both out.'
      )
    if self.mixing_form.shared_skill and self.n_skills == 1:
      raise UserError(
        'shared_skill=True keeps one skill on for all tasks, and n_skills is'
        ' 1: nothing is left to route. Have more skills, or leave it out.'
      )
    if self.mixing == 'private' and self.n_skills != self.n_tasks:
      raise UserError(
        f'Private mixing has one skill a task: n_skills is {self.n_skills},'
        f' n_tasks {self.n_tasks}.'
      )

  @property
  def scale(self) -> float:
    """The factor on an adapter's output."""
    return self.alpha / self.rank

  @property
  def mixing_form(self) -> routing.MixingForm:
    """How routing logits become weights."""
    return routing.MixingForm(
      self.mixing, self.normalisation, self.shared_skill
    )

  @property
  def has_routers(self) -> bool:
    """Whether the mixing weights are learned."""
    return self.mixing in routing.LEARNED_MIXINGS

  def of_kind(self, kind: AdapterKind) -> 'AdapterConfig':
    """Returns the config of another kind; 'ia3' drops rank and alpha."""
    if kind == 'ia3':
      return dataclasses.replace(self, kind=kind, rank=1, alpha=1.0)
    return dataclasses.replace(self, kind=kind)

  def without_routing(self, n_tasks: int | None = None) -> 'AdapterConfig':
    """Returns the config of one adapter a linear, the same for all tasks.

    Args:
      n_tasks: of the new config; as before by default.
    """
    return dataclasses.replace(
      self,
      n_tasks=self.n_tasks if n_tasks is None else n_tasks,
      n_skills=1,
      n_splits=1,
      mixing='uniform',
      normalisation='sum',
      shared_skill=False,
      router_init='uniform',
    )


def select_linears(
  config: AdapterConfig, linears: Mapping[str, LinearLike]
) -> dict[str, LinearLike]:
  """Returns the linears that are adapted, in the network's order.

  Raises:
    UserError: a target is no regular expression or matches no linear, or
      n_splits does not divide a matched linear's features.
  """
  chosen = set()
  for target in config.targets:
    try:
      pattern = re.compile(target)
    except re.error as error:
      raise UserError(
        f'The target {target!r} is no regular expression: {error}.'
      ) from error
    matched = {path for path in linears if pattern.fullmatch(path)}
    if not matched:
      raise UserError(
        f'The target {target!r} matches no linear (it must match the whole'
        f' path).{nearest(target, linears, limit=32)}'
      )
    chosen |= matched
  result = {path: linears[path] for path in linears if path in chosen}
  _check_splits(config, result)
  return result


def _check_splits(config, linears):
  n_splits = config.n_splits
  split = {
    path: inventories.split_features(config.kind, x.in_features, x.out_features)
    for path, x in linears.items()
  }
  sizes = [size for features in split.values() for size in features]
  for path, linear in linears.items():
    if any(size % n_splits for size in split[path]):
      fits = [
        n
        for n in range(1, min(sizes) + 1)
        if all(size % n == 0 for size in sizes)
      ]
      raise UserError(
        f'n_splits={n_splits} does not divide {path}:'
        f' {linear.in_features} features in, {linear.out_features} out.'
        f' For the adapted linears n_splits may be {_listed(fits)}.'
      )


def _listed(numbers):
  return ', '.join(str(n) for n in numbers)


def init_adapters(
  key: PRNGKeyArray, config: AdapterConfig, linears: Mapping[str, LinearLike]
) -> Adapters:
  """Draws the inventories of the adapted linears.

  Args:
    key: source of randomness.
    config: which linears, how many skills and splits, which rank.
    linears: all linears of the network by path.

  Returns:
    Nested dicts by path; under each, `a` [layer, split, skill, in/split,
    rank] from U(-s, s) with s = 1 / sqrt(3 in), as mttl has it, and `b`
    [layer, split, skill, rank, out/split], zero; or of 'ia3' `scale` [layer,
    split, skill, out/split], one.

  Raises:
    UserError: see `select_linears`.
  """
  linears = select_linears(config, linears)
  shapes = {
    f'{path}/{leaf}': (linear.layers, *shape)
    for path, linear in linears.items()
    for leaf, shape in inventories.leaf_shapes(
      config, linear.in_features, linear.out_features
    ).items()
  }
  if config.kind == 'ia3':
    flat = {name: jnp.ones(shape) for name, shape in shapes.items()}
    return traverse_util.unflatten_dict(flat, sep='/')
  drawn = routing.draw_by_name(
    key, {path: shapes[f'{path}/a'] for path in linears}, _draw_unit
  )
  flat = {}
  for path, linear in linears.items():
    flat[f'{path}/a'] = drawn[path] * (3 * linear.in_features) ** -0.5
    flat[f'{path}/b'] = jnp.zeros(shapes[f'{path}/b'])
  return traverse_util.unflatten_dict(flat, sep='/')


def _draw_unit(key, shape):
  return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)


def list_inventories(adapters: Adapters) -> dict[str, dict[str, Array]]:
  """Returns {path of a linear: {'a': …, 'b': …} or {'scale': …}}."""
  flat: dict[str, Any] = traverse_util.flatten_dict(adapters, sep='/')
  result: dict[str, dict[str, Array]] = {}
  for name, leaf in flat.items():
    path, _, kind = name.rpartition('/')
    result.setdefault(path, {})[kind] = leaf
  return result


def linears_of(adapters: Adapters) -> dict[str, LinearShape]:
  """Returns the adapted linears, read from the inventories' shapes."""
  return {
    path: LinearShape(
      len(next(iter(inventory.values()))),
      *inventories.read_features(inventory),
    )
    for path, inventory in list_inventories(adapters).items()
  }


def pair_with_weights(adapters: Adapters, weights: routing.Weights) -> PyTree:
  """Returns the tree that `mix_adapters` mixes, in front or in the layer.

  Args:
    adapters: inventories by path.
    weights: mixing weights [layer, batch, split, skill] by path.

  Returns:
    Nested dicts by path with {'inventory': {'a', 'b'} or {'scale'},
    'weights': …}; every leaf leads with the layer axis, so one layer's slice
    is such a tree too.
  """
  flat = {
    tuple(path.split('/')): {'inventory': inventory, 'weights': weights[path]}
    for path, inventory in list_inventories(adapters).items()
  }
  return traverse_util.unflatten_dict(flat)


def pair_for_batch(
  params: Mapping[str, PyTree],
  config: AdapterConfig,
  task_ids: Int[Array, 'batch'] | None,
  *,
  noise_key: PRNGKeyArray | None = None,
  example_index: Int[Array, 'batch'] | None = None,
  uniform_share: Float[Array, ''] | float | None = None,
) -> PyTree:
  """Pairs inventories with a batch's mixing weights: `pair_with_weights`.

  Args:
    params: with 'adapters' and, where routing is learned, 'routers'.
    config: of the adapters.
    task_ids: of the examples; not needed where the task does not matter.
    noise_key: of the step, in training with 'relaxed_bernoulli'.
    example_index: see `routing.compute_mixing_weights`.
    uniform_share: likewise.

  Returns:
    What `mix_adapters` mixes; batch is 1 where one pair serves all examples.

  Raises:
    UserError: the adapters depend on the task and there are no task ids.
  """
  weights = routing.compute_mixing_weights(
    params.get('routers', {}),
    linears_of(params['adapters']),
    _rows_to_mix(config, task_ids, noise_key, example_index),
    config,
    noise_key=noise_key,
    example_index=example_index,
    uniform_share=uniform_share,
  )
  return pair_with_weights(params['adapters'], weights)


def _rows_to_mix(config, task_ids, noise_key, example_index):
  """Returns the tasks to mix for: one row where one pair serves all."""
  noisy = config.mixing == 'relaxed_bernoulli' and noise_key is not None
  alone = config.n_tasks == 1 and not noisy
  if config.mixing == 'uniform' or (alone and task_ids is None):
    return jnp.zeros(1, jnp.int32)
  if alone:  # An id that is not 0 makes the pair of all NaN.
    return jnp.any(task_ids != 0)[None].astype(jnp.int32)
  if task_ids is not None:
    return task_ids
  if config.n_tasks == 1 and example_index is not None:
    return jnp.zeros_like(example_index)
  raise UserError(
    'The batch has no task_ids, and its examples may differ in their'
    f' adapters ({config.n_tasks} tasks): say which task each one is.'
  )


def mix_adapters(
  paired: PyTree, *, scale: float = 1.0, dtype=None
) -> dict[str, PyTree]:
  """Mixes every linear of a tree that `pair_with_weights` made.

  Args:
    paired: that tree, or one layer's slice of it.
    scale: see `mix_adapter`.
    dtype: the network's (`inventories.cast_adapter`); sums are taken in the
      inventory's.

  Returns:
    Nested dicts by path with {'a', 'b'} or {'scale'}: what the network takes.
  """
  if 'inventory' in paired:
    mixed = mix_adapter(paired['inventory'], paired['weights'], scale)
    return mixed if dtype is None else inventories.cast_adapter(mixed, dtype)
  return {
    name: mix_adapters(branch, scale=scale, dtype=dtype)
    for name, branch in paired.items()
  }


def average_adapters(
  adapters: Adapters, shares: Float[ArrayLike, 'skill'] | None = None
) -> Adapters:
  """Collapses each inventory into its average adapter (the paper's -mu).

  Exact: uniform weights over the skills give the same function, because
  leaves are averaged apart.

  Args:
    adapters: inventories by path.
    shares: of the skills in the average; equal by default.

  Returns:
    Inventories of one skill and one split: `a` [layer, 1, 1, in, rank], `b`
    [layer, 1, 1, rank, out], or `scale` [layer, 1, 1, out].
  """

  def average(inventory):
    layers, splits, skills = next(iter(inventory.values())).shape[:3]
    each = jnp.full(skills, 1 / skills) if shares is None else shares
    weights = jnp.broadcast_to(each, (layers, 1, splits, skills))
    return _as_inventory(mix_adapter(inventory, weights))

  # These are parameters: not in an accelerator's fast float32.
  with jax.default_matmul_precision('highest'):
    return _map_inventories(average, adapters)


def _as_inventory(adapter):
  """[layer, batch=1, …] -> [layer, split=1, skill=1, …]."""
  return jax.tree.map(lambda x: x[:, None], adapter)


def _map_inventories(function, adapters):
  flat = {
    tuple(path.split('/')): function(inventory)
    for path, inventory in list_inventories(adapters).items()
  }
  return traverse_util.unflatten_dict(flat)


def task_adapter(
  params: Mapping[str, PyTree],
  task_id: int,
  config: AdapterConfig,
  *,
  scale: float | None = None,
) -> Adapters:
  """Returns the one adapter that a task's mixture amounts to, exactly.

  Args:
    params: with 'adapters' and, where routing is learned, 'routers'.
    task_id: the task; check it with `TaskTable` first.
    config: of the adapters.
    scale: the factor folded into b, alpha / rank by default; 1.0 for formats
      that keep alpha apart.

  Returns:
    Nested dicts by path with `a` [layer, in, rank] and `b` [layer, rank,
    out], or `scale` [layer, out].
  """
  adapters = params['adapters']
  with jax.default_matmul_precision('highest'):
    weights = routing.compute_mixing_weights(
      params.get('routers', {}),
      linears_of(adapters),
      jnp.array([task_id], jnp.int32),
      config,
    )
    scale = config.scale if scale is None else scale
    mixed = mix_adapters(pair_with_weights(adapters, weights), scale=scale)
  return jax.tree.map(lambda x: x[:, 0], mixed)


def adapter_logical_axes(
  features: Mapping[str, tuple[str, str]], kind: AdapterKind = 'low_rank'
) -> PyTree[tuple[str, ...]]:
  """Returns the inventories' logical axes: the structure of `init_adapters`.

  Args:
    features: by path of an adapted linear, the logical axes of its input and
      output features, those of its kernel.
    kind: of the adapters.
  """
  flat = {
    f'{path}/{leaf}': axes
    for path, (in_axis, out_axis) in features.items()
    for leaf, axes in inventories.leaf_axes(kind, in_axis, out_axis).items()
  }
  return traverse_util.unflatten_dict(flat, sep='/')
