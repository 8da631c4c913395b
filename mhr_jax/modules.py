"""RoutedDense: a linear with routed adapters, for any Flax (Linen) model.

A drop-in for `nn.Dense` and `nn.DenseGeneral` that takes the examples' task
ids. The linear's own parameters stay what they were; adapters and router lie
in collections of their own, so that a pretrained checkpoint loads as it is and
what trains is chosen by collection. For models whose code is not to be
touched, see `mhr_jax.interception`.
"""

from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import math
from typing import Any

from flax import linen as nn
import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from mhr_jax import adapters as adapters_lib
from mhr_jax import inventories, methods, routing
from mhr_jax.adapters import AdapterConfig, LinearShape
from mhr_jax.errors import UserError
from mhr_jax.t5 import layers

ADAPTERS, ROUTERS = 'adapters', 'routers'
"""The collections of what is added to a model."""
NOISE = 'routing'
"""The name of the random numbers of 'relaxed_bernoulli' mixing."""

_LINEAR = 'linear'
_PROBLEMS_SHOWN = 4


class RoutedDense(nn.DenseGeneral, kw_only=True):
  """A linear map with adapters, mixed for each example by its task.

  Without its adapters, or before they are trained, it is the `nn.Dense` or
  `nn.DenseGeneral` of the same arguments: the same parameters `kernel` and
  `bias`, drawn from the same random numbers.

  Beside 'params' there are two collections: 'adapters' with `a` [split,
  skill, in/split, rank] and `b` [split, skill, rank, out/split], or of (IA)³
  `scale` [split, skill, out/split], where the features of several axes are
  counted in row-major order, as the input has them; and, where routing is learned, 'routers' with `routing_logits` [task,
  split, skill]. Both are at least float32, whatever `param_dtype` is. Inside
  `nn.scan` list them in `variable_axes`, as 'params' are.

  The random numbers 'routing' (`rngs={'routing': key}`) switch on the noise
  of 'relaxed_bernoulli' mixing, as in training.

  Attributes:
    adapters: the settings; its `targets` do not matter here, and its
      `router_scope` must be 'module'.
    features, axis, use_bias, dtype, param_dtype, kernel_init, bias_init,
      precision, …: those of `nn.DenseGeneral`, but for `batch_dims`.
  """

  adapters: AdapterConfig

  @nn.compact
  def __call__(
    self,
    inputs: Float[Array, 'batch *rest'],
    task_ids: Int[Array, 'batch'] | None = None,
    *,
    example_index: Int[Array, 'batch'] | None = None,
  ) -> Float[Array, 'batch *out']:
    """Returns x·W + bias, plus what each example's low-rank pair adds.

    An (IA)³ scale multiplies the whole output instead, the bias with it.

    Args:
      inputs: [batch, ..., in]. Where a batch has several rows an example, as
        the beams of a search, repeat its task id: `jnp.repeat(task_ids, 4)`.
      task_ids: the examples' tasks, one a row; not needed where all share one
        adapter. Under `jax.jit`, where nobody can look at them, an id outside
        0 … n_tasks - 1 makes its row NaN; elsewhere it is an error.
      example_index: of the rows in the global batch, on which the noise
        depends; default 0, 1, 2 ….

    Raises:
      UserError: n_splits does not divide the features, task ids are needed
        or do not fit the batch, the adapters or the router are of another
        config, or a setting has no meaning here.
    """
    name = '/'.join(self.path) or type(self).__name__
    self._check(name)
    y = super().__call__(inputs)
    rest, in_features = split_shape(inputs.shape, self.axis)
    linear = LinearShape(1, in_features, math.prod(y.shape[len(rest) :]))
    config = dataclasses.replace(self.adapters, targets=('.*',))
    task_ids = check_task_ids(task_ids, config.n_tasks)
    noisy = config.mixing == 'relaxed_bernoulli' and self.has_rng(NOISE)
    paired = adapters_lib.pair_for_batch(
      self._variables(name, config, linear),
      config,
      task_ids,
      noise_key=self.make_rng(NOISE) if noisy else None,
      example_index=example_index,
    )
    mixed = adapters_lib.mix_adapters(paired, scale=config.scale)[_LINEAR]
    adapter = jax.tree.map(lambda x: x[0], mixed)
    return apply_adapter(
      y,
      inputs,
      adapter,
      self.axis,
      n_ids=None if task_ids is None else len(task_ids),
      precision=self.precision,
      name=name,
    )

  def _check(self, name):
    if self.batch_dims:
      raise UserError(
        f'{name}: batch_dims={tuple(self.batch_dims)} gives each example a'
        ' kernel of its own; RoutedDense has one kernel. Leave batch_dims out.'
      )
    if self.adapters.router_scope != 'module':
      raise UserError(
        f'{name}: router_scope={self.adapters.router_scope!r} shares a router'
        " between linears, and a RoutedDense has its own: use 'module', or"
        ' mhr_jax.route(model, config) for a whole model.'
      )

  def _variables(self, name, config, linear):
    """Returns adapters and routers as trees of one linear and one layer."""
    shapes = leaf_shapes(config, linear)
    leaves = [
      (ROUTERS if leaf == routing.LOGITS else ADAPTERS, leaf) for leaf in shapes
    ]
    drawn = {}
    if not all(self.has_variable(*leaf) for leaf in leaves):
      drawn = self._draw(name, config, linear)
    tree: dict[str, dict[str, Any]] = {ADAPTERS: {}, ROUTERS: {}}
    for collection, leaf in leaves:
      value = self.variable(collection, leaf, drawn.__getitem__, leaf).value
      tree[collection][leaf] = value
    if self.has_variable(ROUTERS, routing.LOGITS):
      logits = self.get_variable(ROUTERS, routing.LOGITS)
      tree[ROUTERS][routing.LOGITS] = logits
    check_leaves(
      {f'{c}/{name}/{x}': value for c in tree for x, value in tree[c].items()},
      {f'{c}/{name}/{leaf}': shapes[leaf] for c, leaf in leaves},
    )
    return {
      collection: {_LINEAR: jax.tree.map(lambda x: x[None], leaves)}
      for collection, leaves in tree.items()
    }

  def _draw(self, name, config, linear):
    if not self.is_mutable_collection(ADAPTERS):
      raise UserError(
        f'{name}: the variables have no adapters for it, or no router. Take'
        " what init returns, with a checkpoint in the place of its 'params';"
        " inside nn.scan, list 'adapters' and 'routers' in variable_axes."
      )
    adapters_lib.select_linears(config, {name: linear})
    key, linears = self.make_rng('params'), {_LINEAR: linear}
    added = methods.init_added(key, config, linears)
    dtype = jnp.promote_types(self.param_dtype, jnp.float32)
    return {
      leaf: value[0].astype(dtype)
      for tree in added.values()
      for leaf, value in tree[_LINEAR].items()
    }


def leaf_shapes(
  config: AdapterConfig, linear: LinearShape
) -> dict[str, tuple[int, ...]]:
  """Returns the shapes of one layer's adapters and `routing_logits`."""
  shapes = inventories.leaf_shapes(
    config, linear.in_features, linear.out_features
  )
  if config.has_routers:
    logits = (config.n_tasks, config.n_splits, config.n_skills)
    shapes[routing.LOGITS] = logits
  return shapes


def check_leaves(
  leaves: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> None:
  """Refuses adapters and routers that are not those of a config.

  Args:
    leaves: the arrays by path, collection first.
    shapes: what they must be, by path.

  Raises:
    UserError: names the leaves that are missing, too many or of another shape.
  """
  problems = [f'{path} is missing' for path in shapes if path not in leaves]
  problems += [
    f'{path} is there, and the config has none'
    for path in leaves
    if path not in shapes
  ]
  problems += [
    f'{path} is {list(jnp.shape(leaf))}, and the config makes it'
    f' {list(shapes[path])}'
    for path, leaf in leaves.items()
    if path in shapes and jnp.shape(leaf) != shapes[path]
  ]
  if problems:
    shown, more = problems[:_PROBLEMS_SHOWN], len(problems) - _PROBLEMS_SHOWN
    raise UserError(
      f'{"; ".join(shown)}{f"; and {more} more" if more > 0 else ""}. Hand in'
      ' the config and the linears that these variables were made with.'
    )


def check_task_ids(task_ids: Any, n_tasks: int) -> Array | None:
  """Refuses task ids that are no tasks' numbers, one an example.

  Returns:
    The ids as an array. Their values are looked at where they are known, which
    they are not under `jax.jit`.

  Raises:
    UserError: says what they are instead.
  """
  if task_ids is None:
    return None
  array = jnp.asarray(task_ids)
  if array.ndim != 1 or not jnp.issubdtype(array.dtype, jnp.integer):
    raise UserError(
      f'task_ids are {array.dtype.name}{list(array.shape)}: hand in whole'
      ' numbers [batch], one for each example.'
    )
  values = _known_values(task_ids)
  wrong = values[(values < 0) | (values >= n_tasks)]
  if wrong.size:
    raise UserError(
      f'There is no task {wrong[0]} (in task_ids): {n_tasks} task(s) are'
      f' numbered from 0 to {n_tasks - 1}.'
    )
  return array


def _known_values(task_ids):
  """Returns the ids as NumPy has them; none where they are not at hand."""
  try:
    return np.asarray(task_ids)
  except (jax.errors.TracerArrayConversionError, RuntimeError):
    return np.zeros(0, int)  # traced, or on the devices of other processes


def split_shape(
  shape: Sequence[int], axis: int | Sequence[int]
) -> tuple[tuple[int, ...], int]:
  """Returns the axes that a linear keeps, and the features it takes in.

  >>> split_shape((2, 7, 4, 8), (-2, -1))
  ((2, 7), 32)
  """
  contracted = _positive(axis, len(shape))
  rest = tuple(n for i, n in enumerate(shape) if i not in contracted)
  return rest, math.prod(shape[i] for i in contracted)


def _positive(axis, ndim):
  axis = (axis,) if isinstance(axis, int) else tuple(axis)
  return tuple(sorted(i % ndim for i in axis))


def apply_adapter(
  y: Float[Array, 'batch *out'],
  x: Float[Array, 'batch *rest'],
  adapter: Mapping[str, Float[Array, '...']],
  axis: int | Sequence[int] = -1,
  *,
  n_ids: int | None = None,
  precision: Any = None,
  name: str = _LINEAR,
) -> Float[Array, 'batch *out']:
  """Adds each example's (x·a)·b to a linear's output, or scales the output.

  Args:
    y: what the linear gave, with the features last.
    x: what it was given.
    adapter: 'a' [batch or 1, in, rank] and 'b' [batch or 1, rank, out], or
      'scale' [batch or 1, out]; features of several axes in row-major order,
      as x and y have them.
    axis: of x, that the linear sums over.
    n_ids: how many task ids there were; without any, one adapter may serve
      all.
    precision: of the linear; the adapter's products have it too.
    name: of the linear, for the error.

  Raises:
    UserError: the first axis of x is not as long as there are task ids.
  """
  contracted = _positive(axis, x.ndim)
  rest, in_features = split_shape(x.shape, axis)
  rows = rest[0] if rest and 0 not in contracted else 1
  batch = len(next(iter(adapter.values())))
  fitting = (1, rows) if n_ids is None else (rows,)
  n_ids = batch if n_ids is None else n_ids
  if n_ids not in fitting:
    raise UserError(
      f'{name}: its input {list(x.shape)} has {rows} row(s), and there are'
      f' {n_ids} task ids: one a row is needed. Where an example has several'
      ' rows, repeat its id (jnp.repeat); where the first axis is not the'
      ' examples, leave this linear out of the targets.'
    )
  if inventories.SCALE in adapter:
    scale = adapter[inventories.SCALE]
    grouped = y.reshape(rows, -1, scale.shape[-1])
    return layers.apply_scale(grouped, scale).reshape(y.shape)
  x = jnp.moveaxis(x, contracted, range(-len(contracted), 0))
  x = x.astype(y.dtype).reshape(rows, -1, in_features)
  with _precision(precision):
    added = layers.apply_adapter(x, adapter['a'], adapter['b'])
  return y + added.reshape(y.shape)


def _precision(precision):
  """Returns a context in which matrix products have a layer's precision."""
  if precision is None:
    return contextlib.nullcontext()
  if isinstance(precision, Sequence) and not isinstance(precision, str):
    precision = precision[0]
  if isinstance(precision, jax.lax.Precision):
    precision = precision.name.lower()
  return jax.default_matmul_precision(getattr(precision, 'name', precision))
