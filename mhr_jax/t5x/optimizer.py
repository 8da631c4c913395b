"""Our optimizers under T5X: nothing is kept for what does not train."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from flax import core as flax_core
from flax import serialization, struct, traverse_util
import jax
import jax.numpy as jnp
import optax
from t5x import optimizers

from mhr_jax import optim
from mhr_jax.convert import t5x_tree
from mhr_jax.errors import UserError, nearest
from mhr_jax.optim import OptimizerSettings
from mhr_jax.tree_paths import leaves_by_path, names_of


@struct.dataclass
class HyperParameters:
  """What T5X's trainer overrides at every step.

  Attributes:
    learning_rate: of the adapters (of the first label that trains).
  """

  learning_rate: float | None = None


class RoutedOptimizer(optimizers.OptimizerDef):
  """`mhr_jax.optim` as a T5X optimizer, with a learning rate for each label.

  T5X's learning-rate function gives the rate of the first label of `trains`;
  the others keep their ratio to it, as in `settings.learning_rates`. The
  schedule and the warm-up of the settings are not used: they are the
  function's. State is kept for the labels that train alone, so that a
  checkpoint resumes and holds nothing for the backbone.
  """

  def __init__(
    self,
    settings: OptimizerSettings | None = None,
    trains: Sequence[str] = ('adapters', 'routers'),
  ):
    """Makes the optimizer.

    Args:
      settings: as in our trainer; schedule and warm-up are T5X's.
      trains: the labels that train, such as `methods.trained_labels` says.

    Raises:
      UserError: there is no such label.
    """
    super().__init__(hyper_params=HyperParameters())
    for label in trains:
      if label not in optim.LABELS:
        raise UserError(
          f'There is no label {label!r}.{nearest(label, optim.LABELS)}'
        )
    settings = dataclasses.replace(
      settings or OptimizerSettings(), schedule='constant', warmup_steps=0
    )
    self.settings = settings
    self.trains = tuple(trains)
    self._optimizer = optim.make_optimizer(settings, total_steps=1)

  def init_state(self, params: Any) -> optimizers.OptimizerState:
    """Returns the state of the labels that train."""
    state = self._optimizer.init(self._trainable(params))
    return optimizers.OptimizerState(step=0, param_states=state)

  def apply_gradient(
    self, hyper_params: Any, params: Any, state: Any, grads: Any
  ) -> tuple[Any, optimizers.OptimizerState]:
    """Returns the parameters after a step, and the new state."""
    split = t5x_tree.from_t5x(flax_core.unfreeze(params))
    trainable = {label: split[label] for label in self.trains}
    updates, new_state = self._optimizer.update(
      self._trainable(grads),
      state.param_states,
      trainable,
      learning_rates=self._rates(hyper_params.learning_rate),
    )
    stepped: Any = optax.apply_updates(trainable, updates)
    moved: Any = t5x_tree.to_t5x({**split, **stepped})
    if isinstance(params, flax_core.FrozenDict):
      moved = flax_core.freeze(moved)
    return moved, optimizers.OptimizerState(state.step + 1, new_state)

  def _rates(self, learning_rate: Any) -> Mapping[str, Any]:
    if learning_rate is None:
      raise UserError(
        'T5X gave no learning rate: set Trainer.learning_rate_fn.'
      )
    peaks = self.settings.learning_rates
    assert isinstance(peaks, optim.PerLabel)
    first = getattr(peaks, self.trains[0])
    if not first:
      raise UserError(f'The learning rate of {self.trains[0]} is 0.')
    return {
      label: learning_rate * (getattr(peaks, label) / first)
      for label in self.trains
    }

  def _trainable(self, params: Any) -> dict[str, Any]:
    split = t5x_tree.from_t5x(flax_core.unfreeze(params))
    missing = [label for label in self.trains if label not in split]
    if missing:
      raise UserError(
        f'The model has no {missing[0]} to train; it has {", ".join(split)}.'
      )
    return {label: split[label] for label in self.trains}

  def derive_logical_axes(
    self, optimizer: optimizers.Optimizer, param_logical_axes: Any
  ) -> optimizers.Optimizer:
    """Returns the optimizer with axes in place of arrays.

    A moment with the shape of its parameter has the parameter's axes;
    Adafactor's factors and counters are whole on every device.
    """
    params = self._trainable(optimizer.target)
    axes = leaves_by_path(
      self._trainable(param_logical_axes),
      is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec),
    )
    shapes = {k: jnp.shape(v) for k, v in leaves_by_path(params).items()}

    def one(path, leaf):
      name = '/'.join(names_of(path))
      for param, names in axes.items():
        if f'/{name}/'.endswith(f'/{param}/') or f'/{param}/' in f'/{name}/':
          return names if jnp.shape(leaf) == shapes[param] else None
      return None

    states = jax.tree_util.tree_map_with_path(one, optimizer.state.param_states)
    return optimizers.Optimizer(
      optimizer.optimizer_def,
      optimizers.OptimizerState(None, states),
      param_logical_axes,
    )

  def state_dict(self, target: Any, state: Any) -> dict[str, Any]:
    """Returns nested dicts without empty ones, on which T5X's loop fails."""
    flat = traverse_util.flatten_dict(serialization.to_state_dict(state))
    return serialization.to_state_dict(
      {
        'target': serialization.to_state_dict(target),
        'state': traverse_util.unflatten_dict(flat),
      }
    )

  def restore_state(
    self, opt_target: Any, opt_state: Any, state_dict: Any
  ) -> tuple[Any, Any]:
    """Returns target and state from what `state_dict` returned."""
    target = serialization.from_state_dict(opt_target, state_dict['target'])
    wanted = traverse_util.flatten_dict(
      serialization.to_state_dict(opt_state), keep_empty_nodes=True
    )
    saved = traverse_util.flatten_dict(state_dict['state'])
    missing = [
      '/'.join(path)
      for path, leaf in wanted.items()
      if path not in saved and leaf is not traverse_util.empty_node
    ]
    if missing:
      raise UserError(f'The optimizer state lacks {missing[0]}.')
    state = serialization.from_state_dict(
      opt_state, traverse_util.unflatten_dict({**wanted, **saved})
    )
    return target, state
