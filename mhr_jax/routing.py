"""Routing: which adapters of the inventory a task mixes, and how strongly.

The first stage of the data flow: `routing_logits` rows of the batch's tasks
become `mixing_weights` [batch, split, skill]; `mhr_jax.adapters` mixes the
inventories with them. Nothing here knows a network: linears are names with a
number of layers.

References: Caccia et al. 2023 (arXiv:2211.03831), section 3; Ponti et al.
2023 (arXiv:2202.13914), equations 2 and 3.
"""

from collections.abc import Mapping
from typing import Literal, Protocol, get_args
import zlib

from flax import traverse_util
import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

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
  return jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)


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
  flat = {}
  for path, linear in linears.items():
    name = f'{router_of(path, scope)}/{LOGITS}'
    layers = (linear.layers,) if scope in LAYERED_SCOPES else ()
    shape = (*layers, n_tasks, n_splits, n_skills)
    if name not in flat:
      flat[name] = _draw_logits(fold_name(key, name), shape)
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
  router: str,
  example_index: Int[Array, 'batch'],
  shape: tuple[int, ...],
  dtype=float,
) -> Float[Array, '... batch split skill']:
  """Draws uniform noise for one router.

  An example's noise depends on the key, the router and the example's global
  index alone: not on how the batch is sharded, padded or accumulated.

  Args:
    key: the step's key.
    router: path of the router.
    example_index: the examples' indices in the global batch.
    shape: [..., split, skill] of one example; the leading axis is `layer`.
    dtype: of the noise.
  """
  key = fold_name(key, router)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, example_index)
  tiny = jnp.finfo(dtype).tiny

  def draw(key):
    return jax.random.uniform(key, shape, dtype, minval=tiny)

  return jnp.moveaxis(jax.vmap(draw)(keys), 0, -3)


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
  rows = {}
  for router in dict.fromkeys(router_of(path, scope) for path in linears):
    if mixing == 'uniform':
      rows[router] = jnp.full((1, n_splits, n_skills), 1 / n_skills)
    elif mixing == 'private':
      own = jax.nn.one_hot(task_ids, n_skills)[:, None, :]
      rows[router] = jnp.broadcast_to(own, (len(own), n_splits, n_skills))
    else:
      rows[router] = _learned_weights(
        _logits_of(routers, router),
        router,
        task_ids,
        mixing=mixing,
        noise_key=noise_key,
        example_index=example_index,
      )
  return {
    path: _per_layer(rows[router_of(path, scope)], linear.layers)
    for path, linear in linears.items()
  }


def _logits_of(routers, router):
  for part in router.split('/'):
    routers = routers[part]
  return routers[LOGITS]


def _learned_weights(
  logits, router, task_ids, *, mixing, noise_key, example_index
):
  rows = jnp.take(logits, task_ids, axis=-3, mode='fill')
  noise = None
  if mixing == 'relaxed_bernoulli' and noise_key is not None:
    if example_index is None:
      example_index = jnp.arange(len(task_ids))
    shape = (*logits.shape[:-3], *logits.shape[-2:])
    noise = draw_noise(noise_key, router, example_index, shape, rows.dtype)
  return mixing_weights(rows, mixing, noise=noise)


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
  if init == 'uniform' and key is None:
    raise ValueError("init='uniform' needs a key.")
  flat = traverse_util.flatten_dict(routers, sep='/')
  rows = {
    name: _new_rows(
      logits, n_new, init, None if key is None else fold_name(key, name)
    )
    for name, logits in flat.items()
  }
  return traverse_util.unflatten_dict(rows, sep='/')


def _new_rows(logits, n_new, init, key):
  shape = (*logits.shape[:-3], n_new, *logits.shape[-2:])
  if init == 'uniform':
    return _draw_logits(key, shape, logits.dtype)
  if init == 'mean':
    return jnp.broadcast_to(logits.mean(axis=-3, keepdims=True), shape)
  if init == 'zeros':
    return jnp.zeros(shape, logits.dtype)
  raise ValueError(f'init is one of uniform, mean, zeros, not {init!r}.')


def extend_task_rows(
  routers: Routers,
  n_new: int,
  *,
  init: RowInit = 'uniform',
  key: PRNGKeyArray | None = None,
) -> Routers:
  """Appends rows of new tasks behind the trained ones (`new_task_rows`)."""
  return jax.tree.map(
    lambda old, new: jnp.concatenate([old, new], axis=-3),
    routers,
    new_task_rows(routers, n_new, init=init, key=key),
  )


def select_task_rows(
  routers: Routers, task_ids: Int[Array, 'chosen']
) -> Routers:
  """Returns routers that hold the rows of some tasks only, in that order."""
  return jax.tree.map(lambda x: jnp.take(x, task_ids, axis=-3), routers)


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
