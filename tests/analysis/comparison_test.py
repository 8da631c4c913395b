"""Several runs in one report: what differs, scores side by side, curves."""

import re

import pytest

from mhr_jax import cli, run_files
from mhr_jax.analysis import comparison, report
from mhr_jax.errors import UserError
import run_folders


@pytest.fixture
def runs(tmp_path):
  """Two runs that differ in rank and steps, with scores."""
  for name, rank in (('first', '1'), ('second', '4')):
    folder = tmp_path / name / 'seed0'
    run_folders.write_run(folder, rank=rank, seed='0')
  run_folders.write_scores(
    tmp_path / 'first' / 'seed0' / 'evaluations' / 'test', a=40.0, b=60.0
  )
  run_folders.write_scores(
    tmp_path / 'second' / 'seed0' / 'evaluations' / 'test', a=80.0, c=70.0
  )
  return [tmp_path / 'first' / 'seed0', tmp_path / 'second' / 'seed0']


def test_only_settings_that_differ_are_shown(runs):
  (table,) = comparison.differences(comparison.read_compared(runs))
  assert table.header == ('setting', 'first/seed0', 'second/seed0')
  assert table.rows == [['rank', '1', '4']]


def test_equal_runs_differ_in_nothing(tmp_path):
  for name in ('a', 'b'):
    run_folders.write_run(tmp_path / name)
  compared = comparison.read_compared([tmp_path / 'a', tmp_path / 'b'])
  (table,) = comparison.differences(compared)
  assert table.title == 'No setting differs' and not table.rows


def test_scores_stand_side_by_side(runs):
  overall, by_task = comparison.scores(comparison.read_compared(runs))
  assert overall.header == ('score', 'first/seed0', 'second/seed0')
  assert overall.rows == [['test: exact match', '50.0', '75.0']]
  assert by_task.header == ('task', 'first/seed0', 'second/seed0')
  assert by_task.rows == [
    ['a', '40.0', '80.0'],
    ['b', '60.0', '–'],
    ['c', '–', '70.0'],
  ]


def test_curves_lie_over_each_other(runs, tmp_path):
  text = report.write_comparison(runs, output=tmp_path / 'x.html').read_text()
  figure = re.search(
    r'Learning curves: first/seed0, second/seed0.*?</figure>', text, re.DOTALL
  )
  assert figure is not None
  # One panel of the loss, its legend naming both runs.
  assert figure[0].count('>loss</text>') == 1
  for run in ('first/seed0', 'second/seed0'):
    assert f'>{run}</text>' in figure[0]


def test_a_study_and_a_run(runs, tmp_path):
  study = tmp_path / 'study'
  for seed in range(2):
    run_folders.write_run(study / 'mhr' / f'seed{seed}', rank='8')
    run_folders.write_scores(study / 'mhr' / f'seed{seed}', a=10.0 * seed)
  cell = {'mean': 5.0, 'values': [4.0, 6.0]}
  results = {'methods': {'mhr': {'few_shot': cell}}}
  run_files.write_json(study / run_files.RESULTS_FILE, results)
  compared = comparison.read_compared([runs[0], study])
  (table,) = comparison.differences(compared)
  # The seeds of a study's method are one column.
  assert table.header == ('setting', 'seed0', 'study/mhr')
  overall, of_study = comparison.scores(compared)
  assert overall.rows == [
    ['test: exact match', '50.0', '–'],
    ['exact match', '–', '5.0'],
  ]
  assert of_study.title.startswith('study: Scores by')


def test_labels_are_the_shortest_ends_that_differ(tmp_path):
  assert comparison.label_folders(['x/a', 'x/b']) == ['a', 'b']
  assert comparison.label_folders(['x/a/0', 'x/b/0', 'x/b/1']) == [
    'a/0',
    'b/0',
    'b/1',
  ]
  (tmp_path / 'empty').mkdir()
  with pytest.raises(UserError, match='named twice'):
    comparison.label_folders(['a', 'b', 'a'])
  with pytest.raises(UserError, match='empty holds no run'):
    comparison.read_compared([tmp_path / 'empty', tmp_path])


def test_the_command(runs, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert cli.main(['report', *map(str, runs)]) == 0
  assert capsys.readouterr().out.strip() == 'comparison.html'
  assert 'Settings that differ' in (tmp_path / 'comparison.html').read_text()
