"""A study's cells, table and what it does when it is started again."""

import dataclasses
import functools
import json

import numpy as np
import pytest

from mhr_jax import study as study_lib, study_results
from mhr_jax.adaptation import AdaptationSettings
from mhr_jax.adapters import AdapterConfig
from mhr_jax.data.mixture_settings import MixtureSettings
from mhr_jax.errors import UserError
from mhr_jax.evaluation import EvaluationSettings
from mhr_jax.few_shot import FewShotSettings
from mhr_jax.optim import OptimizerSettings
from mhr_jax.t5.decoding import DecodingSettings
from mhr_jax.task_data import TaskData
from mhr_jax.trainer import TrainSettings
import toy_text

pytestmark = pytest.mark.slow

TRAINING, UNSEEN = ('old_a', 'old_b'), ('new_a', 'new_b')
WIDTHS = {'input_length': 10, 'target_length': 6}
METHODS = ('lora', 'mhr', 'mhr_z', 'mhr_mu')


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory, write_task):
  """Prepared data: random strings, two tasks of each kind."""
  folder = tmp_path_factory.mktemp('data')
  for i, name in enumerate(TRAINING):
    write_task(folder, name, seed=i, train=20, test=3 + i)
  for i, name in enumerate(UNSEEN):
    write_task(folder, name, seed=i, few_shot=8, test=3 + i)
  return folder


def make_settings(data_dir) -> study_lib.Study:
  """Returns a study of a few steps."""

  def training(tasks, steps):
    return study_lib.Training(
      data=TaskData(tasks, data_dir=str(data_dir)),
      mixture=MixtureSettings(batch_size=8, **WIDTHS),
      settings=TrainSettings(steps=steps),
      optimizer=OptimizerSettings(),
    )

  def test_set(tasks):
    data = TaskData(tasks, data_dir=str(data_dir))
    return study_lib.TestSet(data=data, batch_size=4, **WIDTHS)

  adaptation = AdaptationSettings(optimizer=OptimizerSettings())
  targets = toy_text.ADAPTERS.targets
  return study_lib.Study(
    suite='toy',
    methods=METHODS,
    seeds=(3, 4),
    backbone=dataclasses.replace(toy_text.CONFIG, vocab_size=384),
    adapters=functools.partial(
      AdapterConfig, n_skills=3, n_splits=2, rank=2, targets=targets
    ),
    backbone_training=training(TRAINING, 2),
    multi_task=training(TRAINING, 3),
    average=training(TRAINING, 1),
    multi_task_test=test_set(TRAINING),
    zero_shot_test=test_set(UNSEEN),
    few_shot=study_lib.FewShot(
      data=TaskData(UNSEEN, data_dir=str(data_dir)),
      settings=FewShotSettings(shots=4, steps=2, batch_size=4, **WIDTHS),
      adaptation=dict.fromkeys(METHODS, adaptation),
    ),
    evaluation=EvaluationSettings(
      decoding=DecodingSettings(max_new_tokens=6), metrics=('rouge_l',)
    ),
    metric='rouge_l',
    baselines={'copy': {'few_shot': {'new_a': 1.0, 'new_b': 3.0}}},
  )


@pytest.fixture(scope='module')
def finished(data_dir, tmp_path_factory):
  """The folder of a finished study, and its results."""
  folder = tmp_path_factory.mktemp('study')
  results = study_lib.study(str(folder), settings=make_settings(data_dir))
  return folder, results


def test_every_cell_is_a_number_or_undefined(finished):
  folder, results = finished
  assert json.loads((folder / 'results.json').read_text()) == json.loads(
    json.dumps(results)
  )
  assert results['suite'] == 'toy' and results['seeds'] == [3, 4]
  assert results['baselines']['copy']['few_shot']['mean'] == 2.0
  rows = results['methods']
  assert list(rows) == [
    'lora',
    'mhr',
    'mhr, shuffled task ids',
    'mhr_z',
    'mhr_mu',
  ]
  defined = {
    row: [phase for phase in cells if isinstance(cells[phase], dict)]
    for row, cells in rows.items()
  }
  everything = ['multi_task', 'zero_shot', 'few_shot']
  assert defined == {
    'lora': everything,
    'mhr': everything,
    'mhr, shuffled task ids': ['multi_task'],
    'mhr_z': ['few_shot'],
    'mhr_mu': ['zero_shot', 'few_shot'],
  }


def test_trainable_parameters_are_those_of_adaptation(finished):
  rows = finished[1]['methods']
  # Three linears of one layer: 16 → 16 twice, and 16 → 16 again (mlp).
  adapter = 3 * 2 * (16 + 16)
  row_of_routing = 3 * 2 * 3
  counts = {name: row['trainable_parameters'] for name, row in rows.items()}
  assert counts == {
    'lora': adapter,
    'mhr': 3 * adapter + row_of_routing,
    'mhr, shuffled task ids': None,
    'mhr_z': row_of_routing,
    'mhr_mu': adapter,
  }


def test_means_follow_from_the_written_scores(finished):
  folder, results = finished
  values = results['methods']['mhr']['few_shot']['values']
  for seed, value in zip((3, 4), values, strict=True):
    scores = [
      json.loads(line)['rouge_l']
      for path in (folder / 'few_shot' / 'mhr').rglob('predictions.jsonl')
      if f'seed{seed}' in str(path)
      for line in path.read_text().splitlines()
    ]
    assert len(scores) == 7
    np.testing.assert_allclose(value, np.mean(scores), rtol=1e-6)


def test_a_study_started_again_does_what_is_missing(finished, data_dir):
  folder, results = finished
  cell = folder / 'cells' / 'mhr_z-few_shot-seed4.json'
  before = cell.read_text()
  others = {p: p.stat().st_mtime_ns for p in folder.rglob('cells/*')}
  cell.unlink()
  settings = make_settings(data_dir)
  again = study_lib.run_study(folder, settings)
  assert cell.read_text() == before
  assert study_results.to_results(settings, again) == results
  changed = [p for p, t in others.items() if p.stat().st_mtime_ns != t]
  assert changed == [cell]


def test_the_report_names_all_rows(finished):
  page = (finished[0] / 'report.html').read_text()
  for text in ('mhr, shuffled task ids', 'copy', 'toy'):
    assert text in page


def test_a_method_without_adaptation_is_an_error(data_dir):
  settings = make_settings(data_dir)
  with pytest.raises(UserError, match="says nothing of 'poly'"):
    dataclasses.replace(settings, methods=('lora', 'poly'))


def test_cells_of_other_settings_are_not_taken_for_these(finished, data_dir):
  settings = make_settings(data_dir)
  few = dataclasses.replace(
    settings.few_shot,
    settings=dataclasses.replace(settings.few_shot.settings, shots=5),
  )
  with pytest.raises(UserError, match='shots'):
    study_lib.run_study(
      finished[0], dataclasses.replace(settings, few_shot=few)
    )


def test_right_ids_are_compared_with_shuffled_ones_by_seed(finished):
  rows = finished[1]['methods']
  right = rows['mhr']['multi_task']
  shuffled = rows['mhr, shuffled task ids']['multi_task']
  difference = np.subtract(right['values'], shuffled['values']).mean()
  assert right['over_shuffled']['mean'] == pytest.approx(difference)
