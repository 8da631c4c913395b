"""Adapters folded into kernels: by loops, in both layouts, by logits."""

import dataclasses

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mhr_jax import adapter_folder, fusing
from mhr_jax.errors import UserError
from mhr_jax.model import RoutedT5
from mhr_jax.t5 import parameters
import random_adapters

CONFIG = random_adapters.BACKBONE


@pytest.fixture(scope='module')
def backbone():
  return RoutedT5(CONFIG).init(jax.random.key(0))['backbone']


@pytest.fixture(scope='module')
def bundle():
  return random_adapters.draw_bundle(
    alpha=16.0, router_scope='layer', targets=('.*/query', 'decoder/mlp/.*')
  )


def mixture(bundle, path, layer, weigh):
  """Returns alpha / rank · a b of one layer in float64, block by block."""
  inventory = bundle.params['adapters']
  for part in path.split('/'):
    inventory = inventory[part]
  a, b = (np.float64(inventory[name][layer]) for name in ('a', 'b'))
  splits, skills = a.shape[:2]
  a, b = (
    [sum(weigh(s)[k] * x[s, k] for k in range(skills)) for s in range(splits)]
    for x in (a, b)
  )
  return 8.0 * np.concatenate(a, axis=0) @ np.concatenate(b, axis=1)


def weights_of(bundle, path, layer, task):
  if task == 'average':
    return lambda split: [1 / 3] * 3
  router = bundle.params['routers']
  for part in path.split('/')[:-1]:
    router = router[part]
  z = 1 / (1 + np.exp(-np.float64(router['routing_logits'][layer, task])))
  return lambda split: z[split] / z[split].sum()


@pytest.mark.parametrize('scanned', [True, False])
@pytest.mark.parametrize('task', [3, 'average'])
def test_kernels_by_loops(backbone, bundle, scanned, task):
  config = dataclasses.replace(CONFIG, scan_layers=scanned)
  given = backbone
  if not scanned:
    given = parameters.unstack_layers(backbone, config)
  fused = fusing.fuse(given, config, bundle.params, bundle.config, task)
  assert jax.tree.structure(fused) == jax.tree.structure(given)
  if scanned:
    fused = parameters.unstack_layers(fused, config)
  before = parameters.unstack_layers(backbone, config)
  before, after = (
    traverse_util.flatten_dict(x, sep='/') for x in (before, fused)
  )
  changed = set()
  for name, kernel in after.items():
    if np.array_equal(kernel, before[name]):
      continue
    stack, layer, *rest, _ = name.split('/')
    path, layer = '/'.join([stack, *rest]), int(layer.removeprefix('layers_'))
    weigh = weights_of(bundle, path, layer, task)
    expected = before[name] + mixture(bundle, path, layer, weigh)
    np.testing.assert_allclose(kernel, expected, atol=1e-6)
    changed.add(path)
  assert changed == {
    'encoder/attention/query',
    'decoder/self_attention/query',
    'decoder/encoder_decoder_attention/query',
    'decoder/mlp/wi_0',
    'decoder/mlp/wi_1',
    'decoder/mlp/wo',
  }


def test_leaves_without_an_adapter_are_not_copied(backbone, bundle):
  fused = fusing.fuse(backbone, CONFIG, bundle.params, bundle.config, 0)
  assert (
    fused['token_embedder']['embedding']
    is (backbone['token_embedder']['embedding'])
  )


def test_the_logits_of_the_average(backbone, bundle):
  fused = fusing.fuse(backbone, CONFIG, bundle.params, bundle.config, 'average')
  one = adapter_folder.effective_bundle(bundle, 'average')
  before = (one.model, {'backbone': backbone} | dict(one.params))
  after = (RoutedT5(CONFIG), {'backbone': fused})
  assert fusing.largest_logits_change(CONFIG, before, after) < 1e-5


def test_the_logits_of_a_task(backbone, bundle):
  fused = fusing.fuse(backbone, CONFIG, bundle.params, bundle.config, 4)
  before = (bundle.model, {'backbone': backbone} | dict(bundle.params))
  after = (RoutedT5(CONFIG), {'backbone': fused})
  change = fusing.largest_logits_change
  assert change(CONFIG, before, after, task_id=4) < 1e-5
  assert change(CONFIG, before, after, task_id=2) > 0.01


def test_the_change_is_the_largest_one(backbone):
  """One logit of all moves; no other would show it."""
  decoder = backbone['decoder']
  kernel = decoder['logits_dense']['kernel'].at[0, 7].add(0.01)
  moved = backbone | {'decoder': decoder | {'logits_dense': {'kernel': kernel}}}
  model = RoutedT5(CONFIG)
  change = fusing.largest_logits_change(
    CONFIG, (model, {'backbone': backbone}), (model, {'backbone': moved})
  )
  # A normed feature is at most the square root of their number.
  assert 0.005 < change < 0.01 * CONFIG.emb_dim**0.5


def test_bfloat16_kernels_are_summed_in_float32(backbone, bundle):
  halves = jax.tree.map(lambda x: x.astype(jnp.bfloat16), backbone)
  exact = jax.tree.map(lambda x: x.astype(jnp.float32), halves)
  fused, expected = (
    fusing.fuse(x, CONFIG, bundle.params, bundle.config, 1)
    for x in (halves, exact)
  )
  assert {x.dtype for x in jax.tree.leaves(fused)} == {jnp.dtype('bfloat16')}
  jax.tree.map(
    lambda x, y: np.testing.assert_array_equal(x, y.astype(jnp.bfloat16)),
    fused,
    expected,
  )


def test_another_backbone_is_refused(bundle):
  other = dataclasses.replace(CONFIG, mlp_dim=32)
  shapes = RoutedT5(other).abstract_params()['backbone']
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  with pytest.raises(UserError, match=r'wi_0/kernel is .3, 20, 32., .* 28'):
    fusing.fuse(zeros, other, bundle.params, bundle.config, 0)


def test_a_task_that_is_not_there(backbone, bundle):
  with pytest.raises(UserError, match='no task 5'):
    fusing.fuse(backbone, CONFIG, bundle.params, bundle.config, 5)
