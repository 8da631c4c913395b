"""All that an accelerator is to show, in one run of a few minutes.

    python -m benchmarks.gpu --json gpu.json
    python -m benchmarks.gpu --tiny        # tries the code on a CPU

T5 1.1 base, large and XL in bfloat16 with random weights, MHR of rank 16 and
1 on every linear, 512 + 128 tokens: seconds of a training step at the fastest
of a few batches and ways to save memory, its share of the device's measured
speed of products (model FLOPs counted as `benchmarks.products` lists them),
PEFT's MHR on the same device, and tokens a second of decoding. The parts come
in the order of what they are worth; the file is written after each, and none
is begun that the minutes left do not allow.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import threading
import time
from typing import Any

from benchmarks import machine, options, products, results
from benchmarks.setting import Setting
from benchmarks.sides import Side, SideProcess
from mhr_jax.errors import UserError

_TARGETS = 'benchmarks.gpu_works'
_PEER = 'benchmarks.peers.peft_gpu:build'
_TIMES = 5
# bfloat16 products without sparsity, by data sheet, in FLOP/s.
_DATA_SHEETS = {
  'H200': 989e12,
  'H100': 989e12,
  'A100': 312e12,
  'L40S': 362e12,
}
# All but what the device needs for itself; by default jax takes three quarters.
_OURS = {'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.92'}
# Batch, remat and mix_in that are tried, in this order.
_CANDIDATES: dict[str, tuple[tuple[int, str, str], ...]] = {
  'base': ((32, 'none', 'auto'), (128, 'none', 'auto'), (64, 'none', 'layer')),
  'large': ((16, 'none', 'auto'), (48, 'none', 'auto'), (64, 'full', 'auto')),
  'xl': (
    (16, 'none', 'auto'),
    (32, 'none', 'layer'),
    (64, 'full', 'auto'),
  ),
}
# Batches that PEFT is tried at.
_PEFT_BATCHES = {'base': (32, 128), 'large': (16, 48), 'xl': (16, 8)}
_TINY = ((2, 'none', 'auto'), (2, 'full', 'layer'))


@dataclasses.dataclass
class Part:
  """Something to measure.

  Attributes:
    name: in the results.
    make: called with the results so far; the side to run, or None where what
      it builds on is missing.
    least_seconds: which must be left to begin it.
  """

  name: str
  make: Callable[[Mapping[str, Any]], Side | None]
  least_seconds: float


# The most telling first.
_PLAN = (
  ('base', 'ours'),
  ('base', 'PEFT'),
  ('xl', 'ours'),
  ('xl', 'PEFT'),
  ('xl', 'rank 1'),
  ('base', 'rank 1'),
  ('base', 'decoding'),
  ('xl', 'decoding'),
  ('large', 'ours'),
  ('base', 'PEFT compiled'),
  ('large', 'PEFT'),
  ('large', 'rank 1'),
  ('xl', 'PEFT compiled'),
)
_TINY_PLAN = tuple(
  (size, kind)
  for size, kind in _PLAN
  if size == 'base' and kind != 'PEFT compiled'
)


def plan_parts(*, tiny: bool) -> list[Part]:
  """Returns the parts in their order.

  Args:
    tiny: of one size, and without compiling PEFT, which takes minutes.
  """
  least = 0.0 if tiny else 30.0
  parts = [Part('ceiling', lambda _: _ceiling(tiny), least)]
  for size, kind in _TINY_PLAN if tiny else _PLAN:
    makers: dict[str, tuple[str, Any]] = {
      'ours': ('r16', lambda _, size=size: _search(size, tiny)),
      'rank 1': ('r1', lambda found, size=size: _again(size, found)),
      'decoding': ('r16 decoding', lambda _, size=size: _decoding(size, tiny)),
    }
    if kind in makers:
      name, make = makers[kind]
    else:
      name = f'r16 {kind}'
      make = functools.partial(_peft, size, compiled=kind != 'PEFT', tiny=tiny)
    parts.append(Part(f'{size} {name}', make, least))
  return parts


def _ceiling(tiny: bool) -> Side:
  sizes = [128] if tiny else [4096, 8192]
  return Side('ceiling', f'{_TARGETS}:ceiling', {'sizes': sizes, 'times': 50})


def _setting(size: str, *, tiny: bool, batch: int) -> Setting:
  if tiny:
    return Setting(
      model='t5_1_1_tiny',
      dtype='bfloat16',
      rank=2,
      batch_size=batch,
      input_length=16,
      target_length=8,
      layers='scanned',
    )
  return Setting(
    model=f't5_1_1_{size}',
    dtype='bfloat16',
    batch_size=batch,
    input_length=512,
    target_length=128,
    layers='scanned',
  )


def _search(size: str, tiny: bool) -> Side:
  candidates = _TINY if tiny else _CANDIDATES[size]
  settings = [
    _setting(size, tiny=tiny, batch=batch)
    .varied(remat=remat, mix_in=mix_in)
    .as_json()
    for batch, remat, mix_in in candidates
  ]
  return Side(
    f'{size} r16',
    f'{_TARGETS}:train',
    {'settings': settings, 'times': _TIMES},
    _OURS,
  )


def best_of(tried: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
  """Returns what took the least time a row; None where nothing fitted."""
  fitted = [one for one in tried if 'seconds' in one]
  return min(
    fitted,
    key=lambda x: x['seconds'] / x['setting']['batch_size'],
    default=None,
  )


def _best_setting(size: str, found: Mapping[str, Any]) -> Setting | None:
  tried = found.get(f'{size} r16', {}).get('tried', ())
  best = best_of(tried)
  return None if best is None else Setting(**best['setting'])


def _again(size: str, found: Mapping[str, Any]) -> Side | None:
  """Returns rank 1 at the setting that was best at rank 16."""
  setting = _best_setting(size, found)
  if setting is None:
    return None
  settings = [setting.varied(rank=1).as_json()]
  return Side(
    f'{size} r1',
    f'{_TARGETS}:train',
    {'settings': settings, 'times': _TIMES},
    _OURS,
  )


def _peft(
  size: str, found: Mapping[str, Any], *, compiled: bool, tiny: bool
) -> Side | None:
  """Returns PEFT at a few batches."""
  if f'{size} r16' not in found:
    return None
  batches = (2,) if tiny else _PEFT_BATCHES[size]
  if compiled:  # which takes minutes for each
    batches = batches[:1]
  arguments = {
    'settings': [
      _setting(size, tiny=tiny, batch=batch).as_json() for batch in batches
    ],
    'times': _TIMES,
    'compiled': compiled,
    'device': 'cpu' if tiny else 'cuda',
  }
  return Side(f'{size} PEFT', _PEER, arguments)


def _decoding(size: str, tiny: bool) -> Side:
  setting = _setting(size, tiny=tiny, batch=2 if tiny else 64)
  arguments = {'settings': [setting.as_json()], 'times': 3}
  return Side(f'{size} decoding', f'{_TARGETS}:decode', arguments, _OURS)


def run_part(side: Side, limit: float) -> dict[str, Any]:
  """Returns a side's facts; why it failed, where it did.

  Args:
    side: measures while it is built.
    limit: seconds after which it is ended.
  """
  start = time.monotonic()
  with SideProcess(side, warm_up=1) as process:
    timer = threading.Timer(limit, process.kill)
    timer.start()
    try:
      facts = process.wait()['facts']
    except (RuntimeError, UserError) as error:
      ended = time.monotonic() - start >= limit
      why = 'took longer than was left' if ended else str(error)
      facts = {'failed': why}
    finally:
      timer.cancel()
  return facts | {'part_seconds': time.monotonic() - start}


def count_flops(setting: Setting) -> int:
  """Returns the floating-point operations of a training step."""
  listed = products.list_products(
    setting.backbone, setting.adapters('mhr'), setting
  )
  return sum(products.count_flops(listed).values())


def list_rows(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
  """Returns a row for each step and each decoding that was measured."""
  ceiling = found.get('ceiling', {}).get('flops', float('nan'))
  rows: list[tuple[str, ...]] = []
  for name, facts in found.items():
    for one in facts.get('tried', ()):
      setting = Setting(**one['setting'])
      shape = f'{setting.batch_size}, {setting.remat}, {setting.mix_in}'
      if 'seconds' not in one:
        rows.append((name, shape, str(one['failed']), '', '', ''))
        continue
      speed, share = '–', '–'
      tokens = setting.batch_size * setting.target_length
      if 'decoding' not in name:
        tokens += setting.batch_size * setting.input_length
        flops = count_flops(setting) / one['seconds']
        speed, share = f'{flops / 1e12:.3g}', f'{flops / ceiling:.1%}'
      rate = f'{tokens / one["seconds"]:,.0f}'
      taken = results.seconds(one['seconds'])
      rows.append((name, shape, taken, rate, speed, share))
  return rows


def list_ratios(found: Mapping[str, Any]) -> dict[str, float]:
  """Returns our time a row over PEFT's, each at the best that was tried."""
  ratios: dict[str, float] = {}
  for name, facts in found.items():
    if ' PEFT' not in name:
      continue
    ours = found.get(name.partition(' PEFT')[0], {})
    a_row = [
      best['seconds'] / best['setting']['batch_size']
      for best in (best_of(x.get('tried', ())) for x in (ours, facts))
      if best is not None
    ]
    if len(a_row) == 2:
      ratios[name] = a_row[0] / a_row[1]
  return ratios


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the benchmark."""
  made = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  made.add_argument('--json', metavar='FILE', help='written after each part')
  made.add_argument('--minutes', type=float, default=8.0)
  made.add_argument('--tiny', action='store_true', help='small shapes')
  flags = made.parse_args(argv)
  until = time.monotonic() + 60 * flags.minutes
  content: dict[str, Any] = {
    'benchmark': 'gpu',
    'machine': machine.describe(),
    'flags': vars(flags),
    'parts': {},
  }
  found = content['parts']
  for part in plan_parts(tiny=flags.tiny):
    left = until - time.monotonic()
    side = part.make(found) if left > part.least_seconds else None
    if side is None:
      found[part.name] = {'skipped': f'{max(left, 0):.0f} s were left'}
      results.write_json(flags.json, content)
      continue
    found[part.name] = run_part(side, left)
    print(_tell(part.name, found[part.name]), flush=True)
    if part.name == 'ceiling':
      _check_device(found['ceiling'], tiny=flags.tiny)
    content['ratios'] = list_ratios(found)
    results.write_json(flags.json, content)
  _print_all(found)


def _check_device(facts: Mapping[str, Any], *, tiny: bool) -> None:
  if facts.get('platform') == 'cpu' and not tiny:
    raise UserError(
      "jax sees no accelerator: pip install -c constraints.txt -e '.[cuda12]',"
      ' or try the code with --tiny.'
    )


def _tell(name: str, facts: Mapping[str, Any]) -> str:
  said = facts.get('failed', 'measured')
  return f'{name}: {said}, {facts["part_seconds"]:.0f} s'


def _print_all(found: Mapping[str, Any]) -> None:
  ceiling = found['ceiling']
  if 'flops' in ceiling:
    sheet = [v for k, v in _DATA_SHEETS.items() if k in ceiling['device']]
    of_sheet = (
      f', {ceiling["flops"] / sheet[0]:.0%} of its data sheet' if sheet else ''
    )
    print(
      f'{ceiling["device"]}: {ceiling["flops"] / 1e12:.4g} TFLOP/s in products'
      f' of matrices{of_sheet}'
    )
  results.print_table(
    'training steps, and decoding',
    (
      'part',
      'batch, remat, mix_in',
      'median',
      'tokens/s',
      'TFLOP/s',
      'of products',
    ),
    list_rows(found),
  )
  rows = [(name, f'{ratio:.3f}') for name, ratio in list_ratios(found).items()]
  results.print_table(
    'our time a row / that of PEFT, each at its best batch',
    ('part', 'ratio'),
    rows,
  )


if __name__ == '__main__':
  options.run(main, platform=None)
