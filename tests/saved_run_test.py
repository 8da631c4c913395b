"""Resuming: from what is whole, from what is asked for, with all numbers."""

import jax
import numpy as np
import pytest

from mhr_jax import checkpoints, partitioning, run_lock, trainer
from mhr_jax.errors import UserError
import toy_training

_STEPS = 12


def _fit(run_dir, *, stop_at=_STEPS, log_every=1, **options):
  """Trains with a checkpoint every 4 steps; returns the state and numbers."""
  logged = {}

  def batches(step):
    if step == stop_at:
      raise RuntimeError('no more data')
    return toy_training.batches(step)

  state = trainer.fit(
    toy_training.ToyModel(),
    toy_training.ToyModel().init(),
    batches,
    settings=trainer.TrainSettings(_STEPS, log_every=log_every, save_every=4),
    optimizer=toy_training.OPTIMIZER,
    run_dir=run_dir,
    mesh=partitioning.make_mesh(devices=jax.devices()[:1]),
    task_table=toy_training.TASKS,
    on_log=lambda step, numbers: logged.update({step: dict(numbers)}),
    **options,
  )
  return state, logged


def test_numbers_are_over_all_steps_since_the_last_log(tmp_path):
  """Saved at 4 and 8, logged at 5 and 10: the window outlives the process."""
  whole, expected = _fit(tmp_path / 'whole', log_every=5)
  with pytest.raises(RuntimeError, match='no more data'):
    _fit(tmp_path / 'parts', log_every=5, stop_at=9)
  parts, logged = _fit(tmp_path / 'parts', log_every=5)
  assert list(logged) == [10, 12]
  for step, numbers in logged.items():
    for name in ('train/loss', 'train/tokens', 'train/examples', 'train/nll'):
      assert numbers[name] == expected[step][name], (step, name)
  jax.tree.map(np.testing.assert_array_equal, parts.params, whole.params)


def test_a_damaged_checkpoint_is_named_with_the_one_before(tmp_path):
  whole, _ = _fit(tmp_path)
  path = next((tmp_path / 'checkpoints' / '12' / 'trainable' / 'd').iterdir())
  path.write_bytes(path.read_bytes()[:-9])
  with pytest.raises(UserError, match=r'12/trainable .*\n.*--resume_from=8'):
    _fit(tmp_path)
  assert checkpoints.committed_steps(tmp_path) == (4, 8, 12)
  messages = []
  again, _ = _fit(tmp_path, resume_from=8, on_message=messages.append)
  assert 'Resuming at step 8, as asked.' in messages
  jax.tree.map(np.testing.assert_array_equal, again.params, whole.params)
  assert (tmp_path / checkpoints.SET_ASIDE_FOLDER / '12').is_dir()
  assert checkpoints.committed_steps(tmp_path) == (4, 8, 12)


def test_a_run_starts_anew_where_that_is_asked_for(tmp_path):
  whole, _ = _fit(tmp_path)
  again, logged = _fit(tmp_path, resume_from=0)
  assert list(logged) == list(range(1, _STEPS + 1))
  jax.tree.map(np.testing.assert_array_equal, again.params, whole.params)
  aside = tmp_path / checkpoints.SET_ASIDE_FOLDER
  assert {path.name for path in aside.iterdir()} == {'4', '8', '12'}
  _fit(tmp_path, resume_from=0)
  assert '12_2' in {path.name for path in aside.iterdir()}


def test_a_step_that_is_not_there_is_refused_with_those_that_are(tmp_path):
  _fit(tmp_path)
  with pytest.raises(UserError, match='step 7 to .* has: 4, 8, 12; 0 starts'):
    _fit(tmp_path, resume_from=7)
  assert checkpoints.committed_steps(tmp_path) == (4, 8, 12)


def test_a_run_folder_is_held_by_one(tmp_path):
  with (
    run_lock.run_lock(tmp_path),
    pytest.raises(UserError, match='is being trained by another process'),
    run_lock.run_lock(tmp_path),
  ):
    pass
  with run_lock.run_lock(tmp_path):
    assert (tmp_path / run_lock.LOCK_FOLDER).is_dir()
  assert not (tmp_path / run_lock.LOCK_FOLDER).exists()
