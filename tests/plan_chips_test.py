"""Topologies by name."""

import pytest

from mhr_jax import plan_chips
from mhr_jax.errors import UserError


@pytest.mark.parametrize(
  ('text', 'size', 'node_size', 'platform'),
  [
    ('v5e:16x16', 256, 256, 'tpu'),
    ('v4:4x4x8', 128, 128, 'tpu'),
    ('h100:64', 64, 8, 'gpu'),
    ('a100:4', 4, 4, 'gpu'),
    ('cpu:256', 256, 256, 'cpu'),
  ],
)
def test_a_topology_is_read(text, size, node_size, platform):
  topology = plan_chips.parse_topology(text)
  assert (topology.size, topology.node_size) == (size, node_size)
  assert topology.chip.platform == platform
  assert str(topology) == text


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('v5x:4x4', "no chip 'v5x'. Did you mean 'v5"),
    ('v5e:4x4x4', 'a topology of v5e is v5e:4x4, say'),
    ('v4:8x8', 'a topology of v4 is v4:4x4x4, say'),
    ('h100', 'a topology of h100 is h100:64, say'),
    ('cpu:0', 'a topology of cpu is cpu:64, say'),
  ],
)
def test_what_is_none_is_refused(text, message):
  with pytest.raises(UserError, match=message):
    plan_chips.parse_topology(text)
