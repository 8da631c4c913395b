"""`mhr-jax plan`: from gin files to what a pod would need."""

import dataclasses
import json
import subprocess
import sys

import gin
import jax
import numpy as np
import pytest

from mhr_jax import (
  cli,
  configuration,
  methods,
  plan,
  plan_devices,
  plan_flops,
  plan_program,
  plan_report,
  train,
)
from mhr_jax.adapters import AdapterConfig
from mhr_jax.data.mixture_settings import MixtureSettings
from mhr_jax.optim import OptimizerSettings
from mhr_jax.plan_chips import parse_topology
from mhr_jax.plan_collectives import Collective
from mhr_jax.t5.config import t5_config
from mhr_jax.train_settings import TrainSettings

_TINY = [
  '--gin_file=models/t5_1_1_tiny.gin',
  '--gin_file=methods/mhr.gin',
  '--gin_file=runs/multi_task.gin',
]
# What takes long to compile has no part in what is asked here.
_SMALL = [
  '--gin.t5_config.num_encoder_layers=1',
  '--gin.t5_config.num_decoder_layers=1',
  '--gin.AdapterConfig.targets=("encoder/mlp/wo",)',
  '--gin.INPUT_LENGTH=16',
  '--gin.TARGET_LENGTH=8',
  '--gin.BATCH_SIZE=8',
]
_SETUP = plan_program.Setup(
  method=methods.get_method('mhr'),
  backbone=t5_config('t5_1_1_tiny'),
  adapters=AdapterConfig(n_tasks=3),
  mixture=MixtureSettings(batch_size=10, input_length=16, target_length=8),
  settings=TrainSettings(steps=10),
  optimizer=OptimizerSettings(),
)


@pytest.fixture(autouse=True)
def _clean_gin():
  yield
  gin.clear_config()


def test_a_plan_is_printed_and_written(tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  argv = [*_TINY, *_SMALL, '--topology=cpu:8', '--mesh=4x2', '--n_tasks=5']
  argv += ['--mix_in=layer', '--json=plan.json']
  assert cli.main(['plan', *argv]) == 0
  printed = capsys.readouterr()
  assert 'plan 1/1  data=4 model=2 batch=8 layer  compiling' in printed.err
  assert 'mhr on cpu:8 (8 devices), 5 tasks: ' in printed.out
  assert 'Best of 1 tried, as far as can be told: data=4 model=2' in printed.out
  assert "Temporaries are what a CPU would take, not the chip's" in printed.out
  found = json.loads((tmp_path / 'plan.json').read_text())
  (candidate,) = found['candidates']
  # a [1, 8, 8, 128/8, 4] and b [1, 8, 8, 4, 64/8], float32, over 8 devices.
  assert candidate['bytes']['adapters'] == 8 * 8 * 4 * (16 + 8) * 4 / 8
  assert candidate['bytes']['optimizer'] > 2 * candidate['bytes']['adapters']
  assert candidate['bytes']['batch'] == (8 * (16 + 3 * 8 + 1) * 4) / 4
  assert candidate['collectives']['all-reduce']['count'] > 0
  assert not list(tmp_path.glob('runs'))


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    (['--topology=v5e:4'], 'a topology of v5e is v5e:4x4, say'),
    (['--topology=cpu:8', '--mesh=3x2'], '--mesh=3x2 has 6 devices'),
    (['--topology=cpu:8', '--mesh=3'], '3 is not DATAxMODEL'),
    (['--topology=cpu:8', '--mesh=8x1', '--batch=12'], 'does not divide by'),
    (['--topology=cpu:8', '--n_tasks=0'], '--n_tasks=0: at least 1'),
    (['--topology=cpu:16'], 'in a process of its own'),
    ([], 'required: --topology'),
  ],
)
def test_a_wrong_flag_is_said(argv, message, capsys):
  assert cli.main(['plan', *_TINY, *_SMALL, *argv]) == 2
  assert message in capsys.readouterr().err


def test_shapes_alone_need_no_compiler(tmp_path, capsys):
  path = tmp_path / 'plan.json'
  argv = [*_TINY, '--topology=cpu:8', '--mesh=8x1', '--shapes_only']
  assert cli.main(['plan', *argv, f'--json={path}']) == 0
  output = capsys.readouterr()
  assert 'compiling' not in output.err
  assert 'Nothing was compiled' in output.out
  assert 'Collectives' not in output.out
  found = json.loads(path.read_text())['candidates']
  assert [each['mix_in'] for each in found] == ['layer', 'front']
  assert found[0]['bytes']['temporaries'] is None
  assert found[0]['collectives'] is found[0]['seconds']['bound'] is None
  # 4,310,016 float32, whole on every device.
  assert found[0]['bytes']['backbone'] == 4_310_016 * 4


def test_the_backbone_is_planned_as_it_is_stored(tmp_path):
  path = tmp_path / 'plan.json'
  argv = [*_TINY, '--topology=cpu:8', '--mesh=8x1', '--shapes_only']
  halved = '--gin.t5_config.storage="bfloat16"'
  assert cli.main(['plan', *argv, halved, f'--json={path}']) == 0
  found = json.loads(path.read_text())['candidates']
  assert found[0]['bytes']['backbone'] == 4_310_016 * 2


def test_files_of_no_training_run_are_refused(capsys):
  argv = ['--gin_file=runs/evaluate.gin', '--topology=cpu:8']
  assert cli.main(['plan', *argv, '--gin.TASKS="a"', '--gin.RUN_DIR="b"']) == 2
  assert 'binds no parameter of train' in capsys.readouterr().err


def test_a_preset_needs_no_more_than_what_is_planned():
  parsed = configuration.parse(['presets/t0_xxl.gin'])
  setup, mix_in = parsed.lend(train.train, plan.build_setup).call(
    plan.build_setup, n_tasks=313
  )
  assert (setup.backbone.emb_dim, setup.optimizer.name) == (4096, 'adafactor')
  assert (setup.adapters.n_splits, setup.adapters.n_tasks) == (64, 313)
  assert (setup.mixture.batch_size, mix_in) == (16, 'auto')


def _target(text):
  return plan_devices.Target(parse_topology(text), jax.devices()[:8], True)


def test_candidates_are_meshes_with_room_and_both_places():
  found = plan.choose_candidates(_SETUP, _target('cpu:8'))
  assert [str(each) for each in found] == [
    'data=8 model=1 batch=16 layer',
    'data=8 model=1 batch=16 front',
    'data=4 model=2 batch=12 layer',
    'data=4 model=2 batch=12 front',
  ]
  one = dataclasses.replace(_SETUP, adapters=AdapterConfig(n_tasks=1))
  found = plan.choose_candidates(one, _target('cpu:8'), meshes=[(8, 1)])
  assert [each.mix_in for each in found] == ['front']


def test_bounds_follow_from_the_chip():
  gather = Collective(
    'all-gather', (('bf16', (4, 10**6)),), 3, np.arange(8).reshape(1, 8)
  )
  across = dataclasses.replace(gather, groups=np.arange(16).reshape(1, 16))
  program = plan_program.Program(
    arguments={'backbone': 10**9, 'adapters': 10**7, 'routers': 0}
    | {'optimizer': 10**8, 'batch': 0},
    temporaries=10**9,
    collectives=(gather, across),
  )
  target = _target('h100:16')
  candidate = plan_program.Candidate(16, 1, 16, 'layer')
  result = plan.weigh(_SETUP, target, candidate, program)
  chip = target.topology.chip
  assert result.compute_seconds == result.flops.total / (16 * chip.flops)
  # Forward and backward read the backbone; the rest is read and written.
  moved = 2 * 10**9 + 2 * (10**7 + 10**8)
  assert result.memory_seconds == moved / chip.memory_rate
  sent = 3 * 4 * 10**6 * 2
  expected = sent * (7 / 8 / chip.link_rate + 15 / 16 / chip.network_rate)
  assert result.network_seconds == pytest.approx(expected)
  assert result.step_seconds == result.memory_seconds
  assert result.fits
  large = dataclasses.replace(program, temporaries=10**11)
  assert plan.weigh(_SETUP, target, candidate, large).fits is False
  guessed = dataclasses.replace(target, is_exact=False)
  assert plan.weigh(_SETUP, guessed, candidate, large).fits is None


def test_the_best_is_the_fastest_that_fits():
  target = _target('v5e:4x4')
  results = []
  for rows, temporaries in ((16, 10**9), (64, 2 * 10**9), (256, 10**11)):
    program = plan_program.Program(
      arguments={'backbone': 10**9, 'optimizer': 0, 'batch': 0},
      temporaries=temporaries,
    )
    candidate = plan_program.Candidate(16, 1, rows, 'layer')
    results.append(plan.weigh(_SETUP, target, candidate, program))
  best = plan.choose_best(results)
  assert best is not None and best.candidate.batch == 64
  assert plan.choose_best(results[-1:]) is None
  assert 'None of those tried fits' in plan_report.best_line(results[-1:])


def test_what_a_compiler_says_is_too_much():
  message = 'RESOURCE_EXHAUSTED: … Used 20.50G of 15.75G hbm. Exceeded by …'
  assert plan_program._read_excess(message, 2**30) == int(19.5 * 2**30)
  assert plan_program._read_excess('RESOURCE_EXHAUSTED', 0) is None


@pytest.mark.slow
def test_a_preset_of_xl_is_planned_for_many_devices(tmp_path):
  argv = ['--gin_file=presets/t0_xl.gin', '--topology=cpu:16', '--mesh=8x2']
  argv += ['--mix_in=layer', f'--json={tmp_path / "plan.json"}']
  done = subprocess.run(
    [sys.executable, '-m', 'mhr_jax.cli', 'plan', *argv],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  (found,) = json.loads((tmp_path / 'plan.json').read_text())['candidates']
  # 2.85 B in bfloat16, of which all but norms and biases are halved.
  assert found['bytes']['backbone'] == pytest.approx(2_849_757_184, rel=1e-3)
  # 24 + 24 layers: more than one collective a layer.
  assert found['collectives']['all-reduce']['count'] > 100
  assert plan_flops.Flops(**found['flops']).total > 1e13
