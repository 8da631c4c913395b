"""How a mixture of tasks becomes batches: the settings of `loader`."""

from collections.abc import Sequence
import dataclasses
from typing import Literal

from mhr_jax.errors import UserError
from mhr_jax.setting_checks import check_fields


@dataclasses.dataclass(frozen=True)
class MixtureSettings:
  """How a mixture becomes batches.

  Attributes:
    batch_size: rows of the global batch.
    input_length: tokens of the inputs, EOS included; longer ones are cut.
    target_length: tokens of the targets, likewise.
    rates: how often each task comes: 'proportional' to its size, at most
      `cap`; 'temperature': that to the power 1 / `temperature`; 'equal';
      'mixture': as the prepared mixture says.
    cap: the largest size that counts, or None.
    temperature: at least 1.
    seed: of the order and of all draws.
    packing: 'none', one example a row at full width; 'length_buckets', one
      example a row, batches of similar lengths at a few widths;
      'within_task', as many examples of one task a row as fit.
    length_buckets: the widths (inputs, targets), growing; the full one need
      not be given. By default a quarter, a half and all of the full one.
    objective: 'targets', or 'span_corruption' of the inputs followed by the
      target.
    reference: which of several references is the target: one at random each
      epoch, or the first.
    noise_density: share of the tokens that span corruption takes.
    mean_span_length: of the spans it takes.
    cache_bytes: memory for the token ids of small tasks.
  """

  batch_size: int
  input_length: int
  target_length: int
  rates: Literal['proportional', 'temperature', 'equal', 'mixture'] = (
    'proportional'
  )
  cap: int | None = None
  temperature: float = 1.0
  seed: int = 0
  packing: Literal['none', 'length_buckets', 'within_task'] = 'none'
  length_buckets: Sequence[tuple[int, int]] = ()
  objective: Literal['targets', 'span_corruption'] = 'targets'
  reference: Literal['random', 'first'] = 'random'
  noise_density: float = 0.15
  mean_span_length: float = 3.0
  cache_bytes: int = 1 << 28

  def __post_init__(self):
    counts = {'batch_size': 1, 'input_length': 2, 'target_length': 2, 'cap': 1}
    check_fields(
      self,
      least={**counts, 'temperature': 1, 'mean_span_length': 1},
      above={'noise_density': 0, 'length_buckets': 0},
      below={'noise_density': 1},
    )
    if self.length_buckets and self.packing != 'length_buckets':
      raise UserError("length_buckets need packing = 'length_buckets'.")

  def buckets(self) -> list[tuple[int, int]]:
    """Returns the widths of batches, the full one last."""
    full = (self.input_length, self.target_length)
    if self.length_buckets:
      smaller = [(int(a), int(b)) for a, b in self.length_buckets]
    else:
      smaller = [
        (max(2, -(-full[0] // k)), max(2, -(-full[1] // k))) for k in (4, 2)
      ]
    for bucket in smaller:
      if bucket[0] > full[0] or bucket[1] > full[1]:
        raise UserError(f'Length bucket {bucket} is larger than {full}.')
    return [*(b for b in dict.fromkeys(smaller) if b != full), full]
