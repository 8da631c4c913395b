"""T5X's checkpoints in our trainer and ours in T5X's, in the midst of a run."""

import importlib

import jax
import numpy as np
import pytest

import mhr_jax
from mhr_jax import conversion, optim, partitioning, trainer
from mhr_jax.convert import t5x_tree
from mhr_jax.task_table import TaskTable
from mhr_jax.tree_paths import leaves_by_path
import t5x_in_process as in_process

pytestmark = [
  pytest.mark.t5x,
  pytest.mark.timeout(1800),
  pytest.mark.filterwarnings('ignore'),
  pytest.mark.usefixtures('t5x_dir'),
]

HALF, STEPS = 10, 20
BATCHES = [in_process.draw_batch(seed) for seed in range(STEPS)]
TASKS = TaskTable(tuple(f'task {i}' for i in range(in_process.N_TASKS)))
CASES = pytest.mark.parametrize(
  'name, adapters', [('adamw', 'mhr'), ('adafactor', 'poly')]
)


def make_settings(name):
  return optim.OptimizerSettings(
    name=name,
    learning_rates={'adapters': 1e-2, 'routers': 0.1},
    warmup_steps=3,
    clip_norm=0.5,
  )


def train_ours(run_dir, model, params, optimizer):
  """Trains to the last step; returns the loss at each step that was made."""
  losses = []
  trainer.fit(
    model,
    params,
    lambda step: in_process.for_ours(BATCHES[step]),
    settings=trainer.TrainSettings(STEPS, log_every=1, save_every=HALF),
    optimizer=optimizer,
    run_dir=run_dir,
    mesh=partitioning.make_mesh(4, 2),
    task_table=TASKS,
    on_log=lambda step, metrics: losses.append(float(metrics['train/loss'])),
  )
  return losses


@CASES
def test_we_go_on_from_their_checkpoint(
  tmp_path, name, adapters, report_difference
):
  model, params = in_process.build(adapters)
  settings = make_settings(name)
  theirs = in_process.Theirs(model, settings, STEPS)
  _, state = theirs.train(theirs.start(params), BATCHES[:HALF])
  folder, run = tmp_path / 't5x', tmp_path / 'run'
  saved = theirs.checkpoints(folder)
  saved.save(state)
  saved.close()
  importlib.import_module('mhr_jax.t5x.building').summarize_config(
    str(folder), None, 0, model=theirs.model, task_table=TASKS
  )
  batch = BATCHES[0]
  logits = jax.jit(theirs.model._compute_logits)(state.params, batch)
  scores = theirs.model.score_batch(state.params, batch)
  params_there = jax.device_get(state.params).unfreeze()
  losses, _ = theirs.train(state, BATCHES[HALF:])

  loaded = mhr_jax.load(folder, config=model.config)
  flat = leaves_by_path(t5x_tree.to_t5x(loaded.loaded.params))
  for path, leaf in leaves_by_path(params_there).items():
    np.testing.assert_array_equal(flat[path], leaf, err_msg=path)
  loaded = mhr_jax.load(folder)
  assert loaded.tasks == TASKS.names and loaded.loaded.step == HALF
  ours = loaded.logits(
    batch['encoder_input_tokens'],
    batch['decoder_input_tokens'],
    task_ids=batch['task_ids'][:, 0],
  )
  case = f'{name}, {adapters}'
  assert report_difference(f'logits, {case}', 'T5X', ours, logits) <= 1e-5
  ours = loaded.loaded.model.score(
    loaded.loaded.params, in_process.for_ours(batch)
  )
  np.testing.assert_allclose(ours, scores, rtol=1e-5)

  conversion.convert(folder / f'checkpoint_{HALF}', run, 'run')
  start = mhr_jax.load(run).loaded
  ours = train_ours(run, start.model, start.params, settings)
  case = f'losses after T5X, {case}'
  assert report_difference(case, 'T5X', ours, losses) <= 1e-5
  assert len(ours) == STEPS - HALF


@CASES
def test_they_go_on_from_our_run(tmp_path, name, adapters, report_difference):
  model, params = in_process.build(adapters)
  settings = make_settings(name)
  run, folder = tmp_path / 'run', tmp_path / 't5x'
  losses = train_ours(run, model, params, settings)
  conversion.export(run, folder, 't5x', with_optimizer=True, step=HALF)

  theirs = in_process.Theirs(model, settings, STEPS)
  checkpoints = theirs.checkpoints(folder)
  assert list(checkpoints.all_steps()) == [HALF]
  state = checkpoints.restore(step=HALF)
  assert int(state.step) == HALF
  found, _ = theirs.train(state, BATCHES[HALF:])
  case = f'losses after us, {name}, {adapters}'
  assert report_difference(case, 'T5X', found, losses[HALF:]) <= 1e-5


def test_our_run_is_a_start_for_theirs_with_a_fresh_optimizer(tmp_path):
  model, params = in_process.build('mhr')
  loaded = mhr_jax.loading.LoadedModel(model, params, TASKS, step=7)
  mhr_jax.Model(loaded).save(tmp_path / 't5x', 't5x')
  theirs = in_process.Theirs(model, make_settings('adamw'), STEPS)
  fresh = theirs.fresh_state()
  restoring = importlib.import_module('mhr_jax.t5x.restoring')
  state = theirs.checkpoints(tmp_path / 't5x').restore(
    path=str(tmp_path / 't5x' / 'checkpoint_7'),
    fallback_state=fresh.state_dict(),
    state_transformation_fns=[restoring.FreshLabels(())],
  )
  assert int(state.step) == 7
  flat = leaves_by_path(state.params.unfreeze())
  for path, leaf in leaves_by_path(t5x_tree.to_t5x(params)).items():
    np.testing.assert_array_equal(flat[path], leaf, err_msg=path)
  assert not any(np.any(x) for x in jax.tree.leaves(state.param_states))


def test_the_launcher_resumes_what_we_exported(launcher, pretrained, tmp_path):
  there, run = tmp_path / 'there', tmp_path / 'run'
  first = mhr_jax.load(pretrained, with_optimizer=True)
  assert first.tasks == ('words_copy', 'words_reverse', 'words_upper')
  assert first.loaded.optimizer.updates == 5
  first.save(there, 't5x')
  launcher.run(
    'train',
    'mhr',
    f'--gin.MODEL_DIR="{there}"',
    '--gin.INITIAL_CHECKPOINT_PATH="nowhere"',
    '--gin.TRAIN_STEPS=13',
  )
  second = mhr_jax.load(there / 'checkpoint_13', with_optimizer=True)
  assert second.loaded.optimizer.updates == 10
  assert isinstance(second.generate('catdog', 'words_copy'), str)
  conversion.convert(there / 'checkpoint_13', run, 'run')
  loaded = mhr_jax.load(run).loaded
  assert loaded.step == 10 and loaded.vocabulary == first.loaded.vocabulary
