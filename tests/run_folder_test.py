"""Run folders of a real, tiny T5: written, read back, started from."""

import dataclasses
import json
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mhr_jax import (
  backbones,
  checkpoints,
  optim,
  partitioning,
  run_folder,
  trainer,
)
from mhr_jax.adapters import AdapterConfig
from mhr_jax.errors import UserError
from mhr_jax.model import RoutedT5
from mhr_jax.t5 import parameters
from mhr_jax.t5.config import T5Config
from mhr_jax.task_table import TaskTable
from mhr_jax.vocabulary import ByteVocabulary

_CONFIG = T5Config(
  vocab_size=16,
  emb_dim=8,
  num_heads=2,
  head_dim=4,
  mlp_dim=16,
  num_encoder_layers=2,
  num_decoder_layers=2,
)
_TASKS = TaskTable(('one', 'two', 'three'))
_MODEL = RoutedT5(
  _CONFIG,
  AdapterConfig(
    n_tasks=3,
    n_skills=2,
    n_splits=2,
    rank=2,
    targets=('.*/wi_0', '.*attention/query'),
    mixing='relaxed_bernoulli',
  ),
)


_STEPS = 20


class Trained(NamedTuple):
  """A run: its folder, its last state, its loss at every step."""

  folder: pathlib.Path
  state: trainer.TrainState
  losses: list[float]


def _batches(step):
  rng = np.random.default_rng((3, step))
  lengths = rng.integers(1, 5, 8)
  tokens = lambda n: rng.integers(2, 16, (8, n), np.int32)  # noqa: E731
  return {
    'encoder_input_tokens': tokens(6),
    'decoder_input_tokens': tokens(4),
    'decoder_target_tokens': tokens(4),
    'decoder_loss_weights': (np.arange(4) < lengths[:, None]).astype(
      np.float32
    ),
    'task_ids': rng.integers(0, 3, 8).astype(np.int32),
  }


def _fit(model, params, *, mesh_shape=(1, 1), run_dir=None, **fields):
  n = mesh_shape[0] * mesh_shape[1]
  losses = []
  state = trainer.fit(
    model,
    params,
    _batches,
    settings=trainer.TrainSettings(_STEPS, log_every=1, **fields),
    optimizer=optim.OptimizerSettings(warmup_steps=0),
    mesh=partitioning.make_mesh(*mesh_shape, devices=jax.devices()[:n]),
    run_dir=run_dir,
    task_table=_TASKS,
    vocabulary=ByteVocabulary(4),
    on_log=lambda step, metrics: losses.append(metrics['train/loss']),
  )
  return state, losses


def _assert_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope='module')
def params():
  return _MODEL.init(jax.random.key(0))


@pytest.fixture(scope='module')
def run(params, tmp_path_factory):
  folder = tmp_path_factory.mktemp('run')
  return Trained(folder, *_fit(_MODEL, params, run_dir=folder))


@pytest.fixture(scope='module')
def backbone_run(tmp_path_factory):
  folder = tmp_path_factory.mktemp('backbone_run')
  model = RoutedT5(_CONFIG)
  run_folder.write_description(folder, model=model)
  trained = model.init(jax.random.key(1))
  with checkpoints.Checkpoints(folder) as saved:
    saved.save(5, trainable=trained, optimizer={'n': np.int32(5)}, metadata={})
  return folder, trained


@pytest.mark.parametrize(
  'model',
  [_MODEL, RoutedT5(_CONFIG), dataclasses.replace(_MODEL, mix_in='front')],
)
def test_models_survive_json(model):
  text = json.dumps(run_folder.model_to_json(model))
  assert run_folder.model_from_json(json.loads(text)) == model


def test_settings_of_gates_survive_json_and_may_be_missing_from_it():
  routed = dataclasses.replace(
    _MODEL.adapters, normalisation='sqrt', shared_skill=True
  )
  model = dataclasses.replace(_MODEL, adapters=routed)
  values = json.loads(json.dumps(run_folder.model_to_json(model)))
  assert run_folder.model_from_json(values) == model
  del values['adapters']['normalisation'], values['adapters']['shared_skill']
  assert run_folder.model_from_json(values) == _MODEL


def test_keys_of_another_version_are_reported():
  values = run_folder.model_to_json(_MODEL)
  values['adapters']['n_heads'] = 4
  with pytest.warns(UserWarning, match='adapters has keys .* n_heads'):
    assert run_folder.model_from_json(values) == _MODEL
  del values['adapters']['n_heads'], values['config']['emb_dim']
  with pytest.raises(UserError, match='emb_dim'):
    run_folder.model_from_json(values)
  with pytest.raises(UserError, match='has format 99'):
    run_folder.model_from_json({'format_version': 99})


def test_a_run_is_read_back_whole(run):
  folder, state = run.folder, run.state
  found = run_folder.load_run(folder)
  assert found.model == _MODEL
  assert found.task_table == _TASKS
  assert found.vocabulary == ByteVocabulary(4)
  assert found.step == _STEPS
  _assert_equal(found.params, state.params)


def test_a_run_is_read_onto_a_mesh(run):
  folder, state = run.folder, run.state
  mesh = partitioning.make_mesh(2, 4)
  found = run_folder.load_run(
    folder, _STEPS, mesh=mesh, backbone_dtype='bfloat16'
  )
  _assert_equal(found.params['adapters'], state.params['adapters'])
  wo = found.params['backbone']['encoder']['layers']['mlp']['wo']['kernel']
  assert wo.dtype == jnp.bfloat16
  assert wo.sharding.spec == jax.sharding.PartitionSpec(None, 'model')


def test_what_is_not_there_is_said(run, tmp_path):
  with pytest.raises(UserError, match=r'does not have step 7. It has: 20'):
    run_folder.load_run(run.folder, 7)
  with pytest.raises(UserError, match='it has no model.json'):
    run_folder.load_run(tmp_path)


@pytest.mark.parametrize('file', ['model.json', 'tasks.json', 'run.json'])
def test_a_file_that_is_cut_short_is_named(tmp_path, file):
  run_folder.write_description(tmp_path, model=_MODEL, task_table=_TASKS)
  (tmp_path / file).write_text('{\n "form')
  with pytest.raises(UserError, match=f'{file} is not whole .* line 2, column'):
    run_folder.read_model(tmp_path)
    run_folder.read_task_table(tmp_path)
    run_folder.check_pretraining(tmp_path, 'mhr')


@pytest.mark.parametrize(
  ('file', 'text', 'message'),
  [
    ('model.json', '[]', 'model.json holds no JSON object'),
    (
      'model.json',
      '{"format_version": "x"}',
      "format_version is 'x'; a whole number",
    ),
    ('model.json', '{"config": 5}', 'model.json: config is 5; an object is'),
    ('tasks.json', '{}', 'tasks.json holds no JSON list'),
    ('tasks.json', '[1]', 'tasks.json: The name of a task is a text, not 1'),
    ('vocabulary/spec.json', '{', 'spec.json is not whole JSON'),
    (
      'vocabulary/spec.json',
      '{}',
      'spec.json: There is no kind of vocabulary None',
    ),
  ],
)
def test_what_a_file_cannot_hold_is_named(tmp_path, file, text, message):
  run_folder.write_description(
    tmp_path, model=_MODEL, task_table=_TASKS, vocabulary=ByteVocabulary(7)
  )
  (tmp_path / file).write_text(text)
  with pytest.raises(UserError, match=message):
    run_folder.read_model(tmp_path)
    run_folder.read_task_table(tmp_path)
    run_folder.read_vocabulary(tmp_path)


def test_a_run_folder_refuses_another_model_and_vocabulary(run, params):
  adapters = dataclasses.replace(_MODEL.adapters, alpha=2.0)
  other = dataclasses.replace(_MODEL, adapters=adapters)
  with pytest.raises(UserError, match='alpha: 1.0, now 2.0'):
    _fit(other, params, run_dir=run.folder)
  with pytest.raises(UserError, match='another vocabulary'):
    run_folder.write_description(run.folder, vocabulary=ByteVocabulary(5))
  free = dataclasses.replace(_CONFIG, dropout_rate=0.1, remat='full')
  run_folder.write_description(
    run.folder, model=dataclasses.replace(_MODEL, config=free)
  )
  run_folder.write_description(run.folder, model=_MODEL)


def test_a_backbone_comes_from_a_run_that_froze_it(run, params):
  found = backbones.load_backbone(run.folder, _CONFIG)
  _assert_equal(found, params['backbone'])


@pytest.mark.parametrize('scan_layers', [True, False])
def test_a_backbone_comes_from_a_run_that_trained_it(scan_layers, backbone_run):
  config = dataclasses.replace(_CONFIG, scan_layers=scan_layers)
  found = backbones.load_backbone(backbone_run[0], config)
  expected = backbone_run[1]['backbone']
  if not scan_layers:
    expected = parameters.unstack_layers(expected, config)
  _assert_equal(found, expected)


def test_a_backbone_folder_of_its_own(tmp_path, params):
  folder = tmp_path / 'tiny'
  backbones.save_backbone(folder, params['backbone'], _CONFIG)
  found = backbones.load_backbone(folder, _CONFIG, dtype='bfloat16')
  assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype('bfloat16')}
  wider = dataclasses.replace(_CONFIG, mlp_dim=32)
  with pytest.raises(UserError, match='mlp_dim is 16, wanted 32'):
    backbones.load_backbone(folder, wider)
  with pytest.raises(UserError, match='of no format that is read'):
    backbones.load_backbone(tmp_path, _CONFIG)


@pytest.mark.slow
@pytest.mark.parametrize(
  'mesh_shape', [(2, 4), pytest.param((4, 2), marks=pytest.mark.slow)]
)
def test_eight_devices_equal_one_with_noise(mesh_shape, run, params):
  eight, losses = _fit(_MODEL, params, mesh_shape=mesh_shape)
  np.testing.assert_allclose(losses, run.losses, rtol=1e-5)
  assert len(set(losses)) == _STEPS
  _assert_equal(eight.frozen, run.state.frozen)


def test_only_adapters_and_routers_change(run, params):
  state = run.state
  _assert_equal(state.params['backbone'], params['backbone'])
  for label in ('adapters', 'routers'):
    for before, after in zip(
      jax.tree.leaves(params[label]),
      jax.tree.leaves(state.params[label]),
      strict=True,
    ):
      assert (before != after).any()


@pytest.mark.slow
def test_accumulation_equals_one_batch(run, params):
  _, losses = _fit(_MODEL, params, accumulation=4)
  np.testing.assert_allclose(losses, run.losses, rtol=1e-5)


@pytest.mark.parametrize(
  'done, method, fits',
  [
    ('mhr', 'mhr', True),
    ('mhr', 'mhr_z', True),
    ('mhr', 'mhr_mu', True),
    ('mhr_mu', 'mhr_mu', True),
    (None, 'poly', True),
    ('poly', 'mhr_z', False),
    ('mhr', 'lora', False),
    ('mhr', 'full', False),
    ('mhr_mu', 'mhr_z', False),
  ],
)
def test_a_method_starts_from_its_own_pretraining(tmp_path, done, method, fits):
  run_folder.check_pretraining(tmp_path, method)  # The folder does not say.
  facts = {} if done is None else {'method': done}
  (tmp_path / 'run.json').write_text(json.dumps(facts))
  if fits:
    run_folder.check_pretraining(tmp_path, method)
    return
  with pytest.raises(UserError, match=f'is a run of {done}, and {method} '):
    run_folder.check_pretraining(tmp_path, method)


def test_the_methods_that_would_fit_are_listed(tmp_path):
  (tmp_path / 'run.json').write_text('{"method": "poly"}')
  fitting = 'run of poly: poly, poly_z, poly_mu, poly_rand[.]'
  with pytest.raises(UserError, match=fitting):
    run_folder.check_pretraining(tmp_path, 'mhr_z')
