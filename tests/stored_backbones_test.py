"""Runs over a frozen backbone in bfloat16 or int8, from settings to files."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest

import mhr_jax
from mhr_jax import jobs, run_folder, train
from mhr_jax.adapters import AdapterConfig
from mhr_jax.data.mixture_settings import MixtureSettings
from mhr_jax.errors import UserError
from mhr_jax.t5 import storage
from mhr_jax.task_data import TaskData
from mhr_jax.trainer import TrainSettings
import toy_text

pytestmark = pytest.mark.slow

_BACKBONE = dataclasses.replace(toy_text.CONFIG, vocab_size=384)
_ADAPTERS = functools.partial(
  AdapterConfig,
  n_skills=2,
  n_splits=2,
  targets=('encoder/attention/query', 'decoder/mlp/wo'),
)


@pytest.fixture(scope='module')
def data(tmp_path_factory, write_task):
  data_dir = tmp_path_factory.mktemp('data')
  for name in ('one', 'two'):
    write_task(data_dir, name, train=20, validation=4)
  return TaskData(tasks=('one', 'two'), data_dir=str(data_dir))


def _train(run_dir, data, kind, **changes):
  return train.train(
    str(run_dir),
    backbone=dataclasses.replace(_BACKBONE, storage=kind),
    data=data,
    mixture=MixtureSettings(batch_size=8, input_length=8, target_length=6),
    settings=TrainSettings(4, log_every=1, save_every=2, eval_every=4),
    heldback=jobs.HeldBackSettings(limit=2, batch_size=8),
    adapters=_ADAPTERS,
    **changes,
  )


@pytest.fixture(scope='module')
def backbone_run(tmp_path_factory, data):
  """A backbone that trained, and so is float32 whatever was asked for."""
  run = _train(
    tmp_path_factory.mktemp('runs') / 'b', data, 'int8', method='full'
  )
  assert {str(x.dtype) for x in jax.tree.leaves(run.params)} == {'float32'}
  return run


def _losses(run_dir):
  lines = map(json.loads, (run_dir / 'metrics.jsonl').read_text().splitlines())
  return [
    {k: v for k, v in line.items() if k.endswith('loss')} for line in lines
  ]


def _assert_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize('kind', ['bfloat16', 'int8'])
def test_a_run_resumes_over_the_same_bits(kind, tmp_path, data, backbone_run):
  start = {'backbone_from': str(backbone_run.run_dir)}
  run = _train(tmp_path / 'a', data, kind, **start)
  expected = storage.store(backbone_run.params['backbone'], kind)
  _assert_equal(run.params['backbone'], expected)
  losses = _losses(tmp_path / 'a')
  # As after a kill between the two checkpoints.
  shutil.rmtree(tmp_path / 'a' / 'checkpoints' / '4')
  again = _train(tmp_path / 'a', data, kind, **start)
  _assert_equal(again.params, run.params)
  assert _losses(tmp_path / 'a') == losses
  found = run_folder.load_run(tmp_path / 'a')
  assert found.model.config.storage == kind
  _assert_equal(found.params, jax.device_get(run.params))
  loaded = mhr_jax.load(tmp_path / 'a')
  loaded.save(tmp_path / 'b', 'run')
  _assert_equal(
    run_folder.load_run(tmp_path / 'b').params, jax.device_get(run.params)
  )


def test_what_was_rounded_is_not_gone_on_with_as_if_it_were_not(
  tmp_path, data, backbone_run
):
  start = {'backbone_from': str(backbone_run.run_dir)}
  _train(tmp_path / 'a', data, 'int8', **start)
  with pytest.raises(UserError, match='backbone.storage'):
    _train(tmp_path / 'a', data, 'float32', **start)
  for how in ('backbone_from', 'start_from'):
    with pytest.raises(UserError, match='stored as int8, and wanted as float'):
      _train(tmp_path / 'b', data, 'float32', **{how: str(tmp_path / 'a')})
  _train(tmp_path / 'b', data, 'int8', start_from=str(tmp_path / 'a'))
  with pytest.raises(UserError, match='wanted as float32'):
    mhr_jax.load(tmp_path / 'a', dtype='float32')
