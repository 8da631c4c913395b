"""Names that files and data hold lead to nothing outside of their folder.

Each test works in `fence/work`; what lies beside it in `fence` must stay as it
was, whatever a name says.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import sys

from etils import epath
import numpy as np
import pytest
import safetensors.numpy

from mhr_jax import (
  adapter_folder,
  api,
  backbones,
  checkpoints,
  commands,
  file_names,
  reporting,
  run_files,
  run_writing,
)
from mhr_jax.adaptation import Adapted, write_adapted
from mhr_jax.convert import hf_t5, t5x_files, tensor_files
from mhr_jax.data import prepare, record_format, records, registry
from mhr_jax.errors import UserError
from mhr_jax.evaluation import EvaluationSettings
from mhr_jax.loading import LoadedModel
from mhr_jax.run_folder import load_run
from mhr_jax.scores import Scores
from mhr_jax.t5.decoding import DecodingSettings
from mhr_jax.task_data import TaskData
from mhr_jax.task_table import TaskTable
import t5x_checkpoints
import toy_text

HOSTILE = ('../out', '..', '/tmp/mhr_jax_out', 'a/../../out', '.', 'a\\..\\b')


@pytest.fixture
def work(tmp_path, monkeypatch):
  """The folder to work in; nothing beside it may appear or change."""
  work = tmp_path / 'fence' / 'work'
  work.mkdir(parents=True)
  (tmp_path / 'fence' / 'treasure').write_text('theirs')
  monkeypatch.chdir(work)
  yield work
  beside = sorted(path.name for path in (tmp_path / 'fence').iterdir())
  assert beside == ['treasure', 'work']
  assert (tmp_path / 'fence' / 'treasure').read_text() == 'theirs'
  assert sorted(path.name for path in tmp_path.iterdir()) == ['fence']
  assert not pathlib.Path('/tmp/mhr_jax_out').exists()


@pytest.fixture(scope='module')
def model():
  routed = toy_text.make_model()
  return LoadedModel(
    routed, toy_text.make_params(routed), toy_text.TASKS, toy_text.VOCABULARY
  )


@pytest.fixture(scope='module')
def exported(model, tmp_path_factory):
  """A folder of transformers without its weights."""
  folder = tmp_path_factory.mktemp('exported') / 'hf'
  backbone = model.params['backbone']
  hf_t5.write_backbone(folder, toy_text.CONFIG, backbone)
  (folder / 'model.safetensors').unlink()
  return folder


@pytest.mark.parametrize('name', [*HOSTILE, '', 'x\n', '.hidden', 'a%2Fb', 'é'])
def test_a_file_name_is_one_part_of_a_path(name, work):
  safe = file_names.as_file_name(name)
  (work / f'{safe}.json').touch()
  (work / f'_{safe}').mkdir()
  assert {path.name for path in work.iterdir()} == {f'{safe}.json', f'_{safe}'}


def test_different_names_stay_different():
  names = {*HOSTILE, '%2E.%2Fout', '%2E', 'a%5C..%5Cb', 'a%255C..%5Cb'}
  assert len({file_names.as_file_name(name) for name in names}) == len(names)


@pytest.mark.parametrize('name', [*HOSTILE, '', 3, None, '.hidden'])
def test_a_file_that_names_one_elsewhere_is_not_followed(name, work):
  with pytest.raises(UserError, match=r'x\.json names the file'):
    file_names.path_inside(work, name, where='x.json')


@pytest.mark.parametrize('name', ['../../treasure', '/etc/passwd'])
@pytest.mark.parametrize('whole', ['model.safetensors', hf_t5.PICKLE_FILE])
def test_an_index_of_shards_names_files_beside_it(name, whole, work, exported):
  folder = work / 'hf'
  shutil.copytree(exported, folder)
  index = {'weight_map': {'shared.weight': name}}
  (folder / f'{whole}.index.json').write_text(json.dumps(index))
  with pytest.raises(UserError, match='index.json names the file'):
    hf_t5.read_backbone(folder, allow_pickle=True)


@pytest.mark.parametrize('name', HOSTILE[:3])
def test_a_vocabulary_names_a_file_beside_it(name, work, model):
  backbones.save_backbone(
    work / 'b',
    model.params['backbone'],
    toy_text.CONFIG,
    vocabulary=toy_text.VOCABULARY,
  )
  spec = {'kind': 'sentencepiece', 'file': name, 'extra_ids': 0}
  (work / 'b' / 'vocabulary' / 'spec.json').write_text(json.dumps(spec))
  with pytest.raises(UserError, match='(has|names) the file'):
    api.load(work / 'b')


@pytest.mark.parametrize('path', ['target.x/..', '..', '.', ''])
def test_an_array_of_t5xs_older_form_lies_beside_it(path, work):
  spec = {'driver': 'zarr', 'kvstore': {'driver': 'file', 'path': path}}
  t5x_checkpoints.write_legacy(
    work / 'checkpoint_3',
    {'a': np.ones((9, 9), 'f4')},
    spec_of=lambda name: spec,
  )
  with (
    pytest.raises(UserError, match='checkpoint names the file'),
    t5x_files.open_part(work / 'checkpoint_3') as part,
  ):
    part.read('a')


@pytest.mark.parametrize('name', ['../../out/a', '/tmp/mhr_jax_out/a', '../a'])
def test_leaves_of_a_checkpoint_are_keys_and_no_paths(name, work):
  array = np.ones(3, np.float32)
  checkpoints.save_tree(work / 'tree', {name: array})
  with pytest.raises(UserError, match='does not fit the model'):
    checkpoints.restore_tree(work / 'tree', {'a': array})
  found = checkpoints.restore_tree(work / 'tree', {name: array})
  np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize('format', ['native', 'peft-poly'])
@pytest.mark.parametrize('name', ['../../out/a', '/tmp/mhr_jax_out'])
def test_keys_of_safetensors_are_no_paths(format, name, work, model):
  folder = work / 'adapter'
  api.Model(model).save(folder, format)
  (file,) = folder.glob('*.safetensors')
  tensors = dict(tensor_files.read_tensors(file))
  tensors[name] = tensors.pop(min(tensors))
  safetensors.numpy.save_file(tensors, file)
  backbones.save_backbone(work / 'b', model.params['backbone'], toy_text.CONFIG)
  with pytest.raises(UserError, match=name):
    api.load(work / 'b', folder)


@pytest.mark.slow
def test_tasks_of_any_name_are_written_in_every_format(work, model):
  table = TaskTable(HOSTILE[:3])
  hostile = api.Model(dataclasses.replace(model, task_table=table))
  for format, task in (
    ('native', None),
    ('native', HOSTILE[0]),
    ('peft-poly', None),
    ('peft-lora', HOSTILE[1]),
    ('hf', HOSTILE[2]),
    ('t5x', HOSTILE[0]),
    ('run', None),
  ):
    hostile.save(work / f'{format}{task is None}', format, task)
  loaded = adapter_folder.load_adapter(work / 'nativeTrue')
  assert loaded.task_table == table
  assert load_run(work / 'runTrue').task_table == table


@pytest.mark.parametrize('label', ['../../treasure', '/tmp/mhr_jax_out', '..'])
def test_a_checkpoint_names_frozen_parts_of_its_own_run(
  label, work, model, monkeypatch
):
  routed, params = model.model, model.params
  run_writing.write_run(work / 'run', routed, params, step=1)
  facts = checkpoints.read_metadata(work / 'run', 1)
  monkeypatch.setattr(
    checkpoints, 'read_metadata', lambda *_: facts | {'frozen': {label: 'x'}}
  )
  with pytest.raises(UserError, match='names the file'):
    load_run(work / 'run')


@pytest.mark.parametrize('task', HOSTILE)
def test_a_cell_of_few_shot_adaptation_stays_in_its_folder(task, work):
  result = Adapted(
    task=task,
    seed=0,
    scores=Scores({}, {}, {}, {}),
    predictions=(),
    values={},
    losses=np.zeros(1),
    held_back_loss=None,
    trained={},
    moved={},
  )
  write_adapted(work / 'cells', result, 'mhr_z')
  (path,) = (work / 'cells').rglob('adapted.json')
  assert path.parts[-3:-1] == (file_names.as_file_name(task), 'seed0')
  assert run_files.read_json(path)['task'] == task


@pytest.mark.parametrize('name', HOSTILE)
def test_a_mixture_stays_among_the_mixtures(name, work):
  rates = registry.TaskRates(tasks=('a',), rates=(1.0,))
  prepare._write_mixture(epath.Path(work), name, rates)
  assert [path.parent.name for path in work.rglob('*.json')] == ['mixtures']
  assert records.open_mixture(work, name).tasks == ('a',)


@pytest.mark.slow
def test_the_scores_of_an_evaluation_stay_in_the_run(
  work, model, write_task, write_mixture
):
  write_task(work, 'copy', train=2, vocabulary=toy_text.VOCABULARY)
  path = record_format.mixture_file(work, '../../out')
  write_mixture(work, path.stem, ['copy'], [1.0])
  table = TaskTable(('copy', 'first', 'upper'))
  run_writing.write_run(
    work / 'run',
    model.model,
    model.params,
    step=1,
    task_table=table,
    vocabulary=toy_text.VOCABULARY,
  )
  commands.evaluate(
    str(work / 'run'),
    data=TaskData('../../out', str(work), prepare='never'),
    split='train',
    evaluation_settings=EvaluationSettings(
      decoding=DecodingSettings(max_new_tokens=2)
    ),
    batch_size=2,
    **toy_text.WIDTHS,
  )
  assert len(list((work / 'run' / 'evaluations').glob('*/scores.json'))) == 1


def test_a_feature_of_a_strangers_class_is_not_imported(
  work, write_task, monkeypatch
):
  write_task(work, 'a_task', train=2)
  (work / 'stranger.py').write_text("open('trace', 'w').close()")
  monkeypatch.syspath_prepend(work)
  path = record_format.task_folder(work, 'a_task') / 'features.json'
  text = path.read_text()
  kind = 'tensorflow_datasets.core.features.text_feature.Text'
  path.write_text(text.replace(kind, 'stranger.Text'))
  with pytest.raises(UserError, match="class 'stranger.Text'"):
    records.open_task(work, 'a_task').source('train')
  assert 'stranger' not in sys.modules and not (work / 'trace').exists()
  path.write_text(text)
  assert len(records.open_task(work, 'a_task').source('train')) == 2


def test_links_where_files_are_written_are_replaced(work):
  target = '../treasure'
  for name in ('.x.json.tmp', '.x.safetensors.tmp', 'x.json', 'metrics.jsonl'):
    os.symlink(target, name)
  os.symlink('../out', '.metrics.jsonl.tmp')
  run_files.write_json(work / 'x.json', {'a': 1})
  tensor_files.write_tensors(work / 'x.safetensors', {'a': np.ones(2)})
  with reporting.MetricsWriter(work, writers=()) as writer:
    writer.write(1, {'a': 2.0})
  assert json.loads((work / 'x.json').read_text()) == {'a': 1}
  assert '"a": 2.0' in (work / 'metrics.jsonl').read_text()


def test_a_link_to_nothing_is_not_filled(work):
  os.symlink('../out', 'metrics.jsonl')
  with reporting.MetricsWriter(work, writers=()) as writer:
    writer.write(1, {'a': 2.0})
  assert (work / 'metrics.jsonl').is_file()
