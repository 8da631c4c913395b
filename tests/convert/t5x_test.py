"""Against T5X's own checkpoints and numbers, files decoded by hand, Orbax."""

import dataclasses
import functools
import gzip
import json
import subprocess
import sys

from flax import traverse_util
import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest

from mhr_jax.convert import t5x
from mhr_jax.errors import UserError
from mhr_jax.t5 import config as config_lib
from mhr_jax.t5 import network as network_lib
from mhr_jax.t5 import parameters
from mhr_jax.tree_paths import leaves_by_path
import t5x_checkpoints

FORMS = pytest.mark.parametrize('form', ['unrolled', 'scanned'])


def logits_of(config, backbone, batch):
  apply = jax.jit(network_lib.T5(config).apply)
  inputs, targets = batch['encoder_input_tokens'], batch['decoder_input_tokens']
  return np.asarray(apply({'params': backbone}, inputs, targets))


@pytest.fixture
def fixture_of(shared_dir):
  """A function that returns a form's folder, and T5X's batch and logits."""

  def find(form):
    folder = shared_dir / 'fixtures' / 't5x_ocdbt_tiny' / form
    with np.load(folder / 'fixture.npz') as arrays:
      return folder, dict(arrays)

  return find


@pytest.mark.parity
@FORMS
def test_logits_equal_t5x_s(fixture_of, form):
  folder, batch = fixture_of(form)
  config, backbone = t5x.read_backbone(folder)
  assert config == config_lib.T5Config(
    vocab_size=384,
    emb_dim=24,
    num_heads=3,
    head_dim=8,
    mlp_dim=48,
    num_encoder_layers=3,
    num_decoder_layers=2,
    relative_positions='stack' if form == 'unrolled' else 'layer',
  )
  logits = logits_of(config, backbone, batch)
  np.testing.assert_allclose(logits, batch['logits'], rtol=0, atol=1e-5)


@pytest.mark.parity
def test_t5x_s_other_network_unrolled(fixture_of, tmp_path):
  """scan_layers=False: unflattened kernels and a table in every layer."""
  folder, batch = fixture_of('scanned')
  target = {}
  for path, leaf in leaves_by_path(
    t5x_checkpoints.read_state(folder / 'checkpoint_3')['target']
  ).items():
    stack, _, rest = path.partition('/')
    if rest.startswith(f'{stack}/'):
      for layer in range(leaf.shape[1]):
        name = path.replace(f'/{stack}/', f'/layers_{layer}/')
        target[name] = np.take(leaf, layer, axis=1)
    else:
      target[path] = leaf
  t5x_checkpoints.write_state(tmp_path / 'checkpoint_3', target)
  config, backbone = t5x.read_backbone(tmp_path)
  logits = logits_of(config, backbone, batch)
  np.testing.assert_allclose(logits, batch['logits'], rtol=0, atol=1e-5)


@pytest.mark.parity
@FORMS
def test_what_is_written_is_what_t5x_writes(fixture_of, tmp_path, form):
  """The same tree, bit for bit, as plain Orbax reads both."""
  folder, _ = fixture_of(form)
  config, backbone = t5x.read_backbone(folder)
  t5x.write_checkpoint(tmp_path, config, backbone, step=12)
  theirs = t5x_checkpoints.read_state(folder / 'checkpoint_3')
  ours = t5x_checkpoints.read_state(tmp_path / 'checkpoint_12')
  t5x_checkpoints.assert_equal_trees(ours['target'], theirs['target'])
  assert sorted(ours) == ['state', 'target']
  assert ours['state'] == {'step': 12, 'param_states': {}}
  assert ours['state']['step'].dtype == theirs['state']['step'].dtype


def decode_zarr(folder):
  """Reads a zarr array (version 2, gzip) without a library for it."""
  facts = json.loads((folder / '.zarray').read_text())
  assert facts['compressor']['id'] == 'gzip' and facts['order'] == 'C'
  array = np.full(facts['shape'], np.nan, facts['dtype'])
  chunks = facts['chunks']
  counts = [
    -(-n // chunk) for n, chunk in zip(array.shape, chunks, strict=True)
  ]
  for index in np.ndindex(*counts):
    data = gzip.decompress((folder / '.'.join(map(str, index))).read_bytes())
    chunk = np.frombuffer(data, facts['dtype']).reshape(chunks)
    start = [i * n for i, n in zip(index, chunks, strict=True)]
    room = array[tuple(slice(at, None) for at in start)]
    room = room[tuple(slice(n) for n in chunks)]
    room[...] = chunk[tuple(slice(n) for n in room.shape)]
  return array


def decode_msgpack(file):
  """Reads T5X's msgpack file without Flax: {path: array or None for a spec}."""

  def decode(code, data):
    shape, dtype, content = msgpack.unpackb(data)
    return np.frombuffer(content, dtype).reshape(shape) if code == 1 else None

  content = msgpack.unpackb(file.read_bytes(), ext_hook=decode)
  found = {}
  for keys, leaf in traverse_util.flatten_dict(
    content['optimizer']['target'], is_leaf=lambda _, node: 'driver' in node
  ).items():
    found['/'.join(keys)] = None if isinstance(leaf, dict) else leaf
  return found


@pytest.mark.parity
def test_the_older_form_leaf_by_leaf(shared_dir):
  folder = shared_dir / 'fixtures' / 't5x_legacy_tiny' / 'checkpoint_3'
  expected = decode_msgpack(folder / 'checkpoint')
  for zarr in folder.glob('target.*'):
    path = zarr.name.removeprefix('target.').replace('.', '/')
    assert expected[path] is None
    expected[path] = decode_zarr(zarr)
  config, backbone = t5x.read_backbone(folder)
  assert config == config_lib.T5Config(
    vocab_size=32128,
    emb_dim=4,
    num_heads=2,
    head_dim=2,
    mlp_dim=8,
    num_encoder_layers=2,
    num_decoder_layers=2,
    relative_attention_num_buckets=4,
  )
  unrolled = parameters.unstack_layers(backbone, config)
  assert len(expected) == 52 and not any(x is None for x in expected.values())
  t5x_checkpoints.assert_equal_trees(unrolled, expected)


@pytest.mark.parametrize('scan_layers', [True, False])
@pytest.mark.parametrize('relative_positions', ['stack', 'layer'])
@pytest.mark.parametrize(
  ('family', 'dtype'), [('t5_1_1', 'float32'), ('t5_1_0', 'bfloat16')]
)
def test_round_trips_bit_for_bit(
  tmp_path, family, dtype, relative_positions, scan_layers
):
  config = t5x_checkpoints.make_config(
    family, relative_positions=relative_positions, scan_layers=scan_layers
  )
  backbone = t5x_checkpoints.draw_backbone(config, dtype=jnp.dtype(dtype))
  t5x.write_checkpoint(tmp_path, config, backbone)
  found, read = t5x.read_backbone(tmp_path / 'checkpoint_0', dtype=dtype)
  assert found == dataclasses.replace(config, scan_layers=True)
  if not scan_layers:
    backbone = parameters.stack_layers(backbone, config)
  t5x_checkpoints.assert_equal_trees(read, backbone)
  assert t5x.infer_config(tmp_path) == found


def test_the_older_form_scanned(tmp_path, fixture_of):
  folder, _ = fixture_of('scanned')
  target = leaves_by_path(
    t5x_checkpoints.read_state(folder / 'checkpoint_3')['target']
  )
  t5x_checkpoints.write_legacy(tmp_path / 'checkpoint_3', target)
  t5x_checkpoints.assert_equal_trees(
    t5x.read_backbone(tmp_path)[1], t5x.read_backbone(folder)[1]
  )


def test_float16_is_refused(tmp_path):
  with pytest.raises(UserError, match='float16'):
    t5x.read_backbone(tmp_path, dtype='float16')


@functools.cache
def a_target():
  config = t5x_checkpoints.make_config(scan_layers=False)
  return config, leaves_by_path(t5x_checkpoints.draw_backbone(config))


QUERY = 'encoder/layers_0/attention/query/kernel'


def removed(target):
  return {path: leaf for path, leaf in target.items() if path != QUERY}


def renamed(target):
  extra = QUERY.replace('query', 'gate')
  return target | {extra: target[QUERY]}


def reshaped(target):
  return target | {QUERY: target[QUERY][:-1]}


@pytest.mark.parametrize(
  'write', [t5x_checkpoints.write_state, t5x_checkpoints.write_legacy]
)
@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (removed, r'{query}: the checkpoint has no such array, .* wants \({shape}'),
    (renamed, r'layers_0/attention/gate/kernel: .* has \({shape}\)'),
    (reshaped, r'{query}: the checkpoint has \({short}\), .* wants \({shape}'),
  ],
)
def test_leaves_that_do_not_fit_are_named(tmp_path, write, change, message):
  config, target = a_target()
  emb, joined = target[QUERY].shape
  write(tmp_path / 'checkpoint_3', change(target))
  message = message.format(
    query=QUERY, shape=f'{emb}, {joined}', short=f'{emb - 1}, {joined}'
  )
  with pytest.raises(UserError, match=message):
    t5x.read_backbone(tmp_path, config)


def test_a_missing_leaf_is_named_without_a_config_too(tmp_path):
  _, target = a_target()
  last = 'decoder/layers_0/mlp/wo/kernel'
  t5x_checkpoints.write_state(tmp_path / 'a' / 'checkpoint_3', removed(target))
  with pytest.raises(UserError, match=f'its {QUERY} is absent'):
    t5x.read_backbone(tmp_path / 'a')
  target = {path: leaf for path, leaf in target.items() if path != last}
  t5x_checkpoints.write_state(tmp_path / 'b' / 'checkpoint_3', target)
  with pytest.raises(UserError, match=f'{last}: the checkpoint has no such'):
    t5x.read_backbone(tmp_path / 'b')


def test_a_config_that_is_given_is_held_against_the_shapes(tmp_path):
  config, target = a_target()
  t5x_checkpoints.write_state(tmp_path / 'checkpoint_3', target)
  near = dataclasses.replace(
    config, relative_attention_max_distance=50, eos_id=2
  )
  assert t5x.read_backbone(tmp_path, near)[0] == dataclasses.replace(
    near, scan_layers=True
  )
  for field, value in [
    ('num_encoder_layers', config.num_encoder_layers + 1),
    ('mlp_activations', ('relu',)),
    ('logits_via_embedding', True),
    ('relative_positions', 'layer'),
  ]:
    other = dataclasses.replace(config, **{field: value})
    with pytest.raises(UserError, match='does not fit the model'):
      t5x.read_backbone(tmp_path, other)


def test_a_backbone_of_another_config_is_not_written(tmp_path):
  config = t5x_checkpoints.make_config()
  other = dataclasses.replace(config, mlp_dim=config.mlp_dim + 1)
  with pytest.raises(UserError, match='The backbone to write does not fit'):
    t5x.write_checkpoint(tmp_path, other, t5x_checkpoints.draw_backbone(config))
  assert not (tmp_path / 'checkpoint_0').exists()


_MEASURE = """
import sys
import jax
from mhr_jax.convert import t5x

def kilobytes(name):
  with open('/proc/self/status') as file:
    return next(int(x.split()[1]) for x in file if x.startswith(name))

jax.local_devices()  # JAX's start is not reading's
before = kilobytes('VmRSS')
config, backbone = t5x.read_backbone(sys.argv[1])
print(kilobytes('VmHWM') - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
@pytest.mark.parametrize('form', ['ocdbt', 'zarr'])
def test_reading_needs_little_more_memory_than_the_backbone(tmp_path, form):
  """And none for the optimizer's state, here larger than the backbone."""
  config = config_lib.t5_config(
    't5_1_1_small',
    num_encoder_layers=4,
    num_decoder_layers=4,
    scan_layers=False,
  )
  rng = np.random.default_rng(0)
  block = rng.normal(size=2**20).astype(np.float32)
  target = {
    path: np.resize(block, leaf.shape)
    for path, leaf in leaves_by_path(
      t5x_checkpoints.abstract_backbone(config)
    ).items()
  }
  size = sum(leaf.nbytes for leaf in target.values())
  assert 200e6 < size < 300e6
  if form == 'ocdbt':
    states = {'m': np.zeros(2**28, np.uint8), 'v': np.ones(2**28, np.uint8)}
    t5x_checkpoints.write_state(
      tmp_path / 'checkpoint_3', target, param_states=states
    )
  else:
    t5x_checkpoints.write_legacy(tmp_path / 'checkpoint_3', target)
  del target
  command = [sys.executable, '-c', _MEASURE, str(tmp_path)]
  run = subprocess.run(command, capture_output=True, text=True, check=True)
  share = int(run.stdout) * 1024 / size
  print(f'{form}: {share:.3f} x {size / 1e6:.0f} MB')
  assert share < 1.3
