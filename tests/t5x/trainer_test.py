"""T5X's trainer and ours: the same start, batches and optimizer."""

import importlib

import jax
import numpy as np
import pytest

from mhr_jax import optim, partitioning, trainer
from mhr_jax.convert import t5x_tree
from mhr_jax.t5x import installation
import t5x_in_process as in_process

pytestmark = [
  pytest.mark.t5x,
  pytest.mark.timeout(1200),
  pytest.mark.filterwarnings('ignore'),
]

STEPS = 20
BATCHES = [in_process.draw_batch(seed) for seed in range(STEPS)]


@pytest.fixture(scope='module')
def t5x(t5x_dir):
  """A function that imports a module of T5X or of ours over T5X."""
  del t5x_dir
  installation.prepare_imports()
  return importlib.import_module


def train_theirs(t5x, model, params, settings):
  """Returns T5X's loss at each of its steps, and the parameters after."""
  optimizer = t5x('mhr_jax.t5x.optimizer').RoutedOptimizer(settings)
  vocabulary = t5x('seqio').PassThroughVocabulary(model.config.vocab_size)
  theirs = t5x('mhr_jax.t5x.model').RoutedEncoderDecoderModel(
    model,
    vocabulary,
    vocabulary,
    optimizer,
    loss_normalizing_factor='NUM_REAL_TARGET_TOKENS',
  )
  layout = t5x('mhr_jax.t5x.partitioning')
  partitioner = layout.Partitioner(
    num_partitions=2, logical_axis_rules=layout.logical_axis_rules()
  )
  start = t5x('t5x.utils').TrainStateInitializer(
    optimizer_def=optimizer,
    init_fn=theirs.get_initial_variables,
    input_shapes={name: x.shape for name, x in BATCHES[0].items()},
    partitioner=partitioner,
  )
  state = start.from_scratch(jax.random.PRNGKey(0))
  tree = jax.tree.map(
    jax.device_put,
    t5x('flax.core').freeze(t5x_tree.to_t5x(params)),
    jax.tree.map(lambda x: x.sharding, state.params),
  )
  schedule = optim.make_schedule(settings, STEPS)
  running = t5x('t5x.trainer').Trainer(
    theirs,
    state.replace_params(tree),
    partitioner,
    eval_names=[],
    summary_dir=None,
    train_state_axes=start.train_state_axes,
    rng=jax.random.PRNGKey(0),
    learning_rate_fn=lambda step: (
      settings.learning_rates.adapters * schedule(step)
    ),
    num_microbatches=None,
  )
  losses = []
  with running:
    for batch in BATCHES:
      summary = running.train(iter([batch]), 1).result()
      losses.append(float(summary['loss'].value))
    return losses, jax.device_get(running.train_state.params)


def train_ours(model, params, settings):
  """Returns our trainer's loss at each step, and the parameters after."""
  losses = []
  state = trainer.fit(
    model,
    params,
    lambda step: {**BATCHES[step], 'task_ids': BATCHES[step]['task_ids'][:, 0]},
    settings=trainer.TrainSettings(
      STEPS, trains=('adapters', 'routers'), log_every=1
    ),
    optimizer=settings,
    mesh=partitioning.make_mesh(4, 2),
    on_log=lambda step, metrics: losses.append(float(metrics['train/loss'])),
  )
  return losses, t5x_tree.to_t5x(jax.device_get(state.params))


@pytest.mark.parametrize('adapters', ['mhr', 'poly'])
@pytest.mark.parametrize('name', ['adamw', 'adafactor'])
def test_both_trainers_take_the_same_steps(t5x, name, adapters):
  model, params = in_process.build(adapters)
  settings = optim.OptimizerSettings(
    name=name,
    learning_rates={'adapters': 1e-2, 'routers': 0.1},
    warmup_steps=3,
    clip_norm=0.5,
  )
  ours, our_params = train_ours(model, params, settings)
  theirs, their_params = train_theirs(t5x, model, params, settings)
  np.testing.assert_allclose(ours, theirs, rtol=1e-5)
  assert ours[-1] != pytest.approx(ours[0])
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
    our_params,
    their_params.unfreeze(),
  )
