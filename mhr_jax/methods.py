"""THE table of methods: what each one of the paper is made of.

A method is an inventory, a routing and what trains in each phase. Everything
that differs between methods is read from here: nothing else in the package
asks for a method by name.

    phase      what happens
    pretrain   multi-task training on all training tasks
    average    zero-shot of -mu: the averaged adapter trains a little longer on
               the training tasks
    adapt      few-shot training on new tasks

Sources: Caccia et al. 2023 (arXiv:2211.03831), sections 3 and 4; the authors'
code, microsoft/mttl at c66b20d6, projects/mhr.
"""

from collections.abc import Mapping
import dataclasses
import functools
import math
from typing import Literal

import jax
from jaxtyping import ArrayLike, Float, PRNGKeyArray, PyTree

from mhr_jax import adapters as adapters_lib
from mhr_jax import routing
from mhr_jax.adapters import AdapterConfig
from mhr_jax.errors import UserError, nearest
from mhr_jax.inventories import AdapterKind

Label = Literal['backbone', 'adapters', 'routers']
Phase = Literal['pretrain', 'average', 'adapt']
Params = dict[str, PyTree]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
  """One row of the table.

  Attributes:
    name: of the method.
    inventory: adapters a linear: none at all, a single one, one a task, or
      `n_skills` that the tasks share.
    adapter: what an adapter is (`AdapterConfig.kind`).
    routing: who mixes in pre-training: nobody ('none'), one-hot by task
      ('private'), learned routing logits, or ones that are drawn wide and
      stay as they are ('random').
    splits: one routing decision a linear, or `n_splits` ('many').
    rank: as given, or as many times that as there are skills, so that a
      single adapter has as many parameters as the inventory ('matched').
    pretrain_as: the method whose pre-training this one starts from.
    pretrain_trains: labels of the parameters that train in pre-training.
    adapt_trains: labels that train in few-shot adaptation.
    adapt_from: what adaptation starts from: the pre-trained inventory with
      new rows of routing logits, an inventory drawn anew with such rows
      ('redrawn'), the average adapter, the average of the nearest training
      tasks' adapters ('soup'), a fresh adapter, or the model as it is.
    zero_shot: how an unseen task is served: by the model as it is, by the
      averaged adapter, by the averaged adapter after training it a little
      longer on the training tasks, by the soup that its inputs choose; None
      where it is not defined, or the same as that of `pretrain_as`.
    summary: the method in a line.
  """

  name: str
  inventory: Literal['none', 'single', 'per_task', 'skills']
  routing: Literal['none', 'private', 'learned', 'random']
  splits: Literal['one', 'many']
  rank: Literal['given', 'matched'] = 'given'
  adapter: AdapterKind = 'low_rank'
  pretrain_as: str
  pretrain_trains: tuple[Label, ...]
  adapt_trains: tuple[Label, ...]
  adapt_from: Literal[
    'as_is', 'inventory', 'redrawn', 'average', 'soup', 'fresh'
  ]
  zero_shot: Literal['as_is', 'average', 'average_after_training', 'soup', None]
  summary: str

  @property
  def shares_pretraining(self) -> bool:
    """Whether another method's pre-training serves this one."""
    return self.pretrain_as != self.name

  @property
  def trains_average(self) -> bool:
    """Whether its averaged adapter trains on, after pre-training."""
    return self.zero_shot == 'average_after_training'

  @property
  def has_routers(self) -> bool:
    """Whether pre-training has routing logits, learned or random."""
    return self.routing in ('learned', 'random')


def _skill_methods(
  name: str,
  splits: Literal['one', 'many'],
  summary: str,
  *,
  adapter: AdapterKind = 'low_rank',
) -> tuple[Method, Method, Method]:
  """Returns a method with an inventory of skills, its -z and its -mu."""
  method = Method(
    name=name,
    inventory='skills',
    routing='learned',
    splits=splits,
    adapter=adapter,
    pretrain_as=name,
    pretrain_trains=('adapters', 'routers'),
    adapt_trains=('adapters', 'routers'),
    adapt_from='inventory',
    zero_shot='average',
    summary=summary,
  )
  only_routing = dataclasses.replace(
    method,
    name=f'{name}_z',
    adapt_trains=('routers',),
    zero_shot=None,
    summary=f'{name}, of which new tasks train a row of routing logits only',
  )
  averaged = dataclasses.replace(
    method,
    name=f'{name}_mu',
    adapt_trains=('adapters',),
    adapt_from='average',
    zero_shot='average_after_training',
    summary=f'{name}, whose averaged adapter is what new tasks train',
  )
  return method, only_routing, averaged


def _redrawn(method: Method) -> Method:
  """Returns the method that shows what pre-training an inventory is worth."""
  return dataclasses.replace(
    method,
    name=f'{method.name}_rand',
    adapt_from='redrawn',
    zero_shot=None,
    summary=f'{method.name} on new tasks alone, from an inventory drawn anew',
  )


def _random_methods(learned: Method) -> tuple[Method, Method]:
  """Returns a method whose routing is drawn once and kept, and its -mu."""
  method = dataclasses.replace(
    learned,
    name='random',
    routing='random',
    pretrain_as='random',
    pretrain_trains=('adapters',),
    summary='mhr with a routing drawn and kept; new tasks learn rows of theirs',
  )
  averaged = dataclasses.replace(
    method,
    name='random_mu',
    adapt_trains=('adapters',),
    adapt_from='average',
    zero_shot='average_after_training',
    summary='random, whose averaged adapter is what new tasks train',
  )
  return method, averaged


_POLY = _skill_methods('poly', 'one', 'Polytropon: tasks mix an inventory')
_MHR = _skill_methods('mhr', 'many', 'multi-head routing: they mix it by split')
_LORA = Method(
  name='lora',
  inventory='single',
  routing='none',
  splits='one',
  pretrain_as='lora',
  pretrain_trains=('adapters',),
  adapt_trains=('adapters',),
  adapt_from='as_is',
  zero_shot='as_is',
  summary='one adapter, shared by all tasks',
)

_PRIVATE = Method(
  name='private',
  inventory='per_task',
  routing='private',
  splits='one',
  pretrain_as='private',
  pretrain_trains=('adapters',),
  adapt_trains=('adapters',),
  adapt_from='fresh',
  zero_shot=None,
  summary='an adapter a task, nothing shared; new tasks start afresh',
)

_TABLE = (
  _LORA,
  dataclasses.replace(
    _LORA,
    name='lora_big',
    rank='matched',
    pretrain_as='lora_big',
    summary='lora with as many parameters as an inventory',
  ),
  _PRIVATE,
  dataclasses.replace(
    _PRIVATE,
    name='adapter_soup',
    adapt_from='soup',
    zero_shot='soup',
    summary='private, whose adapters of the nearest tasks are averaged',
  ),
  *_POLY,
  _redrawn(_POLY[0]),
  *_MHR,
  _redrawn(_MHR[0]),
  *_random_methods(_MHR[0]),
  dataclasses.replace(
    _LORA,
    name='ia3',
    adapter='ia3',
    pretrain_as='ia3',
    summary='(IA)³: one scale of features, shared by all tasks',
  ),
  *_skill_methods(
    'poly_ia3', 'one', 'Polytropon with (IA)³ scales', adapter='ia3'
  ),
  *_skill_methods(
    'mhr_ia3', 'many', 'multi-head routing of (IA)³ scales', adapter='ia3'
  ),
  Method(
    name='full',
    inventory='none',
    routing='none',
    splits='one',
    pretrain_as='full',
    pretrain_trains=('backbone',),
    adapt_trains=('backbone',),
    adapt_from='as_is',
    zero_shot='as_is',
    summary='full fine-tuning of the backbone, no adapters',
  ),
)

METHODS: dict[str, Method] = {method.name: method for method in _TABLE}


def get_method(name: str | Method) -> Method:
  """Returns a row of the table.

  Raises:
    UserError: there is no such method.
  """
  if isinstance(name, Method):
    return name
  if name not in METHODS:
    raise UserError(f'There is no method {name!r}.{nearest(name, METHODS)}')
  return METHODS[name]


def trained_labels(method: str | Method, phase: Phase) -> tuple[Label, ...]:
  """Returns the labels of the parameters that train in a phase."""
  method = get_method(method)
  if phase == 'average':
    return ('adapters',)
  return method.pretrain_trains if phase == 'pretrain' else method.adapt_trains


def adapter_config(
  method: str | Method,
  base: AdapterConfig,
  *,
  phase: Phase = 'pretrain',
  n_tasks: int | None = None,
) -> AdapterConfig | None:
  """Returns what the adapters of a method are in a phase.

  Args:
    method: the method.
    base: the settings that methods share (skills, splits, rank, targets …);
      a method ignores what it has not got, as `lora` does n_skills and
      `ia3` rank and alpha.
    phase: pre-training, or what follows it.
    n_tasks: of that phase; those of `base` by default.

  Returns:
    The config, or None where there are no adapters. alpha is that of `base`,
    so a matched rank has a smaller scale, alpha / rank, as in the authors'
    code when its `lora_rank` is raised.

  Raises:
    UserError: the method has routing logits, but `base.mixing` has none; or
      adapters of another kind than `base` asks for.
  """
  method = get_method(method)
  n_tasks = base.n_tasks if n_tasks is None else n_tasks
  if method.inventory == 'none':
    return None
  base = _of_kind(base, method)
  single = base.without_routing(n_tasks)
  if method.rank == 'matched':
    single = dataclasses.replace(single, rank=base.rank * base.n_skills)
  if method.inventory == 'single' or phase == 'average':
    return single
  if phase == 'adapt' and method.adapt_from in ('average', 'soup', 'fresh'):
    return single
  if method.inventory == 'per_task':
    return dataclasses.replace(single, n_skills=n_tasks, mixing='private')
  if base.mixing not in routing.LEARNED_MIXINGS:
    raise UserError(
      f'{method.name} routes by logits; mixing={base.mixing!r} has none.'
      f' Choose one of {", ".join(sorted(routing.LEARNED_MIXINGS))}.'
    )
  return dataclasses.replace(
    base,
    n_tasks=n_tasks,
    n_splits=1 if method.splits == 'one' else base.n_splits,
    router_init=_router_init(method, base, phase),
  )


def _router_init(
  method: Method, base: AdapterConfig, phase: Phase
) -> routing.RouterInit:
  """Returns how rows are drawn: random ones wide, unless they are to train."""
  if method.routing != 'random':
    return base.router_init
  return 'normal' if phase == 'pretrain' else 'uniform'


def _of_kind(base: AdapterConfig, method: Method) -> AdapterConfig:
  if base.kind != 'low_rank' and base.kind != method.adapter:
    fitting = [x.name for x in METHODS.values() if x.adapter == base.kind]
    raise UserError(
      f'{method.name} has adapters of the kind {method.adapter!r}, and'
      f' kind={base.kind!r} is asked for: leave kind out, or choose a method'
      f' that has them: {", ".join(fitting)}.'
    )
  return base.of_kind(method.adapter)


def start_params(
  method: str | Method,
  params: Mapping[str, PyTree],
  config: AdapterConfig | None,
  *,
  phase: Phase = 'adapt',
  rows: routing.RowInit = 'uniform',
  key: PRNGKeyArray | None = None,
  shares: Float[ArrayLike, 'task'] | None = None,
) -> Params:
  """Returns the parameters that a phase after pre-training starts from.

  Args:
    method: the method.
    params: the pre-trained ones.
    config: of the phase, what `adapter_config(…, phase=phase)` returned.
    phase: 'adapt' or 'average' (also the zero-shot of poly and mhr).
    rows: how the new tasks' routing logits start (`routing.new_task_rows`).
    key: source of randomness, for new rows and adapters that are drawn; each
      array has its own by its name, so new rows are those of other methods.
    shares: of the training tasks in a soup (`adapter_soup`).

  Returns:
    The backbone as it is, with the adapters and routers of the phase.

  Raises:
    UserError: there are no adapters to average.
  """
  method = get_method(method)
  start = method.adapt_from if phase == 'adapt' else 'average'
  if start == 'average' and 'adapters' not in params:
    raise UserError(f'{method.name} has no adapters to average.')
  if start == 'as_is' or config is None:
    return dict(params)
  result = {'backbone': params['backbone']}
  adapters = params['adapters']
  if start == 'average':
    return result | {'adapters': adapters_lib.average_adapters(adapters)}
  if start == 'soup':
    shares = _needed(shares, 'A soup needs its shares of the training tasks.')
    soup = adapters_lib.average_adapters(adapters, shares)
    return result | {'adapters': soup}
  if start in ('fresh', 'redrawn'):
    linears = adapters_lib.linears_of(adapters)
    drawn = dataclasses.replace(config, targets=('.*',))
    adapters = adapters_lib.init_adapters(
      _needed(key, 'Adapters that are drawn need a key.'), drawn, linears
    )
  if start == 'fresh':
    return result | {'adapters': adapters}
  routers = routing.new_task_rows(
    params['routers'], config.n_tasks, init=rows, key=key
  )
  return result | {'adapters': adapters, 'routers': routers}


def _needed(value, otherwise):
  if value is None:
    raise ValueError(otherwise)
  return value


def parameter_counts(
  method: str | Method,
  linears: Mapping[str, adapters_lib.LinearLike],
  base: AdapterConfig,
  *,
  phase: Phase = 'pretrain',
  n_tasks: int | None = None,
) -> dict[str, int]:
  """Counts the parameters a method adds to the backbone, without making any.

  Args:
    method: the method.
    linears: of the network, such as `t5.config.list_linears(config)`.
    base: see `adapter_config`.
    phase: see `adapter_config`.
    n_tasks: see `adapter_config`.

  Returns:
    'adapters' and 'routers', and their trainable part as 'trainable' (the
    backbone is not counted, also where it trains).
  """
  config = adapter_config(method, base, phase=phase, n_tasks=n_tasks)
  counts = {'adapters': 0, 'routers': 0}
  if config is not None:
    counts |= _sizes(config, tuple(linears.items()))
  trains = trained_labels(method, phase)
  trainable = sum(counts[label] for label in counts if label in trains)
  return counts | {'trainable': trainable}


@functools.lru_cache
def _sizes(
  config: AdapterConfig,
  linears: tuple[tuple[str, adapters_lib.LinearLike], ...],
) -> dict[str, int]:
  """Returns the number of parameters by label; many methods share a config."""
  shapes = jax.eval_shape(
    lambda key: init_added(key, config, dict(linears)), jax.random.key(0)
  )
  return {
    label: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
    for label, tree in shapes.items()
  }


def init_added(
  key: PRNGKeyArray,
  config: AdapterConfig,
  linears: Mapping[str, adapters_lib.LinearLike],
) -> Params:
  """Draws what a config adds to a backbone: 'adapters', perhaps 'routers'."""
  chosen = adapters_lib.select_linears(config, linears)
  adapters_key, routers_key = jax.random.split(key)
  added = {
    'adapters': adapters_lib.init_adapters(adapters_key, config, linears)
  }
  if config.has_routers:
    added['routers'] = routing.init_routers(
      routers_key,
      chosen,
      n_tasks=config.n_tasks,
      n_splits=config.n_splits,
      n_skills=config.n_skills,
      scope=config.router_scope,
      init=config.router_init,
    )
  return added
