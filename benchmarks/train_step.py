"""A training step: ours beside PEFT's, and beside what it cannot do without.

    python -m benchmarks.train_step --json step.json
    python -m benchmarks.train_step --rank=1
    python -m benchmarks.train_step --only=ours

Both sides read the same weights and the same batch, and their losses must
agree before anything is timed. PEFT samples its gates in training, so it is
compared with `mixing='relaxed_bernoulli'`; our own LoRA and the frozen floor
are compared with the default, `sigmoid`.
"""

from collections.abc import Sequence
from typing import Any

from benchmarks import (
  beside_peers,
  machine,
  options,
  ours,
  products,
  results,
  rounds,
)
from benchmarks.goals import Goal, judge
from benchmarks.peers import peft_t5
from benchmarks.setting import Setting
from benchmarks.sides import Side
from mhr_jax.errors import UserError

_MHR, _LORA, _FLOOR = 'MHR', 'LoRA', 'frozen floor'
_PEFT_MHR, _PEFT_LORA = 'PEFT MHR', 'PEFT LoRA'
_HF_FLOOR = 'transformers floor'
_PRODUCTS = 'products'
_LOSS_TOLERANCE = 1e-4


def make_sides(setting: Setting, folder: str, only: str) -> list[Side]:
  """Returns the sides of the comparison.

  Args:
    setting: of all.
    folder: of `weights.write_weights`.
    only: 'ours', 'peers' or 'all'.
  """
  common: dict[str, Any] = {'setting': setting.as_json()}
  loaded = common | {'weights_folder': folder}
  steps = [ours.STEP, ours.GRADIENTS]
  found = []
  if only != 'peers':
    found += [
      Side(
        _MHR,
        'benchmarks.ours:train_step',
        loaded | {'method': 'mhr', 'works': [ours.NOISY_STEP, *steps]},
      ),
      Side(
        _LORA,
        'benchmarks.ours:train_step',
        loaded | {'method': 'lora', 'works': steps},
      ),
      Side(_FLOOR, 'benchmarks.ours:floor', loaded),
      Side(_PRODUCTS, 'benchmarks.products:build', common | {'method': 'mhr'}),
    ]
  if only != 'ours':
    peers = 'benchmarks.peers.peft_t5'
    found += [
      Side(_PEFT_MHR, f'{peers}:train_step', loaded | {'method': 'mhr'}),
      Side(_PEFT_LORA, f'{peers}:train_step', loaded | {'method': 'lora'}),
      Side(_HF_FLOOR, f'{peers}:floor', loaded),
    ]
  return found


def list_goals(rank: int) -> list[Goal]:
  """Returns the goals of a step at a rank."""
  bound, stretch = (0.65, 0.55) if rank == 1 else (0.70, 0.60)
  step, noisy = f'{_MHR}: {ours.STEP}', f'{_MHR}: {ours.NOISY_STEP}'
  gradients, lora = f'{_MHR}: {ours.GRADIENTS}', f'{_LORA}: {ours.STEP}'
  floor = f'{_FLOOR}: {ours.FLOOR}'
  peft, peft_lora = (f'{x}: {peft_t5.STEP}' for x in (_PEFT_MHR, _PEFT_LORA))
  hf_floor = f'{_HF_FLOOR}: {peft_t5.FLOOR}'
  alone = f'{_PRODUCTS}: {products.ALONE}'
  return [
    Goal(noisy, peft, bound, stretch),
    Goal(noisy, peft, 1.0, of='peak memory'),
    Goal(lora, peft_lora, 0.75),
    Goal(step, lora, 1.10),
    Goal(gradients, f'{_LORA}: {ours.GRADIENTS}', 1.03),
    Goal(gradients, floor, 1.15),
    Goal(step, floor, None),
    Goal(floor, hf_floor, None),
    Goal(noisy, hf_floor, None),
    Goal(step, alone, None),
    Goal(gradients, alone, None),
  ]


def check_losses(facts: dict[str, Any]) -> None:
  """Compares the losses of all sides that computed one, kind by kind.

  Raises:
    UserError: two differ by more than rounding does.
  """
  for names in ((_MHR, _PEFT_MHR), (_LORA, _PEFT_LORA), (_FLOOR, _HF_FLOOR)):
    losses = {name: facts[name]['loss'] for name in names if name in facts}
    if not losses:
      continue
    low, high = min(losses.values()), max(losses.values())
    if not high - low <= _LOSS_TOLERANCE * high:
      raise UserError(
        f'The sides do not compute the same: their losses are {losses}.'
      )


def print_products(found: rounds.Comparison) -> None:
  """Prints the time and the speed of the step's products, part by part."""
  key = f'{_PRODUCTS}: {products.ALONE}'
  if key not in found.works:
    return
  flops = found.facts[_PRODUCTS]['flops']
  seconds = found.works[key].part_medians()
  flops = flops | {'all': sum(flops.values())}
  seconds = seconds | {'all': found.works[key].time.median}
  rows = [
    (
      part,
      f'{flops[part] / 1e9:.1f}',
      results.seconds(seconds[part]),
      f'{flops[part] / seconds[part] / 1e9:.0f}',
    )
    for part in flops
  ]
  columns = ('part', 'GFLOP', 'median', 'GFLOP/s')
  results.print_table("the step's matrix products, timed alone", columns, rows)


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the benchmark."""
  flags = beside_peers.read_flags(__doc__, argv, default_rounds=5)
  setting, where = options.read_setting(flags), machine.describe()
  found = beside_peers.measure(flags, setting, make_sides, check_losses)
  outcomes = judge(found, list_goals(setting.rank))
  results.print_works(found, f'{setting.model}, rank {setting.rank}')
  print_products(found)
  results.print_outcomes(outcomes)
  beside_peers.write_json('train_step', flags, where, setting, found, outcomes)


if __name__ == '__main__':
  options.run(main)
