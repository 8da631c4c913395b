"""Our Adafactor on stacked arrays against transformers' on each tensor.

Of the tensors that PEFT's adapters do not have (`training_test.py` trains
those): a backbone's, and routers that several linears share or that have one
task.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mhr_jax import optim

pytestmark = pytest.mark.interop

STEPS = 30
RATES = {'backbone': 0.02, 'routers': 0.1}
DECAY = {'backbone': 0.1, 'routers': 0.0}
SHAPES = {
  'backbone': {
    'encoder': {
      'layers': {'mlp': {'kernel': (3, 5, 4)}, 'norm': {'scale': (3, 5)}},
      'encoder_norm': {'scale': (5,)},
    },
    'token_embedder': {'embedding': (7, 5)},
  },
  'routers': {
    'encoder': {'routing_logits': (3, 6, 2, 4)},
    'decoder': {'routing_logits': (6, 2, 4)},
    'of_one_task': {'routing_logits': (3, 1, 2, 4)},
  },
}


def draw(seed):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda shape: rng.normal(size=shape).astype(np.float32) * 0.3,
    SHAPES,
    is_leaf=lambda x: isinstance(x, tuple),
  )


def list_tensors(tree):
  """Returns [(label, is a norm's scale, array)], one of theirs each."""
  found = []
  for path, leaf in jax.tree.leaves_with_path(tree):
    label, *rest = [key.key for key in path]
    stacked = 'layers' in rest
    if label == 'routers':
      stacked = leaf.ndim == 4
      leaf = leaf.reshape(*leaf.shape[:-2], -1)
    slices = leaf if stacked else [leaf]
    found += [(label, 'scale' in rest, np.array(x)) for x in slices]
  return found


def run_theirs(torch, transformers, *, scale_parameter):
  """Returns the losses and the parameters after the last step."""
  tensors = [
    (label, is_scale, torch.nn.Parameter(torch.tensor(x)))
    for label, is_scale, x in list_tensors(draw(0))
  ]
  goals = [torch.tensor(x) for _, _, x in list_tensors(draw(1))]
  optimizer = transformers.optimization.Adafactor(
    [
      {
        'params': [p],
        'lr': RATES[label],
        'weight_decay': 0.0 if is_scale else DECAY[label],
      }
      for label, is_scale, p in tensors
    ],
    scale_parameter=scale_parameter,
    relative_step=False,
    warmup_init=False,
  )
  losses = []
  for _ in range(STEPS):
    optimizer.zero_grad()
    loss = sum(
      ((p - goal) ** 4).sum()
      for (_, _, p), goal in zip(tensors, goals, strict=True)
    )
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
  return losses, [p.detach().numpy() for _, _, p in tensors]


def run_ours(*, scale_parameter):
  """Returns the losses and the parameters after the last step."""
  settings = optim.OptimizerSettings(
    name='adafactor',
    learning_rates=RATES,
    weight_decay=DECAY,
    schedule='constant',
    warmup_steps=0,
    clip_norm=None,
    scale_parameter=scale_parameter,
  )
  optimizer = optim.make_optimizer(settings, STEPS)
  params, goals = jax.tree.map(jnp.asarray, (draw(0), draw(1)))

  def loss_of(params):
    parts = jax.tree.map(lambda p, goal: ((p - goal) ** 4).sum(), params, goals)
    return sum(jax.tree.leaves(parts))

  @jax.jit
  def step(params, state):
    loss, grads = jax.value_and_grad(loss_of)(params)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state, loss

  state, losses = optimizer.init(params), []
  for _ in range(STEPS):
    params, state, loss = step(params, state)
    losses.append(float(loss))
  return losses, [x for _, _, x in list_tensors(params)]


@pytest.mark.parametrize('scale_parameter', [True, False])
def test_thirty_steps(torch, transformers, report_difference, scale_parameter):
  expected_losses, expected = run_theirs(
    torch, transformers, scale_parameter=scale_parameter
  )
  losses, actual = run_ours(scale_parameter=scale_parameter)
  assert losses[-1] < 0.9 * losses[0]
  np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
  case = f'backbone, shared routers, parameter scale {scale_parameter}'
  difference = report_difference(
    case, 'transformers Adafactor', actual, expected
  )
  assert difference < 1e-4
