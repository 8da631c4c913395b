"""T5X's trainer and ours: the same start, batches and optimizer."""

import jax
import numpy as np
import pytest

from mhr_jax import optim, partitioning, trainer
from mhr_jax.convert import t5x_tree
import t5x_in_process as in_process

pytestmark = [
  pytest.mark.t5x,
  pytest.mark.timeout(1200),
  pytest.mark.filterwarnings('ignore'),
]

STEPS = 20
BATCHES = [in_process.draw_batch(seed) for seed in range(STEPS)]


def train_theirs(model, params, settings):
  """Returns T5X's loss at each of its steps, and the parameters after."""
  theirs = in_process.Theirs(model, settings, STEPS)
  losses, state = theirs.train(theirs.start(params), BATCHES)
  return losses, jax.device_get(state.params)


def train_ours(model, params, settings):
  """Returns our trainer's loss at each step, and the parameters after."""
  losses = []
  state = trainer.fit(
    model,
    params,
    lambda step: in_process.for_ours(BATCHES[step]),
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
def test_both_trainers_take_the_same_steps(t5x_dir, name, adapters):
  del t5x_dir
  model, params = in_process.build(adapters)
  settings = optim.OptimizerSettings(
    name=name,
    learning_rates={'adapters': 1e-2, 'routers': 0.1},
    warmup_steps=3,
    clip_norm=0.5,
  )
  ours, our_params = train_ours(model, params, settings)
  theirs, their_params = train_theirs(model, params, settings)
  np.testing.assert_allclose(ours, theirs, rtol=1e-5)
  assert ours[-1] != pytest.approx(ours[0])
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
    our_params,
    their_params.unfreeze(),
  )
