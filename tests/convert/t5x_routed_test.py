"""Routed models to T5X's checkpoints and back, bit for bit, without T5X."""

import dataclasses

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import mhr_jax
from mhr_jax import (
  conversion,
  optim,
  partitioning,
  run_folder,
  trainer,
)
from mhr_jax.model import RoutedT5
from mhr_jax.tree_paths import leaves_by_path
import toy_text

STEPS = 6
ADAMW = optim.OptimizerSettings(
  learning_rates={'adapters': 1e-2, 'routers': 0.1}, warmup_steps=2
)
ADAFACTOR = dataclasses.replace(ADAMW, name='adafactor')


def draw_batch(step):
  rng = np.random.default_rng((5, step))

  def tokens(length):
    return rng.integers(3, 250, (4, length)).astype(np.int32)

  return {
    'encoder_input_tokens': tokens(5),
    'decoder_input_tokens': tokens(4),
    'decoder_target_tokens': tokens(4),
    'decoder_loss_weights': np.ones((4, 4), np.float32),
    'task_ids': rng.integers(0, 3, 4).astype(np.int32),
  }


def make_model(*, scan_layers=True, depth=2):
  config = dataclasses.replace(
    toy_text.CONFIG,
    num_encoder_layers=depth,
    num_decoder_layers=depth + 1,
    scan_layers=scan_layers,
  )
  return RoutedT5(config, toy_text.ADAPTERS)


def fit(run_dir, model, params, optimizer, *, steps=STEPS, **settings):
  """Trains; returns the state and the losses by step."""
  losses = {}
  state = trainer.fit(
    model,
    params,
    draw_batch,
    settings=trainer.TrainSettings(
      steps, save_every=3, log_every=1, **settings
    ),
    optimizer=optimizer,
    run_dir=run_dir,
    mesh=partitioning.make_mesh(devices=jax.devices()[:1]),
    task_table=toy_text.TASKS,
    vocabulary=toy_text.VOCABULARY,
    on_log=lambda step, metrics: losses.update(
      {step: float(metrics['train/loss'])}
    ),
  )
  return state, losses


@pytest.fixture(scope='module')
def make_run(tmp_path_factory):
  """A function that trains half of a run; one of each kind is trained once."""
  made = {}

  def make(name='adamw', *, scan_layers=True, trains=('adapters', 'routers')):
    key = name, scan_layers, trains
    if key not in made:
      model = make_model(scan_layers=scan_layers)
      folder = tmp_path_factory.mktemp('run') / 'run'
      params = toy_text.make_params(model)
      optimizer = {'adamw': ADAMW, 'adafactor': ADAFACTOR}[name]
      settings = {'trains': trains, 'keep': 3}
      fit(folder, model, params, optimizer, steps=3, **settings)
      made[key] = folder, model, params
    return made[key]

  return make


def read_all(run, step):
  """Every array of a run's step, its optimizer state included."""
  folder = run / 'checkpoints' / str(step)
  found = {}
  for item in ('trainable', 'optimizer'):
    with ocp.PyTreeCheckpointer() as reader:
      tree = reader.metadata(folder / item).item_metadata.tree
      args = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree
      )
      arrays = reader.restore(folder / item, restore_args=args)
    found |= {f'{item}/{k}': x for k, x in leaves_by_path(arrays).items()}
  return found


def read_t5x(folder):
  with ocp.PyTreeCheckpointer() as reader:
    tree = reader.metadata(folder / 'state').item_metadata.tree
    args = jax.tree.map(
      lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree
    )
    return leaves_by_path(reader.restore(folder / 'state', restore_args=args))


def same(a, b):
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    assert a[name].dtype == b[name].dtype, name


def test_a_run_goes_to_t5x_and_back_bit_for_bit(make_run, tmp_path):
  for name, scan_layers in (('adamw', True), ('adafactor', False)):
    run, model, _ = make_run(name, scan_layers=scan_layers)
    there, back = tmp_path / f'{name} there', tmp_path / f'{name} back'
    options = {'with_optimizer': True, 'say': lambda _: None}
    conversion.export(run, there, 't5x', **options)
    conversion.convert(there, back, 'run', config=model.config)
    same(read_all(run, 3), read_all(back, 3))
    assert run_folder.read_model(back) == model
    assert run_folder.read_task_table(back) == toy_text.TASKS
    assert run_folder.read_vocabulary(back) == toy_text.VOCABULARY
    loaded = [mhr_jax.load(folder).loaded.params for folder in (run, back)]
    same(*map(leaves_by_path, loaded))
