"""Routing for a Flax (Linen) model whose code is not to be touched.

Two passes with intercepted methods. One looks: it runs the model's `init` on
abstract values and notes every linear's path, its features and the axes on
which `nn.scan` or `nn.vmap` stack its parameters. The other applies: adapters
are mixed in front of the model, one an example, and laid beside the kernels
they belong to, so that scans slice them as they slice kernels; each linear's
output then gets what its pair adds, or is multiplied by its (IA)³ scale.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
import re
from typing import Any, NamedTuple

from flax import linen as nn
from flax import traverse_util
import jax
from jax import numpy as jnp
from jaxtyping import Array, Int, PyTree

from mhr_jax import adapters as adapters_lib
from mhr_jax import inventories, methods, modules, routing
from mhr_jax.adapters import AdapterConfig, LinearShape
from mhr_jax.errors import UserError, nearest

SCOPES = ('module', 'model')
"""The router scopes that mean something in any model."""

_ADAPTER = 'mhr_jax_adapter'
_PROBE = 'mhr_jax_probe'
# No axis that a transformation adds is as long as one of these.
_PROBE_SHAPE = (10_007, 10_009, 10_037)
_ADDED = frozenset({modules.ADAPTERS, modules.ROUTERS})
# Arguments of `apply` that `init` takes otherwise.
_OF_APPLY = ('rngs', 'mutable', 'capture_intermediates')

Interceptor = Callable[..., Any]
Variables = Mapping[str, Any]


class _Stack(NamedTuple):
  """The axes of a linear's parameters that count layers, and their sizes."""

  axes: tuple[int, ...]
  sizes: tuple[int, ...]

  def place(self, x: Array) -> Array:
    """Moves [layer, ...] to where these layers lie."""
    x = x.reshape(self.sizes + x.shape[1:])
    return jnp.moveaxis(x, range(len(self.axes)), self.axes)


class _Linear(NamedTuple):
  """What the first pass notes of a linear, as one of its layers sees it."""

  in_features: int
  out_features: int
  problem: str | None


def route(
  model: nn.Module,
  config: AdapterConfig,
  *,
  linears: Sequence[type[nn.Module]] = (nn.Dense, nn.DenseGeneral),
) -> 'RoutedModel':
  """Returns a model whose linears have adapters, mixed by each example's task.

  Args:
    model: any Linen model, with `init` and `apply` as Flax has them.
    config: the adapters. `targets` are matched with the whole path of each
      linear, as the parameters have it: '.*/(query|value)'. `router_scope` is
      'module', a router for every linear, or 'model', one for all.
    linears: the classes of linears, for models with classes of their own:
      modules with a compact `__call__(x)` that sum over the axes `axis` of x,
      or the last one where they have no such attribute.

  Raises:
    UserError: the router scope has no meaning in a model like this.
  """
  if config.router_scope not in SCOPES:
    raise UserError(
      f'router_scope={config.router_scope!r} speaks of the parts of a T5. In'
      f' any model there are {" and ".join(map(repr, SCOPES))}.'
    )
  return RoutedModel(model, config, tuple(linears))


@dataclasses.dataclass(frozen=True, eq=False)
class RoutedModel:
  """A Linen model with adapters: what `route` returns.

  Its variables are the model's own, untouched, and two collections more:
  'adapters' with `a` [layer, split, skill, in/split, rank] and `b` [layer,
  split, skill, rank, out/split] by path, or of (IA)³ `scale` [layer, split,
  skill, out/split], and, where routing is learned,
  'routers' with `routing_logits` [layer, task, split, skill] by path, or
  'routers/model' without `layer` at that scope. A linear outside of scans has
  one layer. These are the trees that the rest of this library works with.

  The first axis of every adapted linear's input must be the examples.

  Attributes:
    model: the model.
    config: the adapters.
    linears: the classes that count as linears.
  """

  model: nn.Module
  config: AdapterConfig
  linears: tuple[type[nn.Module], ...]
  _stacks: dict[str, _Stack] = dataclasses.field(
    default_factory=dict, init=False, repr=False
  )
  _shapes: dict[str, LinearShape] = dataclasses.field(
    default_factory=dict, init=False, repr=False
  )

  def init(
    self, rngs: Any, *args: Any, task_ids: Any = None, **kwargs: Any
  ) -> dict[str, Any]:
    """Draws all variables; prints how many linears are routed.

    Args:
      rngs: a key, or keys by name, as for the model's `init`.
      *args: the model's inputs.
      task_ids: not needed; accepted so that `apply` has the same arguments.
      **kwargs: for the model's `init`.

    Returns:
      What the model's `init` returns, with 'adapters' and 'routers' added.

    Raises:
      UserError: see `init_added`; or the model has such collections itself.
    """
    del task_ids
    _params_key(rngs)
    variables = self.model.init(rngs, *args, **kwargs)
    taken = sorted(_ADDED & set(variables))
    if taken:
      raise UserError(
        f'The model has a collection {taken[0]!r} of its own, which is the name'
        ' of what is added to it: rename it in the model.'
      )
    return {**variables, **self.init_added(rngs, *args, **kwargs)}

  def init_added(
    self, rngs: Any, *args: Any, **kwargs: Any
  ) -> dict[str, PyTree]:
    """Draws 'adapters' and 'routers' alone, as for a pretrained model.

    Args:
      rngs: see `init`.
      *args: the model's inputs; the model runs on abstract values only.
      **kwargs: for the model's `init`.

    Raises:
      UserError: a target matches no linear (the nearest paths are named),
        n_splits does not divide one's features, one cannot be adapted, or
        `rngs` has no 'params'.
    """
    key = routing.fold_name(_params_key(rngs), 'mhr_jax')
    found, chosen = self._look(rngs, args, kwargs)
    added = jax.jit(lambda k: methods.init_added(k, self.config, chosen))(key)
    print(_summary(found, chosen, added))
    return added

  def find_linears(
    self, rngs: Any, *args: Any, **kwargs: Any
  ) -> dict[str, LinearShape]:
    """Returns the linears that are adapted, by path; computes nothing.

    Raises:
      UserError: see `init_added`.
    """
    return self._look(rngs, args, kwargs)[1]

  def apply(
    self,
    variables: Variables,
    *args: Any,
    task_ids: Int[Array, 'batch'] | None = None,
    example_index: Int[Array, 'batch'] | None = None,
    **kwargs: Any,
  ) -> Any:
    """Runs the model with each example's adapters.

    Args:
      variables: what `init` returns, or with a checkpoint for 'params'.
      *args: the model's inputs, with the examples first. Where an example has
        several rows (beams), repeat its task id: `jnp.repeat(task_ids, 4)`.
      task_ids: the examples' tasks; not needed where all share one adapter.
        Under `jax.jit`, where nobody can look at them, an id outside 0 …
        n_tasks - 1 makes its example NaN; elsewhere it is an error.
      example_index: the examples' indices in the global batch, on which the
        noise depends; default 0, 1, 2 ….
      **kwargs: for the model's `apply`, such as `rngs`, `mutable`, `method`.
        The random numbers 'routing' (`rngs={'routing': key}`) switch on the
        noise of 'relaxed_bernoulli' mixing, as in training.

    Returns:
      What the model's `apply` returns.

    Raises:
      UserError: the adapters and routers are not those that this config has
        for this model (missing, too many, of other shapes), or the task ids
        are needed or do not fit a linear's rows.
    """
    if modules.ADAPTERS not in variables:
      raise UserError(
        "The variables have no 'adapters': add what init_added(key, *inputs)"
        ' returns.'
      )
    task_ids = modules.check_task_ids(task_ids, self.config.n_tasks)
    self._check(variables, args, kwargs)
    rngs = kwargs.get('rngs')
    paired = adapters_lib.pair_for_batch(
      variables,
      self.config,
      task_ids,
      noise_key=rngs.get(modules.NOISE) if isinstance(rngs, Mapping) else None,
      example_index=example_index,
    )
    mixed = adapters_lib.mix_adapters(paired, scale=self.config.scale)
    own = {k: tree for k, tree in variables.items() if k not in _ADDED}
    own['params'] = self._lay_beside(own['params'], mixed)
    missing: dict[str, None] = {}
    n_ids = None if task_ids is None else len(task_ids)

    def add(module, x, y):
      if module.get_variable('params', _ADAPTER) is not None:
        return _apply_adapter(module, x, y, n_ids)
      if self._is_target('/'.join(module.path)):
        missing['/'.join(module.path)] = None
      return y

    with nn.intercept_methods(_on_linears(self.linears, add)):
      result = self.model.apply(own, *args, **kwargs)
    if missing:
      raise UserError(
        f'There are no adapters for {", ".join(missing)}, which the targets'
        ' match: hand in the variables that init_added made for this config.'
      )
    if kwargs.get('mutable', False) is False:
      return result
    output, updated = result
    if 'params' in updated:
      updated = {**updated, 'params': _without_adapters(updated['params'])}
    return output, updated

  def _is_target(self, path):
    return any(re.fullmatch(x, path) for x in self.config.targets)

  def _check(self, variables, args, kwargs):
    """Checks that adapters and routers are the config's; looks at the model."""
    added = {k: variables[k] for k in _ADDED if k in variables}
    leaves: dict[str, Any] = traverse_util.flatten_dict(added, sep='/')
    paths = dict.fromkeys(
      name.partition('/')[2].rpartition('/')[0]
      for name in leaves
      if name.startswith(f'{modules.ADAPTERS}/')
    )
    for path in paths:
      _check_path(variables['params'], path)
    extra = [path for path in paths if not self._is_target(path)]
    if extra:
      raise UserError(
        f'There are adapters for {", ".join(extra)}, which no target matches:'
        ' name them in targets, or leave their adapters out.'
      )
    if not paths.keys() <= self._stacks.keys():
      # Restored from a file: nobody has looked at the model yet.
      rngs = kwargs.get('rngs')
      names = rngs if isinstance(rngs, Mapping) else ()
      keys = dict.fromkeys(('params', *names), jax.random.key(0))
      kwargs = {k: v for k, v in kwargs.items() if k not in _OF_APPLY}
      self._note(keys, args, kwargs)
    linears = {
      path: self._shapes.get(path) or _read_shape(leaves, path, self.config)
      for path in paths
    }
    modules.check_leaves(leaves, _leaf_shapes(self.config, linears))

  def _lay_beside(self, params, mixed):
    """Returns the parameters with every linear's adapter beside its kernel."""
    for path, adapter in adapters_lib.list_inventories(mixed).items():
      if path in self._stacks:  # else this call does not come to the linear
        stacked = jax.tree.map(self._stacks[path].place, adapter)
        params = _insert(params, path.split('/'), stacked)
    return params

  def _look(self, rngs, args, kwargs):
    """Returns all linears and those that are adapted."""
    _params_key(rngs)
    found, problems = self._note(rngs, args, kwargs)
    if not found or '' in found:
      raise UserError(_nothing_inside(self.model, self.linears, found))
    selected = adapters_lib.select_linears(self.config, found)
    for path in selected:
      if path in problems:
        raise UserError(f'{path} {problems[path]}')
    return found, {path: found[path] for path in selected}

  def _note(self, rngs, args, kwargs):
    """Returns the linears of a call and what is wrong; keeps their stacks."""
    noted: dict[tuple[str, ...], _Linear] = {}

    def note(module, x, y):
      module.param(_PROBE, nn.initializers.zeros, _PROBE_SHAPE)
      noted[module.path] = _describe(module, x, y)
      return y

    def init():
      with nn.intercept_methods(_on_linears(self.linears, note)):
        return self.model.init(rngs, *args, **kwargs)

    tree = jax.eval_shape(init).get('params', {})
    params: dict[Any, Any] = traverse_util.flatten_dict(tree)
    found, problems = {}, {}
    for parts, linear in noted.items():
      shape, path = params[(*parts, _PROBE)].shape, '/'.join(parts)
      axes = tuple(i for i, n in enumerate(shape) if n not in _PROBE_SHAPE)
      self._stacks[path] = _Stack(axes, tuple(shape[i] for i in axes))
      found[path] = LinearShape(
        math.prod(self._stacks[path].sizes),
        linear.in_features,
        linear.out_features,
      )
      if linear.problem:
        problems[path] = linear.problem
    self._shapes.update(found)
    return found, problems


def _params_key(rngs):
  if not isinstance(rngs, Mapping):
    return rngs
  if 'params' not in rngs:
    raise UserError(
      f"The random numbers are {sorted(rngs)}, and 'params' is needed to draw"
      " parameters: hand in one key, or {'params': key, …}."
    )
  return rngs['params']


def _read_shape(leaves, path, config):
  """Returns the shape of a linear that a call does not come to."""
  found = [
    leaves.get(f'{modules.ADAPTERS}/{path}/{leaf}')
    for leaf in inventories.leaf_shapes(config, 0, 0)
  ]
  if any(leaf is None for leaf in found) or not found[0].ndim:
    return LinearShape(0, 0, 0)  # refused, with its path
  layers = len(found[0])
  adapters = max(layers * config.n_skills * config.rank, 1)
  features = [leaf.size // adapters for leaf in found]
  return LinearShape(layers, features[0], features[-1])


def _leaf_shapes(config, linears):
  """Returns the shapes of all adapters and routers, by path."""
  result = {}
  for path, linear in linears.items():
    lead = (linear.layers,)
    for leaf, shape in modules.leaf_shapes(config, linear).items():
      if leaf != routing.LOGITS:
        result[f'{modules.ADAPTERS}/{path}/{leaf}'] = (*lead, *shape)
        continue
      name = routing.router_of(path, config.router_scope)
      lead = lead if config.router_scope in routing.LAYERED_SCOPES else ()
      result[f'{modules.ROUTERS}/{name}/{leaf}'] = (*lead, *shape)
  return result


def _describe(module, x, y):
  axis = getattr(module, 'axis', -1)
  rest, in_features = modules.split_shape(x.shape, axis)
  problem = None
  if getattr(module, 'batch_dims', ()):
    problem = (
      f'has batch_dims={tuple(module.batch_dims)}, a kernel for each of them:'
      ' such a linear cannot be adapted. Leave it out of the targets.'
    )
  return _Linear(in_features, math.prod(y.shape[len(rest) :]), problem)


def _nothing_inside(model, linears, found):
  if found:
    return f'The model is itself one linear: use RoutedDense for {model!r}.'
  names = ', '.join(cls.__name__ for cls in linears)
  return (
    f'{type(model).__name__} calls no linear of these classes: {names}. If its'
    ' linears are of a class of their own, name it: route(..., linears=[…]).'
  )


def _on_linears(classes, act) -> Interceptor:
  """Returns an interceptor that hands linears (module, x, y) to `act`.

  The calls looked for are the classes' own `__call__`: of a subclass that
  computes with `super().__call__`, the inner call, and that once.
  """
  calls = [cls.__call__.__wrapped__ for cls in classes]

  def interceptor(next_call, args, kwargs, context):
    y = next_call(*args, **kwargs)
    module = context.module
    is_linear = context.orig_method.func in calls
    if not is_linear or isinstance(module, modules.RoutedDense):
      return y
    x = args[0] if args else next(iter(kwargs.values()))
    return act(module, x, y)

  return interceptor


def _apply_adapter(module, x, y, n_ids):
  return modules.apply_adapter(
    y,
    x,
    module.get_variable('params', _ADAPTER),
    getattr(module, 'axis', -1),
    n_ids=n_ids,
    precision=getattr(module, 'precision', None),
    name='/'.join(module.path),
  )


def _summary(found, chosen, added):
  counts = ' and '.join(
    f'{sum(leaf.size for leaf in jax.tree.leaves(tree)):,} in {label}'
    for label, tree in added.items()
  )
  routed, every = (
    sum(x.layers for x in each.values()) for each in (chosen, found)
  )
  names = ', '.join(list(chosen)[:3]) + (', …' if len(chosen) > 3 else '')
  return f'Routing {routed} of {every} linears: {names} ({counts})'


def _check_path(params, path):
  node = params
  for part in path.split('/'):
    if not isinstance(node, Mapping) or part not in node:
      paths = {'/'.join(key[:-1]) for key in traverse_util.flatten_dict(params)}
      raise UserError(
        f'There are adapters for {path!r}, which the model has not got: they'
        f' are of another model.{nearest(path, paths)}'
      )
    node = node[part]


def _insert(tree, path, adapter):
  """Returns a tree with an adapter at a path; shares all else."""
  if not path:
    return {**tree, _ADAPTER: adapter}
  return {**tree, path[0]: _insert(tree[path[0]], path[1:], adapter)}


def _without_adapters(tree):
  if not isinstance(tree, Mapping):
    return tree
  return {k: _without_adapters(v) for k, v in tree.items() if k != _ADAPTER}
