"""Collectives read from the text of compiled programs."""

import functools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from mhr_jax import partitioning, plan_collectives

P = jax.sharding.PartitionSpec


def _compile(function, *shapes, mesh, specs, out):
  mapped = jax.shard_map(
    function, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False
  )
  arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  return jax.jit(mapped).lower(*arguments).compile().as_text()


def test_a_collective_in_a_loop_counts_once_a_turn():
  def summed(x):
    def turn(x, _):
      return lax.psum(x, 'model') * 0.5 + x, None

    return lax.scan(turn, x, length=11)[0]

  mesh = partitioning.make_mesh(2, 4)
  text = _compile(summed, (8, 12), mesh=mesh, specs=P('data'), out=P('data'))
  (found,) = plan_collectives.list_collectives(text)
  assert (found.kind, found.times, found.group_size) == ('all-reduce', 11, 4)
  assert found.arrays == (('f32', (4, 12)),)
  # Each of 4 devices sends 3/4 of the array twice, 11 times.
  assert found.sent_bytes == 11 * 2 * 3 / 4 * 4 * 12 * 4


@pytest.mark.parametrize(
  ('kind', 'axis', 'size', 'sent'),
  [
    # Of 8 × 12 floats: what a device has is 1/2 or 1/4 of them.
    ('all-gather', 'model', 4, 3 / 4 * 8 * 12 * 4),
    ('all-gather', 'data', 2, 1 / 2 * 8 * 12 * 4),
    ('reduce-scatter', 'model', 4, 3 * 2 * 12 * 4),
    ('all-to-all', 'model', 4, 3 / 4 * 8 * 12 * 4),
  ],
)
def test_bytes_of_each_kind(kind, axis, size, sent):
  run = {
    'all-gather': functools.partial(lax.all_gather, tiled=True),
    'reduce-scatter': functools.partial(lax.psum_scatter, tiled=True),
    'all-to-all': functools.partial(
      lax.all_to_all, split_axis=0, concat_axis=1, tiled=True
    ),
  }[kind]
  spec = P(axis) if kind == 'all-gather' else P()
  text = _compile(
    lambda x: run(x, axis),
    (8, 12),
    mesh=partitioning.make_mesh(2, 4),
    specs=spec,
    out=P(axis) if kind != 'all-gather' else P(),
  )
  (found,) = plan_collectives.list_collectives(text)
  assert (found.kind, found.group_size) == (kind, size)
  assert found.sent_bytes == pytest.approx(sent)


_TEXT = """\
HloModule step, entry_computation_layout={()->f32[8]}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%inner (p: (s32[], bf16[4,6])) -> (s32[], bf16[4,6]) {
  %p = (s32[], bf16[4,6]) parameter(0)
  %v = bf16[4,6] get-tuple-element(%p), index=1
  %g = (bf16[4,6], bf16[16,6]) all-gather-start(%v), replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
  %d = bf16[16,6] all-gather-done(%g)
  ROOT %t = (s32[], bf16[4,6]) tuple(%i, %v)
}

%outer (q: (s32[], bf16[4,6])) -> (s32[], bf16[4,6]) {
  %q = (s32[], bf16[4,6]) parameter(0)
  %w = (s32[], bf16[4,6]) while(%q), condition=%c, body=%inner, backend_config={"known_trip_count":{"n":"3"}}
  %s = f32[8] collective-permute(%z), source_target_pairs={{0,1},{1,2}}
  %z = f32[8] broadcast(%k)
  ROOT %t = (s32[], bf16[4,6]) tuple(%w)
}

ENTRY %main (a: bf16[4,6]) -> f32[8] {
  %a = bf16[4,6] parameter(0)
  %w = (s32[], bf16[4,6]) while(%a), condition=%c, body=%outer, backend_config={"known_trip_count":{"n":"5"}}
  %r = (f32[8], f32[]) all-reduce(%b, %c), replica_groups={{0,1},{2,3}}, to_apply=%add, metadata={op_name="jit(step)/grads"}
  ROOT %out = f32[8] get-tuple-element(%r), index=0
}
"""


def test_loops_in_loops_and_parts_that_run_apart():
  found = plan_collectives.list_collectives(_TEXT)
  gather, permute, reduce = sorted(found, key=lambda each: -each.times)
  assert (gather.kind, gather.times) == ('all-gather', 15)
  assert gather.arrays == (('bf16', (16, 6)),)
  assert gather.sent_bytes == 15 * 3 / 4 * 16 * 6 * 2
  np.testing.assert_array_equal(gather.groups, [[0, 2, 4, 6], [1, 3, 5, 7]])
  assert (permute.kind, permute.times, permute.sent_bytes) == (
    'collective-permute',
    5,
    5 * 8 * 4,
  )
  assert (reduce.times, reduce.sent_bytes) == (1, 2 * 1 / 2 * 9 * 4)
  assert reduce.source == 'jit(step)/grads'


def test_a_loop_that_only_its_condition_bounds():
  text = _TEXT.replace(', backend_config={"known_trip_count":{"n":"5"}}', '')
  text = text.replace(
    '%outer (q',
    """%c (q: s32[]) -> pred[] {
  %n = s32[]{:T(128)} constant(24)
  %q = s32[] parameter(0)
  ROOT %lt = pred[] compare(%q, %n), direction=LT
}

%outer (q""",
  )
  found = plan_collectives.list_collectives(text)
  assert sorted(each.times for each in found) == [1, 24, 24 * 3]


@pytest.mark.parametrize(
  ('groups', 'expected'),
  [
    ('{{0,3},{1,2}}', [[0, 3], [1, 2]]),
    ('[2,2]<=[4]', [[0, 1], [2, 3]]),
    ("mesh['x'=2,'y'=2] {'x'}", [[0, 2], [1, 3]]),
    ("mesh['x'=2,'y'=2], device_ids=([2,2]T(1,0)) {'x'}", [[0, 1], [2, 3]]),
    ("mesh['x'=1,'y'=4] {'x','y'}", [[0, 1, 2, 3]]),
  ],
)
def test_groups_in_each_form(groups, expected):
  line = (
    f'  %r = f32[8] all-gather(%b), replica_groups={groups}, dimensions={{0}}'
  )
  text = f'ENTRY %main (b: f32[4]) -> f32[8] {{\n{line}\n}}'
  (found,) = plan_collectives.list_collectives(text)
  np.testing.assert_array_equal(found.groups, expected)


def test_groups_of_several_nodes_are_told_apart():
  gather, permute, reduce = sorted(
    plan_collectives.list_collectives(_TEXT), key=lambda each: -each.times
  )
  assert gather.crosses(4)
  assert not gather.crosses(8)
  assert not reduce.crosses(2)
  assert permute.crosses(2)
