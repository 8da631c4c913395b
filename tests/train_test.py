"""From settings to a run folder: train, resume, evaluate, adapt, predict."""

import dataclasses
import functools
import json
import pathlib
import re
import shutil

from etils import epath
import jax
import numpy as np
import pytest

from mhr_jax import commands, conversion, jobs, reporting, run_folder, train
from mhr_jax.adaptation import AdaptationSettings
from mhr_jax.adapters import AdapterConfig
from mhr_jax.analysis import gradients
from mhr_jax.analysis.gradients import AlignmentSettings
from mhr_jax.analysis.routing_statistics import RoutingStatisticsSettings
from mhr_jax.data.mixture_settings import MixtureSettings
from mhr_jax.errors import UserError
from mhr_jax.evaluation import EvaluationSettings
from mhr_jax.few_shot import FewShotSettings
from mhr_jax.model import RoutedT5
from mhr_jax.t5.config import T5Config
from mhr_jax.t5.decoding import DecodingSettings
from mhr_jax.task_data import TaskData
from mhr_jax.trainer import TrainSettings

_TASKS = ('one', 'two')
_BACKBONE = T5Config(
  vocab_size=384,
  emb_dim=16,
  num_heads=2,
  head_dim=8,
  mlp_dim=16,
  num_encoder_layers=1,
  num_decoder_layers=1,
)
_ADAPTERS = functools.partial(
  AdapterConfig,
  n_skills=2,
  n_splits=2,
  rank=1,
  targets=('encoder/attention/query', 'decoder/mlp/wo'),
)
_ALIGNMENT = AlignmentSettings(every=2, examples=2, batch_size=2)
_TEXTS = EvaluationSettings(decoding=DecodingSettings(max_new_tokens=3))


@pytest.fixture(scope='module')
def data(tmp_path_factory, write_task, write_mixture):
  """Two prepared tasks, and one that is new."""
  data_dir = tmp_path_factory.mktemp('data')
  for name in (*_TASKS, 'new'):
    write_task(data_dir, name, train=20, validation=4, test=5)
  write_mixture(data_dir, 'both', _TASKS, (1.0, 1.0))
  return TaskData(tasks='both', data_dir=str(data_dir))


def _train(run_dir, data, *, steps=3, method='mhr', **changes):
  settings = {
    'backbone': _BACKBONE,
    'data': data,
    'mixture': MixtureSettings(batch_size=8, input_length=8, target_length=6),
    'settings': TrainSettings(
      steps=steps, log_every=1, save_every=100, eval_every=steps
    ),
    'heldback': jobs.HeldBackSettings(limit=2, batch_size=8),
    'adapters': _ADAPTERS,
  }
  return train.train(str(run_dir), method=method, **(settings | changes))


@pytest.fixture(scope='module')
def backbone_run(tmp_path_factory, data):
  """A run that trained all parameters of the backbone."""
  return _train(tmp_path_factory.mktemp('runs') / 'full', data, method='full')


@pytest.fixture(scope='module')
def mhr_run(tmp_path_factory, data, backbone_run):
  """A run of adapters over that backbone."""
  run_dir = tmp_path_factory.mktemp('runs') / 'mhr'
  return _train(
    run_dir,
    data,
    backbone_from=str(backbone_run.run_dir),
    config_text='# c',
    alignment=_ALIGNMENT,
    routing_statistics=RoutingStatisticsSettings(every=1),
  )


def _equal(a, b):
  same = jax.tree.map(lambda x, y: np.array_equal(x, y), a, b)
  return all(jax.tree.leaves(same))


def test_adapters_train_over_the_backbone_of_another_run(backbone_run, mhr_run):
  assert mhr_run.task_table.names == _TASKS
  assert mhr_run.step == 3
  assert _equal(mhr_run.params['backbone'], backbone_run.params['backbone'])
  assert np.any(
    np.asarray(mhr_run.params['adapters']['encoder']['attention']['query']['b'])
  )


def test_alignment_and_routing_are_measured_on_the_way(mhr_run):
  lines = reporting.read_metrics(mhr_run.run_dir)
  aligned = [line for line in lines if 'alignment/effective' in line]
  assert [line['step'] for line in aligned] == [2, 3]
  assert 'alignment/inventories/encoder/attention' in aligned[0]
  assert aligned[0]['alignment/tasks'] == 2
  routed = [line for line in lines if 'routing/entropy' in line]
  assert [line['step'] for line in routed] == [1, 2, 3]
  assert 0.9 < routed[0]['routing/entropy/decoder'] <= 1


def test_a_finished_run_is_measured_as_while_it_trained(mhr_run, data):
  """`mhr-jax align` after the last step finds what training logged there."""
  numbers = commands.align(
    str(mhr_run.run_dir),
    data=data,
    alignment=_ALIGNMENT,
    input_length=8,
    target_length=6,
  )
  last = reporting.read_metrics(mhr_run.run_dir)[-2]
  for name, value in numbers.items():
    assert value == pytest.approx(last[name], abs=1e-5), name
  assert gradients.load_alignment(mhr_run.run_dir) == {3: numbers}
  assert 'alignment/effective' in commands.alignment_table(numbers)


def test_a_split_to_align_on_is_looked_up_before_training(tmp_path, data):
  with pytest.raises(UserError, match="no split 'tran'.*AlignmentSettings"):
    _train(tmp_path / 'a', data, alignment=AlignmentSettings(split='tran'))


@pytest.mark.slow
def test_a_run_goes_on_from_its_t5x_checkpoint_as_by_itself(
  tmp_path, mhr_run, data
):
  there, run = tmp_path / 't5x', tmp_path / 'run'
  conversion.export(mhr_run.run_dir, there, 't5x', with_optimizer=True, say=str)
  conversion.convert(there, run, 'run', say=str)
  by_itself = shutil.copytree(mhr_run.run_dir, tmp_path / 'by_itself')
  trained = [
    _train(
      folder,
      data,
      steps=5,
      backbone_from=str(folder),
      config_change='allow',
      heldback=None,
    )
    for folder in (run, by_itself)
  ]
  assert trained[0].step == 5
  assert _equal(trained[0].params, trained[1].params)
  assert not _equal(trained[0].params, mhr_run.params)


def test_the_run_folder_explains_itself(mhr_run):
  names = {path.name for path in mhr_run.run_dir.iterdir()}
  assert names >= {
    'README.md',
    'backbone',
    'checkpoints',
    'config.gin',
    'metrics.jsonl',
    'routing.npz',
    'settings.json',
    'tasks.json',
    'vocabulary',
  }
  lines = (mhr_run.run_dir / 'metrics.jsonl').read_text().splitlines()
  metrics = [json.loads(line) for line in lines]
  assert [m['step'] for m in metrics if 'train/loss' in m] == [1, 2, 3]
  assert [m['step'] for m in metrics if 'heldback/loss' in m] == [3]


def test_the_same_call_finds_the_run_done(mhr_run, data, backbone_run):
  """Also where it was begun before some of the settings were there."""
  path = mhr_run.run_dir / train.SETTINGS_FILE
  written = json.loads(path.read_text())
  new = ('settings.anneal_steps', 'adapters.kind', 'mixture.packing')
  assert set(new) <= set(written)
  before = {key: written[key] for key in written if key not in new}
  path.write_text(json.dumps(before))
  again = _train(mhr_run.run_dir, data, backbone_from=str(backbone_run.run_dir))
  after = json.loads(path.read_text())
  assert {key: after[key] for key in new} == {key: written[key] for key in new}
  assert again.step == 3
  assert _equal(again.params['adapters'], mhr_run.params['adapters'])


def test_an_older_run_does_not_go_on_with_other_than_the_default(
  mhr_run, data, backbone_run
):
  path = mhr_run.run_dir / train.SETTINGS_FILE
  written = path.read_text()
  before = json.loads(written)
  del before['settings.anneal_steps']
  path.write_text(json.dumps(before))
  settings = TrainSettings(steps=3, anneal_steps=2)
  try:
    with pytest.raises(UserError, match='settings.anneal_steps: 0 -> 2'):
      _train(
        mhr_run.run_dir,
        data,
        settings=settings,
        backbone_from=str(backbone_run.run_dir),
      )
  finally:
    path.write_text(written)


def test_other_settings_are_refused_with_their_difference(
  mhr_run, data, backbone_run
):
  start = {'backbone_from': str(backbone_run.run_dir)}
  with pytest.raises(UserError, match='settings.steps: 3 -> 4'):
    _train(mhr_run.run_dir, data, steps=4, **start)
  changed = _train(
    mhr_run.run_dir, data, steps=3, mix_in='layer', **start
  )  # It changes no number.
  assert changed.step == 3


def test_other_tasks_under_the_same_name_are_refused(
  mhr_run, data, backbone_run, write_mixture
):
  before = (mhr_run.run_dir / 'tasks.json').read_text()
  data_dir = epath.Path(data.data_dir)
  write_mixture(data_dir, 'both', _TASKS[::-1], (1.0, 1.0))
  try:
    with pytest.raises(UserError, match='task 0 is one, now two'):
      _train(mhr_run.run_dir, data, backbone_from=str(backbone_run.run_dir))
  finally:
    write_mixture(data_dir, 'both', _TASKS, (1.0, 1.0))
  assert (mhr_run.run_dir / 'tasks.json').read_text() == before


@pytest.mark.slow
def test_mu_goes_on_with_the_averaged_adapter(tmp_path, mhr_run, data):
  averaged = _train(
    tmp_path / 'mu', data, method='mhr_mu', start_from=str(mhr_run.run_dir)
  )
  assert set(averaged.params) == {'backbone', 'adapters'}
  inventory = averaged.params['adapters']['encoder']['attention']['query']
  assert inventory['a'].shape == (1, 1, 1, 16, 1)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'method': 'mhr_z'}, 'mhr_z shares the pre-training of mhr'),
    ({'method': 'mrh'}, "Did you mean 'mhr'"),
    ({'backbone_from': '/nowhere'}, 'backbone_from: there is no folder'),
    (
      {'backbone': T5Config(16, 16, 2, 8, 16, 1, 1)},
      'The data has 359 token ids, the backbone 16',
    ),
    ({'mesh_shape': (3, 1)}, 'does not fit the'),
    (
      {'heldback': jobs.HeldBackSettings(split='dev[:9]')},
      "task 'one' has no split 'dev', only train, validation, test",
    ),
  ],
)
def test_mistakes_are_explained_before_anything_runs(
  tmp_path, data, changes, message
):
  with pytest.raises(UserError, match=message):
    _train(tmp_path / 'run', data, **changes)
  assert not (tmp_path / 'run').exists()


def test_dry_run_counts_and_decodes_and_writes_nothing(tmp_path, data, capsys):
  assert _train(tmp_path / 'run', data, mode='dry_run') is None
  text = capsys.readouterr().out
  assert not (tmp_path / 'run').exists()
  counted = RoutedT5(_BACKBONE, _ADAPTERS(n_tasks=2)).count_parameters()
  assert f'{sum(counted.values()):,}' in text
  assert 'mesh         8 data × 1 model (cpu)' in text
  assert 'epoch        5 steps; 3 steps are 0.60 epochs' in text
  assert 'task 1, two' in text
  # What trains has float32 values and AdamW's two moments.
  size = 4 * counted['backbone'] + 12 * (
    counted['adapters'] + counted['routers']
  )
  found = float(re.search(r'([0-9.]+) MiB parameters', text).group(1))
  assert found == pytest.approx(size / 2**20, abs=0.1)


def test_evaluate_writes_scores_of_known_tasks(mhr_run, data):
  found = commands.evaluate(
    str(mhr_run.run_dir),
    data=data,
    evaluation_settings=_TEXTS,
    split='test',
    input_length=8,
    target_length=6,
    batch_size=8,
  )
  assert set(found.tasks) == set(_TASKS)
  folder = mhr_run.run_dir / 'evaluations' / 'both_test'
  assert (folder / 'scores.json').exists()
  assert 'mean over tasks' in commands.score_table(found)


def _files_of(folder):
  paths = pathlib.Path(folder).rglob('*')
  return {path: path.stat().st_mtime_ns for path in paths}


def test_a_dry_run_of_evaluate_reads_no_parameters(mhr_run, data, capsys):
  def dry_run(run_dir, tasks):
    return commands.evaluate(
      str(run_dir),
      data=dataclasses.replace(data, tasks=tasks),
      evaluation_settings=_TEXTS,
      split='test',
      input_length=8,
      target_length=6,
      batch_size=8,
      mode='dry_run',
    )

  before = _files_of(mhr_run.run_dir)
  live = {id(each) for each in jax.live_arrays()}
  assert dry_run(mhr_run.run_dir, 'both') is None
  lines = capsys.readouterr().out.splitlines()
  assert lines[2:5] == [
    'tasks        2: one, two',
    "instances    10 of split 'test', 2 batches",
    'batch        8 rows × (8 + 6) tokens',
  ]
  count = sum(leaf.size for leaf in jax.tree.leaves(mhr_run.params))
  assert f'parameters   {count:,}; nothing trains' in lines
  assert lines[-1].endswith('evaluations/both_test')
  assert _files_of(mhr_run.run_dir) == before
  assert {id(each) for each in jax.live_arrays()} <= live
  with pytest.raises(UserError, match="was not trained on 'new'"):
    dry_run(mhr_run.run_dir, 'new')
  with pytest.raises(UserError, match='is not a run folder'):
    dry_run(mhr_run.run_dir / 'nowhere', 'both')


def test_evaluate_refuses_tasks_the_routing_does_not_know(mhr_run, data):
  new = TaskData(tasks='new', data_dir=data.data_dir)
  with pytest.raises(UserError, match="was not trained on 'new'"):
    commands.evaluate(
      str(mhr_run.run_dir),
      data=new,
      evaluation_settings=_TEXTS,
      split='test',
      input_length=8,
      target_length=6,
    )


def _adapt(run, data, method, *, mode='adapt', shots=4):
  return commands.adapt(
    str(run.run_dir),
    method=method,
    data=TaskData(tasks='new', data_dir=data.data_dir),
    few_shot_settings=FewShotSettings(
      input_length=8,
      target_length=6,
      shots=shots,
      seeds=(0, 1),
      steps=2,
      batch_size=4,
      test_batch_size=5,
    ),
    adaptation_settings=AdaptationSettings(),
    evaluation_settings=_TEXTS,
    mode=mode,
  )


def test_a_dry_run_of_adapt_says_what_would_train(mhr_run, data, capsys):
  before = _files_of(mhr_run.run_dir)
  assert _adapt(mhr_run, data, 'mhr_z', mode='dry_run') is None
  lines = capsys.readouterr().out.splitlines()
  assert lines[0].startswith('mhr_z: ')
  assert lines[3:8] == [
    'tasks        1: new',
    'cells        2: 1 tasks × seeds 0, 1; 2 side by side',
    "shots        4 a cell of split 'train', 0 of them held back",
    "instances    5 of split 'test', answered once a seed",
    'step         4 rows × (8 + 6) tokens; 2 steps a cell',
  ]
  # One new task's logits: two linears, two splits, two skills.
  assert lines[8].startswith('trains       8 of routers, of ')
  backbone = sum(
    leaf.nbytes for leaf in jax.tree.leaves(mhr_run.params['backbone'])
  )
  unit = {'MiB': 2**20, 'GiB': 2**30}
  size, name = re.search(r'([0-9.]+) (\wiB) parameters', lines[10]).groups()
  assert backbone < float(size) * unit[name] < 2 * backbone
  assert lines[-1].endswith('few_shot/mhr_z')
  assert _files_of(mhr_run.run_dir) == before
  with pytest.raises(UserError, match='is a run of mhr, and poly_z starts'):
    _adapt(mhr_run, data, 'poly_z', mode='dry_run')
  with pytest.raises(UserError, match="'new'.* 20"):
    _adapt(mhr_run, data, 'mhr_z', mode='dry_run', shots=21)


def test_a_run_of_another_method_is_not_gone_on_with(tmp_path, mhr_run, data):
  with pytest.raises(UserError, match='is a run of mhr, and poly_z starts'):
    _adapt(mhr_run, data, 'poly_z')
  with pytest.raises(UserError, match='is a run of mhr, and poly starts'):
    _train(
      tmp_path / 'run', data, method='poly', start_from=str(mhr_run.run_dir)
    )
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_adapt_writes_results_by_seed(mhr_run, data):
  results = _adapt(mhr_run, data, 'mhr_z')
  assert [(each.task, each.seed) for each in results] == [
    ('new', 0),
    ('new', 1),
  ]
  path = mhr_run.run_dir / 'few_shot' / 'mhr_z' / 'results.json'
  summary = json.loads(path.read_text())
  assert len(summary['exact_match']['values']) == 2
  assert 'new' in commands.adaptation_table(results)


def test_predict_equals_the_model_of_the_run(mhr_run):
  decoding = DecodingSettings(max_new_tokens=3)
  found = commands.predict(
    str(mhr_run.run_dir), ['ab', 'abcd'], task='two', decoding=decoding
  )
  run = run_folder.load_run(mhr_run.run_dir)
  tokens = np.zeros((2, 5), np.int32)
  for row, text in zip(tokens, ('ab', 'abcd'), strict=True):
    ids = [*run.vocabulary.encode(text), 1]
    row[: len(ids)] = ids
  batch = {'encoder_input_tokens': tokens, 'task_ids': np.array([1, 1])}
  generate = jax.jit(lambda *arrays: run.model.generate(*arrays, decoding))
  written = np.asarray(generate(run.params, batch))
  assert found == [
    run.vocabulary.decode(row.tolist()).strip() for row in written
  ]


@pytest.mark.parametrize(
  'task, message',
  [(None, 'Which task'), ('tow', "Did you mean 'two'"), ('7', 'out of range')],
)
def test_predict_needs_a_task_of_the_run(mhr_run, task, message):
  with pytest.raises(UserError, match=message):
    commands.predict(
      str(mhr_run.run_dir),
      ['a'],
      task=task,
      decoding=DecodingSettings(max_new_tokens=2),
    )
