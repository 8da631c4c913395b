"""Training, decoding and scoring several few-shot cells as one program.

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

from mhr_jax import choice_losses, optim
from mhr_jax.choice_losses import ChoiceLoss
from mhr_jax.errors import UserError
from mhr_jax.model import RoutedT5
from mhr_jax.setting_checks import check_fields
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
    choice_loss: weight of the cross-entropy over answer choices; see
      `choice_losses`.
    unlikelihood: weight of the wrong choices' unlikelihood.
    length_norm: of a choice's score in `choice_loss`.

  Raises:
    UserError: a setting is not possible, alone or beside the others.
  """

  label_smoothing: float = 0.0
  z_loss: float = 0.0
  normalisation: LossNormalisation = 'tokens'
  choice_loss: float = 0.0
  unlikelihood: float = 0.0
  length_norm: float = 1.0

  def __post_init__(self):
    check_fields(self, below={'label_smoothing': 1})
    check_normalisation(self.normalisation)
    if self.on_choices is not None and self.normalisation != 'tokens':
      raise UserError(
        'Losses on answer choices are means over tokens and examples by'
        f' themselves: normalisation stays at its default, not'
        f' {self.normalisation!r}.'
      )

  @property
  def on_choices(self) -> ChoiceLoss | None:
    """What the loss on answer choices is made of; None where there is none."""
    found = ChoiceLoss(
      choice_loss=self.choice_loss,
      unlikelihood=self.unlikelihood,
      length_norm=self.length_norm,
    )
    return found if found.choice_loss or found.unlikelihood else None


@dataclasses.dataclass(frozen=True)
class Trained:
  """What a group of cells became.

  Attributes:
    frozen: subtrees that all cells share, by label.
    stacked: subtrees that trained, with a leading axis of cells.
    losses: a token, by step; on answer choices the whole loss.
    finite: whether loss and gradients were finite, by step.
    loss_parts: the parts of a loss on answer choices by name, by step.
  """

  frozen: Params
  stacked: Params
  losses: Float[np.ndarray, 'cell step']
  finite: Bool[np.ndarray, 'cell step']
  loss_parts: dict[str, Float[np.ndarray, 'cell step']]

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
  names = [
    name
    for name in batches[0]
    if loss.on_choices is not None or not name.startswith('choice_')
  ]
  stacked, *of_steps = train(
    frozen,
    stack_trees([{k: start[k] for k in trains} for start in starts]),
    stack_padded([{name: b[name] for name in names} for b in batches]),
    jnp.stack(keys),
    {k: jnp.float32(rates.as_dict()[k]) for k in trains},
  )
  return Trained(frozen, stacked, *jax.tree.map(np.asarray, of_steps))


def compile_training(
  model: RoutedT5,
  start: Params,
  batch: Mapping[str, jax.ShapeDtypeStruct],
  *,
  n_cells: int,
  n_steps: int,
  trains: tuple[str, ...],
  optimizer: optim.OptimizerSettings,
  loss: LossSettings,
) -> Any:
  """Compiles what `train_cells` runs, on shapes alone.

  Args:
    model: of all cells.
    start: shapes of all parameters of a cell.
    batch: shapes of a step's arrays, the widest of all cells.
    n_cells: cells side by side.
    n_steps: of training.
    trains: labels that train.
    optimizer: how parameters move.
    loss: what the loss is.
  """
  structure = dataclasses.replace(optimizer, learning_rates=_UNIT_RATES)
  train = _compiled_training(model, structure, loss, n_steps)
  keep = loss.on_choices is not None

  def stacked(leaf, *sizes):
    return jax.ShapeDtypeStruct((*sizes, *leaf.shape), leaf.dtype)

  return train.lower(
    {k: tree for k, tree in start.items() if k not in trains},
    jax.tree.map(lambda x: stacked(x, n_cells), {k: start[k] for k in trains}),
    {
      name: stacked(leaf, n_cells, n_steps)
      for name, leaf in batch.items()
      if keep or not name.startswith('choice_')
    },
    jax.eval_shape(lambda: jax.random.split(jax.random.key(0), n_cells)),
    {k: jax.ShapeDtypeStruct((), jnp.float32) for k in trains},
  ).compile()


def stack_padded(
  batches: Sequence[Mapping[str, np.ndarray]],
) -> dict[str, np.ndarray]:
  """Stacks arrays by name, each filled up with zeros to the widest.

  Cells differ in how many answer choices they have, and how long; zeros are
  padding and no choice.
  """

  def stack(arrays):
    widest = np.max([array.shape for array in arrays], axis=0)
    filled = [
      np.pad(array, [(0, n) for n in widest - array.shape]) for array in arrays
    ]
    return np.stack(filled)

  return {name: stack([b[name] for b in batches]) for name in batches[0]}


@dataclasses.dataclass(frozen=True)
class _OnChoices:
  """A model whose loss is that on answer choices, as the trainer asks."""

  model: RoutedT5
  settings: ChoiceLoss

  def loss(
    self, params: Any, batch: Any, **options: Any
  ) -> tuple[Array, Array, dict[str, Array]]:
    return self.model.choice_loss(params, batch, self.settings, **options)

  def logical_axes(self) -> Any:
    return self.model.logical_axes()


@functools.lru_cache(maxsize=32)
def _compiled_training(
  model: RoutedT5,
  optimizer: optim.OptimizerSettings,
  loss: LossSettings,
  n_steps: int,
) -> jax.stages.Wrapped:
  """Returns (frozen, stacked start, batches, keys, rates) -> what trained.

  And of every cell and step the loss, whether all was finite, and the loss's
  parts.
  """
  rule = optim.make_optimizer(optimizer, n_steps)
  on_choices = loss.on_choices
  train_step = make_train_step(
    model if on_choices is None else _OnChoices(model, on_choices),
    rule,
    label_smoothing=loss.label_smoothing,
    z_loss=loss.z_loss,
    normalisation=loss.normalisation,
    weigh=None if on_choices is None else model.weigh_choice_parts,
  )
  names = () if on_choices is None else choice_losses.Parts._fields

  def train_one(frozen, start, batches, key, rates):
    first = init_state({**frozen, **start}, rule, tuple(start))

    def body(moving, batch):
      # The frozen subtrees stay outside of what the scan carries.
      step, trainable, opt_state = moving
      state = TrainState(step, trainable, frozen, opt_state)
      state, metrics = train_step(state, batch, key, rates)
      mean = metrics['loss_sum'] / jnp.maximum(metrics['weight_sum'], 1e-6)
      parts = {name: metrics[name] for name in names}
      return _moving(state), (mean, metrics['finite'], parts)

    moving, of_steps = jax.lax.scan(body, _moving(first), batches)
    return moving[1], *of_steps

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


def score_cells(
  model: RoutedT5,
  trained: Trained,
  batches: Sequence[Mapping[str, np.ndarray]],
) -> tuple[
  Float[np.ndarray, 'cell row choice'], Float[np.ndarray, 'cell row choice']
]:
  """Scores the answer choices of every cell's rows with its own parameters.

  Args:
    model: of all cells, which have one task each.
    trained: their parameters.
    batches: of each cell, with choices; filled up to the widest.

  Returns:
    Log-probabilities and lengths; see `RoutedT5.score_choices`.
  """
  score = _compiled_scoring(model)
  found = score(trained.frozen, trained.stacked, stack_padded(batches))
  log_probs, lengths = map(np.asarray, found)
  return log_probs, lengths


@functools.lru_cache(maxsize=32)
def _compiled_scoring(model: RoutedT5) -> Callable[..., Any]:
  def score(frozen, own, batch):
    return model.score_choices({**frozen, **own}, batch)

  return jax.jit(jax.vmap(score, in_axes=(None, 0, 0)))
