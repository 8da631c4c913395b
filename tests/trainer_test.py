"""The loop: what moves, what is equal to what, what survives a kill."""

import functools
import multiprocessing
import os
import random
import signal
import time

import jax
from jax.experimental.compilation_cache import compilation_cache
import jax.numpy as jnp
import numpy as np
import pytest

from mhr_jax import (
  checkpoints,
  methods,
  optim,
  partitioning,
  train_state,
  trainer,
)
from mhr_jax.errors import UserError
from mhr_jax.run_signals import Terminated
from mhr_jax.task_table import TaskTable
import toy_training

_KEY_SEED = 0


@pytest.fixture(autouse=True, scope='module')
def _compiled_programs_are_shared(tmp_path_factory):
  """Most runs here compile the same step: processes and tests share it."""
  folder = str(tmp_path_factory.mktemp('compiled'))
  settings = {
    'jax_compilation_cache_dir': folder,
    'jax_persistent_cache_min_compile_time_secs': 0.0,
  }
  with pytest.MonkeyPatch.context() as patch:
    for name, value in settings.items():
      patch.setenv(name.upper(), str(value))
      jax.config.update(name, value)
    yield
  jax.config.update('jax_compilation_cache_dir', None)
  compilation_cache.reset_cache()


def _assert_equal(a, b):
  """Bit for bit."""
  jax.tree.map(np.testing.assert_array_equal, a, b)


def _assert_close(a, b, *, rtol=1e-5, atol=1e-6):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b
  )


def _differs(a, b):
  return jax.tree.map(lambda x, y: bool((x != y).any()), a, b)


def _fit(
  mesh_shape=(1, 1), *, steps=20, batches=toy_training.batches, **kwargs
):
  n = mesh_shape[0] * mesh_shape[1]
  logged = []
  fields = {'log_every': 1, **kwargs.pop('settings', {})}
  state = trainer.fit(
    toy_training.ToyModel(),
    kwargs.pop('params', None) or toy_training.ToyModel().init(),
    batches,
    settings=trainer.TrainSettings(steps, **fields),
    optimizer=kwargs.pop('optimizer', toy_training.OPTIMIZER),
    mesh=partitioning.make_mesh(*mesh_shape, devices=jax.devices()[:n]),
    on_log=lambda step, metrics: logged.append((step, dict(metrics))),
    **{'task_table': toy_training.TASKS} | kwargs,
  )
  return state, logged


@pytest.mark.parametrize(
  ('trains', 'name'),
  [
    (('adapters', 'routers'), 'adamw'),
    (('routers',), 'adafactor'),
    (methods.trained_labels('random', 'pretrain'), 'adamw'),
    (('backbone', 'adapters', 'routers'), 'adafactor'),
  ],
)
def test_only_labelled_leaves_change(trains, name):
  before = toy_training.ToyModel().init()
  optimizer = optim.OptimizerSettings(name=name, warmup_steps=0)
  state, _ = _fit(steps=2, settings={'trains': trains}, optimizer=optimizer)
  for label, changed in _differs(state.params, before).items():
    expected = label in trains
    assert set(jax.tree.leaves(changed)) == {expected}, label
  assert set(state.trainable) == set(trains)
  n_state = sum(x.size for x in jax.tree.leaves(state.opt_state))
  n_trainable = sum(x.size for x in jax.tree.leaves(state.trainable))
  assert n_state <= 2 * n_trainable + 2


def test_the_caller_keeps_its_parameters():
  params = toy_training.ToyModel().init()
  _fit(params=params)
  _assert_equal(params, toy_training.ToyModel().init())


def test_training_reduces_the_loss_and_says_what_it_measures():
  _, logged = _fit(
    batches=lambda step: toy_training.batches(0), settings={'log_every': 10}
  )
  assert [step for step, _ in logged] == [10, 20]
  values = [metrics['train/loss'] for _, metrics in logged]
  assert values[1] < values[0]
  weights = toy_training.batches(0)['decoder_loss_weights']
  last = logged[-1][1]
  assert last['train/examples'] == 10 * 8
  assert last['train/tokens'] == 10 * (8 * 4 + weights.sum())
  assert last['train/seconds_left'] == 0
  assert last['train/nll'] == pytest.approx(last['train/loss'])


@functools.cache
def _fit_by(mesh, name):
  rates = {'adapters': 1e-2}
  optimizer = optim.OptimizerSettings(name=name, learning_rates=rates)
  return _fit(mesh, optimizer=optimizer)


@pytest.mark.parametrize(
  ('mesh', 'name'),
  [((2, 4), 'adamw'), ((4, 2), 'adamw'), ((2, 4), 'adafactor')],
)
def test_eight_devices_equal_one(mesh, name):
  one, logged_one = _fit_by((1, 1), name)
  eight, logged_eight = _fit_by(mesh, name)
  losses = [
    [metrics['train/loss'] for _, metrics in logged]
    for logged in (logged_one, logged_eight)
  ]
  np.testing.assert_allclose(*losses, rtol=1e-5)
  _assert_close(one.params, eight.params, rtol=1e-4, atol=1e-5)
  b = eight.trainable['adapters']['wi']['b'].sharding.spec
  assert b == jax.sharding.PartitionSpec(*[None] * 4, ('model', 'data'))


def _gradient_step(accumulation, batch):
  """One step of plain descent: the parameters moved by the gradient."""
  settings = optim.OptimizerSettings(
    name='sgd',
    learning_rates={'adapters': 1.0, 'routers': 1.0},
    weight_decay={'adapters': 0.0},
    schedule='constant',
    warmup_steps=0,
    clip_norm=None,
  )
  rule = optim.make_optimizer(settings, 1)
  trains = ('adapters', 'routers')
  state = train_state.init_state(toy_training.ToyModel().init(), rule, trains)
  step = train_state.make_train_step(
    toy_training.ToyModel(), rule, accumulation=accumulation, z_loss=1e-3
  )
  return step(state, batch, jax.random.key(_KEY_SEED))


@pytest.mark.parametrize('n', [2, 8])
def test_accumulation_equals_one_batch_with_unequal_token_counts(n):
  batch = toy_training.batches(3)
  assert len(set(batch['decoder_loss_weights'].sum(1))) > 1
  whole, metrics = _gradient_step(1, batch)
  parts, metrics_of_parts = _gradient_step(n, batch)
  _assert_close(whole.trainable, parts.trainable, rtol=1e-6, atol=1e-6)
  _assert_close(metrics, metrics_of_parts, rtol=1e-6)
  assert metrics_of_parts['row_nll'].shape == (8,)


def test_accumulation_must_divide_the_batch():
  with pytest.raises(UserError, match='accumulation of 3 does not divide'):
    _gradient_step(3, toy_training.batches(0))


def test_annealing_goes_to_uniform_weights_over_the_last_steps():
  """Each step's loss against the cosine; the last one trains no routing."""
  settings = trainer.TrainSettings(6, anneal_steps=3)
  model = toy_training.ToyModel()
  rule = optim.make_optimizer(toy_training.OPTIMIZER, 6)
  step = train_state.make_train_step(
    model, rule, accumulation=2, uniform_share=settings.uniform_share
  )
  batch, key = toy_training.batches(0), jax.random.key(_KEY_SEED)
  state = train_state.init_state(model.init(), rule, ('routers',))
  for i in (2, 3, 4, 5):
    before = jax.tree.map(jnp.copy, state)
    _, metrics = step(before.replace(step=jnp.int32(i)), batch, key)
    _, noise_key = jax.random.split(jax.random.fold_in(key, i))
    share = 1 - np.cos(np.pi / 2 * max(0, i - 2) / 3)
    expected = model.loss(
      model.init(),
      batch,
      noise_key=noise_key,
      example_index=np.arange(8),
      uniform_share=share,
    )[0]
    np.testing.assert_allclose(metrics['loss_sum'], expected, rtol=1e-5)
    assert (metrics['grad_norm'] == 0) == (i == 5)
  assert trainer.TrainSettings(6).uniform_share is None
  with pytest.raises(UserError, match='anneal_steps is 7; from 0 to all 6'):
    trainer.TrainSettings(6, anneal_steps=7)


def test_annealing_resumes_bit_for_bit(tmp_path):
  def run(folder, batches):
    settings = {'anneal_steps': 4, 'save_every': 4}
    return _fit(steps=6, batches=batches, run_dir=folder, settings=settings)[0]

  def broken(step):
    if step == 5:
      raise RuntimeError('no more data')
    return toy_training.batches(step)

  with pytest.raises(RuntimeError, match='no more data'):
    run(tmp_path / 'parts', broken)
  assert checkpoints.committed_steps(tmp_path / 'parts') == (4,)
  parts = run(tmp_path / 'parts', toy_training.batches)
  whole = run(tmp_path / 'whole', toy_training.batches)
  _assert_equal(parts.params, whole.params)


def test_accumulation_keeps_micro_batches_spread_over_devices():
  one, _ = _fit(steps=3, settings={'accumulation': 2})
  eight, _ = _fit((4, 2), steps=3, settings={'accumulation': 2})
  _assert_close(one.params, eight.params, rtol=1e-5)


def test_one_program_for_several_learning_rates_and_seeds():
  rule = optim.make_optimizer(toy_training.OPTIMIZER, 10)
  calls = []

  class Counting(toy_training.ToyModel):
    def loss(self, *args, **kwargs):
      calls.append(1)
      return super().loss(*args, **kwargs)

  step = train_state.make_train_step(Counting(), rule)
  for seed, rate in ((0, 0.1), (1, 0.2)):
    params = toy_training.ToyModel().init(seed)
    state = train_state.init_state(params, rule, ('adapters', 'routers'))
    for i in range(2):
      rates = {'adapters': jnp.float32(rate), 'routers': jnp.float32(rate)}
      state, _ = step(
        state, toy_training.batches(i), jax.random.key(seed), rates
      )
  assert len(calls) == 1


def test_the_step_is_compiled_once_in_a_run():
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: compiled.append(name)
  )
  counts = []

  def batches(step):
    counts.append(sum('backend_compile' in name for name in compiled))
    return toy_training.batches(step)

  _fit((2, 4), batches=batches)
  assert counts[-1] == counts[6]


def test_a_loss_that_is_not_finite_stops_with_step_and_tasks(tmp_path):
  def batches(step):
    batch = toy_training.batches(step)
    if step == 5:
      batch['task_ids'][:] = 1
      batch['task_ids'][2] = 3
      batch['decoder_loss_weights'][2] = np.nan
    return batch

  with pytest.raises(trainer.TrainingStopped, match='step 6: .* sort') as info:
    _fit(batches=batches, run_dir=tmp_path, settings={'save_every': 2})
  assert (info.value.step, info.value.tasks) == (6, ('sort',))
  assert checkpoints.committed_steps(tmp_path) == (2, 4)


def test_evaluation_during_training():
  seen = []

  def evaluate(step, params):
    seen.append(step)
    return {'eval/loss': float(params['routers']['wi']['routing_logits'].sum())}

  _, logged = _fit(evaluate=evaluate, settings={'eval_every': 8})
  assert seen == [8, 16, 20]
  steps = [step for step, metrics in logged if 'eval/loss' in metrics]
  assert steps == seen
  assert [step for step, _ in logged] == sorted(step for step, _ in logged)


def test_resuming_equals_not_stopping_bit_for_bit(tmp_path):
  expected = toy_training.run(tmp_path / 'whole', 20)
  messages = []
  with pytest.raises(RuntimeError, match='no more data'):
    toy_batches = toy_training.batches

    def broken(step):
      if step == 10:
        raise RuntimeError('no more data')
      return toy_batches(step)

    _fit(
      batches=broken,
      run_dir=tmp_path / 'parts',
      settings={'save_every': 4},
    )
  actual, _ = _fit(run_dir=tmp_path / 'parts', on_message=messages.append)
  assert any('Resuming at step 8' in message for message in messages)
  assert any('save_every was 4' in message for message in messages)
  _assert_equal(actual.params, expected.params)
  _assert_equal(actual.opt_state, expected.opt_state)


def test_an_evaluation_that_was_cut_short_is_done_again(tmp_path):
  def evaluate(step, params):
    del params
    if not resumed and step == 20:
      raise KeyboardInterrupt
    return {'eval/loss': float(step)}

  settings = {'save_every': 8, 'eval_every': 8}
  resumed = False
  with pytest.raises(KeyboardInterrupt):
    _fit(run_dir=tmp_path, evaluate=evaluate, settings=settings)
  resumed = True
  _, logged = _fit(run_dir=tmp_path, evaluate=evaluate, settings=settings)
  assert [step for step, numbers in logged if 'eval/loss' in numbers] == [20]


def test_a_finished_run_is_not_run_again(tmp_path):
  first = toy_training.run(tmp_path, 20)
  again, logged = _fit(run_dir=tmp_path, batches=None)
  _assert_equal(first.params, again.params)
  assert logged == []


def test_resuming_on_another_mesh(tmp_path):
  # A constant rate, so that fewer steps are a part of more steps.
  optimizer = optim.OptimizerSettings(schedule='constant', warmup_steps=0)
  expected, _ = _fit(steps=12, optimizer=optimizer)
  _fit((2, 4), steps=6, run_dir=tmp_path, optimizer=optimizer)
  actual, _ = _fit((4, 2), steps=12, run_dir=tmp_path, optimizer=optimizer)
  _assert_close(actual.params, expected.params, rtol=1e-4)
  place = actual.trainable['adapters']['wi']['b'].sharding
  assert dict(place.mesh.shape) == {'data': 4, 'model': 2}


def test_sigterm_saves_and_ends_with_143(tmp_path):
  def on_log(step, metrics):
    del metrics
    if step == 3:
      os.kill(os.getpid(), signal.SIGTERM)

  with pytest.raises(Terminated) as info:
    toy_training.run(tmp_path, 20, save_every=100, on_log=on_log)
  assert info.value.code == 143
  assert checkpoints.committed_steps(tmp_path) == (info.value.step,)
  assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
  _assert_equal(
    toy_training.run(tmp_path, 20, save_every=100).params,
    toy_training.run(None, 20).params,
  )


def test_another_backbone_is_refused(tmp_path):
  toy_training.run(tmp_path, 20)
  params = toy_training.ToyModel().init()
  params['backbone']['wi'] = params['backbone']['wi'].at[0, 0].add(1e-6)
  with pytest.raises(UserError, match='The frozen backbone is not the one'):
    _fit(params=params, run_dir=tmp_path)


def test_another_task_table_is_refused(tmp_path):
  toy_training.run(tmp_path, 20)
  others = TaskTable(('subtract', *toy_training.TASKS.names[1:]))
  with pytest.raises(UserError, match='task 0 is add, now subtract'):
    _fit(run_dir=tmp_path, task_table=others)


def test_frozen_parameters_keep_their_type(tmp_path):
  params = toy_training.ToyModel().init()
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params['backbone'])
  state, _ = _fit(params=params | {'backbone': half}, run_dir=tmp_path)
  _assert_equal(state.frozen['backbone'], half)
  trained = {x.dtype for x in jax.tree.leaves(state.trainable)}
  assert trained == {jnp.dtype('float32')}


def test_full_training_saves_the_backbone_with_each_step(tmp_path):
  toy_training.run(tmp_path, 4, trains=('backbone', 'adapters', 'routers'))
  assert not (tmp_path / 'backbone').exists()
  saved = checkpoints.restore_tree(
    tmp_path / 'checkpoints' / '4' / 'trainable', toy_training.ToyModel().init()
  )
  assert set(saved) == {'backbone', 'adapters', 'routers'}


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    ({'steps': 0}, 'steps is 0'),
    ({'steps': 1, 'accumulation': 0}, 'accumulation is 0'),
    ({'steps': 1, 'trains': ()}, 'Nothing trains'),
  ],
)
def test_settings_that_cannot_be(kwargs, message):
  with pytest.raises(UserError, match=message):
    trainer.TrainSettings(**kwargs)


def test_a_label_the_model_lacks():
  with pytest.raises(UserError, match="no 'router' to train. Did you mean"):
    _fit(steps=1, settings={'trains': ('router',)})


def _start(context, run_dir, steps, slow):
  done = context.Value('i', 0)
  process = context.Process(
    target=toy_training.run_in_process, args=(str(run_dir), steps, slow, done)
  )
  process.start()
  return process, done


@pytest.mark.slow
def test_killed_three_times_equals_uninterrupted(tmp_path):
  """A real SIGKILL of a real process, at a random step, three times over."""
  steps = 20
  context = multiprocessing.get_context('forkserver')
  context.set_forkserver_preload(['mhr_jax.trainer'])
  process, _ = _start(context, tmp_path / 'whole', steps, 0.0)
  process.join(120)
  assert process.exitcode == 0
  where = toy_training.run(
    tmp_path / 'whole', steps
  )  # finished: only read back
  rng = random.Random()
  for i in range(3):
    run_dir = tmp_path / f'killed_{i}'
    stop_at = rng.randrange(3, steps - 3)
    process, done = _start(context, run_dir, steps, 0.02)
    while done.value < stop_at and process.is_alive():
      time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    committed = checkpoints.committed_steps(run_dir)
    assert not committed or committed[-1] < steps
    process, done = _start(context, run_dir, steps, 0.0)
    process.join(120)
    assert process.exitcode == 0, f'killed at {stop_at}'
    again = toy_training.run(run_dir, steps)
    _assert_equal(again.params, where.params)
    _assert_equal(again.opt_state, where.opt_state)
