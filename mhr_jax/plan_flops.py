"""How much arithmetic a training step is, counted from shapes.

Only matrix products count. One with a frozen weight is done twice, forward and
for the gradient of its input: 4 FLOP a weight and token; a trained weight has
6. Rematerialisation does the forward products of layers once more. XLA's own
count (`cost_analysis`) takes the body of a loop over layers once, so it is of
no use here; `tests/plan_flops_test.py` counts the traced step's products.
"""

from collections.abc import Sequence
import dataclasses

from mhr_jax import adapters as adapters_lib
from mhr_jax.adapters import AdapterConfig, LinearLike
from mhr_jax.t5.config import T5Config, list_linears


@dataclasses.dataclass(frozen=True)
class StepShape:
  """What a step's arithmetic depends on, beside the model.

  Attributes:
    rows: of the global batch.
    input_length: tokens of a row's inputs.
    target_length: tokens of a row's targets.
    trains: labels of what trains.
    in_layer: whether adapters are mixed in the layer.
  """

  rows: int
  input_length: int
  target_length: int
  trains: tuple[str, ...]
  in_layer: bool = False


@dataclasses.dataclass(frozen=True)
class Flops:
  """Operations of one step on the global batch, by part.

  Attributes:
    weights: products with the backbone's linears.
    attention: of queries and keys, of weights and values.
    logits: the output layer.
    adapters: (x·a)·b.
    mixing: of inventories.
    again: what rematerialisation adds, of all parts.
  """

  weights: float
  attention: float
  logits: float
  adapters: float
  mixing: float
  again: float

  @property
  def total(self) -> float:
    """All that a step does."""
    return sum(dataclasses.asdict(self).values())


def count_flops(
  config: T5Config, adapters: AdapterConfig | None, step: StepShape
) -> Flops:
  """Counts the operations of a training step.

  Args:
    config: the backbone.
    adapters: as the method has them; None for the bare backbone.
    step: sizes of the batch, and what trains.
  """
  learns = 'backbone' in step.trains
  linears = list_linears(config)
  tokens = {path: _tokens(path, step) for path in linears}
  weights = sum(
    2.0 * x.layers * x.in_features * x.out_features * tokens[path]
    for path, x in linears.items()
  )
  attention = 4.0 * step.rows * config.joined_kv * _pairs(config, step)
  logits = 2.0 * step.rows * step.target_length
  logits *= config.emb_dim * config.vocab_size
  products, mixing = 0.0, 0.0
  if adapters is not None and adapters.kind == 'low_rank':
    chosen = adapters_lib.select_linears(adapters, linears)
    mixed = 1 if shares_one_adapter(adapters) else step.rows
    products = sum(
      2.0 * tokens[path] * _pair_size(x, adapters) for path, x in chosen.items()
    )
    mixing = sum(
      2.0 * mixed * adapters.n_skills * _pair_size(x, adapters)
      for x in chosen.values()
    )
  full = config.remat == 'full'
  again = full * weights + (full or step.in_layer) * (attention + products)
  again += step.in_layer * mixing
  sides = 1 + ('adapters' in step.trains) + ('routers' in step.trains)
  return Flops(
    weights=weights * (3 if learns else 2),
    attention=attention * 3,
    logits=logits * (3 if learns else 2),
    adapters=products * 3,
    mixing=mixing * sides,
    again=again,
  )


def shares_one_adapter(adapters: AdapterConfig) -> bool:
  """Whether one pair serves all rows of a batch (mixing weights of batch 1)."""
  return adapters.mixing == 'uniform' or adapters.n_tasks == 1


def _pair_size(linear: LinearLike, adapters: AdapterConfig) -> int:
  """Returns the elements of the pairs of all layers of a linear."""
  features = linear.in_features + linear.out_features
  return linear.layers * adapters.rank * features


def _tokens(path: str, step: StepShape) -> int:
  """Returns the tokens that a linear reads."""
  reads_inputs = path.startswith('encoder/') or path.endswith(
    ('encoder_decoder_attention/key', 'encoder_decoder_attention/value')
  )
  return step.rows * (step.input_length if reads_inputs else step.target_length)


def _pairs(config: T5Config, step: StepShape) -> int:
  """Returns the pairs of positions of one row, over all attentions."""
  inputs, targets = step.input_length, step.target_length
  decoder = targets * targets + targets * inputs
  return (
    config.num_encoder_layers * inputs * inputs
    + config.num_decoder_layers * decoder
  )


def weight_passes(config: T5Config, trains: Sequence[str]) -> int:
  """Returns how often a step reads the backbone's weights."""
  return 2 + (config.remat == 'full') + ('backbone' in trains)
