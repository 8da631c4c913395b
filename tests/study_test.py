"""A study's cells, and what it does when it is started again, or killed."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from mhr_jax import study as study_lib
from mhr_jax import study_results
from mhr_jax.errors import UserError
import toy_study

pytestmark = pytest.mark.slow

SEEDS = toy_study.SEEDS


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  """Prepared data: two tasks to train on, three unseen ones."""
  folder = tmp_path_factory.mktemp('data')
  toy_study.write_data(folder)
  return folder


@pytest.fixture(scope='module')
def finished(data_dir, tmp_path_factory):
  """The folder of a finished study, and its results."""
  folder = tmp_path_factory.mktemp('study')
  results = study_lib.study(
    str(folder), settings=toy_study.make_settings(data_dir)
  )
  return folder, results


def test_every_cell_is_a_number_or_undefined(finished):
  folder, results = finished
  assert json.loads((folder / 'results.json').read_text()) == json.loads(
    json.dumps(results)
  )
  assert results['suite'] == 'toy' and results['seeds'] == list(SEEDS)
  assert results['baselines']['copy']['few_shot']['mean'] == 3.0
  rows = results['methods']
  assert list(rows) == [
    'lora',
    'mhr',
    'mhr, shuffled task ids',
    'mhr_z',
    'mhr_mu',
    'mhr_rand',
  ]
  defined = {
    row: [phase for phase in study_results.PHASES if cells[phase] is not None]
    for row, cells in rows.items()
  }
  everything = ['multi_task', 'zero_shot', 'few_shot']
  assert defined == {
    'lora': everything,
    'mhr': everything,
    'mhr, shuffled task ids': ['multi_task'],
    'mhr_z': ['few_shot'],
    'mhr_mu': ['zero_shot', 'few_shot'],
    'mhr_rand': ['few_shot'],
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
    'mhr_rand': 3 * adapter + row_of_routing,
  }


def test_means_follow_from_the_written_scores(finished):
  folder, results = finished
  values = results['methods']['mhr']['few_shot']['values']
  for seed, value in zip(SEEDS, values, strict=True):
    scores = [
      json.loads(line)['exact_match']
      for path in (folder / 'few_shot' / 'mhr').rglob('predictions.jsonl')
      if f'seed{seed}' in str(path)
      for line in path.read_text().splitlines()
    ]
    assert len(scores) == 21 and 0 < np.mean(scores) < 100
    np.testing.assert_allclose(value, np.mean(scores), rtol=1e-6)


def test_a_study_started_again_does_what_is_missing(finished, data_dir):
  folder, results = finished
  cell = folder / 'cells' / 'mhr_z-few_shot-seed4.json'
  before = cell.read_text()
  others = {p: p.stat().st_mtime_ns for p in folder.rglob('cells/*')}
  cell.unlink()
  settings = toy_study.make_settings(data_dir)
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
  settings = toy_study.make_settings(data_dir)
  with pytest.raises(UserError, match="says nothing of 'poly'"):
    dataclasses.replace(settings, methods=('lora', 'poly'))


def test_cells_of_other_settings_are_not_taken_for_these(finished, data_dir):
  settings = toy_study.make_settings(data_dir)
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


def test_alignment_is_what_the_trainings_logged(finished):
  folder, results = finished
  lines = [
    json.loads(line)
    for line in (folder / 'mhr/seed4/metrics.jsonl').read_text().splitlines()
  ]
  logged = [
    x['alignment/effective'] for x in lines if 'alignment/effective' in x
  ]
  assert len(logged) == 2
  found = results['methods']['mhr']['alignment']
  assert found['effective/last']['values'][1] == logged[-1]
  assert found['effective/mean']['values'][1] == pytest.approx(np.mean(logged))
  assert 'alignment' not in results['methods']['mhr_z']


def test_a_first_seed_of_another_backbone_is_an_error(finished, data_dir):
  settings = toy_study.make_settings(data_dir)
  with pytest.raises(UserError, match=r'seeds\[0\]: 3 -> 4'):
    study_lib.run_study(finished[0], dataclasses.replace(settings, seeds=(4,)))


def _files(folder: pathlib.Path) -> dict[str, bytes]:
  """All numbers of a study, but for paths and times."""
  names = ('results.*', 'cells/**/*.json', 'few_shot/**/*.json*')
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for name in names
    for path in folder.glob(name)
  }


def _start(data_dir: pathlib.Path, folder: pathlib.Path) -> subprocess.Popen:
  """Starts a study; all starts share what they compiled."""
  return subprocess.Popen(
    [sys.executable, toy_study.__file__, str(data_dir), str(folder)],
    stdout=subprocess.DEVNULL,
    env={
      **os.environ,
      'JAX_COMPILATION_CACHE_DIR': str(folder.parent / 'compiled'),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    },
  )


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_a_killed_study_goes_on_to_the_same_results(data_dir, tmp_path):
  """Kills the process wherever it is when one more of these files is there."""
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  assert _start(data_dir, whole).wait() == 0
  kills = 0
  for sight in (
    'backbone/seed3/checkpoints/*',
    'mhr/seed3/metrics.jsonl',
    'cells/mhr-few_shot-seed3/part0.json',
    'mhr_mu/seed3/metrics.jsonl',
    'cells/lora-multi_task-seed4.json',
  ):
    process = _start(data_dir, killed)
    while process.poll() is None and not list(killed.glob(sight)):
      time.sleep(0.02)
    if process.poll() is None:
      process.kill()
      kills += 1
    process.wait()
  done = {p: p.stat().st_mtime_ns for p in killed.rglob('cells/**/*.json')}
  assert kills == 5 and 5 < len(done) < 30
  assert _start(data_dir, killed).wait() == 0
  assert {p: p.stat().st_mtime_ns for p in done} == done  # None run again.
  assert _files(killed) == _files(whole)
