"""The state of training and one compiled step of it.

The step's gradients are those of the trainable subtrees alone; frozen ones are
arguments that are neither donated nor returned. Micro-batches are summed:
losses, weights and gradients of sums, divided once at the end, so that
accumulating over N equals one batch though their tokens differ in number.
"""

from collections.abc import Callable, Iterable, Mapping
import contextlib
from typing import Any, Literal, Protocol, get_args

import flax.struct
import jax
from jax import Array
import jax.numpy as jnp
import numpy as np
import optax

from mhr_jax import partitioning
from mhr_jax.errors import UserError, nearest

Params = dict[str, Any]
Batch = Mapping[str, Array]
LearningRates = Mapping[str, Any]
LossNormalisation = Literal['tokens', 'examples']
UniformShare = Callable[[Array], Array]


class Model(Protocol):
  """What the trainer asks of a model (`RoutedT5` is one)."""

  def loss(
    self,
    params: Any,
    batch: Any,
    *,
    dropout_key: Any = None,
    noise_key: Any = None,
    example_index: Any = None,
    uniform_share: Any = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
  ) -> tuple[Array, Array, dict[str, Array]]:
    """Returns the summed loss, the summed weights and parts of the loss.

    Parts are sums (scalars) or one number a row ([batch]).
    """
    ...

  def logical_axes(self) -> Any:
    """Returns a tuple of axis names in place of each parameter."""
    ...


@flax.struct.dataclass
class TrainState:
  """What one step hands to the next.

  Attributes:
    step: int32, the number of steps done.
    trainable: the subtrees that train, by label, in float32.
    frozen: the other subtrees.
    opt_state: the optimizer's.
  """

  step: Any
  trainable: Params
  frozen: Params
  opt_state: Any

  @property
  def params(self) -> Params:
    """All parameters, as the model takes them."""
    return {**self.frozen, **self.trainable}


def split_params(
  params: Mapping[str, Any], trains: Iterable[str]
) -> tuple[Params, Params]:
  """Returns (trainable in float32, frozen as it is), by label.

  Raises:
    UserError: the model has no subtree of a label that should train.
  """
  trains = tuple(trains)
  for label in trains:
    if label not in params:
      raise UserError(
        f'The model has no {label!r} to train.{nearest(label, params)}'
      )
  trainable = {
    label: jax.tree.map(_in_float32, params[label]) for label in trains
  }
  frozen = {label: v for label, v in params.items() if label not in trains}
  return trainable, frozen


def _in_float32(x: Array) -> Array:
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise UserError(
      f'What trains is stored as {x.dtype}, in which no step is small enough.'
      " Start from a backbone with T5Config.storage = 'float32'."
    )
  return x.astype(jnp.float32)


def init_state(
  params: Mapping[str, Any],
  optimizer: optax.GradientTransformation,
  trains: Iterable[str],
) -> TrainState:
  """Returns the state at step 0; the trainable leaves are copies."""
  trainable, frozen = split_params(params, trains)
  trainable = jax.tree.map(jnp.array, trainable)
  step = jnp.zeros([], jnp.int32)
  return TrainState(step, trainable, frozen, optimizer.init(trainable))


def plan_state(
  params: Mapping[str, Any],
  optimizer: optax.GradientTransformation,
  trains: Iterable[str],
  *,
  mesh: partitioning.Mesh,
  logical_axes: Any,
  rules: partitioning.Rules | None = None,
) -> tuple[TrainState, TrainState, tuple[str, ...]]:
  """Returns the state's shapes and where it lives, without making it.

  Args:
    params: arrays or `jax.ShapeDtypeStruct`s.
    optimizer: its state is part of the state.
    trains: labels of the subtrees that train.
    mesh: the devices.
    logical_axes: names of the axes of the parameters.
    rules: `partitioning.LOGICAL_AXIS_RULES` by default.

  Returns:
    The state as `jax.ShapeDtypeStruct`s with shardings; the shardings alone;
    notes on what is not split.
  """
  axes = {label: logical_axes[label] for label in params}
  found = partitioning.shardings(axes, mesh, dict(params), rules=rules)
  state = jax.eval_shape(
    lambda tree: init_state(tree, optimizer, trains), dict(params)
  )
  places = TrainState(
    partitioning.replicated(mesh),
    {label: found.tree[label] for label in state.trainable},
    {label: found.tree[label] for label in state.frozen},
    partitioning.train_state_shardings(
      state.opt_state, found.tree, params, mesh
    ),
  )
  planned = jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    state,
    places,
  )
  return planned, places, found.notes


def place_state(
  params: Mapping[str, Any],
  optimizer: optax.GradientTransformation,
  places: TrainState,
) -> TrainState:
  """Puts the state at step 0 where `plan_state` says.

  The trainable leaves are copies: donating them leaves `params` as they are.
  """
  trainable, frozen = split_params(params, places.trainable)
  start = jax.jit(
    lambda tree: (jax.tree.map(jnp.copy, tree), optimizer.init(tree)),
    out_shardings=(places.trainable, places.opt_state),
  )
  trainable, opt_state = start(partitioning.put(trainable, places.trainable))
  return TrainState(
    partitioning.put(np.zeros([], np.int32), places.step),
    trainable,
    partitioning.put(frozen, places.frozen),
    opt_state,
  )


class TrainStep:
  """A compiled `train_step(state, batch, key, learning_rates=None)`.

  The step's random keys are folded from `key` and the state's step, so `key`
  is the same at every step. The trainable leaves, the optimizer state and the
  step of the state that is passed in are donated: use the one returned.
  `learning_rates` replaces those of the optimizer's settings, by label; it may
  change from call to call without compiling again.

  Metrics are device values: `loss_sum`, `weight_sum` and the model's parts of
  the loss; `grad_norm` before clipping; `finite`, whether loss and gradients
  are; `examples` and `tokens`, without padding.
  """

  def __init__(
    self, compiled: Any, mesh: partitioning.Mesh | None = None
  ) -> None:
    self._compiled = compiled
    self._mesh = mesh

  def __call__(
    self,
    state: TrainState,
    batch: Batch,
    key: Array,
    learning_rates: LearningRates | None = None,
  ) -> tuple[TrainState, dict[str, Array]]:
    with self._on_mesh():
      (step, trainable, opt_state), metrics = self._compiled(
        (state.step, state.trainable, state.opt_state),
        state.frozen,
        batch,
        key,
        learning_rates,
      )
    return TrainState(step, trainable, state.frozen, opt_state), metrics

  def lower(self, state: Any, batch: Any, key: Any) -> jax.stages.Lowered:
    """Lowers the step for shapes (see `plan_state`), without any values."""
    with self._on_mesh():
      return self._compiled.lower(
        (state.step, state.trainable, state.opt_state),
        state.frozen,
        batch,
        key,
        None,
      )

  def _on_mesh(self) -> contextlib.AbstractContextManager[Any]:
    """Sets the mesh that `placement.constrain` pins activations to."""
    if self._mesh is None or self._mesh.size == 1:
      return contextlib.nullcontext()
    return jax.set_mesh(self._mesh)


def make_train_step(
  model: Model,
  optimizer: optax.GradientTransformationExtraArgs,
  *,
  accumulation: int = 1,
  label_smoothing: float = 0.0,
  z_loss: float = 0.0,
  normalisation: LossNormalisation = 'tokens',
  uniform_share: UniformShare | None = None,
  weigh: Callable[[Batch], Batch] | None = None,
  places: TrainState | None = None,
) -> TrainStep:
  """Returns the training step of a model, compiled at its first call.

  Args:
    model: its `loss` is differentiated.
    optimizer: from `optim.make_optimizer`.
    accumulation: micro-batches a step; must divide the rows of the batch.
    label_smoothing: passed to the loss.
    z_loss: passed to the loss.
    normalisation: what the summed loss is divided by: the target tokens of
      the batch, or its examples.
    uniform_share: of the steps done before, how much of the mixing weights is
      uniform; passed to the loss.
    weigh: maps the whole batch before it is cut into micro-batches: adds what
      a loss must know of all rows, such as what its parts are divided by.
    places: shardings that the new state keeps.
  """

  def loss(trainable, frozen, batch, keys, example_index, share):
    loss_sum, weight_sum, parts = model.loss(
      {**frozen, **trainable},
      batch,
      dropout_key=keys[0],
      noise_key=keys[1],
      example_index=example_index,
      uniform_share=share,
      label_smoothing=label_smoothing,
      z_loss=z_loss,
    )
    return loss_sum, {'weight_sum': weight_sum, **parts}

  gradients = _accumulated(jax.value_and_grad(loss, has_aux=True), accumulation)

  def advance(moving, frozen, batch, key, learning_rates):
    step, trainable, opt_state = moving
    key = jax.random.fold_in(key, step)
    batch = batch if weigh is None else weigh(batch)
    share = None if uniform_share is None else uniform_share(step)
    sums, grads = gradients(trainable, frozen, batch, key, share)
    by = {'tokens': sums['weight_sum'], 'examples': count_examples(batch)}
    weight = jnp.maximum(by[normalisation], 1e-6)
    grads = jax.tree.map(lambda g: g / weight, grads)
    updates, opt_state = optimizer.update(
      grads, opt_state, trainable, learning_rates=learning_rates
    )
    trainable = optax.apply_updates(trainable, updates)
    metrics = {**sums, **_counts(batch), 'grad_norm': optax.tree.norm(grads)}
    metrics['finite'] = jnp.isfinite(sums['loss_sum'] + metrics['grad_norm'])
    return (step + 1, trainable, opt_state), metrics

  moving_places = places and (places.step, places.trainable, places.opt_state)
  return TrainStep(
    jax.jit(advance, donate_argnums=0, out_shardings=(moving_places, None)),
    None if places is None else places.step.mesh,
  )


def _accumulated(gradients: Callable[..., Any], n: int) -> Callable[..., Any]:
  """Returns (trainable, frozen, batch, key, share) -> (sums, their gradients)."""

  def run(trainable, frozen, batch, key, share):
    rows = len(batch['task_ids'])
    if rows % n:
      raise UserError(
        f'accumulation of {n} does not divide a batch of {rows} rows.'
      )
    dropout_key, noise_key = jax.random.split(key)

    def one(micro_batch, example_index, i):
      keys = jax.random.fold_in(dropout_key, i), noise_key
      (loss_sum, parts), grads = gradients(
        trainable, frozen, micro_batch, keys, example_index, share
      )
      return {'loss_sum': loss_sum, **parts}, grads

    example_index = jnp.arange(rows, dtype=jnp.int32)
    if n == 1:
      return one(dict(batch), example_index, 0)

    def body(total, inputs):
      parts, grads = one(*inputs)
      return jax.tree.map(jnp.add, total, grads), parts

    zeros = jax.tree.map(jnp.zeros_like, trainable)
    inputs = jax.tree.map(
      lambda x: _micro_batches(x, n), (dict(batch), example_index)
    )
    grads, parts = jax.lax.scan(body, zeros, (*inputs, jnp.arange(n)))
    return jax.tree.map(_join, parts), grads

  return run


def _micro_batches(x: Array, n: int) -> Array:
  """[rows, …] -> [n, rows / n, …], row i in micro-batch i % n.

  So each device's rows stay on it: every micro-batch is spread over all.
  """
  return jnp.moveaxis(x.reshape(-1, n, *x.shape[1:]), 1, 0)


def _join(x: Array) -> Array:
  """Sums scalars over micro-batches; puts rows back in their order."""
  return x.sum() if x.ndim == 1 else jnp.moveaxis(x, 0, 1).reshape(-1)


def check_normalisation(name: str) -> None:
  """Refuses what is not a `LossNormalisation`.

  Raises:
    UserError: it is not; the message says which there are.
  """
  known = get_args(LossNormalisation)
  if name not in known:
    raise UserError(
      f'There is no loss normalisation {name!r}.{nearest(name, known)}'
    )


def count_examples(batch: Batch) -> Array:
  """Counts the examples of a batch; a packed row holds several."""
  counts = batch['decoder_loss_weights'] > 0
  if 'decoder_segment_ids' in batch:
    return jnp.sum(jnp.max(batch['decoder_segment_ids'] * counts, axis=-1))
  return jnp.sum(counts.any(axis=-1))


def _counts(batch: Batch) -> dict[str, Array]:
  """Counts what is not padding, whose token is 0 and whose weight is 0."""
  weights = batch['decoder_loss_weights'] > 0
  read = jnp.sum(batch['encoder_input_tokens'] != 0)
  return {
    'examples': count_examples(batch),
    'tokens': read + jnp.sum(weights),
  }
