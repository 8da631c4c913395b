"""The printed table of methods: its numbers, words and formats."""

import json

import gin
import pytest

from mhr_jax import cli, method_table, methods
from mhr_jax.adapters import AdapterConfig
from mhr_jax.t5.config import t5_config


@pytest.fixture(autouse=True)
def _clean_gin():
  yield
  gin.clear_config()


def count(size, **settings):
  """Returns the counts of every method over one published model."""
  models = {size: t5_config(f't5_1_1_{size}')}
  settings = {'n_tasks': 313, 'n_splits': 8} | settings
  base = AdapterConfig(**settings)
  rows = method_table.count_methods(models, base)
  return {row.method.name: row.counts[size] for row in rows}


# Worked out by hand from T5 1.1's sizes and the authors' recipes: all linears
# at rank 1 with 8 skills, (IA)³ on key, value and wi_1.
@pytest.mark.parametrize(
  ('size', 'lora', 'inventory', 'ia3'),
  [
    ('large', 1_142_784, 9_142_272, 282_624),
    ('xl', 2_211_840, 17_694_720, 540_672),
    ('xxl', 4_423_680, 35_389_440, 1_081_344),
  ],
)
def test_every_method_of_the_t0_recipe(size, lora, inventory, ia3):
  found = count(size)
  counts = method_table.Counts
  assert found['lora'] == counts(lora, 0, lora, None, lora)
  assert found['lora_big'] == counts(inventory, 0, inventory, None, inventory)
  assert found['private'] == counts(313 * lora, 0, 313 * lora, None, lora)
  for name, n_splits in (('poly', 1), ('mhr', 8)):
    row = 3_456 * n_splits
    all_rows = 313 * row
    total = inventory + all_rows
    whole = counts(inventory, all_rows, total, None, inventory + row)
    assert found[name] == found[f'{name}_rand'] == whole
    assert found[f'{name}_z'] == whole._replace(adapt=row)
    assert found[f'{name}_mu'] == whole._replace(average=lora, adapt=lora)
  drawn = found['mhr']._replace(pretrain=inventory)
  assert found['random'] == drawn
  assert found['random_mu'] == drawn._replace(average=lora, adapt=lora)
  assert found['ia3'] == counts(ia3, 0, ia3, None, ia3)
  assert found['mhr_ia3'].adapters == 8 * ia3
  assert set(found) == set(methods.METHODS)


@pytest.mark.parametrize(
  ('n_splits', 'row', 'at_313', 'xl'),
  [
    (16, 55_296, 17_307_648, 35_002_368),
    (32, 110_592, 34_615_296, 52_310_016),
    (64, 221_184, 69_230_592, 86_925_312),
  ],
)
def test_more_splits_cost_routing_alone(n_splits, row, at_313, xl):
  found = count('xl', n_splits=n_splits)
  assert found['mhr_z'].adapt == row
  assert found['mhr'].routers == at_313
  assert found['mhr'].pretrain == xl
  assert found['poly'].pretrain == 18_776_448


def test_every_method_of_the_natural_instructions_recipe():
  recipe = {'n_tasks': 875, 'targets': '.*attention/.*'}
  found = count('xl', rank=16, n_splits=8, **recipe)
  lora = 18_874_368
  assert found['lora'].adapt == found['mhr_mu'].adapt == lora
  assert found['poly'].adapters == found['mhr'].adapters == 8 * lora
  assert (found['poly_z'].adapt, found['mhr_z'].adapt) == (2_304, 18_432)
  assert found['poly'].routers == 2_016_000
  assert found['mhr'].routers == 16_128_000
  split = count('xl', n_splits=64, **recipe)
  assert split['mhr'].routers == 129_024_000
  assert split['mhr_z'].adapt == 147_456


def test_targets_are_those_of_all_methods():
  found = count('xl', targets=method_table.IA3_TARGETS)
  assert (found['lora'].adapt, found['ia3'].adapt) == (933_888, 540_672)
  # One attention linear of either stack, 24 layers, 2,048 features each.
  found = count('xl', targets=('encoder/attention/key',))
  assert (found['lora'].adapt, found['ia3'].adapt) == (24 * 4096, 24 * 2048)


def test_full_trains_the_backbone():
  found = count('xl')['full']
  assert found == (0, 0, 2_849_757_184, None, 2_849_757_184)


def _print(capsys, *argv):
  assert cli.main(['methods', *argv]) == 0
  return capsys.readouterr().out


def test_the_command_counts_what_gin_and_flags_say(capsys):
  files = ['models/t5_1_1_tiny', 'methods/mhr']
  argv = [f'--gin_file={name}.gin' for name in files]
  argv += ['--n_tasks=5', '--n_skills=3', '--format=json']
  rows = {row['name']: row for row in json.loads(_print(capsys, *argv))}
  assert set(rows) == set(methods.METHODS)
  assert rows['mhr_mu']['zero_shot'] == 'average_after_training'
  config = rows['mhr']['config']
  assert (config['rank'], config['n_splits'], config['n_skills']) == (4, 8, 3)
  counts = rows['mhr']['parameters']['t5_1_1_tiny']
  single = rows['lora']['parameters']['t5_1_1_tiny']['adapters']
  assert counts['adapters'] == 3 * single
  # 2 + 2 layers of 7 and of 11 linears, 5 tasks, 8 splits, 3 skills.
  assert counts['routers'] == (2 * 7 + 2 * 11) * 5 * 8 * 3
  assert counts['pretrain'] == counts['adapters'] + counts['routers']


def test_the_table_and_its_markdown_have_a_row_a_method(capsys):
  argv = ('--model=t5_1_1_tiny', '--model=t5_1_1_xl', '--n_tasks=313')
  table = _print(capsys, *argv)
  assert table.count('mhr_mu') == 3
  assert '26,348,544' in table and 'routers, 313 tasks' in table
  text = _print(capsys, *argv, '--format=markdown')
  lines = text.splitlines()
  starts = [i for i, line in enumerate(lines) if line.startswith('## ')]
  assert len(starts) == 3
  for start in starts:
    header, marks, *rows = lines[start + 2 : start + 4 + len(methods.METHODS)]
    assert {line.count('|') for line in (header, marks, *rows)} == {
      header.count('|')
    }
    names = [row.split('|')[1].strip() for row in rows]
    assert names == list(methods.METHODS)


def test_what_cannot_be_counted_is_said(capsys):
  assert cli.main(['methods', '--model=t5_1_1_x']) == 2
  assert "Did you mean 't5_1_1_xl'" in capsys.readouterr().err
  argv = ['methods', '--model=t5_1_1_tiny', '--n_splits=7']
  assert cli.main(argv) == 2
  assert 'n_splits=7 does not divide' in capsys.readouterr().err
