"""Killed, told to stop, or started twice: nothing committed is lost."""

import os
import signal
import socket

import pytest

from faults.harness import assert_explained, assert_same_run
from faults.random_kills import Kills, make_bench, summary

pytestmark = pytest.mark.faults

_KILLS = int(os.environ.get('FAULTS_KILLS', '5'))
_SEED = int(os.environ.get('FAULTS_SEED', '0'))


@pytest.mark.timeout(120 + 60 * _KILLS)
def test_a_run_killed_at_random_ends_as_if_nothing_had_happened(tmp_path):
  kills = Kills(make_bench(tmp_path / 'kills', steps=400), _SEED)
  kills.kill_until(_KILLS)
  kills.finish()
  print(summary(kills, 0))
  assert len(kills.kills) == _KILLS
  assert kills.runs


def test_the_second_of_two_trainings_stops_with_a_sentence(bench, whole):
  run_dir = bench.root / 'twice'
  first = bench.start(run_dir)
  assert first.wait_for_words('Starting at step')
  first.process.send_signal(signal.SIGSTOP)  # So that it does not end before.
  try:
    second = bench.run(run_dir)
  finally:
    first.process.send_signal(signal.SIGCONT)
  assert_explained(
    second,
    f'{run_dir} is being trained by another process',
    f'pid {first.process.pid}',
    'choose another run_dir',
  )
  assert first.end().code == 0
  assert_same_run(run_dir, whole)


def test_a_training_of_several_processes_holds_its_folder_too(bench):
  run_dir = bench.root / 'many'
  first = _start_two(bench, run_dir)
  assert first[0].wait_for_words('Starting at step')
  for started in first:
    started.process.send_signal(signal.SIGSTOP)
  second = [started.end() for started in _start_two(bench, run_dir)]
  for started in first:
    started.process.kill()
    started.end()
  assert_explained(second[0], 'is being trained by another process')
  assert_explained(second[1], 'The first process could not hold')
  assert [started.end().code for started in _start_two(bench, run_dir)] == [
    0,
    0,
  ]


def _start_two(bench, run_dir):
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  gloo = {'JAX_CPU_COLLECTIVES_IMPLEMENTATION': 'gloo'}
  return [
    bench.start(
      run_dir, f'--distributed=localhost:{port},2,{i}', environment=gloo
    )
    for i in range(2)
  ]
