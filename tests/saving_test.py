"""Models read from and written to every format, by way of files."""

import dataclasses

import jax
import numpy as np
import pytest

import mhr_jax
from mhr_jax import backbones, saving
from mhr_jax.errors import UserError
from mhr_jax.model import RoutedT5
import toy_models
import toy_text


@pytest.fixture(scope='module')
def model():
  return toy_models.make_model()


@pytest.fixture(scope='module')
def tokens():
  return toy_models.draw_tokens()


@pytest.fixture(scope='module')
def run_dir(model, tmp_path_factory):
  folder = tmp_path_factory.mktemp('api') / 'run'
  toy_models.write_run(folder, model)
  return folder


def test_a_run_folder_is_a_model(run_dir, model, tokens):
  found = mhr_jax.load(run_dir)
  assert found.tasks == toy_text.TASKS.names
  np.testing.assert_array_equal(
    found.logits(*tokens, task_ids=toy_models.TASKS),
    model.logits(*tokens, task_ids=toy_models.TASKS),
  )
  assert found.generate('abc', 'upper', max_new_tokens=6) == model.generate(
    'abc', 'upper', max_new_tokens=6
  )
  assert 'run' in repr(found) and '3 tasks' in repr(found)


def test_bfloat16_is_of_the_backbone_and_of_what_is_computed(
  run_dir, model, tokens
):
  found = mhr_jax.load(run_dir, dtype='bfloat16')
  dtypes = {
    label: {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}
    for label, tree in found.loaded.params.items()
  }
  assert dtypes == {
    'backbone': {'bfloat16'},
    'adapters': {'float32'},
    'routers': {'float32'},
  }
  assert found.loaded.model.config.dtype == 'bfloat16'
  logits = found.logits(*tokens, task_ids=toy_models.TASKS)
  assert logits.dtype == np.float32
  exact = model.logits(*tokens, task_ids=toy_models.TASKS)
  assert 1e-4 < np.abs(logits - exact).max() < 0.2
  with pytest.raises(UserError, match='float16'):
    mhr_jax.load(run_dir, dtype='float16')  # pyrefly: ignore


@pytest.mark.parametrize('format', ['native', 'peft-poly'])
def test_adapters_alone_go_back_onto_their_backbone(
  run_dir, model, tokens, tmp_path, format
):
  model.save(tmp_path / 'a', format)
  found = mhr_jax.load(run_dir, adapter=tmp_path / 'a')
  assert found.tasks == model.tasks
  np.testing.assert_allclose(
    found.logits(*tokens, task_ids=toy_models.TASKS),
    model.logits(*tokens, task_ids=toy_models.TASKS),
    atol=0 if format == 'native' else 1e-5,
  )
  assert found.loaded.vocabulary == toy_text.VOCABULARY
  written = {path: path.read_bytes() for path in (tmp_path / 'a').iterdir()}
  for again, task in ((format, None), ('native', 0), ('peft-lora', 0)):
    with pytest.raises(UserError, match='adapter already, and nothing'):
      model.save(tmp_path / 'a', again, task)
  assert written == {path: path.read_bytes() for path in written}
  with pytest.raises(UserError, match=f'load.BACKBONE, adapter=.{tmp_path}/a'):
    mhr_jax.load(tmp_path / 'a')


@pytest.mark.parametrize('task', ['upper', 'average'])
@pytest.mark.parametrize('format', ['native', 'peft-lora'])
def test_one_tasks_adapter_alone(
  run_dir, model, tokens, tmp_path, format, task
):
  model.save(tmp_path, format, task)
  found = mhr_jax.load(run_dir, adapter=tmp_path)
  assert found.loaded.model.adapters.n_skills == 1
  np.testing.assert_allclose(
    found.logits(*tokens), model.logits(*tokens, task_ids=task), atol=1e-5
  )


@pytest.mark.parametrize('format, task', [('hf', 'first'), ('t5x', 'average')])
def test_a_fused_backbone_computes_what_the_task_does(
  model, tokens, tmp_path, format, task
):
  saved = model.save(tmp_path / 'a', format, task)
  assert saved.logits_change is not None and saved.logits_change < 1e-5
  assert task in saved.what
  config = toy_text.CONFIG if format == 't5x' else None
  found = mhr_jax.load(tmp_path / 'a', config=config)
  assert found.loaded.model.adapters is None
  np.testing.assert_allclose(
    found.logits(*tokens), model.logits(*tokens, task_ids=task), atol=1e-5
  )
  if format == 'hf':
    assert found.loaded.vocabulary == toy_text.VOCABULARY
    return
  assert 'not in its files: relative_attention_max_distance=8' in saved.what
  with pytest.raises(UserError, match='vocabulary='):
    found.generate('a')


def test_a_bare_backbone_keeps_its_vocabulary(model, tokens, tmp_path):
  bare = toy_models.without_adapters(model, vocabulary=toy_text.VOCABULARY)
  bare.save(tmp_path / 'a')
  found = mhr_jax.load(tmp_path / 'a')
  np.testing.assert_array_equal(found.logits(*tokens), bare.logits(*tokens))
  assert found.loaded.vocabulary == toy_text.VOCABULARY
  bare.save(tmp_path / 'b', dtype='bfloat16')
  small = backbones.load_backbone(
    tmp_path / 'b', toy_text.CONFIG, dtype='bfloat16'
  )
  expected = found.loaded.params['backbone']
  jax.tree.map(
    lambda x, y: np.testing.assert_array_equal(x, y.astype('bfloat16')),
    small,
    expected,
  )


@pytest.mark.parametrize(
  'format, task, settings, message',
  [
    ('native', None, {'dtype': 'int8'}, "'int8' is not known"),
    ('t5x', None, {'dtype': 'float16'}, "'float16' is refused"),
    ('hf', 0, {'dtype': 'bogus'}, "'bogus' is not known"),
    ('native', None, {'dtype': 'bfloat16'}, 'native holds adapters alone'),
    ('peft-lora', 0, {'dtype': 'bfloat16'}, 'peft-lora holds adapters alone'),
    ('stablehlo', None, {'dtype': 'bfloat16'}, r'load.…, dtype=.bfloat16'),
    ('run', None, {'dtype': 'bfloat16'}, 'leave dtype out'),
    ('hf', 0, {'base_model': 'google/t5'}, 'no place for base_model'),
    ('native', None, {'base_model': 'google/t5'}, 'no place for base_model'),
  ],
)
def test_settings_that_a_format_does_not_use_are_refused(
  model, tmp_path, format, task, settings, message
):
  with pytest.raises(UserError, match=message):
    model.save(tmp_path / 'a', format, task, **settings)
  assert not (tmp_path / 'a').exists()


def test_the_change_of_logits_is_that_of_what_was_written(model, tmp_path):
  exact = model.save(tmp_path / 'a', 'hf', 0).logits_change
  rounded = model.save(tmp_path / 'b', 'hf', 0, dtype='bfloat16').logits_change
  assert exact < 1e-5 < 1e-4 < rounded


def test_what_transformers_cannot_express_is_said_before_fusing(
  model, tmp_path, monkeypatch
):
  monkeypatch.setattr(saving.fusing, 'fuse', None)
  config = dataclasses.replace(toy_text.CONFIG, relative_positions='layer')
  inner = dataclasses.replace(model.loaded.model, config=config)
  other = mhr_jax.Model(dataclasses.replace(model.loaded, model=inner))
  with pytest.raises(UserError, match='one relative-position table a stack'):
    other.save(tmp_path / 'a', 'hf', 0)


def test_a_t5x_folder_with_a_newer_step_is_left_alone(model, tmp_path):
  later = mhr_jax.Model(dataclasses.replace(model.loaded, step=9))
  later.save(tmp_path / 'a', 't5x', 0)
  with pytest.raises(UserError, match='holds checkpoint_9'):
    model.save(tmp_path / 'a', 't5x', 1)
  with pytest.raises(UserError, match='place of one checkpoint'):
    model.save(tmp_path / 'a' / 'checkpoint_9', 't5x', 1)
  assert [x.name for x in (tmp_path / 'a').iterdir()] == ['checkpoint_9']


def test_programs_are_of_all_tasks_or_of_one(model, tmp_path, monkeypatch):
  calls = []
  monkeypatch.setattr(
    saving.serving,
    'export_stablehlo',
    lambda folder, inner, params, **rest: calls.append(rest),
  )
  model.save(tmp_path / 'all', 'stablehlo')
  model.save(tmp_path / 'one', 'stablehlo', 'upper')
  assert [call['task_id'] for call in calls] == [None, 2]
  assert calls[0]['task_table'] == toy_text.TASKS
  assert calls[0]['vocabulary'] == toy_text.VOCABULARY


@pytest.mark.parametrize(
  'format, task, message',
  [
    ('peft', None, "There is no format 'peft'. Did you mean 'peft-"),
    ('peft-lora', None, 'Which task? The model knows 3'),
    ('hf', None, 'Which task? The model knows 3'),
    ('hf', 'uper', "Did you mean 'upper'"),
    ('peft-poly', 'upper', "'peft-poly' holds all tasks"),
    ('native', 5, 'Task id 5 is out of range'),
    ('run', 'upper', "'run' holds all tasks"),
  ],
)
def test_what_cannot_be_saved_is_said_before_anything_is_written(
  model, tmp_path, format, task, message
):
  with pytest.raises(UserError) as error:
    model.save(tmp_path / 'a', format, task)
  assert message in str(error.value)
  assert not (tmp_path / 'a').exists()


@pytest.mark.parametrize(
  'format', [x for x in saving.SAVE_FORMATS if x != 'peft-ia3']
)
def test_folders_of_something_else_are_left_alone(model, tmp_path, format):
  (tmp_path / 'notes.txt').write_text('mine')
  task = None if format in ('peft-poly', 'run') else 0
  with pytest.raises(UserError, match='something else already'):
    model.save(tmp_path, format, task)
  (tmp_path / 'config.json').write_text('{}')
  with pytest.raises(UserError, match='a transformers folder already'):
    model.save(tmp_path, format, task)
  assert len(list(tmp_path.iterdir())) == 2


def test_bare_backbones_have_no_adapters_to_save(model, tmp_path):
  bare = toy_models.without_adapters(model)
  for format in ('peft-poly', 'peft-lora'):
    with pytest.raises(UserError, match='there are none to write'):
      bare.save(tmp_path, format)
  with pytest.raises(UserError, match='no adapters, so no tasks'):
    bare.save(tmp_path, 'hf', 'upper')


def test_an_adapter_for_another_backbone_is_refused(model, tmp_path):
  config = dataclasses.replace(toy_text.CONFIG, mlp_dim=32, dropout_rate=0.5)
  other = RoutedT5(config)
  params = toy_text.make_params(other)
  backbones.save_backbone(tmp_path / 'b', params['backbone'], config)
  model.save(tmp_path / 'a')
  with pytest.raises(UserError) as error:
    mhr_jax.load(tmp_path / 'b', adapter=tmp_path / 'a')
  message = 'trained on another backbone: mlp_dim is 16, wanted 32.'
  assert message in str(error.value)
  with pytest.raises(UserError, match='a native backbone folder, no adapter'):
    mhr_jax.load(tmp_path / 'b', adapter=tmp_path / 'b')


def test_tasks_get_names_where_a_file_has_none(run_dir, model, tmp_path):
  model.save(tmp_path / 'a', 'peft-poly')
  (tmp_path / 'a' / 'tasks.json').unlink()
  unnamed = mhr_jax.load(run_dir, adapter=tmp_path / 'a')
  assert unnamed.tasks == ('0', '1', '2')
  named = mhr_jax.load(run_dir, adapter=tmp_path / 'a', tasks=['x', 'y', 'z'])
  assert named.tasks == ('x', 'y', 'z')
  named.save(tmp_path / 'b')
  assert mhr_jax.load(run_dir, tmp_path / 'b').tasks == ('x', 'y', 'z')
  with pytest.raises(UserError, match='has 3 tasks; 2 names are given'):
    mhr_jax.load(run_dir, adapter=tmp_path / 'a', tasks=['x', 'y'])
  with pytest.raises(UserError, match='has names for its tasks: x, y, z'):
    mhr_jax.load(run_dir, adapter=tmp_path / 'b', tasks=['1', '2', '3'])
