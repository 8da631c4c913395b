"""The compiled training step on meshes: what travels, what lies on a device."""

import functools
import math

import jax
import numpy as np
import optax
import pytest

from mhr_jax import optim, partitioning, plan_collectives, plan_program
from mhr_jax.adapters import AdapterConfig
from mhr_jax.model import RoutedT5
from mhr_jax.t5.config import t5_config
from mhr_jax.train_state import make_train_step, place_state, plan_state

_ROWS, _INPUTS, _TARGETS = 16, 24, 8
_CONFIG = t5_config('t5_1_1_tiny', vocab_size=512, mlp_activations=('relu',))
# Primes that nothing else has: an array with both is part of an inventory.
_SKILLS, _RANK = 5, 3
# Linears whose features are split over `model` on the way in, on the way out.
_ADAPTERS = AdapterConfig(
  n_tasks=7,
  n_skills=_SKILLS,
  n_splits=2,
  rank=_RANK,
  targets=('encoder/attention/query', 'decoder/mlp/wo'),
)
_TRAINS = ('adapters', 'routers')
_MESHES = ((8, 1), (4, 2), (2, 4))
# Half of the time to compile: what is asserted here is decided before.
_QUICK = {
  'xla_backend_optimization_level': 0,
  'xla_llvm_disable_expensive_passes': True,
}


def _rule():
  return optim.make_optimizer(optim.OptimizerSettings(), 10)


def _batch(mesh):
  rng = np.random.default_rng(0)
  tokens = {
    'encoder_input_tokens': (_ROWS, _INPUTS),
    'decoder_input_tokens': (_ROWS, _TARGETS),
    'decoder_target_tokens': (_ROWS, _TARGETS),
  }
  drawn = {
    name: rng.integers(1, _CONFIG.vocab_size, shape).astype(np.int32)
    for name, shape in tokens.items()
  }
  drawn['decoder_loss_weights'] = np.ones((_ROWS, _TARGETS), np.float32)
  drawn['task_ids'] = (np.arange(_ROWS) % _ADAPTERS.n_tasks).astype(np.int32)
  return partitioning.put_batch(drawn, mesh)


@functools.cache
def _compile(shape, mix_in):
  """Returns the compiled step, the state's shapes, its places and the mesh."""
  devices = jax.devices()[: math.prod(shape)]
  mesh = partitioning.make_mesh(*shape, devices=devices)
  model = RoutedT5(_CONFIG, _ADAPTERS, mix_in)
  state, places, _ = plan_state(
    model.abstract_params(),
    _rule(),
    _TRAINS,
    mesh=mesh,
    logical_axes=model.logical_axes(),
  )
  step = make_train_step(model, _rule(), places=places)
  key = jax.eval_shape(lambda: jax.random.key(0))
  lowered = step.lower(state, _batch(mesh), key)
  return lowered.compile(compiler_options=_QUICK), state, places, mesh


def _collectives(shape, mix_in):
  text = _compile(shape, mix_in)[0].as_text()
  return plan_collectives.list_collectives(text)


@pytest.mark.parametrize('mix_in', ['front', 'layer'])
@pytest.mark.parametrize('shape', _MESHES)
def test_no_embedding_and_no_inventory_travels(shape, mix_in):
  table = {_CONFIG.vocab_size, _CONFIG.emb_dim}
  for each in _collectives(shape, mix_in):
    for _, sizes in each.arrays:
      assert not table <= set(sizes), each
      assert not {_SKILLS, _RANK} <= set(sizes), each


@pytest.mark.parametrize('shape', _MESHES)
def test_adapters_and_their_optimizer_state_are_spread_over_all_devices(shape):
  state = _compile(shape, 'layer')[1]
  moments = optax.tree_utils.tree_get(state.opt_state, 'mu')
  for tree in (state.trainable['adapters'], moments['adapters']):
    for leaf in jax.tree.leaves(tree):
      part = math.prod(leaf.sharding.shard_shape(leaf.shape))
      assert part * math.prod(shape) == math.prod(leaf.shape), leaf


@pytest.mark.parametrize('mix_in', ['front', 'layer'])
def test_bytes_of_a_device_fall_with_the_mesh(mix_in):
  arguments, temporaries = {}, {}
  for shape in ((1, 1), (8, 1), (2, 4)):
    compiled, state, _, mesh = _compile(shape, mix_in)
    arguments[shape] = plan_program.count_arguments(state, _batch(mesh))
    memory = compiled.memory_analysis()
    temporaries[shape] = memory.temp_size_in_bytes
    # Our own count of what lies on a device is the compiler's.
    total = sum(arguments[shape].values())
    assert memory.argument_size_in_bytes == pytest.approx(total, rel=0.01)
  one = arguments[1, 1]
  assert arguments[8, 1]['adapters'] == one['adapters'] / 8
  assert arguments[8, 1]['optimizer'] < one['optimizer'] / 6
  assert arguments[8, 1]['batch'] == one['batch'] / 8
  assert arguments[2, 4]['backbone'] < one['backbone'] / 3
  assert temporaries[8, 1] < temporaries[1, 1] / 3
  assert temporaries[2, 4] < temporaries[1, 1] / 2


def test_pinning_changes_no_number():
  params = RoutedT5(_CONFIG, _ADAPTERS).init(jax.random.key(1))
  params['routers'] = jax.tree.map(lambda x: x * 1e3, params['routers'])
  found = []
  for shape, mix_in in (((1, 1), 'front'), ((4, 2), 'layer')):
    compiled, _, places, mesh = _compile(shape, mix_in)
    state = place_state(params, _rule(), places)
    moving = (state.step, state.trainable, state.opt_state)
    (_, trainable, _), metrics = compiled(
      moving, state.frozen, _batch(mesh), jax.random.key(0), None
    )
    found.append(jax.device_get((trainable, metrics['loss_sum'])))
  for a, b in zip(*map(jax.tree.leaves, found), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
