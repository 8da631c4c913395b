"""Our side of the comparisons, through what the library offers its users.

A training step is `make_train_step` with `make_optimizer` and their defaults,
as `mhr-jax train` takes it, on one batch that lies on the device.
"""

from collections.abc import Mapping
import dataclasses
import functools
import pathlib
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import optax

from benchmarks import setting as setting_lib
from benchmarks import weights
from benchmarks.setting import Setting
from benchmarks.works import Run, Works
from mhr_jax import methods, optim, train_state
from mhr_jax.adapters import AdapterConfig
from mhr_jax.errors import UserError
from mhr_jax.model import Params, RoutedT5
from mhr_jax.t5 import network
from mhr_jax.t5.decoding import DecodingSettings

STEP = 'step'
NOISY_STEP = 'step (relaxed_bernoulli)'
GRADIENTS = 'forward and backward'
UPDATE = 'optimizer update'
FLOOR = 'forward and input gradient'
DECODE = 'greedy decoding'
DEVICE_PEAK = 'device peak bytes'
_SCHEDULE_STEPS = 10_000


def train_step(
  setting: Mapping[str, Any],
  method: str,
  works: list[str],
  weights_folder: str | None = None,
) -> Works:
  """Builds works that train a method.

  Args:
    setting: of `Setting.as_json`.
    method: 'mhr' or 'lora'.
    works: some of the names above.
    weights_folder: of `weights.write_weights`; None draws weights.
  """
  sizes = setting_lib.from_json(setting)
  added, params = _load(sizes, method, weights_folder)
  batch = jax.device_put(sizes.draw_batch())
  optimizer = optim.make_optimizer(optim.OptimizerSettings(), _SCHEDULE_STEPS)
  trains = methods.trained_labels(method, 'pretrain')
  training = Training(sizes, added, params, batch, optimizer, trains)
  facts: dict[str, Any] = {'parameters': training.model.count_parameters()}
  if weights_folder is not None:
    facts['loss'] = training.loss()
  makers = {
    STEP: training.step,
    NOISY_STEP: lambda: training.step('relaxed_bernoulli'),
    GRADIENTS: training.gradients,
    UPDATE: training.update,
  }
  return Works({name: makers[name]() for name in works}, facts)


def _load(
  sizes: Setting, method: str | None, folder: str | None
) -> tuple[AdapterConfig | None, Params]:
  """Returns a method's adapters, and parameters on the device."""
  if folder is not None:
    added, params = weights.read_weights(pathlib.Path(folder), sizes, method)
    return added, jax.device_put(params)
  added = None if method is None else sizes.adapters(method)
  return added, _draw(sizes, added)


def _draw(sizes: Setting, added: AdapterConfig | None) -> Params:
  """Returns random parameters; those of the backbone in its dtype."""
  model = sizes.routed(added)

  @jax.jit
  def draw(key):
    params = model.init(key)
    cast = functools.partial(jnp.asarray, dtype=sizes.dtype)
    return params | {'backbone': jax.tree.map(cast, params['backbone'])}

  return draw(jax.random.key(0))


class Training:
  """One state of training, which several works take turns to advance."""

  def __init__(
    self,
    sizes: Setting,
    added: AdapterConfig | None,
    params: Params,
    batch: Mapping[str, jax.Array],
    optimizer: Any,
    trains: tuple[str, ...],
  ):
    """Makes the state at step 0."""
    self.model = sizes.routed(self._mixing(added, 'sigmoid'))
    self._added = added
    self._batch = batch
    self._optimizer = optimizer
    self._key = jax.random.key(0)
    self._state = train_state.init_state(params, optimizer, trains)

  def _mixing(
    self, added: AdapterConfig | None, mixing: Any
  ) -> AdapterConfig | None:
    """Returns the config with another mixing, where it is learned."""
    if added is None or not added.has_routers:
      return added
    return dataclasses.replace(added, mixing=mixing)

  def loss(self) -> float:
    """Returns the loss a token, without noise."""
    total, count, _ = jax.jit(self.model.loss)(self._state.params, self._batch)
    return float(total / count)

  def step(self, mixing: str = 'sigmoid') -> Run:
    """Returns the work of a whole step."""
    model = dataclasses.replace(
      self.model, adapters=self._mixing(self._added, mixing)
    )
    step = train_state.make_train_step(model, self._optimizer)

    def run() -> dict[str, float]:
      self._state, metrics = step(self._state, self._batch, self._key)
      jax.block_until_ready((self._state.trainable, metrics))
      return _device_memory()

    return run

  def gradients(self) -> Run:
    """Returns the work of the gradients alone."""

    def loss(trainable, frozen, batch):
      return self.model.loss({**frozen, **trainable}, batch)[0]

    compute = jax.jit(jax.value_and_grad(loss))

    def run() -> None:
      jax.block_until_ready(
        compute(self._state.trainable, self._state.frozen, self._batch)
      )

    return run

  def update(self) -> Run:
    """Returns the work of the optimizer alone, on gradients that stay."""
    grads = jax.tree.map(
      lambda x: jnp.full_like(x, 1e-3), self._state.trainable
    )

    def advance(moving, grads):
      trainable, opt_state = moving
      updates, opt_state = self._optimizer.update(grads, opt_state, trainable)
      return optax.apply_updates(trainable, updates), opt_state

    advance = jax.jit(advance, donate_argnums=0)

    def run() -> None:
      state = self._state
      moved = advance((state.trainable, state.opt_state), grads)
      jax.block_until_ready(moved)
      self._state = train_state.TrainState(
        state.step, moved[0], state.frozen, moved[1]
      )

    return run


def decode(
  setting: Mapping[str, Any],
  method: str | None,
  weights_folder: str | None = None,
) -> Works:
  """Builds greedy decoding of a batch, of `target_length` tokens.

  The end of sequence is the vocabulary's last token, which a random backbone
  does not happen to write, so no row ends early.

  Args:
    setting: of `Setting.as_json`.
    method: 'mhr', or None for the bare backbone.
    weights_folder: of `weights.write_weights`; None draws weights.

  Raises:
    UserError: it does write it.
  """
  sizes = setting_lib.from_json(setting)
  added, params = _load(sizes, method, weights_folder)
  endless = dataclasses.replace(
    sizes.backbone, eos_id=sizes.backbone.vocab_size - 1
  )
  model = RoutedT5(endless, added)
  settings = DecodingSettings(max_new_tokens=sizes.target_length)
  batch = jax.device_put(sizes.draw_batch())
  compute = jax.jit(lambda p, b: model.generate(p, b, settings))

  def run() -> None:
    jax.block_until_ready(compute(params, batch))

  tokens = compute(params, batch)
  if bool((tokens == endless.eos_id).any()):
    raise UserError('A row ended early: the sides do not do the same work.')
  return Works({DECODE: run}, {'tokens': tokens.tolist()})


def _device_memory() -> dict[str, float]:
  """Returns the bytes in use at the peak; {} on devices that do not count."""
  stats = jax.devices()[0].memory_stats() or {}
  names = {'peak_bytes_in_use': DEVICE_PEAK}
  return {new: stats[old] for old, new in names.items() if old in stats}


def floor(
  setting: Mapping[str, Any], weights_folder: str | None = None
) -> Works:
  """Builds the least that training adapters needs of a frozen backbone.

  Its forward pass and the gradient of the embedded inputs of both stacks: no
  adapters, no gradients of weights, no optimizer.
  """
  sizes = setting_lib.from_json(setting)
  model = sizes.routed(None)
  _, params = _load(sizes, None, weights_folder)
  batch = jax.device_put(sizes.draw_batch())
  inputs = ('encoder_input_tokens', 'decoder_input_tokens')
  moves = {
    name: jnp.zeros((*batch[name].shape, sizes.backbone.emb_dim), sizes.dtype)
    for name in inputs
  }

  def loss(moves, params, batch):
    with nn.intercept_methods(_move_embedded([moves[x] for x in inputs])):
      return model.loss(params, batch)[0]

  compute = jax.jit(jax.value_and_grad(loss))

  def run() -> None:
    jax.block_until_ready(compute(moves, params, batch))

  total, _ = compute(moves, params, batch)
  tokens = batch['decoder_loss_weights'].sum()
  return Works({FLOOR: run}, {'loss': float(total / tokens)})


def _move_embedded(moves: list[jax.Array]) -> Any:
  """Returns an interceptor that adds to the embedded tokens, call by call.

  The network embeds the encoder's tokens first, then the decoder's.
  """
  left = iter(moves)

  def intercept(call, args, kwargs, context):
    result = call(*args, **kwargs)
    if (
      isinstance(context.module, network.Embedder)
      and context.method_name == '__call__'
    ):
      return result + next(left)
    return result

  return intercept
