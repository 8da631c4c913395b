"""Routing: which adapters of the inventory a task mixes, and how strongly.

The first stage of the data flow: `routing_logits` rows of the batch's tasks
become `mixing_weights` [batch, split, skill]; `mhr_jax.adapters` mixes the
inventories with them. Nothing here knows a network: linears are names with a
number of layers.

References: Caccia et al. 2023 (arXiv:2211.03831), section 3; Ponti et al.
2023 (arXiv:2202.13914), equations 2 and 3.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, Literal, Protocol, get_args
import zlib

from flax import traverse_util
import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree
import numpy as np

from mhr_jax.errors import UserError, nearest

Mixing = Literal[
  'sigmoid',
  'relaxed_bernoulli',
  'straight_through',
  'softmax',
  'l2_norm',
  'uniform',
  'private',
]
MIXINGS: tuple[str, ...] = get_args(Mixing)
LEARNED_MIXINGS = frozenset(MIXINGS) - {'uniform', 'private'}
"""The mixings that have routing logits, and so a router."""
GATED_MIXINGS = ('sigmoid', 'relaxed_bernoulli', 'straight_through')
"""The mixings in which every skill has a gate in [0, 1] of its own."""

Normalisation = Literal['sum', 'sqrt']
NORMALISATIONS: tuple[str, ...] = get_args(Normalisation)

RouterScope = Literal['module', 'layer', 'block', 'stack', 'model']
ROUTER_SCOPES: tuple[str, ...] = get_args(RouterScope)
LAYERED_SCOPES = frozenset({'module', 'layer', 'block'})
"""The scopes whose routers differ from layer to layer of the network."""

RouterInit = Literal['uniform', 'normal']
RowInit = Literal['uniform', 'mean', 'zeros']

LOGITS = 'routing_logits'
_INIT_BOUND = 1e-3
_WIDE_STD = 3.0
_EPSILON = 1e-12

Routers = PyTree[Float[Array, '...']]
Weights = dict[str, Float[Array, 'layer batch split skill']]


class HasLayers(Protocol):
  """What routing needs to know of a linear: how many layers have one."""

  @property
  def layers(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class MixingForm:
  """How routing logits become mixing weights.

  Attributes:
    mixing: what the logits are. 'sigmoid' makes gates of them;
      'relaxed_bernoulli', in training, a sample of the relaxed Bernoulli at
      temperature 1 (Ponti et al., equation 2); 'straight_through' rounds the
      gates to 0 or 1 and keeps the sigmoid's gradient. 'softmax' and 'l2_norm'
      (the logits over their Euclidean norm, so with signs) have no gates.
      'uniform' weighs all skills alike, 'private' gives each task the skill
      of its own number; both have no logits.
    normalisation: of gates: 'sum' divides by their sum (Ponti et al.,
      equation 3); 'sqrt' multiplies by sqrt(splits / skills), whatever their
      sum is (mttl's average correction).
    shared_skill: whether the last skill's gate is always 1.

  Raises:
    UserError: an unknown name, or gates are set up that `mixing` has not got.
  """

  mixing: Mixing = 'sigmoid'
  normalisation: Normalisation = 'sum'
  shared_skill: bool = False

  def __post_init__(self):
    _check_name('mixing', self.mixing, MIXINGS)
    _check_name('normalisation', self.normalisation, NORMALISATIONS)
    if self.mixing in GATED_MIXINGS:
      return
    for name, default in (('normalisation', 'sum'), ('shared_skill', False)):
      value = getattr(self, name)
      if value != default:
        raise UserError(
          f'{name}={value!r} is about gates, which mixing={self.mixing!r} has'
          f' not got: leave {name} at {default!r}, or choose one of'
          f' {", ".join(GATED_MIXINGS)} for mixing.'
        )


def _check_name(field, value, known):
  if value not in known:
    raise UserError(f'There is no {field} {value!r}.{nearest(value, known)}')


class Routed(Protocol):
  """What routing needs to know of a config, such as `AdapterConfig`."""

  @property
  def mixing_form(self) -> MixingForm: ...
  @property
  def router_scope(self) -> RouterScope: ...
  @property
  def n_splits(self) -> int: ...
  @property
  def n_skills(self) -> int: ...


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
  init: RouterInit = 'uniform',
) -> Routers:
  """Draws routing logits.

  Args:
    key: source of randomness.
    linears: the adapted linears by path.
    n_tasks: rows of every router.
    n_splits: blocks of features that are routed apart.
    n_skills: adapters to choose from.
    scope: which linears share a router.
    init: 'uniform' draws U(-0.001, 0.001), as the paper's code does. 'normal'
      draws N(0, 9), for routing that never trains: half of the gates are below
      0.12 or above 0.88, so tasks differ from the start.

  Returns:
    Nested dicts by `router_of` path with one leaf 'routing_logits' each:
    [layer, task, split, skill], without `layer` at scopes stack and model.
  """
  shapes = {}
  for path, linear in linears.items():
    layers = (linear.layers,) if scope in LAYERED_SCOPES else ()
    name = f'{router_of(path, scope)}/{LOGITS}'
    shapes[name] = (*layers, n_tasks, n_splits, n_skills)
  draw = _draw_logits if init == 'uniform' else _draw_wide_logits
  flat = draw_by_name(key, shapes, draw)
  return traverse_util.unflatten_dict(flat, sep='/')


def _draw_wide_logits(key, shape):
  return _WIDE_STD * jax.random.normal(key, shape)


def _draw_logits(key, shape, dtype=float):
  return jax.random.uniform(
    key, shape, dtype, minval=-_INIT_BOUND, maxval=_INIT_BOUND
  )


def mixing_weights(
  logits: Float[Array, '... batch split skill'],
  form: MixingForm,
  *,
  noise: Float[Array, '... batch split skill'] | None = None,
) -> Float[Array, '... batch split skill']:
  """Turns routing logits of each example into weights over the skills.

  A row of gates that are all 0 mixes nothing, and so does a row of logits that
  are all 0 under 'l2_norm'. mttl divides such a row by 1e-12, which makes its
  gradient 1e12 times too large; here it is divided by 1.

  Args:
    logits: the task's row, for every example.
    form: of the weights; one that has logits.
    noise: uniform numbers in (0, 1), for 'relaxed_bernoulli' only; without
      them it is 'sigmoid', as in evaluation.

  Raises:
    ValueError: the form's mixing is not a function of logits.
  """
  if form.mixing not in LEARNED_MIXINGS:
    raise ValueError(f'{form.mixing!r} mixing has no routing logits.')
  if form.mixing == 'softmax':
    return jax.nn.softmax(logits, axis=-1)
  if form.mixing == 'l2_norm':
    square = (logits**2).sum(axis=-1, keepdims=True)
    return logits / jnp.sqrt(jnp.where(square > 0, square, 1))
  on = gates(logits, form, noise)
  if form.normalisation == 'sqrt':
    n_splits, n_skills = logits.shape[-2:]
    return on * (n_splits / n_skills) ** 0.5
  total = on.sum(axis=-1, keepdims=True)
  return on / jnp.where(total > 0, total + _EPSILON, 1)


def gates(
  logits: Float[Array, '... split skill'],
  form: MixingForm,
  noise: Float[Array, '... split skill'] | None = None,
) -> Float[Array, '... split skill']:
  """Returns each skill's gate in [0, 1]; that of a shared skill is 1.

  Args:
    logits: of the routing.
    form: of the weights; one of `GATED_MIXINGS`.
    noise: see `mixing_weights`.
  """
  if form.mixing == 'relaxed_bernoulli' and noise is not None:
    logits = logits + jnp.log(noise) - jnp.log1p(-noise)
  on = jax.nn.sigmoid(logits)
  if form.mixing == 'straight_through':
    on = on + jax.lax.stop_gradient(jnp.round(on) - on)
  return on.at[..., -1].set(1) if form.shared_skill else on


def entropy(weights: Float[Array, '... skill']) -> Float[Array, '...']:
  """Returns the entropy of weights' shares: 0 is one skill, 1 is all alike.

  Weights count by their size: not every form's sum to 1, and some have signs.
  """
  sizes = jnp.abs(weights)
  total = sizes.sum(axis=-1, keepdims=True)
  shares = sizes / jnp.where(total > 0, total, 1)
  bits = jax.scipy.special.entr(shares).sum(axis=-1)
  return bits / np.log(max(sizes.shape[-1], 2))  # Of one skill it is 0 / 1.


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
  config: Routed,
  *,
  noise_key: PRNGKeyArray | None = None,
  example_index: Int[Array, 'batch'] | None = None,
  uniform_share: Float[Array, ''] | float | None = None,
) -> Weights:
  """Computes every linear's mixing weights for a batch.

  Task ids are not checked here (the host does, in `TaskTable`): under mixing
  that depends on the task, the weights of an id outside 0 … n_tasks - 1 are
  NaN, so that a wrong one neither gets nor trains some other task's row.

  Args:
    routers: what `init_routers` returns; unused by 'uniform' and 'private'.
    linears: the adapted linears by path.
    task_ids: the examples' tasks.
    config: how logits become weights, which linears share a router, and how
      many splits and skills there are.
    noise_key: the step's key; only training with 'relaxed_bernoulli' has one.
    example_index: indices in the global batch; default 0, 1, 2 ….
    uniform_share: how much of the weights is uniform, 0 to 1; None for none.

  Returns:
    By path of a linear, [layer, batch, split, skill]; `batch` is 1 where the
    weights do not depend on the task.
  """
  scope, n_skills = config.router_scope, config.n_skills
  names = dict.fromkeys(router_of(path, scope) for path in linears)
  form = config.mixing_form
  if form.mixing == 'uniform':
    same = jnp.full((1, config.n_splits, n_skills), 1 / n_skills)
    rows = dict.fromkeys(names, same)
  elif form.mixing == 'private':
    own = jax.nn.one_hot(task_ids, n_skills)[:, None, :]
    own = jnp.broadcast_to(own, (own.shape[0], config.n_splits, n_skills))
    own = _only_known(own, task_ids, n_skills)
    rows = dict.fromkeys(names, own)
  else:
    logits = {name: _logits_of(routers, name) for name in names}
    if form.mixing != 'relaxed_bernoulli':
      noise_key = None
    rows = _learned_weights(logits, task_ids, form, noise_key, example_index)
  if uniform_share is not None:
    rows = {name: mix_in_uniform(x, uniform_share) for name, x in rows.items()}
  return {
    path: _per_layer(rows[router_of(path, scope)], linear.layers)
    for path, linear in linears.items()
  }


def mix_in_uniform(
  weights: Float[Array, '*lead skill'], share: Float[Array, ''] | float
) -> Float[Array, '*lead skill']:
  """Returns (1 - share) weights + share / skills; at share 1, the average."""
  return (1 - share) * weights + share / weights.shape[-1]


def uniform_share(
  step: Int[Array, ''] | int, *, steps: int, anneal_steps: int
) -> Float[Array, '']:
  """Returns how much of a step's mixing weights is uniform.

  1 - cos(π/2 · n/N) in the n-th of the last N steps: the last step trains the
  average adapter itself, exactly. The authors' code (`uniform_interp_steps`)
  is one step behind, and so stops a step short of that.

  Args:
    step: steps done before, 0 in the first step.
    steps: of the whole run.
    anneal_steps: N.
  """
  left = (steps - 1 - step) / anneal_steps
  # cos(π/2 · (1 - x)): a cosine of π/2 is not quite 0 in floating point.
  return 1 - jnp.sin(jnp.pi / 2 * jnp.clip(left, 0, 1))


def _logits_of(routers, router):
  for part in router.split('/'):
    routers = routers[part]
  return routers[LOGITS]


def _learned_weights(logits, task_ids, form, noise_key, example_index):
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
  weights = {}
  for name, x in logits.items():
    rows = jnp.take(x, task_ids, axis=-3, mode='fill')
    rows = mixing_weights(rows, form, noise=noise.get(name))
    weights[name] = _only_known(rows, task_ids, x.shape[-3])
  return weights


def _only_known(weights, task_ids, n_tasks):
  """Returns [..., batch, split, skill] with NaN where there is no task."""
  known = (task_ids >= 0) & (task_ids < n_tasks)
  return jnp.where(known[:, None, None], weights, jnp.nan)


def _per_layer(weights, layers):
  if weights.ndim == 4:
    return weights
  return jnp.broadcast_to(weights, (layers, *weights.shape))


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
    init: 'uniform' draws U(-0.001, 0.001), as the paper's code does: close to
      the average adapter where the weights sum to 1. 'zeros' is the average
      exactly there, half of every gate with normalisation 'sqrt', and nothing
      at all under 'l2_norm'. 'mean' starts from the mean of the trained rows.
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
