"""What the accelerator's benchmark concludes from what it measured."""

import pathlib

import pytest

from benchmarks import gpu
from benchmarks.setting import Setting
from benchmarks.sides import Side


def tried(batch, seconds=None, **values):
  setting = Setting(model='t5_1_1_base', batch_size=batch, **values).as_json()
  if seconds is None:
    return {'setting': setting, 'failed': 'does not fit'}
  return {'setting': setting, 'seconds': seconds}


def test_the_best_setting_is_the_fastest_a_row():
  slow, fast = tried(8, 0.8), tried(16, 1.2)
  assert gpu.best_of([slow, fast, tried(32)]) is fast
  assert gpu.best_of([tried(32)]) is None


def test_ratios_are_of_the_best_rates():
  found = {
    'base r16': {'tried': [tried(8, 0.5), tried(16, 0.8), tried(32)]},
    'base r16 PEFT': {'tried': [tried(16, 1.6), tried(32, 3.2)]},
    'base r16 PEFT compiled': {'failed': 'does not compile'},
    'xl r16 PEFT': {'tried': [tried(16, 1.6)]},
  }
  assert gpu.list_ratios(found) == {'base r16 PEFT': pytest.approx(0.5)}


def test_rows_tell_speed_and_its_share_of_the_products():
  one = tried(8, 0.5)
  flops = gpu.count_flops(Setting(**one['setting']))
  found = {
    'ceiling': {'flops': 4 * flops},
    'base r16': {'tried': [one, tried(64)]},
  }
  measured, failed = gpu.list_rows(found)
  assert measured[-1] == '50.0%'
  assert measured[3] == f'{8 * (128 + 32) / 0.5:,.0f}'
  assert failed[2] == 'does not fit'


def test_each_size_is_measured_beside_peft_and_parts_need_what_they_build_on():
  parts = {part.name: part for part in gpu.plan_parts(tiny=False)}
  for size in ('base', 'large', 'xl'):
    assert {f'{size} r16', f'{size} r16 PEFT', f'{size} r1'} <= set(parts)
  assert parts['xl r1'].make({}) is None
  found = {'xl r16': {'tried': [tried(8, 1.0, remat='full')]}}
  side = parts['xl r1'].make(found)
  [setting] = side.arguments['settings']
  assert (setting['rank'], setting['remat']) == (1, 'full')


@pytest.mark.parametrize(
  'function, arguments, limit, why',
  [
    ('naps', {'seconds': 60}, 1, 'took longer than was left'),
    ('bug', {}, 60, 'ValueError: a bug'),
    ('mistake', {}, 60, 'Nothing fits.'),
  ],
)
def test_a_part_that_fails_says_why(function, arguments, limit, why):
  path = {'PYTHONPATH': str(pathlib.Path(__file__).parent)}
  side = Side('a', f'toy_works:{function}', arguments, path)
  assert why in gpu.run_part(side, limit)['failed']
