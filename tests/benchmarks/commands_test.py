"""The benchmarks as commands, on shapes of no interest."""

import json
import math
import os
import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_TINY = (
  '--model=t5_1_1_tiny',
  '--rank=2',
  '--batch_size=2',
  '--input_length=8',
  '--target_length=4',
)
_FEW = (*_TINY, '--n_tasks=8', '--n_skills=2', '--n_splits=2')


def run(module, *flags, cache, environment=None):
  """Returns what a benchmark prints; it must end well."""
  done = subprocess.run(
    [sys.executable, '-m', f'benchmarks.{module}', *flags],
    cwd=_ROOT,
    env={
      **os.environ,
      'JAX_COMPILATION_CACHE_DIR': str(cache),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      # Programs are made in half the time; two threads of torch on a busy
      # machine mostly wait for each other.
      'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
      'OMP_NUM_THREADS': '1',
      **(environment or {}),
    },
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp('compiled')


def read_works(path):
  """Returns the works of a result; all have medians and memory."""
  works = json.loads(path.read_text())['works']
  for work in works.values():
    assert 0 < work['seconds']['median'] < math.inf
    assert all(peak > 2**20 for peak in work['peak_bytes'])
  return works


@pytest.mark.nightly
def test_train_step_of_ours(tmp_path, cache):
  path = tmp_path / 'step.json'
  flags = ('--only=ours', '--rounds=2', f'--json={path}')
  text = run('train_step', *_FEW, *flags, cache=cache)
  works = read_works(path)
  assert {name.partition(':')[0] for name in works} == {
    'MHR',
    'LoRA',
    'frozen floor',
    'products',
  }
  parts = works['products: matrix products alone']['parts']
  assert set(parts) == {'kernels', 'logits', 'attention', 'adapters', 'mixing'}
  assert 'GFLOP' in text
  content = json.loads(path.read_text())
  assert content['machine']['cores'] >= 1
  assert content['setting']['rank'] == 2


@pytest.mark.nightly
@pytest.mark.parametrize('module', ['train_step', 'decode'])
def test_both_sides_compute_the_same(tmp_path, cache, module):
  pytest.importorskip('peft', reason='needs the extra interop')
  path = tmp_path / 'both.json'
  run(module, *_FEW, '--rounds=2', f'--json={path}', cache=cache)
  content = json.loads(path.read_text())
  assert any('PEFT MHR' in name for name in read_works(path))
  facts = content['facts']
  if module == 'train_step':
    ours, theirs = (facts[name]['loss'] for name in ('MHR', 'PEFT MHR'))
    assert ours == pytest.approx(theirs, rel=1e-4)
    # Adapters and routing are in the loss that is compared.
    assert facts['LoRA']['loss'] != pytest.approx(ours, rel=1e-3)
    assert facts['frozen floor']['loss'] != pytest.approx(ours, rel=1e-3)
  else:
    assert facts['MHR']['equal_tokens'] >= 0.75


@pytest.mark.nightly
def test_scaling_at_both_kinds_of_rank(tmp_path, cache):
  for rank, works in (('1', 6), ('2', 13)):
    path = tmp_path / f'{rank}.json'
    flags = (*_TINY, f'--rank={rank}', '--rounds=1', f'--json={path}')
    run('scaling', *flags, cache=cache)
    assert len(read_works(path)) == works
    content = json.loads(path.read_text())
    assert bool(content['updates']) == (rank == '2')
    # 1,024 tasks and 64 skills have more parameters than the others.
    sizes = {
      name: sum(v for k, v in facts['parameters'].items() if k != 'backbone')
      for name, facts in content['facts'].items()
      if 'parameters' in facts
    }
    assert max(sizes, key=sizes.get) in ('64 skills', '1024 tasks')


@pytest.mark.nightly
def test_input(tmp_path, cache):
  path = tmp_path / 'input.json'
  flags = ('--counts', '2', '3', '--examples=8', '--batches=5', '--rounds=2')
  run('input', *_FEW, *flags, f'--json={path}', cache=cache)
  read_works(path)
  facts = json.loads(path.read_text())['facts']
  assert facts['3 tasks'] == {'tasks': 3, 'records': 24, 'examples': 10}
  assert facts['2 tasks, anew']['records'] == 16


@pytest.mark.nightly
def test_startup(tmp_path, cache):
  path = tmp_path / 'startup.json'
  flags = ('--tasks=2', '--rounds=1', f'--json={path}')
  run('startup', *flags, cache=cache)
  content = json.loads(path.read_text())
  for start in (content['first'], *content['next']):
    parts = {k: v for k, v in start.items() if k not in ('whole', 'programs')}
    assert sum(parts.values()) == pytest.approx(start['whole'])
    assert start['imports'] > 0 and start['compile or load'] > 0


@pytest.mark.nightly
def test_gpu_on_a_cpu(tmp_path, cache):
  pytest.importorskip('peft', reason='needs the extra interop')
  path = tmp_path / 'gpu.json'
  flags = ('--tiny', '--minutes=20', f'--json={path}')
  run('gpu', *flags, cache=cache, environment={'JAX_PLATFORMS': 'cpu'})
  parts = json.loads(path.read_text())['parts']
  assert len(parts) == 5
  for name, facts in parts.items():
    assert 'failed' not in facts and 'skipped' not in facts, name
  assert len(parts['base r16']['tried']) == 2


def test_peers_that_are_absent_are_told_in_a_sentence(tmp_path):
  (tmp_path / 'peft.py').write_text("raise ImportError('', name='peft')")
  code = 'from benchmarks.peers import peft_t5; peft_t5.import_libraries()'
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=_ROOT,
    env={**os.environ, 'PYTHONPATH': str(tmp_path)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert 'UserError' in done.stderr.splitlines()[-1]
  assert 'The peers need peft' in done.stderr
  assert '[interop]' in done.stderr
