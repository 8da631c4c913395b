"""Routing: which adapters of the inventory a task mixes, and how strongly.

The first stage of the data flow: `routing_logits` rows of the batch's tasks
become `mixing_weights` [batch, split, skill]; `mhr_jax.adapters` mixes the
inventories with them. Nothing here knows a network: linears are names with a
number of layers.

References: Caccia et al. 2023 (arXiv:2211.03831), section 3; Ponti et al.
2023 (arXiv:2202.13914), equations 2 and 3.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, get_args
import zlib

from flax import traverse_util
import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree
import numpy as np

Mixing = Literal[
  'sigmoid',
  'relaxed_bernoulli',
  'straight_through',
  'softmax',
  'uniform',
  'private',
]
MIXINGS: tuple[str, ...] = get_args(Mixing)
LEARNED_MIXINGS = frozenset(MIXINGS) - {'uniform', 'private'}
"""The mixing forms that have routing logits, and so a router."""

RouterScope = Literal['module', 'layer', 'block', 'stack', 'model']
ROUTER_SCOPES: tuple[str, ...] = get_args(RouterScope)
LAYERED_SCOPES = frozenset({'module', 'layer', 'block'})
"""The scopes whose routers differ from layer to layer of the network."""

RowInit = Literal['uniform', 'mean', 'zeros']

LOGITS = 'routing_logits'
_INIT_BOUND = 1e-3
_EPSILON = 1e-12

Routers = PyTree[Float[Array, '...']]
Weights = dict[str, Float[Array, 'layer batch split skill']]


class HasLayers(Protocol):
  """What routing needs to know of a linear: how many layers have one."""

  @property
  def layers(self) -> int: ...


def router_of(linear: str, scope: RouterScope) -> str:
  """Returns the path of the router that serves a linear.

  Args:
    linear: the linear's path, such as 'encoder/attention/query'.
    scope: which linears share one router. 'layer' is one attention or
      feed-forward sublayer, 'block' the encoder's or decoder's layer N with
      all its sublayers, 'stack' the whole encoder or decoder.

  >>> router_of('encoder/attention/query', 'layer')
  'encoder/attention'
  >>> router_of('encoder/attention/query', 'stack')
  'encoder'
  """
  if scope == 'module':
    return linear
  if scope == 'layer':
    return linear.rpartition('/')[0] or linear
  if scope == 'model':
    return 'model'
  return linear.partition('/')[0]


def fold_name(key: PRNGKeyArray, name: str) -> PRNGKeyArray:
  """Returns a key for a name: the same in every process and every order."""
  return jax.random.fold_in(key, _hash(name))


def _hash(name: str) -> np.uint32:
  return np.uint32(zlib.crc32(name.encode()))


def draw_by_name(
  key: PRNGKeyArray,
  shapes: Mapping[str, tuple[int, ...]],
  draw: Callable[[PRNGKeyArray, tuple[int, ...]], Array],
) -> dict[str, Array]:
  """Draws one array a name, from a key of the name's own.

  What a name gets does not depend on the other names or their order. Names
  with the same shape are drawn in one call under `jax.vmap`: a generator a
  name makes programs several times slower to compile.

  Args:
    key: source of randomness.
    shapes: handed to `draw`, by name.
    draw: (key, shape) to an array.
  """
  groups: dict[tuple[int, ...], list[str]] = {}
  for name, shape in shapes.items():
    groups.setdefault(shape, []).append(name)
  drawn: dict[str, Array] = {}
  for shape, names in groups.items():
    hashes = np.array([_hash(name) for name in names])
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, hashes)
    arrays = jax.vmap(lambda k, shape=shape: draw(k, shape))(keys)
    drawn |= zip(names, arrays, strict=True)
  return drawn


def init_routers(
  key: PRNGKeyArray,
  linears: Mapping[str, HasLayers],
  *,
  n_tasks: int,
  n_splits: int,
  n_skills: int,
  scope: RouterScope = 'module',
) -> Routers:
  """Draws routing logits from U(-0.001, 0.001), as the paper's code does.

  Args:
    key: source of randomness.
    linears: the adapted linears by path.
    n_tasks: rows of every router.
    n_splits: blocks of features that are routed apart.
    n_skills: adapters to choose from.
    scope: which linears share a router.

  Returns:
    Nested dicts by `router_of` path with one leaf 'routing_logits' each:
    [layer, task, split, skill], without `layer` at scopes stack and model.
  """
  shapes = {}
  for path, linear in linears.items():
    layers = (linear.layers,) if scope in LAYERED_SCOPES else ()
    name = f'{router_of(path, scope)}/{LOGITS}'
    shapes[name] = (*layers, n_tasks, n_splits, n_skills)
  flat = draw_by_name(key, shapes, _draw_logits)
  return traverse_util.unflatten_dict(flat, sep='/')


def _draw_logits(key, shape, dtype=float):
  return jax.random.uniform(
    key, shape, dtype, minval=-_INIT_BOUND, maxval=_INIT_BOUND
  )


def mixing_weights(
  logits: Float[Array, '... batch split skill'],
  mixing: Mixing = 'sigmoid',
  *,
  noise: Float[Array, '... batch split skill'] | None = None,
) -> Float[Array, '... batch split skill']:
  """Turns routing logits of each example into weights over the skills.

  All forms but softmax are `z / (sum of z + 1e-12)` for some z in [0, 1]:
  `sigmoid` of the logits; `relaxed_bernoulli`, a sample of the relaxed
  Bernoulli at temperature 1 (Ponti et al., equation 2), where there is noise;
  `straight_through`, the sigmoid rounded to 0 or 1 with the sigmoid's
  gradient. A row in which all round to 0 mixes nothing; there we divide by 1,
  since mttl's 1e-12 makes its gradient 1e12 times too large.

  Args:
    logits: the task's row, for every example.
    mixing: one of the learned mixing forms.
    noise: uniform numbers in (0, 1), for 'relaxed_bernoulli' only; without
      them it is 'sigmoid', as in evaluation.

  Raises:
    ValueError: `mixing` is not a function of logits.
  """
  if mixing == 'softmax':
    return jax.nn.softmax(logits, axis=-1)
  if mixing not in LEARNED_MIXINGS:
    raise ValueError(f'{mixing!r} mixing has no routing logits.')
  if mixing == 'relaxed_bernoulli' and noise is not None:
    logits = logits + jnp.log(noise) - jnp.log1p(-noise)
  z = jax.nn.sigmoid(logits)
  if mixing == 'straight_through':
    z = z + jax.lax.stop_gradient(jnp.round(z) - z)
  total = z.sum(axis=-1, keepdims=True)
  return z / jnp.where(total > 0, total + _EPSILON, 1)


def draw_noise(
  key: PRNGKeyArray,
  shapes: Mapping[str, tuple[int, ...]],
  example_index: Int[Array, 'batch'],
  dtype=float,
) -> dict[str, Float[Array, '... batch split skill']]:
  """Draws uniform noise in (0, 1) for routers.

  An example's noise depends on the key, the router and the example's global
  index alone: not on how the batch is sharded, padded or accumulated.

  Args:
    key: the step's key.
    shapes: by path of the router, [..., split, skill] of one example; the
      leading axis is `layer`.
    example_index: the examples' indices in the global batch.
    dtype: of the noise.
  """
  tiny = jnp.finfo(dtype).tiny

  def draw(key, shape):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, example_index)
    return jax.vmap(lambda k: jax.random.uniform(k, shape, dtype, minval=tiny))(
      keys
    )

  noise = draw_by_name(key, shapes, draw)
  return {name: jnp.moveaxis(u, 0, -3) for name, u in noise.items()}


def compute_mixing_weights(
  routers: Routers,
  linears: Mapping[str, HasLayers],
  task_ids: Int[Array, 'batch'],
  *,
  mixing: Mixing,
  scope: RouterScope,
  n_splits: int,
  n_skills: int,
  noise_key: PRNGKeyArray | None = None,
  example_index: Int[Array, 'batch'] | None = None,
) -> Weights:
  """Computes every linear's mixing weights for a batch.

  Task ids are not checked here (the host does, in `TaskTable`); a row beyond
  the last is NaN, so a wrong one cannot train some other task's row.

  Args:
    routers: what `init_routers` returns; unused by 'uniform' and 'private'.
    linears: the adapted linears by path.
    task_ids: the examples' tasks.
    mixing: how logits become weights. 'uniform' weighs all skills alike,
      'private' gives each task the skill of its own number.
    scope: which linears share a router.
    n_splits: blocks of features that are routed apart.
    n_skills: adapters to choose from.
    noise_key: the step's key; only training with 'relaxed_bernoulli' has one.
    example_index: indices in the global batch; default 0, 1, 2 ….

  Returns:
    By path of a linear, [layer, batch, split, skill]; `batch` is 1 where the
    weights do not depend on the task.
  """
  names = dict.fromkeys(router_of(path, scope) for path in linears)
  if mixing == 'uniform':
    same = jnp.full((1, n_splits, n_skills), 1 / n_skills)
    rows = dict.fromkeys(names, same)
  elif mixing == 'private':
    own = jax.nn.one_hot(task_ids, n_skills)[:, None, :]
    own = jnp.broadcast_to(own, (len(own), n_splits, n_skills))
    rows = dict.fromkeys(names, own)
  else:
    logits = {name: _logits_of(routers, name) for name in names}
    if mixing != 'relaxed_bernoulli':
      noise_key = None
    rows = _learned_weights(logits, task_ids, mixing, noise_key, example_index)
  return {
    path: _per_layer(rows[router_of(path, scope)], linear.layers)
    for path, linear in linears.items()
  }


def _logits_of(routers, router):
  for part in router.split('/'):
    routers = routers[part]
  return routers[LOGITS]


def _learned_weights(logits, task_ids, mixing, noise_key, example_index):
  """Returns the weights of every router, by its path."""
  noise = {}
  if noise_key is not None:
    if example_index is None:
      example_index = jnp.arange(len(task_ids))
    shapes = {
      name: (*x.shape[:-3], *x.shape[-2:]) for name, x in logits.items()
    }
    dtype = next(iter(logits.values())).dtype
    noise = draw_noise(noise_key, shapes, example_index, dtype)
  return {
    name: mixing_weights(
      jnp.take(x, task_ids, axis=-3, mode='fill'),
      mixing,
      noise=noise.get(name),
    )
    for name, x in logits.items()
  }


def _per_layer(weights, layers):
  if weights.ndim == 4:
    return weights
  return jnp.broadcast_to(weights, (layers, *weights.shape))


def count_tasks(routers: Routers) -> int:
  """Returns how many tasks the routers have rows for."""
  return jax.tree.leaves(routers)[0].shape[-3]


def new_task_rows(
  routers: Routers,
  n_new: int,
  *,
  init: RowInit = 'uniform',
  key: PRNGKeyArray | None = None,
) -> Routers:
  """Returns routers whose only rows are those of new tasks.

  Args:
    routers: trained routers.
    n_new: how many tasks the new routers have.
    init: 'uniform' draws U(-0.001, 0.001), close to the average adapter, as
      the paper's code does; 'zeros' is the average exactly; 'mean' starts
      from the mean of the trained rows.
    key: source of randomness, for 'uniform'.

  Raises:
    ValueError: 'uniform' without a key, or an unknown `init`.
  """
  flat: dict[str, Any] = traverse_util.flatten_dict(routers, sep='/')
  shapes = {
    name: (*logits.shape[:-3], n_new, *logits.shape[-2:])
    for name, logits in flat.items()
  }
  if init == 'uniform':
    if key is None:
      raise ValueError("init='uniform' needs a key.")
    rows = draw_by_name(key, shapes, _draw_logits)
  elif init == 'mean':
    rows = {
      name: jnp.broadcast_to(x.mean(axis=-3, keepdims=True), shapes[name])
      for name, x in flat.items()
    }
  elif init == 'zeros':
    rows = {name: jnp.zeros(shapes[name], x.dtype) for name, x in flat.items()}
  else:
    raise ValueError(f'init is one of uniform, mean, zeros, not {init!r}.')
  return traverse_util.unflatten_dict(rows, sep='/')


def router_logical_axes(
  linears: Mapping[str, HasLayers], scope: RouterScope
) -> PyTree[tuple[str, ...]]:
  """Returns the routers' logical axes: the structure of `init_routers`."""
  layers = ('layers',) if scope in LAYERED_SCOPES else ()
  flat = {
    f'{router_of(path, scope)}/{LOGITS}': (*layers, 'task', 'split', 'skill')
    for path in linears
  }
  return traverse_util.unflatten_dict(flat, sep='/')
