"""Exported programs, run where there is JAX, NumPy and flatbuffers alone."""

import ast
import dataclasses
import functools
import inspect
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import sysconfig

import jax
from jax import export
import jax.numpy as jnp
import numpy as np
import pytest

from mhr_jax import evaluation, serving, serving_programs, serving_run
from mhr_jax.adapters import AdapterConfig
from mhr_jax.errors import UserError
from mhr_jax.model import RoutedT5
from mhr_jax.t5 import layers as layers_lib
from mhr_jax.t5.config import T5Config, t5_config
from mhr_jax.t5.decoding import DecodingSettings
from mhr_jax.task_table import TaskTable
from mhr_jax.tree_paths import leaves_by_path
from mhr_jax.vocabulary import ByteVocabulary, from_spec

T5 = T5Config(
  vocab_size=48,
  emb_dim=16,
  num_heads=2,
  head_dim=8,
  mlp_dim=24,
  num_encoder_layers=2,
  num_decoder_layers=3,
  relative_attention_num_buckets=8,
  relative_attention_max_distance=9,
  eos_id=16,  # which the random weights below write
)
# Few linears compile fast: one of each kind of place.
MHR = AdapterConfig(
  n_tasks=3,
  n_skills=4,
  n_splits=4,
  rank=2,
  mixing='relaxed_bernoulli',
  targets=('encoder/.*/(value|wi_0)', 'decoder/.*/(query|value|wo)'),
)
LORA = AdapterConfig(n_tasks=3, n_skills=1, rank=2, mixing='uniform')
PRIVATE = AdapterConfig(
  n_tasks=3, n_skills=3, mixing='private', targets=('encoder/.*',)
)
TASKS = TaskTable(('copy', 'sort', 'count'))
MODELS = {
  'mhr': RoutedT5(T5, MHR),
  'lora, unrolled': RoutedT5(dataclasses.replace(T5, scan_layers=False), LORA),
  'bare T5 1.0': RoutedT5(
    dataclasses.replace(
      T5, logits_via_embedding=True, mlp_activations=('relu',)
    )
  ),
  'private, bfloat16, a table a layer': RoutedT5(
    dataclasses.replace(T5, dtype='bfloat16', relative_positions='layer'),
    PRIVATE,
  ),
}
# What JAX and flatbuffers say they need.
_PACKAGES = (
  'jax',
  'jaxlib',
  'ml_dtypes',
  'numpy',
  'opt_einsum',
  'scipy',
  'flatbuffers',
)
_ALONE = """
import importlib.util, json, pathlib, runpy, sys
for name in ('mhr_jax', 'flax', 'optax', 'orbax', 'tensorflow'):
  assert importlib.util.find_spec(name) is None, name
for folder, requests in json.loads(sys.argv[1]).items():
  for request in requests:
    path = pathlib.Path(folder + '.json')
    path.write_text(json.dumps(request))
    sys.argv = ['run.py', str(path)]
    runpy.run_path(folder + '/run.py', run_name='__main__')
"""


_SCALES = {'backbone': 0.2, 'adapters': 0.6, 'routers': 3.0}


@functools.cache
def params_of(model):
  """Random parameters in which every leaf matters and sequences may end."""
  rng = np.random.default_rng(0)
  dtype = model.config.dtype

  def draw(path, leaf):
    label = path[0].key
    values = _SCALES[label] * rng.normal(size=leaf.shape)
    return jnp.array(values, dtype if label == 'backbone' else leaf.dtype)

  return jax.tree_util.tree_map_with_path(draw, model.abstract_params())


def make_request(seed, rows, width, new_tokens):
  """Rows of several lengths whose tasks differ; the last one is empty."""
  rng = np.random.default_rng(seed)
  lengths = [width, *rng.integers(1, width, rows - 2), 0]
  return {
    'input_ids': [rng.integers(2, 48, n).tolist() for n in lengths],
    'max_new_tokens': new_tokens,
    'tasks': [TASKS.names[i % 3] for i in range(rows)],
  }


REQUESTS = (make_request(0, 6, 9, 12), make_request(1, 4, 30, 7))
# What is exported: a model, the task alone, and which requests it gets.
FAST = (
  ('mhr', None, REQUESTS),
  ('mhr', 'sort', REQUESTS[:1]),
  ('bare T5 1.0', None, REQUESTS[:1]),
)
SLOW = (
  ('mhr', 'average', REQUESTS[:1]),
  ('lora, unrolled', None, REQUESTS[:1]),
  ('private, bfloat16, a table a layer', None, REQUESTS[:1]),
)


def batch_of(request, task=None):
  """The same for our models; of one task, if one is named."""
  width = max(map(len, request['input_ids']))
  rows = [row + [0] * (width - len(row)) for row in request['input_ids']]
  tasks = request['tasks'] if task is None else [task] * len(rows)
  return {
    'encoder_input_tokens': jnp.array(rows, jnp.int32),
    'task_ids': TASKS.ids(tasks),
  }


@functools.cache
def writer_of(model):
  return jax.jit(model.generate, static_argnums=2)


def generate(name, request, task=None):
  """What a model itself writes for a request."""
  model, params = MODELS[name], params_of(MODELS[name])
  if task == 'average':
    model, params = evaluation.average_model(model, params)
    task = None
  settings = DecodingSettings(request['max_new_tokens'])
  write = writer_of(model)
  return np.asarray(write(params, batch_of(request, task), settings))


def save(folder, name, **settings):
  model = MODELS[name]
  serving.export_stablehlo(
    folder, model, params_of(model), task_table=TASKS, **settings
  )
  return folder


def read_manifest(folder):
  return json.loads((folder / 'manifest.json').read_text())


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  """A function that runs code where only the listed packages are."""
  packages = tmp_path_factory.mktemp('packages')
  for found in pathlib.Path(sysconfig.get_path('platlib')).iterdir():
    if found.name.removesuffix('.libs') in _PACKAGES:
      (packages / found.name).symlink_to(found)

  def run(code, *arguments):
    code = f'import sys; sys.path.append({str(packages)!r})\n{code}'
    done = subprocess.run(
      [sys.executable, '-I', '-S', '-c', code, *map(str, arguments)],
      capture_output=True,
      text=True,
      check=False,
      env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

  return run


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """The routed model, exported with all its tasks."""
  return save(tmp_path_factory.mktemp('served') / 'mhr', 'mhr')


def write_alone(alone, root, cases):
  """Returns what `run.py` of each exported case writes for its requests."""
  work = {}
  for i, (name, task, requests) in enumerate(cases):
    place = save(root / str(i), name, task_id=task)
    left_out = () if read_manifest(place)['tasks'] else ('tasks',)
    work[str(place)] = [
      {k: v for k, v in request.items() if k not in left_out}
      for request in requests
    ]
  lines = iter(alone(_ALONE, json.dumps(work)).splitlines())
  return [
    [np.array(json.loads(next(lines))) for _ in requests]
    for _, _, requests in cases
  ]


def check_cases(written, cases):
  for found, (name, task, requests) in zip(written, cases, strict=True):
    for tokens, request in zip(found, requests, strict=True):
      want = generate(name, request, task)
      np.testing.assert_array_equal(tokens, want, err_msg=f'{name}, {task}')
      assert not want[-1].any()
      assert len({tuple(row) for row in want}) == len(want)


@pytest.mark.slow
def test_alone_it_writes_the_same_tokens(alone, tmp_path):
  written = write_alone(alone, tmp_path, FAST)
  check_cases(written, FAST)
  # The cases tell a wrong task and a missed end from the right ones.
  mixed, sort = written[0][0][:-1], written[1][0][:-1]
  different = (mixed != sort).any(axis=1)
  others = np.array(REQUESTS[0]['tasks'][:-1]) != 'sort'
  np.testing.assert_array_equal(different, others)
  ended = (mixed == T5.eos_id).any(axis=1)
  assert ended.any() and not ended.all()


@pytest.mark.slow
def test_alone_other_models_write_the_same_tokens(alone, tmp_path):
  check_cases(write_alone(alone, tmp_path, SLOW), SLOW)


def load(folder, name):
  blob = (folder / f'{name}.stablehlo').read_bytes()
  return export.deserialize(bytearray(blob))


def load_weights(folder):
  types = read_manifest(folder)['weights']
  with np.load(folder / 'weights.npz') as stored:
    return {name: stored[name].view(dtype) for name, dtype in types.items()}


def test_scores_are_those_of_the_model(folder):
  rng = np.random.default_rng(2)
  batch = batch_of(REQUESTS[0])
  inputs = batch['encoder_input_tokens']
  targets = rng.integers(2, 48, (len(inputs), 5)).astype(np.int32)
  batch |= {
    # Some tokens are hidden that are no padding.
    'encoder_mask': (inputs != 0) & (rng.random(inputs.shape) < 0.8),
    'decoder_input_tokens': np.roll(targets, 1, axis=1),
    'decoder_target_tokens': targets,
    'decoder_loss_weights': rng.random(targets.shape).astype(np.float32),
  }
  model = MODELS['mhr']
  found = jax.jit(load(folder, 'score').call)(
    load_weights(folder),
    batch['encoder_input_tokens'],
    batch['encoder_mask'],
    batch['decoder_input_tokens'],
    batch['decoder_target_tokens'],
    batch['decoder_loss_weights'],
    batch['task_ids'],
  )
  want = jax.jit(model.score)(params_of(model), batch)
  np.testing.assert_allclose(found, want, rtol=0, atol=1e-5)
  assert np.ptp(want) > 1


def test_the_manifest_says_what_programs_take_and_return(folder):
  manifest = read_manifest(folder)
  assert manifest['tasks'] == list(TASKS.names)
  assert manifest['platforms'] == ['cpu', 'cuda', 'tpu']
  assert manifest['jax_version'] == jax.__version__
  for name, about in manifest['programs'].items():
    program = load(folder, name)
    assert program.platforms == ('cpu', 'cuda', 'tpu')
    for told, real in (
      (about['arguments'], program.in_avals),
      (about['results'], program.out_avals),
    ):
      assert [(x['dtype'], [str(n) for n in x['shape']]) for x in told] == [
        (str(x.dtype), [str(n) for n in x.shape]) for x in real
      ]
    weights = [f'weights/{name}' for name in sorted(manifest['weights'])]
    names = [x['name'] for x in about['arguments']]
    assert names[: len(weights)] == weights
  assert names[len(weights) :] == [
    'input_ids',
    'attention_mask',
    'decoder_input_ids',
    'targets',
    'target_weights',
    'task_ids',
  ]


def test_one_task_has_one_adapter_and_takes_no_task_ids(tmp_path):
  save(tmp_path / 'served', 'mhr', task_id=1)
  manifest = read_manifest(tmp_path / 'served')
  assert (manifest['tasks'], manifest['task']) == ([], 'sort')
  arguments = manifest['programs']['encode']['arguments']
  assert [x['name'] for x in arguments[-3:]] == [
    'input_ids',
    'attention_mask',
    'room',
  ]
  weights = load_weights(tmp_path / 'served')
  assert not [name for name in weights if name.startswith('routers')]
  assert weights['adapters/encoder/mlp/wi_0/a'].shape == (2, 1, 1, 16, 2)


def test_bfloat16_weights_keep_their_bits(tmp_path):
  name = 'private, bfloat16, a table a layer'
  save(tmp_path / 'served', name)
  found = load_weights(tmp_path / 'served')
  for path, leaf in leaves_by_path(params_of(MODELS[name])).items():
    assert found[path].dtype == leaf.dtype
    np.testing.assert_array_equal(found[path], leaf)
  assert found['backbone/token_embedder/embedding'].dtype == jnp.bfloat16


def test_programs_are_small_and_hold_no_weights():
  sizes = {}
  for size in ('small', 'xxl'):
    model = RoutedT5(
      t5_config(f't5_1_1_{size}'), dataclasses.replace(MHR, targets=('.*',))
    )
    programs = serving_programs.build_programs(model, model.abstract_params())
    sizes[size] = {k: len(v.serialize()) for k, v in programs.items()}
    for program in programs.values():
      text = program.mlir_module()
      constants = re.findall(r'stablehlo.constant .* : tensor<(.*?)>', text)
      counts = [
        math.prod(map(int, re.findall(r'(\d+)x', constant)))
        for constant in constants
      ]
      assert counts and max(counts) < 300  # the buckets of 257 distances
      calls = set(re.findall(r'custom_call @(\w+)', text))
      assert calls <= {'shape_assertion'}
  assert max(sizes['xxl'].values()) < 1_000_000
  for name, size in sizes['small'].items():
    assert abs(sizes['xxl'][name] - size) < 0.02 * size


def test_an_export_has_the_same_bytes_again_and_no_paths(folder, tmp_path):
  again = save(tmp_path / 'served', 'mhr')
  names = sorted(path.name for path in folder.iterdir())
  assert names == sorted(path.name for path in again.iterdir())
  for name in names:
    data = (folder / name).read_bytes()
    assert data == (again / name).read_bytes()
    assert name == 'run.py' or b'.py' not in data


def test_the_runner_is_short_and_needs_little(folder):
  assert (folder / 'run.py').read_text() == inspect.getsource(serving_run)
  tree = ast.parse(inspect.getsource(serving_run))
  (function,) = (x for x in tree.body if isinstance(x, ast.FunctionDef))
  assert function.end_lineno - function.lineno <= 20
  modules = {
    name
    for node in tree.body
    if isinstance(node, ast.Import | ast.ImportFrom)
    for name in [getattr(node, 'module', None) or node.names[0].name]
  }
  own = {name for name in modules if name.split('.')[0] in ('jax', 'numpy')}
  assert own == {'jax', 'jax.export', 'numpy'}
  assert modules - own <= sys.stdlib_module_names


def test_the_vocabulary_goes_along(tmp_path):
  vocabulary = ByteVocabulary(extra_ids=4)
  folder = save(tmp_path / 'served', 'bare T5 1.0', vocabulary=vocabulary)
  spec = read_manifest(folder)['vocabulary']
  assert from_spec(spec, folder / 'vocabulary') == vocabulary


def test_positions_that_are_symbols_have_the_same_biases():
  for bidirectional in (True, False):
    module = layers_lib.RelativePositionBias(T5, bidirectional)
    far = np.arange(-40, 41)
    variables = module.init(jax.random.key(0), far)
    np.testing.assert_array_equal(
      module.apply(variables, jnp.asarray(far)), module.apply(variables, far)
    )


@pytest.mark.parametrize(
  ('settings', 'message'),
  (
    ({'task_id': 'sorted'}, "no task 'sorted'.* Did you mean 'sort'"),
    ({'task_id': 3}, 'Task id 3 is out of range: there are 3 tasks'),
    ({'platforms': ('cpu', 'gpu')}, "no platform 'gpu'.*cuda"),
    ({'platforms': ()}, 'at least one platform'),
    ({'task_table': TaskTable(('one',))}, 'names 1 tasks.*for 3'),
    ({'params': {}}, 'does not fit the model'),
  ),
)
def test_what_cannot_be_exported_says_why(settings, message, tmp_path):
  model = MODELS['mhr']
  settings = {'params': params_of(model), 'task_table': TASKS} | settings
  with pytest.raises(UserError, match=f'(?s){message}'):
    serving.export_stablehlo(tmp_path / 'served', model, **settings)
  assert not list(tmp_path.iterdir())


def test_a_folder_is_written_whole_or_not(tmp_path, monkeypatch):
  full, file = tmp_path / 'full', tmp_path / 'file'
  (full / 'kept').mkdir(parents=True)
  file.write_text('kept')
  beside = tmp_path / '.new.tmp' / 'notes'
  beside.mkdir(parents=True)  # looks like ours, and is not
  for place, message in (
    (full, 'not an empty folder'),
    (file, 'not an empty folder'),
    (file / 'inside', 'cannot be written'),
  ):
    with pytest.raises(UserError, match=message):
      save(place, 'bare T5 1.0')

  def fail(*_):
    raise OSError('disk full')

  monkeypatch.setattr(serving, '_write_weights', fail)
  with pytest.raises(UserError, match='cannot be written: disk full'):
    save(tmp_path / 'new', 'bare T5 1.0')
  monkeypatch.undo()
  assert sorted(tmp_path.iterdir()) == [beside.parent, file, full]
  assert beside.exists()
  (tmp_path / 'empty').mkdir()
  save(tmp_path / 'empty', 'bare T5 1.0')
  assert (tmp_path / 'empty' / 'run.py').exists()
