"""Several real processes train and evaluate as one.

The library itself, from the command line: a tiny routed T5 on tasks of the
skills suite, with gloo between the processes.
"""

import json
import os
import signal
import time

import jax
import numpy as np
import pytest

from mhr_jax import checkpoints, run_folder
import several_processes

pytestmark = pytest.mark.multiprocess

_TIMES = ('time', 'train/examples_per_second', 'train/tokens_per_second')
_TIMES += ('train/seconds_per_step', 'train/seconds_left')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Data and compiled programs of all runs."""
  return tmp_path_factory.mktemp('several')


@pytest.fixture(scope='module')
def two(folder):
  """A run of two processes of two devices, which prepares the data first."""
  started = several_processes.start(
    folder, 'train', folder / 'two', processes=2, devices=2
  )
  codes, printed = several_processes.finish(started)
  assert codes == [0, 0], '\n'.join(printed)
  return folder / 'two', printed


@pytest.fixture(scope='module')
def one(folder, two):
  """The same run in one process on one device."""
  del two  # It prepares the data.
  _run(folder, folder / 'one')
  return folder / 'one'


def _run(folder, run_dir, *bindings, **shape):
  started = several_processes.start(
    folder, 'train', run_dir, *bindings, **shape
  )
  codes, printed = several_processes.finish(started)
  assert set(codes) == {0}, '\n'.join(printed)
  return printed


def _logged(run_dir):
  """All that was logged, but for what depends on the clock."""
  lines = (run_dir / 'metrics.jsonl').read_text().splitlines()
  found = [json.loads(line) for line in lines]
  return [{k: v for k, v in line.items() if k not in _TIMES} for line in found]


def _assert_same_run(run_dir, expected):
  """The same losses at the same steps, and the same parameters at the end."""
  for line, wanted in zip(_logged(run_dir), _logged(expected), strict=True):
    assert line.keys() == wanted.keys()
    np.testing.assert_allclose(
      list(line.values()), list(wanted.values()), rtol=1e-5, atol=1e-5
    )
  found, wanted = map(run_folder.load_run, (run_dir, expected))
  assert found.step == wanted.step
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
    found.params,
    wanted.params,
  )
  for name in ('routing.npz', 'skills.npz'):
    with np.load(run_dir / name) as a, np.load(expected / name) as b:
      assert a.files == b.files
      for array in set(a.files) - {'tasks'}:
        np.testing.assert_allclose(a[array], b[array], rtol=1e-4, atol=1e-5)


def _wait_for(started, run_dir, pattern):
  """Waits until processes that train have written a file of that name."""
  while not list(run_dir.glob(pattern)):
    if any(process.poll() is not None for process in started):
      _, printed = several_processes.finish(started)
      pytest.fail('\n'.join(printed))
    time.sleep(0.001)


def _files(run_dir):
  return {path.name for path in run_dir.iterdir()}


def test_two_processes_equal_one(two, one):
  run_dir, printed = two
  _assert_same_run(run_dir, one)
  assert _files(run_dir) == _files(one)
  assert len(_logged(one)) == 12 + 3 + 1 + 1  # evaluation, alignment, routing
  # The first prepares the data and speaks; the other waits, and is silent.
  assert several_processes.DATA_PREPARED in printed[0]
  assert several_processes.DATA_PREPARED not in printed[1]
  assert 'is trained: 12 steps' in printed[0]
  assert 'train' not in printed[1]


def test_four_processes_equal_one(folder, one):
  """Two of them hold the same rows, and half of the backbone each."""
  shape = 'train.mesh_shape = (2, 2)'
  _run(folder, folder / 'four', shape, processes=4)
  _assert_same_run(folder / 'four', one)


def test_killed_while_it_saves_and_restarted_on_other_devices(folder, one):
  run_dir = folder / 'killed'
  started = several_processes.start(
    folder,
    'train',
    run_dir,
    'TrainSettings.save_every = 1',
    processes=2,
    devices=2,
  )
  _wait_for(started, run_dir, 'checkpoints/[1-9]*.orbax-checkpoint-tmp')
  os.kill(started[1].pid, signal.SIGKILL)
  codes, printed = several_processes.finish(started)
  # The other does not wait for ever: it ends, too, and not as if all was well.
  assert codes[1] == -signal.SIGKILL and codes[0] != 0, '\n'.join(printed)
  committed = checkpoints.committed_steps(run_dir)
  assert not committed or committed[-1] < 12
  (said,) = _run(folder, run_dir, devices=4)
  assert ('Resuming at step' in said) == bool(committed)
  _assert_same_run(run_dir, one)
  assert checkpoints.committed_steps(run_dir)[-1] == 12
  assert not list(run_dir.glob('checkpoints/*tmp*'))


def test_sigterm_to_one_saves_one_common_step(folder, one):
  run_dir = folder / 'stopped'
  shape = {'processes': 2, 'devices': 2}
  started = several_processes.start(
    folder,
    'train',
    run_dir,
    'STEPS = 100000',
    'TrainSettings.save_every = 50000',
    'TrainSettings.eval_every = 0',
    **shape,
  )
  _wait_for(started, run_dir, 'metrics.jsonl')
  os.kill(started[1].pid, signal.SIGTERM)
  codes, printed = several_processes.finish(started)
  assert codes == [143, 143], '\n'.join(printed)
  (step,) = checkpoints.committed_steps(run_dir)
  assert f'Stopped by a signal after step {step}; saving.' in printed[0]
  assert _logged(run_dir)[-1]['step'] == step


def test_evaluation_counts_every_example_once(folder, one):
  """20 examples in batches of 6: fillers, and rows that do not divide."""
  predictions = []
  for processes, devices in ((1, 1), (2, 2)):
    where = folder / f'scores{processes}'
    started = several_processes.start(
      folder,
      'evaluate',
      one,
      f"evaluate.folder = '{where}'",
      'evaluate.batch_size = 6',
      processes=processes,
      devices=devices,
    )
    codes, printed = several_processes.finish(started)
    assert set(codes) == {0}, '\n'.join(printed)
    assert ['mean over tasks' in text for text in printed] == [
      i == 0 for i in range(processes)
    ]
    lines = (where / 'predictions.jsonl').read_text().splitlines()
    predictions.append([json.loads(line) for line in lines])
    scores = json.loads((where / 'scores.json').read_text())
    assert scores['overall']['instances'] == 20
  assert predictions[0] == predictions[1]
  assert len({(p['task'], p['id']) for p in predictions[1]}) == 20


def test_what_runs_alone_says_so_at_once(folder):
  started = several_processes.launch(
    folder, [several_processes.ADAPT_ALONE], processes=2, devices=1
  )
  codes, printed = several_processes.finish(started)
  assert codes == [0, 0], '\n'.join(printed)
  for text in printed:
    assert 'Few-shot adaptation runs in one process, and this is' in text


def test_what_cannot_be_prepared_is_said_by_all(folder):
  started = several_processes.start(
    folder,
    'train',
    folder / 'nowhere',
    "TASKS = 'absent'",
    "skills/TaskModule.name = 'no_such_module'",
    'skills/TaskModule.options = {}',
    processes=2,
  )
  codes, printed = several_processes.finish(started)
  assert codes == [2, 2], '\n'.join(printed)
  assert "There is no module 'no_such_module'" in printed[0]
  assert 'The first process prepares data, for all: it failed' in printed[1]
  assert not (folder / 'nowhere').exists()
