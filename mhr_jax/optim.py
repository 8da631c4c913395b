"""Optimizers: one learning rate and one weight decay a label, one schedule.

What trains is a dictionary `{label: subtree}`; a leaf's label is its first
key. Every optimizer here is a direction that does not depend on a learning
rate, times `schedule(step) * learning_rates[label]`. So the learning rates can
be given at the call instead, as traced values, and one compiled program serves
them all:

  optimizer.update(grads, state, params, learning_rates={'routers': 0.05, …})
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mhr_jax import adafactor
from mhr_jax.errors import UserError, nearest
from mhr_jax.setting_checks import check_fields
from mhr_jax.tree_paths import names_of

LABELS = ('backbone', 'adapters', 'routers')

OptimizerName = Literal['adamw', 'adafactor', 'sgd']
ScheduleName = Literal['linear', 'cosine', 'constant']

# Norm scales and biases do not decay, as in the reference's parameter groups;
# nor do scales of (IA)³, which would go to 0, where the linear is switched off.
_UNDECAYED_LEAVES = ('scale', 'bias')


@dataclasses.dataclass(frozen=True)
class PerLabel:
  """One number for each label.

  Raises:
    UserError: one is negative or not finite.
  """

  backbone: float
  adapters: float
  routers: float

  def __post_init__(self):
    check_fields(self)

  def as_dict(self) -> dict[str, float]:
    """Returns the numbers by label."""
    return dataclasses.asdict(self)

  def updated(self, values: Mapping[str, float]) -> 'PerLabel':
    """Returns a copy with some labels' numbers replaced.

    Raises:
      UserError: a label is unknown.
    """
    for label in values:
      if label not in LABELS:
        raise UserError(f'There is no label {label!r}.{nearest(label, LABELS)}')
    return dataclasses.replace(self, **values)


_LEARNING_RATES = PerLabel(backbone=1e-3, adapters=1e-3, routers=0.1)
_WEIGHT_DECAY = PerLabel(backbone=0.01, adapters=0.01, routers=0.0)


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
  """How parameters move.

  Attributes:
    name: the rule that turns gradients into a direction.
    learning_rates: the peak of the schedule for each label; a mapping may name
      some labels only, the others keep their defaults.
    schedule: what follows the warm-up: down to 0 along a line or half a
      cosine, or no change.
    warmup_steps: steps from 0 up to the peak; None takes `warmup_proportion`.
    warmup_proportion: share of all steps, rounded down.
    weight_decay: decoupled, times the learning rate; by label as above. Norm
      scales, biases and (IA)³ scales never decay.
    clip_norm: bound of the norm over all gradients together; None for none.
    b1: AdamW's first decay rate; SGD's momentum is `momentum`.
    b2: AdamW's second decay rate.
    eps: AdamW's epsilon.
    momentum: of SGD.
    scale_parameter: Adafactor multiplies the step by each tensor's size.
    clip_threshold: Adafactor's bound of an update's root mean square.
    decay_rate: exponent of Adafactor's second-moment decay.

  Raises:
    UserError: a name is unknown or a number is out of range.
  """

  name: OptimizerName = 'adamw'
  learning_rates: PerLabel | Mapping[str, float] = _LEARNING_RATES
  schedule: ScheduleName = 'linear'
  warmup_steps: int | None = None
  warmup_proportion: float = 0.06
  weight_decay: PerLabel | Mapping[str, float] = _WEIGHT_DECAY
  clip_norm: float | None = 1.0
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  momentum: float = 0.0
  scale_parameter: bool = True
  clip_threshold: float = 1.0
  decay_rate: float = -0.8

  def __post_init__(self):
    for field, defaults in (
      ('learning_rates', _LEARNING_RATES),
      ('weight_decay', _WEIGHT_DECAY),
    ):
      value = getattr(self, field)
      if not isinstance(value, PerLabel):
        if not isinstance(value, Mapping):
          raise UserError(
            f'OptimizerSettings.{field} is {value!r}; numbers by label are'
            f" wanted, such as {{'adapters': 1e-3}}."
          )
        value = defaults.updated(value)
      object.__setattr__(self, field, value)
    check_fields(
      self,
      most={'warmup_proportion': 1},
      above={'clip_norm': 0, 'clip_threshold': 0, 'eps': 0},
      below={'b1': 1, 'b2': 1, 'momentum': 1, 'decay_rate': 0},
      signed=('decay_rate',),
    )


def _check_name(what: str, name: str, known: tuple[str, ...]):
  if name not in known:
    raise UserError(f'There is no {what} {name!r}.{nearest(name, known)}')


def make_schedule(
  settings: OptimizerSettings, total_steps: int
) -> optax.Schedule:
  """Returns the multiplier of every learning rate, a function of the step.

  Step 0 is the first one. With a warm-up its multiplier is 0 and step
  `warmup_steps` reaches 1, as in transformers' `get_linear_schedule…`.
  """
  warmup = settings.warmup_steps
  if warmup is None:
    warmup = int(settings.warmup_proportion * total_steps)

  def schedule(step):
    step = jnp.asarray(step, jnp.float32)
    done = jnp.clip((step - warmup) / max(1, total_steps - warmup), 0.0, 1.0)
    match settings.schedule:
      case 'linear':
        after = 1.0 - done
      case 'cosine':
        after = 0.5 * (1.0 + jnp.cos(jnp.pi * done))
      case _:
        after = jnp.ones_like(done)
    return jnp.where(step < warmup, step / max(1, warmup), after)

  return schedule


def make_optimizer(
  settings: OptimizerSettings, total_steps: int
) -> optax.GradientTransformationExtraArgs:
  """Returns the optimizer of a trainable dictionary `{label: subtree}`.

  Its `update` takes `learning_rates={label: rate}` (numbers or traced scalars)
  in place of those of the settings; labels left out keep the settings'.

  Args:
    settings: how parameters move.
    total_steps: where the schedule ends.
  """
  clip = (
    optax.identity()
    if settings.clip_norm is None
    else optax.clip_by_global_norm(settings.clip_norm)
  )
  schedule = make_schedule(settings, total_steps)
  rates = settings.learning_rates
  assert isinstance(rates, PerLabel)
  return optax.with_extra_args_support(
    optax.chain(
      clip, *_direction(settings), _scale_by_learning_rates(schedule, rates)
    )
  )


def _direction(
  settings: OptimizerSettings,
) -> tuple[optax.GradientTransformation, ...]:
  decay = settings.weight_decay
  assert isinstance(decay, PerLabel)
  if settings.name == 'adafactor':
    return (
      adafactor.scale_by_adafactor(
        scale_parameter=settings.scale_parameter,
        clip_threshold=settings.clip_threshold,
        decay_rate=settings.decay_rate,
        weight_decay=lambda path: _decay_of(decay, path),
      ),
    )
  if settings.name == 'adamw':
    rule = optax.scale_by_adam(settings.b1, settings.b2, settings.eps)
  elif settings.momentum:
    rule = optax.trace(settings.momentum)
  else:
    rule = optax.identity()
  return rule, _add_weight_decay(decay)


def _decay_of(decay: PerLabel, path: tuple[str, ...]) -> float:
  if path[-1] in _UNDECAYED_LEAVES:
    return 0.0
  return getattr(decay, path[0])


def _add_weight_decay(decay: PerLabel) -> optax.GradientTransformation:
  def update(updates, params):
    def one(path, update, param):
      rate = _decay_of(decay, names_of(path))
      return update + rate * param if rate else update

    return jax.tree_util.tree_map_with_path(one, updates, params)

  return optax.stateless(update)


class LearningRateState(NamedTuple):
  """The number of updates so far, from which the schedule is computed."""

  count: jax.Array


def _scale_by_learning_rates(
  schedule: optax.Schedule, rates: PerLabel
) -> optax.GradientTransformationExtraArgs:
  defaults = rates.as_dict()

  def init(params):
    for label in params:
      _check_name('label', label, LABELS)
    return LearningRateState(jnp.zeros([], jnp.int32))

  def update(updates, state, params=None, *, learning_rates=None, **extra):
    del params, extra
    multiplier = jnp.asarray(schedule(state.count))
    given = defaults | dict(learning_rates or {})
    scaled = {
      label: _scale(-multiplier * given[label], subtree)
      for label, subtree in updates.items()
    }
    return scaled, LearningRateState(state.count + 1)

  return optax.GradientTransformationExtraArgs(init, update)


def _scale(factor: Any, tree: Any) -> Any:
  return jax.tree.map(lambda x: factor.astype(x.dtype) * x, tree)
