"""route on a decoder-only language model of other people's: nano-moe-jax.

A mixture of experts: what routes tokens to experts there is a linear too, and
must be left alone where the targets say so.
"""

import jax
from jax import numpy as jnp
import numpy as np
import optax
import pytest

import mhr_jax
from mhr_jax import UserError

pytestmark = pytest.mark.interop

VOCABULARY, TASKS = 12, np.array([2, 0, 2, 1])
CONFIG = mhr_jax.AdapterConfig(
  n_tasks=3,
  n_skills=4,
  n_splits=2,
  rank=4,
  targets=('.*Attention_0/.*', '.*/expert_./.*', 'Dense_0'),
)


@pytest.fixture(scope='module')
def model(nano_moe):
  return nano_moe.NanoMoE(
    nano_moe.NanoMoEConfig(
      vocab_size=VOCABULARY,
      n_layers=2,
      n_heads=2,
      d_model=16,
      d_ff=32,
      n_experts=2,
      top_k=1,
      block_size=12,
    )
  )


@pytest.fixture(scope='module')
def batch():
  """Tokens, the tokens that follow by the task's step, and task ids."""
  tokens, task_ids = np.meshgrid(np.arange(VOCABULARY), np.arange(3))
  tokens, task_ids = tokens.ravel(), task_ids.ravel()
  return tokens[:, None], (tokens + task_ids + 1) % VOCABULARY, task_ids


@pytest.fixture(scope='module')
def routed(model):
  return mhr_jax.route(model, CONFIG)


@pytest.fixture(scope='module')
def variables(routed):
  ids = np.zeros((4, 6), int)
  return jax.jit(routed.init)(jax.random.key(0), ids)


def test_init_prints_the_count_and_keeps_the_models_parameters(
  model, routed, capsys
):
  ids = np.zeros((4, 6), int)
  variables = jax.jit(routed.init)(jax.random.key(3), ids)
  # The logits, and in 2 layers 2 linears of the attention and 2 in each of 2
  # experts; not what chooses the experts.
  assert 'Routing 13 of 15 linears: block_0/' in capsys.readouterr().out
  own = jax.jit(model.init)(jax.random.key(3), ids)
  assert variables.keys() == {'params', 'adapters', 'routers'}
  jax.tree.map(
    np.testing.assert_array_equal, variables['params'], own['params']
  )
  y, _ = jax.jit(routed.apply)(variables, ids, task_ids=TASKS)
  np.testing.assert_allclose(y, jax.jit(model.apply)(own, ids)[0], atol=1e-6)


def test_mixed_tasks_equal_each_alone(routed, variables):
  rng = np.random.default_rng(1)
  variables = {
    label: tree
    if label == 'params'
    else jax.tree.map(
      lambda x: jnp.array(rng.normal(size=x.shape) * 0.3, x.dtype), tree
    )
    for label, tree in variables.items()
  }
  ids = rng.integers(0, VOCABULARY, (4, 6))
  apply = jax.jit(routed.apply)
  mixed, _ = apply(variables, ids, task_ids=TASKS)
  for i in range(4):
    alone, _ = apply(variables, ids[i : i + 1], task_ids=TASKS[i : i + 1])
    np.testing.assert_allclose(mixed[i], alone[0], rtol=1e-4, atol=1e-4)
  other, _ = apply(variables, ids, task_ids=(TASKS + 1) % 3)
  assert (abs(mixed - other).max(axis=(1, 2)) > 1e-2).all()


def test_training_learns_tasks_that_only_their_ids_tell(
  routed, variables, batch
):
  inputs, targets, task_ids = batch
  params = variables['params']
  added = {k: variables[k] for k in ('adapters', 'routers')}
  optimizer = optax.adam(0.03)

  def losses(added, task_ids):
    logits, _ = routed.apply(
      {'params': params, **added}, inputs, task_ids=task_ids
    )
    return optax.softmax_cross_entropy_with_integer_labels(
      logits[:, 0], targets
    )

  @jax.jit
  def step(added, state):
    value, gradients = jax.value_and_grad(
      lambda added: losses(added, task_ids).mean()
    )(added)
    updates, state = optimizer.update(gradients, state)
    return optax.apply_updates(added, updates), state, value

  state, values = optimizer.init(added), []
  for _ in range(150):
    added, state, value = step(added, state)
    values.append(float(value))
  assert values[0] > 2
  assert values[-1] < 0.1
  assert float(losses(added, (task_ids + 1) % 3).mean()) > 2


def test_a_pattern_that_matches_nothing_names_the_nearest(model):
  config = mhr_jax.AdapterConfig(n_tasks=3, targets='.*/query')
  with pytest.raises(UserError, match='matches no linear.*block_0/'):
    mhr_jax.route(model, config).find_linears(
      jax.random.key(0), np.zeros((4, 6), int)
    )
