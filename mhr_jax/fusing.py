"""Fusing: a task's adapter folded into the weights of the backbone.

For one task, or for the average of all skills, routed adapters amount to one
adapter a linear: with `kernel + alpha / rank · a b`, or of (IA)³ with `kernel ·
scale`, a plain T5 computes the same without them.
"""

from collections.abc import Mapping
from typing import Any, Literal

from flax import traverse_util
import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, PyTree
import numpy as np

from mhr_jax import adapters as adapters_lib
from mhr_jax.adapters import AdapterConfig, Adapters
from mhr_jax.errors import UserError
from mhr_jax.model import Params, RoutedT5
from mhr_jax.t5.config import T5Config

Task = int | Literal['average']

_PROBE_ROWS, _PROBE_INPUTS, _PROBE_TARGETS = 4, 24, 8


def effective_adapters(
  params: Mapping[str, PyTree], task: Task, config: AdapterConfig
) -> Adapters:
  """Returns the one adapter that a task's mixture amounts to, exactly.

  Args:
    params: with 'adapters' and, where routing is learned, 'routers'.
    task: a task's id, or 'average' for all skills weighed alike.
    config: of the adapters; alpha / rank stays apart from the result.

  Returns:
    Inventories of one split and one skill: `a` [layer, 1, 1, in, rank], `b`
    [layer, 1, 1, rank, out], or `scale` [layer, 1, 1, out].

  Raises:
    UserError: there is no such task.
  """
  if task == 'average':
    return adapters_lib.average_adapters(params['adapters'])
  if not 0 <= task < config.n_tasks:
    raise UserError(
      f'There is no task {task}: the adapters are for {config.n_tasks} tasks, 0'
      f" to {config.n_tasks - 1}. 'average' asks for the mean of all skills."
    )
  pairs = adapters_lib.task_adapter(params, task, config, scale=1.0)
  return jax.tree.map(lambda x: x[:, None, None], pairs)


def fuse(
  backbone: Mapping[str, PyTree],
  config: T5Config,
  bundle_params: Mapping[str, PyTree],
  added: AdapterConfig,
  task: Task,
) -> dict[str, PyTree]:
  """Returns a backbone into whose kernels a task's adapter is folded.

  Sums and products are taken in float32; a kernel keeps its dtype.

  Args:
    backbone: scanned or unrolled, as `config.scan_layers` says.
    config: of the backbone.
    bundle_params: with 'adapters' and, where routing is learned, 'routers'.
    added: of the adapters.
    task: a task's id, or 'average' for all skills weighed alike.

  Returns:
    The backbone's tree, in the layout given; leaves without an adapter are
    the same objects.

  Raises:
    UserError: there is no such task, or the backbone lacks an adapted kernel
      of that shape.
  """
  one = effective_adapters(bundle_params, task, added)
  flat: dict[str, Any] = traverse_util.flatten_dict(backbone, sep='/')
  for path, adapter in adapters_lib.list_inventories(one).items():
    adapter = {leaf: x[:, 0, 0] for leaf, x in adapter.items()}
    stack, _, rest = path.partition('/')
    if config.scan_layers:
      name = f'{stack}/layers/{rest}/kernel'
      flat[name] = _fold(flat, name, adapter, added.scale)
      continue
    for layer in range(len(next(iter(adapter.values())))):
      name = f'{stack}/layers_{layer}/{rest}/kernel'
      in_layer = {leaf: x[layer] for leaf, x in adapter.items()}
      flat[name] = _fold(flat, name, in_layer, added.scale)
  return traverse_util.unflatten_dict(flat, sep='/')


def _fold(flat, name, adapter, scale):
  kernel = flat.get(name)
  shape = _kernel_shape(adapter, kernel)
  if kernel is not None and kernel.dtype == jnp.int8:
    raise UserError(
      'The backbone is stored as int8, and an adapter fused into it would be'
      ' rounded with it: load the backbone that it was made from instead, and'
      ' the adapter beside it.'
    )
  if kernel is None or kernel.shape != shape:
    has = 'is absent' if kernel is None else f'is {kernel.shape}'
    raise UserError(
      f'The adapter does not fit the backbone: {name} {has}, the adapter is'
      f' for {shape}.'
    )
  if 'scale' in adapter:
    return _multiply(jnp.asarray(kernel), adapter['scale'])
  return _add_product(jnp.asarray(kernel), adapter['a'], adapter['b'], scale)


def _kernel_shape(adapter, kernel):
  """Returns what kernel an adapter is for; (IA)³ takes any input."""
  if 'scale' not in adapter:
    return (*adapter['a'].shape[:-1], adapter['b'].shape[-1])
  *lead, out = adapter['scale'].shape
  in_features = kernel.shape[-2] if kernel is not None else 'any'
  return (*lead, in_features, out)


@jax.jit
def _multiply(
  kernel: Float[Array, '... in out'], scale: Float[Array, '... out']
) -> Float[Array, '... in out']:
  product = kernel.astype(jnp.float32) * scale[..., None, :]
  return product.astype(kernel.dtype)


@jax.jit
def _add_product(
  kernel: Float[Array, '... in out'],
  a: Float[Array, '... in rank'],
  b: Float[Array, '... rank out'],
  scale: float,
) -> Float[Array, '... in out']:
  a, b = a.astype(jnp.float32), b.astype(jnp.float32)
  product = jnp.matmul(a, b, precision='highest')
  return (kernel.astype(jnp.float32) + scale * product).astype(kernel.dtype)


def largest_logits_change(
  config: T5Config,
  before: tuple[RoutedT5, Params],
  after: tuple[RoutedT5, Params],
  *,
  task_id: int = 0,
) -> float:
  """Returns the largest difference of two models' logits on fixed tokens.

  Args:
    config: of both backbones; its vocabulary and dtype are used.
    before: a model and its parameters.
    after: likewise, such as the bare backbone that `fuse` returned.
    task_id: whose adapter a model with several tasks uses.

  Returns:
    The largest absolute difference over random token ids, always the same.
  """
  rng = np.random.default_rng(0)
  inputs, targets = (
    rng.integers(2, config.vocab_size, (_PROBE_ROWS, length), np.int32)
    for length in (_PROBE_INPUTS, _PROBE_TARGETS)
  )
  batch = {
    'encoder_input_tokens': jnp.asarray(inputs),
    'decoder_input_tokens': jnp.asarray(targets),
    'task_ids': jnp.full(_PROBE_ROWS, task_id, jnp.int32),
  }
  with jax.default_matmul_precision('highest'):
    first, second = (
      jax.jit(model.logits)(params, batch) for model, params in (before, after)
    )
  return float(jnp.max(jnp.abs(first - second)))
