"""Training and decoding several few-shot cells as one program.

What trains has a leading axis of cells, what is frozen is shared. The whole
training is one scan over batches that were built before. Programs are kept by
what decides them: the model, the optimizer without its learning rates (these
are arguments), the loss, the labels that train; and by shapes. So tasks,
seeds, learning rates and pre-training runs share one compilation.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32
import numpy as np

from mhr_jax import optim
from mhr_jax.model import RoutedT5
from mhr_jax.t5.decoding import DecodingSettings, decode_tokens
from mhr_jax.train_state import (
  LossNormalisation,
  TrainState,
  check_normalisation,
  init_state,
  make_train_step,
)

Params = dict[str, Any]

_UNIT_RATES = optim.PerLabel(backbone=1.0, adapters=1.0, routers=1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossSettings:
  """What is added to the cross-entropy.

  Attributes:
    label_smoothing: share of the loss spread over the vocabulary.
    z_loss: weight of the squared log-partition.
    normalisation: what the summed loss of a batch is divided by; see
      `TrainSettings.loss_normalisation`.
  """

  label_smoothing: float = 0.0
  z_loss: float = 0.0
  normalisation: LossNormalisation = 'tokens'

  def __post_init__(self):
    check_normalisation(self.normalisation)


@dataclasses.dataclass(frozen=True)
class Trained:
  """What a group of cells became.

  Attributes:
    frozen: subtrees that all cells share, by label.
    stacked: subtrees that trained, with a leading axis of cells.
    losses: a token, by step.
    finite: whether loss and gradients were finite, by step.
  """

  frozen: Params
  stacked: Params
  losses: Float[np.ndarray, 'cell step']
  finite: Bool[np.ndarray, 'cell step']

  def params_of(self, cell: int) -> Params:
    """Returns all parameters of one cell."""
    own = jax.tree.map(lambda leaf: leaf[cell], self.stacked)
    return {**self.frozen, **own}


def stack_trees(trees: Sequence[Any]) -> Any:
  """Returns one tree whose leaves have a leading axis over the trees."""
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def train_cells(
  model: RoutedT5,
  starts: Sequence[Params],
  batches: Sequence[Mapping[str, np.ndarray]],
  keys: Sequence[Array],
  *,
  trains: tuple[str, ...],
  optimizer: optim.OptimizerSettings,
  loss: LossSettings,
) -> Trained:
  """Trains every cell from its own start on its own batches.

  Args:
    model: of all cells.
    starts: all parameters of each cell; those that do not train must be the
      same in all, and are taken from the first.
    batches: of each cell, arrays with a leading axis of steps.
    keys: of each cell, for dropout and routing noise.
    trains: labels that train.
    optimizer: how parameters move.
    loss: what the loss is.
  """
  rates = optimizer.learning_rates
  assert isinstance(rates, optim.PerLabel)
  structure = dataclasses.replace(optimizer, learning_rates=_UNIT_RATES)
  n_steps = len(batches[0]['task_ids'])
  train = _compiled_training(model, structure, loss, n_steps)
  frozen = {k: tree for k, tree in starts[0].items() if k not in trains}
  stacked, losses, finite = train(
    frozen,
    stack_trees([{k: start[k] for k in trains} for start in starts]),
    {name: np.stack([b[name] for b in batches]) for name in batches[0]},
    jnp.stack(keys),
    {k: jnp.float32(rates.as_dict()[k]) for k in trains},
  )
  return Trained(frozen, stacked, np.asarray(losses), np.asarray(finite))


@functools.lru_cache(maxsize=32)
def _compiled_training(
  model: RoutedT5,
  optimizer: optim.OptimizerSettings,
  loss: LossSettings,
  n_steps: int,
) -> Callable[..., Any]:
  """Returns (frozen, stacked start, batches, keys, rates) -> what trained."""
  rule = optim.make_optimizer(optimizer, n_steps)
  train_step = make_train_step(
    model,
    rule,
    label_smoothing=loss.label_smoothing,
    z_loss=loss.z_loss,
    normalisation=loss.normalisation,
  )

  def train_one(frozen, start, batches, key, rates):
    first = init_state({**frozen, **start}, rule, tuple(start))

    def body(moving, batch):
      # The frozen subtrees stay outside of what the scan carries.
      step, trainable, opt_state = moving
      state = TrainState(step, trainable, frozen, opt_state)
      state, metrics = train_step(state, batch, key, rates)
      mean = metrics['loss_sum'] / jnp.maximum(metrics['weight_sum'], 1e-6)
      return _moving(state), (mean, metrics['finite'])

    moving, (losses, finite) = jax.lax.scan(body, _moving(first), batches)
    return moving[1], losses, finite

  side_by_side = jax.vmap(train_one, in_axes=(None, 0, 0, 0, None))
  return jax.jit(side_by_side, donate_argnums=1)


def _moving(state: TrainState) -> tuple[Any, Any, Any]:
  return state.step, state.trainable, state.opt_state


def generate_cells(
  model: RoutedT5,
  trained: Trained,
  tokens: Int32[np.ndarray, 'cell row input'],
  settings: DecodingSettings,
  *,
  key: Array,
) -> Int32[np.ndarray, 'cell row output']:
  """Decodes every cell's rows with its own parameters.

  Args:
    model: of all cells, which have one task each.
    trained: their parameters.
    tokens: inputs of each cell.
    settings: how to choose tokens.
    key: for sampling.
  """
  decode = _compiled_decoding(model, settings, 'backbone' in trained.stacked)
  return np.asarray(decode(trained.frozen, trained.stacked, tokens, key))


@functools.lru_cache(maxsize=32)
def _compiled_decoding(
  model: RoutedT5, settings: DecodingSettings, backbone_trains: bool
) -> Callable[..., Array]:
  def one_by_one(frozen, stacked, tokens, key):
    def decode(own, tokens, key):
      batch = {'encoder_input_tokens': tokens}
      return model.generate({**frozen, **own}, batch, settings, key=key)

    keys = jax.random.split(key, len(tokens))
    return jax.vmap(decode)(stacked, tokens, keys)

  def together(frozen, stacked, tokens, key):
    """All cells' rows as one batch: one pair of adapters a group of rows."""
    mix = jax.vmap(lambda own: model.mix({**frozen, **own}, None))
    pairs = jax.tree.map(lambda x: jnp.moveaxis(x[:, :, 0], 0, 1), mix(stacked))
    n_cells, n_rows, length = tokens.shape
    decoded = decode_tokens(
      model.network,
      frozen['backbone'],
      tokens.reshape(n_cells * n_rows, length),
      pairs,
      settings,
      key=key,
    )
    return decoded.reshape(n_cells, n_rows, -1)

  return jax.jit(one_by_one if backbone_trains else together)
