"""Routed models to T5X's checkpoints and back, bit for bit, without T5X."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import mhr_jax
from mhr_jax import (
  adapter_folder,
  backbones,
  checkpoints,
  cli,
  conversion,
  optim,
  run_folder,
  run_writing,
)
from mhr_jax.adapter_folder import AdapterBundle
from mhr_jax.convert import formats, t5x_files, t5x_routed, t5x_tree
from mhr_jax.errors import UserError
from mhr_jax.model import RoutedT5
from mhr_jax.optimizer_state import OptimizerDescription, make_state
from mhr_jax.tree_paths import leaves_by_path
import t5x_checkpoints
import toy_text

STEP = 3
ADDED = ('adapters', 'routers')
ALL = ('backbone', *ADDED)


def make_model(*, scan_layers=True, **changes):
  config = dataclasses.replace(
    toy_text.CONFIG,
    num_encoder_layers=1,
    num_decoder_layers=2,
    scan_layers=scan_layers,
    **changes,
  )
  return RoutedT5(config, toy_text.ADAPTERS)


def draw_state(model, name='adamw', trains=ADDED, updates=STEP):
  """An optimizer's state of random numbers."""
  settings = optim.OptimizerSettings(
    name=name, learning_rates={'adapters': 0.02}, warmup_steps=7, momentum=0.9
  )
  description = OptimizerDescription(settings, trains)
  rng = np.random.default_rng(1)
  arrays = {
    path: rng.normal(size=leaf.shape).astype(np.float32)
    if leaf.shape
    else np.int32(updates)
    for path, leaf in leaves_by_path(description.abstract_state(model)).items()
  }
  return make_state(description, model, arrays, where='drawn')


def write_run(folder, model, optimizer, step=STEP):
  run_writing.write_run(
    folder,
    model,
    toy_text.make_params(model),
    step=step,
    task_table=toy_text.TASKS,
    vocabulary=toy_text.VOCABULARY,
    optimizer=optimizer,
  )


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp('routed') / 'run'
  model = make_model()
  write_run(folder, model, draw_state(model))
  return folder


@pytest.fixture(scope='module')
def exported(run, tmp_path_factory):
  folder = tmp_path_factory.mktemp('routed') / 't5x'
  mhr_jax.load(run, with_optimizer=True).save(folder, 't5x')
  return folder


@pytest.fixture
def copy(exported, tmp_path):
  """A copy of `exported`, to damage."""
  return shutil.copytree(exported, tmp_path / 'copy')


def read_run(folder, model, step=STEP):
  """Every array of a run, by Orbax alone, and what it says of itself."""
  arrays = {}
  for item in ('trainable', 'optimizer'):
    where = folder / 'checkpoints' / str(step) / item
    target = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
      checkpoints.saved_structure(where),
    )
    tree = checkpoints.restore_tree(where, target)
    arrays |= {f'{item}/{k}': v for k, v in leaves_by_path(tree).items()}
  loaded = mhr_jax.load(folder).loaded
  assert loaded.model == model
  backbone = loaded.params['backbone']
  return arrays | leaves_by_path({'backbone': backbone}), (
    loaded.task_table,
    loaded.vocabulary,
    checkpoints.read_metadata(folder, step),
  )


@pytest.mark.parametrize(
  'name, scan_layers, trains',
  [
    ('adamw', True, ADDED),
    pytest.param('adafactor', False, ADDED, marks=pytest.mark.slow),
    pytest.param('sgd', True, ('routers',), marks=pytest.mark.slow),
    pytest.param('adamw', False, ALL, marks=pytest.mark.slow),
    ('adafactor', True, ALL),
  ],
)
def test_there_and_back_is_bit_for_bit(tmp_path, name, scan_layers, trains):
  model = make_model(scan_layers=scan_layers)
  write_run(tmp_path / 'run', model, draw_state(model, name, trains))
  first = mhr_jax.load(tmp_path / 'run', with_optimizer=True)
  first.save(tmp_path / 't5x', 't5x')
  second = mhr_jax.load(
    tmp_path / 't5x', config=model.config, with_optimizer=True
  )
  second.save(tmp_path / 'back', 'run')
  (before, facts), (after, facts_after) = (
    read_run(tmp_path / name, model) for name in ('run', 'back')
  )
  assert facts == facts_after
  assert sorted(before) == sorted(after) and len(before) > 20
  t5x_checkpoints.assert_equal_trees(before, after)


def test_the_files_are_those_of_t5x(tmp_path):
  """Unrolled, param_states without empty nodes, moments where T5X has them."""
  model = make_model()
  state = draw_state(model, trains=ALL)
  write_run(tmp_path / 'run', model, state)
  mhr_jax.load(tmp_path / 'run', with_optimizer=True).save(
    tmp_path / 't', 't5x'
  )
  found = t5x_checkpoints.read_state(tmp_path / 't' / f'checkpoint_{STEP}')
  assert found['state']['step'] == STEP
  flat = leaves_by_path(found)
  unrolled = make_model(scan_layers=False)
  params = leaves_by_path(t5x_tree.to_t5x(unrolled.abstract_params()))
  assert {k for k in flat if k.startswith('target/')} == {
    f'target/{path}' for path in params
  }
  layer, path = 'decoder/layers_1', 'self_attention/out/kernel'
  ours = leaves_by_path(toy_text.make_params(model)['backbone'])
  np.testing.assert_array_equal(
    flat[f'target/{layer}/{path}'], ours[f'decoder/layers/{path}'][1]
  )
  for field in ('mu', 'nu'):
    np.testing.assert_array_equal(
      flat[f'state/param_states/1/{field}/backbone/{layer}/{path}'],
      state.arrays[f'1/{field}/backbone/decoder/layers/{path}'][1],
    )
  assert flat['state/param_states/3/count'] == STEP
  description = json.loads((tmp_path / 't' / 'optimizer.json').read_text())
  assert description['trains'] == list(ALL)
  assert description['settings']['name'] == 'adamw'


def test_t5x_may_train_scanned_layers(tmp_path):
  """Then its names are ours: `build_routed.scan_layers = True`."""
  model = make_model()
  params, state = toy_text.make_params(model), draw_state(model, trains=ALL)
  run_folder.write_description(tmp_path, model=model)
  t5x_routed.write_optimizer(tmp_path, state.description)
  t5x_checkpoints.write_state(
    tmp_path / 'checkpoint_9',
    leaves_by_path(t5x_tree.to_t5x(params)),
    step=np.int32(9),
    param_states=_nested(state.arrays),
  )
  unrolled = make_model(scan_layers=False)
  for wanted in (model, unrolled):
    loaded = mhr_jax.load(
      tmp_path, config=wanted.config, with_optimizer=True
    ).loaded
    assert loaded.step == 9 and loaded.model == wanted
    expected = state.in_layout(wanted).arrays
    t5x_checkpoints.assert_equal_trees(loaded.optimizer.arrays, dict(expected))
  np.testing.assert_array_equal(
    loaded.params['backbone']['decoder']['layers_1']['mlp']['wo']['kernel'],
    params['backbone']['decoder']['layers']['mlp']['wo']['kernel'][1],
  )


def _nested(arrays):
  tree = {}
  for name, array in arrays.items():
    *path, last = name.split('/')
    node = tree
    for key in path:
      node = node.setdefault(key, {})
    node[last] = array
  return tree


def test_the_older_form_has_its_state_read_too(tmp_path):
  rng = np.random.default_rng(0)
  target = {'a/kernel': rng.normal(size=(20, 9)).astype(np.float32)}
  t5x_checkpoints.write_legacy(tmp_path / 'checkpoint_3', target)
  with t5x_files.open_part(tmp_path, 'state') as state:
    assert state.shapes == {'step': (), 'param_states/m': (5,)}
    assert int(state.read('step')) == 3
    np.testing.assert_array_equal(state.read('param_states/m'), np.zeros(5))


def test_the_folders_are_told_apart(run, exported, copy):
  assert formats.recognise(run) == 'run'
  for path in (exported, exported / f'checkpoint_{STEP}'):
    assert formats.recognise(path) == 't5x'
  # The description may lie in the checkpoint itself.
  inside = copy / f'checkpoint_{STEP}'
  for name in ('model.json', 'tasks.json', 'optimizer.json'):
    (copy / name).rename(inside / name)
  assert formats.recognise(inside) == 't5x'
  assert mhr_jax.load(inside).tasks == toy_text.TASKS.names


def test_a_backbone_alone_is_there_for_others(run, exported, tmp_path):
  """For `backbone_from`, and for adapters of somebody else."""
  model = make_model()
  found = backbones.load_backbone(exported, model.config)
  expected = toy_text.make_params(model)
  t5x_checkpoints.assert_equal_trees(found, expected['backbone'])
  other = {k: expected[k] for k in ADDED}
  other['adapters'] = jax.tree.map(lambda x: x + 1, other['adapters'])
  adapter_folder.save_adapter(
    tmp_path / 'a', AdapterBundle(model.adapters, other, None, model.config)
  )
  loaded = mhr_jax.load(exported, tmp_path / 'a').loaded
  assert loaded.vocabulary == toy_text.VOCABULARY
  t5x_checkpoints.assert_equal_trees(
    loaded.params, {'backbone': expected['backbone'], **other}
  )
  with pytest.raises(UserError, match='relative_attention_max_distance'):
    changed = dataclasses.replace(
      model.config, relative_attention_max_distance=99
    )
    backbones.load_backbone(exported, changed)


def test_a_run_counts_the_updates_that_were_made(exported, copy, tmp_path):
  """T5X counts on from the checkpoint that it started from."""
  (copy / f'checkpoint_{STEP}').rename(copy / 'checkpoint_1000003')
  content = t5x_checkpoints.read_state(copy / 'checkpoint_1000003')
  shutil.rmtree(copy / 'checkpoint_1000003')
  t5x_checkpoints.write_state(
    copy / 'checkpoint_1000003',
    leaves_by_path(content['target']),
    step=np.int32(1000003),
    param_states=content['state']['param_states'],
  )
  lines = []
  conversion.convert(copy, tmp_path / 'run', 'run', say=lines.append)
  assert checkpoints.committed_steps(tmp_path / 'run') == (STEP,)
  assert any('1000003' in line and f'{STEP} updates' in line for line in lines)
  conversion.convert(copy, tmp_path / 't', 't5x', say=lines.append)
  assert (tmp_path / 't' / 'checkpoint_1000003').exists()


def test_without_optimizer_state_a_run_is_a_start(run, tmp_path):
  mhr_jax.load(run).save(tmp_path / 't5x', 't5x')
  assert not (tmp_path / 't5x' / 'optimizer.json').exists()
  lines = []
  conversion.convert(
    tmp_path / 't5x', tmp_path / 'new', 'run', say=lines.append
  )
  assert any('no optimizer state' in line for line in lines)
  assert mhr_jax.load(tmp_path / 'new').loaded.step == STEP
  with (
    checkpoints.Checkpoints(tmp_path / 'new') as saved,
    pytest.raises(UserError, match="start_from = '.*new'"),
  ):
    saved.restore(STEP, trainable={}, optimizer={'count': np.zeros(())})


def test_both_ways_by_the_command_line(run, tmp_path, capsys):
  there, back = tmp_path / 'there', tmp_path / 'back'
  argv = ['export', str(run), str(there), '--format=t5x', '--with_optimizer']
  assert cli.main(argv) == 0
  assert "the optimizer's state, to resume from" in capsys.readouterr().out
  assert cli.main(['convert', str(there), str(back), '--format=run']) == 0
  before, after = (read_run(x, make_model())[0] for x in (run, back))
  t5x_checkpoints.assert_equal_trees(before, after)


def _write_again(folder, change):
  """Changes the arrays of a checkpoint: {path: array or None to remove}."""
  where = folder / f'checkpoint_{STEP}'
  content = t5x_checkpoints.read_state(where)
  flat = leaves_by_path(content) | change
  tree = _nested({k: v for k, v in flat.items() if v is not None})
  shutil.rmtree(where)
  t5x_checkpoints.write_state(
    where, leaves_by_path(tree['target']), **tree['state']
  )


_A = 'adapters/encoder/mlp/wo/a'
_MU = 'state/param_states/1/mu'


@pytest.mark.parametrize(
  'change, message',
  [
    ({f'target/{_A}': None}, f'{_A}: the checkpoint has no such array'),
    ({'target/routers/x': np.ones(2)}, 'routers/x: the model has no such'),
    ({'target/new': np.ones(2)}, 'new: the model has no such parameter'),
    ({f'target/{_A}': np.ones(2)}, rf'{_A}: the checkpoint has \(2,\), the'),
    ({f'{_MU}/{_A}': None}, f'1/mu/{_A}: the checkpoint has no such array'),
    ({f'{_MU}/{_A}': np.ones(2)}, rf'1/mu/{_A}: the checkpoint has \(2,\)'),
    ({f'{_MU}/x': np.ones(2)}, '1/mu/x: the model has no such parameter'),
  ],
)
def test_every_leaf_is_accounted_for(copy, change, message):
  _write_again(copy, change)
  where = f'copy/checkpoint_{STEP}'
  with pytest.raises(UserError, match=f'(?s){where}.*{message}'):
    mhr_jax.load(copy, with_optimizer=True)


def test_of_several_checkpoints_the_newest_is_said_once(copy, caplog):
  shutil.copytree(copy / f'checkpoint_{STEP}', copy / 'checkpoint_11')
  assert 'checkpoint_11' in mhr_jax.load(copy).loaded.source
  told = [line for line in caplog.messages if 'the newest is taken' in line]
  assert len(told) == 1


def test_adapters_of_no_description_are_an_error(copy):
  (copy / 'model.json').unlink()
  with pytest.raises(UserError) as error:
    mhr_jax.load(copy / f'checkpoint_{STEP}')
  for part in (_A.split('/')[0], 'model.json', 'summarize_config', 'MODEL_DIR'):
    assert part in str(error.value)


def test_state_of_an_unknown_optimizer_is_left_out_aloud(copy):
  (copy / 'optimizer.json').unlink()
  said = []
  loaded = mhr_jax.load(copy, with_optimizer=True, on_message=said.append)
  assert loaded.loaded.optimizer is None
  assert 'no optimizer.json' in said[0]
  with pytest.raises(UserError, match='has no optimizer state'):
    conversion.convert(
      copy, copy / 'x', 'run', with_optimizer=True, say=said.append
    )


def test_state_of_another_optimizer_is_an_error(copy):
  path = copy / 'optimizer.json'
  facts = json.loads(path.read_text())
  facts['settings']['name'] = 'adafactor'
  path.write_text(json.dumps(facts))
  with pytest.raises(UserError, match='1/moments/.*: the checkpoint has no'):
    mhr_jax.load(copy, with_optimizer=True)
  facts['format_version'] = 2
  path.write_text(json.dumps(facts))
  with pytest.raises(UserError, match='Install a newer one'):
    mhr_jax.load(copy, with_optimizer=True)


def test_plain_and_routed_checkpoints_do_not_mix(run, exported, tmp_path):
  loaded = mhr_jax.load(run)
  later = mhr_jax.Model(dataclasses.replace(loaded.loaded, step=STEP + 1))
  with pytest.raises(UserError, match='a folder of its own'):
    later.save(exported, 't5x', 'copy')
  loaded.save(tmp_path, 't5x', 'copy')
  with pytest.raises(UserError, match='checkpoints of a plain T5'):
    later.save(tmp_path, 't5x')


@pytest.mark.parametrize(
  'argv, message',
  [
    (['--format=t5x', '--with_optimizer', '--task=copy'], 'without a task'),
    (
      ['--format=hf', '--with_optimizer', '--task=copy'],
      "into 'run', or into 't5x'",
    ),
    (['--format=run', '--task=copy'], 'leave task out'),
    (['--format=run', '--dtype=bfloat16'], 'leave dtype out'),
  ],
)
def test_what_cannot_be_is_said_in_short(run, tmp_path, argv, message, capsys):
  assert cli.main(['export', str(run), str(tmp_path / 'new'), *argv]) == 2
  assert message in capsys.readouterr().err
  assert not (tmp_path / 'new').exists()
