"""Statistics of the routing in closed form and against the NumPy analysis."""

import numpy as np
import pytest

from mhr_jax import routing
from mhr_jax.analysis import routing_statistics
from mhr_jax.errors import UserError

_SIGMOID = routing.MixingForm()


def _routers(**logits):
  return {name: {'mlp': {routing.LOGITS: x}} for name, x in logits.items()}


def test_undecided_routing_in_closed_form():
  found = routing_statistics.measure_routing(
    _routers(encoder=np.zeros((2, 3, 1, 4), np.float32)), _SIGMOID
  )
  names = ('entropy', 'evenness', 'discreteness', 'active')
  ones = {name: pytest.approx(1.0, abs=1e-6) for name in names}
  assert found == ones | {f'{name}/encoder': one for name, one in ones.items()}


def test_one_skill_for_everything_in_closed_form():
  logits = np.full((1, 3, 1, 4), -50.0, np.float32)
  logits[..., 2] = 50.0
  found = routing_statistics.measure_routing(_routers(decoder=logits), _SIGMOID)
  for name in ('entropy', 'evenness', 'discreteness'):
    assert found[name] == pytest.approx(0, abs=1e-6)
  assert found['active/decoder'] == 0.25


def test_each_task_its_own_skill_is_discrete_and_even():
  logits = np.where(np.eye(4), 40.0, -40.0)[None, :, None].astype(np.float32)
  found = routing_statistics.measure_routing(_routers(encoder=logits), _SIGMOID)
  assert found['entropy'] == pytest.approx(0, abs=1e-6)
  assert found['evenness'] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize('mixing', ('sigmoid', 'softmax', 'l2_norm'))
def test_entropy_is_that_of_the_weights_and_layers_count_alike(mixing):
  rng = np.random.default_rng(0)
  form = routing.MixingForm(mixing)
  logits = {
    'encoder': rng.normal(size=(1, 3, 2, 4)).astype(np.float32),
    'decoder': rng.normal(size=(3, 3, 2, 4)).astype(np.float32),
  }
  found = routing_statistics.measure_routing(_routers(**logits), form)
  expected = {}
  for stack, x in logits.items():
    shares = np.abs(np.asarray(routing.mixing_weights(x, form), np.float64))
    shares /= shares.sum(axis=-1, keepdims=True)
    each = -(shares * np.log(shares)).sum(axis=-1)
    expected[stack] = each.mean() / np.log(4)
  for stack, value in expected.items():
    assert found[f'entropy/{stack}'] == pytest.approx(value, abs=1e-6)
  mean = (expected['encoder'] + 3 * expected['decoder']) / 4
  assert found['entropy'] == pytest.approx(mean, abs=1e-6)
  assert ('discreteness' in found) == (mixing == 'sigmoid')


def test_a_shared_skill_is_used_by_all_and_decided_by_none():
  rng = np.random.default_rng(1)
  logits = rng.normal(size=(2, 3, 2, 4)).astype(np.float32)
  form = routing.MixingForm(shared_skill=True)
  found = routing_statistics.measure_routing(_routers(encoder=logits), form)
  gates = 1 / (1 + np.exp(-logits.astype(np.float64)))
  own = gates[..., :-1]
  each = -(own * np.log2(own) + (1 - own) * np.log2(1 - own))
  assert found['discreteness'] == pytest.approx(each.mean(), abs=1e-6)
  gates[..., -1] = 1
  assert found['active'] == pytest.approx((gates >= 0.5).mean())
  use = gates.sum(axis=1).reshape(2, 8)
  shares = use / use.sum(axis=-1, keepdims=True)
  evenness = -(shares * np.log(shares)).sum(axis=-1) / np.log(8)
  assert found['evenness'] == pytest.approx(evenness.mean(), abs=1e-6)


def test_one_router_for_everything_has_no_stacks():
  logits = {'model': {routing.LOGITS: np.zeros((3, 1, 2), np.float32)}}
  found = routing_statistics.measure_routing(logits, _SIGMOID)
  assert set(found) == {'entropy', 'evenness', 'discreteness', 'active'}


def test_impossible_settings():
  with pytest.raises(UserError, match='every is -1'):
    routing_statistics.RoutingStatisticsSettings(every=-1)
