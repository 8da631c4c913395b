"""What adaptation moved, in closed form."""

import numpy as np
import pytest

from mhr_jax import movement
from mhr_jax.adapters import AdapterConfig

_CONFIG = AdapterConfig(n_tasks=1, n_skills=2)


def test_norms_by_group_of_layers():
  def tree(*values):
    a, b, c = (np.array(value, np.float32) for value in values)
    return {
      'encoder': {'mlp': {'wi': {'a': a, 'b': b}, 'wo': {'a': c}}},
      'decoder': {'layers_0': {'mlp': {'wo': {'a': c}}}},
    }

  start = {'adapters': tree([3, 0], [0, 0], [4, 0]), 'backbone': 'not read'}
  trained = {'adapters': tree([3, 1], [0, 2], [4, 2])}
  found = movement.measure_movement(start, trained, _CONFIG)
  assert found == {
    'adapters': {
      'encoder/mlp': {'start': pytest.approx(5), 'change': pytest.approx(3)},
      'decoder/mlp': {'start': pytest.approx(4), 'change': pytest.approx(2)},
    }
  }


def test_routing_from_indifference_to_one_skill():
  def routers(logits):
    logits = np.array(logits, np.float32)[None, None, None]
    return {'encoder': {'attention': {'query': {'routing_logits': logits}}}}

  found = movement.measure_movement(
    {'routers': routers([0, 0])}, {'routers': routers([60, -60])}, _CONFIG
  )
  assert found == {
    'mixing_weights': {
      'encoder/attention': {
        'change': pytest.approx(0.5),
        'entropy_start': pytest.approx(1),
        'entropy_end': pytest.approx(0, abs=1e-6),
      }
    }
  }
