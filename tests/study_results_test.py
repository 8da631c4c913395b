"""A study's numbers and files against plain NumPy, from made-up cells."""

import csv
import io
import json
from typing import Any

import numpy as np
import pytest
from scipy import stats

from mhr_jax import study_cells, study_files, study_results, study_running
from mhr_jax.analysis import study_figures, study_tables
from mhr_jax.errors import UserError
from mhr_jax.evaluation import EvaluationSettings
from mhr_jax.study_cells import Cells, CellScores
from mhr_jax.study_settings import FewShot, Study
from mhr_jax.t5.decoding import DecodingSettings

METHODS = ('lora', 'mhr', 'mhr_z')
SEEDS = (0, 1, 2)
TASKS = ('rte_a', 'rte_b', 'cb_a', 'alone')
DATASETS = {'rte_a': 'rte', 'rte_b': 'rte', 'cb_a': 'cb'}
CLAIM = 'finer | better'
_NOTHING: Any = None


def make_study(**changes) -> Study:
  """Returns settings with all that decides results, and nothing to run."""
  draws = changes.pop('draws', ())
  values = {
    'suite': 'made up',
    'methods': METHODS,
    'seeds': SEEDS,
    'few_shot': FewShot(
      data=_NOTHING,
      settings=_NOTHING,
      adaptation=dict.fromkeys(METHODS, _NOTHING),
      draws=draws,
    ),
    'evaluation': EvaluationSettings(
      decoding=DecodingSettings(max_new_tokens=3)
    ),
    'metric': 'rouge_l',
    'comparisons': {
      CLAIM: ('mhr', 'lora', 'few_shot'),
      'aligned': ('mhr', 'lora', 'alignment/effective/last'),
      'of a method left out': ('poly', 'mhr', 'few_shot'),
    },
    **changes,
  }
  rest = (
    'backbone',
    'adapters',
    'backbone_training',
    'multi_task',
    'average',
    'multi_task_test',
    'zero_shot_test',
  )
  return Study(**dict.fromkeys(rest, _NOTHING), **values)


def make_cells(folder, study, *, draws=()) -> tuple[Cells, dict]:
  """Returns cells of random scores, and `scores[method][seed][draw][task]`."""
  rng = np.random.default_rng(0)
  cells = Cells(folder)
  scores: dict = {}
  for method in ('untrained', *METHODS):
    for seed in study.seeds:
      of_draws = {
        draw: dict(zip(TASKS, rng.uniform(0, 100, 4).tolist(), strict=True))
        for draw in draws or (seed,)
      }
      scores.setdefault(method, {})[seed] = of_draws
      cells.run(
        (method, 'few_shot', seed), lambda of=of_draws: few_shot_cell(of)
      )
      if method in ('lora', 'mhr'):
        numbers = {'effective/last': 0.1 * seed + (method == 'mhr') * 0.5}
        cells.run_alignment(method, seed, lambda numbers=numbers: numbers)
  for phase in ('multi_task', 'zero_shot'):
    cells.run(
      ('untrained', phase, study.seeds[0]), lambda: CellScores(1.0, {'t': 1.0})
    )
  return cells, scores


def few_shot_cell(scores) -> CellScores:
  """Tasks have 1, 2, 3 … instances."""
  parts = [
    {
      'draw': draw,
      'tasks': {
        task: {
          'rouge_l': score,
          'exact_match': score / 2,
          'instances': 1 + index,
        }
      },
      'trainable_parameters': 7,
    }
    for draw, of in scores.items()
    for index, (task, score) in enumerate(of.items())
  ]
  return CellScores.of_parts(parts, 'rouge_l', DATASETS)


def grid(scores, method) -> np.ndarray:
  """[seed, task], means over draws."""
  return np.array(
    [
      np.mean([list(of.values()) for of in draws.values()], axis=0)
      for draws in scores[method].values()
    ]
  )


def test_means_over_instances_tasks_and_categories(tmp_path):
  expected = {
    'instances': lambda x: x @ np.array([1, 2, 3, 4]) / 10,
    'tasks': lambda x: x.mean(axis=1),
    'categories': lambda x: (x[:, :2].mean(1) + x[:, 2] + x[:, 3]) / 3,
  }
  for name, mean_over in expected.items():
    study = make_study(mean_over=name)
    cells, scores = make_cells(tmp_path / name, study)
    found = study_results.to_results(study, cells)['methods']['mhr']['few_shot']
    values = mean_over(grid(scores, 'mhr'))
    np.testing.assert_allclose(found['values'], values)
    assert found['median'] == pytest.approx(np.median(values))
    interval = stats.t.interval(
      0.95, 2, loc=values.mean(), scale=stats.sem(values)
    )
    assert found['interval'] == pytest.approx(interval)
    assert found['values_over'] == 'seeds'
    assert found['others']['exact_match']['mean_over_tasks'] == pytest.approx(
      grid(scores, 'mhr').mean() / 2
    )


def test_the_authors_aggregate_is_a_median_then_a_mean(tmp_path):
  study = make_study()
  cells, scores = make_cells(tmp_path, study)
  found = study_results.to_results(study, cells)['methods']['lora']['few_shot']
  x = grid(scores, 'lora')
  by_dataset = np.stack([x[:, :2].mean(axis=1), x[:, 2], x[:, 3]], axis=1)
  medians = np.median(by_dataset, axis=0)
  protocol = found['median_then_mean']
  assert list(protocol['medians']) == ['rte', 'cb', 'alone']
  assert protocol['mean'] == pytest.approx(medians.mean())
  assert protocol['sd'] == pytest.approx(medians.std(ddof=1))
  assert found['categories']['rte'] == pytest.approx(x[:, :2].mean())


def test_one_pre_training_with_several_draws_is_summarised_over_them(tmp_path):
  draws = (32, 42, 1024, 0)
  study = make_study(seeds=(5,), draws=draws, mean_over='tasks')
  cells, scores = make_cells(tmp_path, study, draws=draws)
  results = study_results.to_results(study, cells)
  found = results['methods']['mhr']['few_shot']
  expected = [np.mean(list(of.values())) for of in scores['mhr'][5].values()]
  assert found['values_over'] == 'draws'
  np.testing.assert_allclose(found['values'], expected)
  (claim,) = [c for c in results['comparisons'] if c['phase'] == 'few_shot']
  assert claim['over_seeds']['pairs'] == 4
  assert claim['over_seeds_and_tasks']['pairs'] == 16


def test_a_claim_is_compared_in_pairs(tmp_path):
  study = make_study(mean_over='tasks')
  cells, scores = make_cells(tmp_path, study)
  few_shot, aligned = study_results.to_results(study, cells)['comparisons']
  difference = grid(scores, 'mhr') - grid(scores, 'lora')
  over_seeds = difference.mean(axis=1)
  found = few_shot['over_seeds']
  assert few_shot['claim'] == CLAIM
  assert found['mean'] == pytest.approx(over_seeds.mean())
  assert found['wins'] == (over_seeds > 0).sum()
  assert found['t'] == pytest.approx(
    stats.ttest_1samp(over_seeds, 0).confidence_interval()
  )
  found = few_shot['over_seeds_and_tasks']
  assert (found['pairs'], found['wins']) == (12, (difference > 0).sum())
  assert found['mean'] == pytest.approx(difference.mean())
  assert aligned['over_seeds']['mean'] == pytest.approx(0.5)
  assert aligned['over_seeds_and_tasks'] is None


def test_a_seed_without_a_number_is_left_out_of_the_pairs(tmp_path):
  study = make_study()
  cells, _ = make_cells(tmp_path, study)
  cells.alignment['mhr', 1] = {}
  results = study_results.to_results(study, cells)
  aligned = results['comparisons'][1]
  assert (aligned['claim'], aligned['over_seeds']['pairs']) == ('aligned', 2)
  assert aligned['over_seeds']['mean'] == pytest.approx(0.5)


def test_claims_that_nothing_was_measured_for_are_named(tmp_path):
  claims = {'none': ('mhr_z', 'lora', 'alignment/effective/last')}
  study = make_study(comparisons=claims)
  cells, _ = make_cells(tmp_path, study)
  results = study_results.to_results(study, cells)
  assert (results['comparisons'], results['untested']) == ([], ['none'])


@pytest.mark.parametrize(
  ('metric', 'score'), [('own_metric', 50.0), ('rouge_l', 90.0)]
)
def test_metrics_of_whole_tasks_count_by_task(metric, score):
  tasks = {
    'large': {metric: 100.0, 'instances': 90},
    'small': {metric: 0.0, 'instances': 10},
  }
  part = {'draw': 0, 'tasks': tasks, 'trainable_parameters': 1}
  cell = CellScores.of_parts([part], metric, {})
  assert cell.score == pytest.approx(score)
  assert cell.tasks == {'large': 100.0, 'small': 0.0}


def test_without_claims_all_pairs_of_methods_are_compared(tmp_path):
  study = make_study(comparisons='all')
  cells, _ = make_cells(tmp_path, study)
  found = study_results.to_results(study, cells)['comparisons']
  assert [(c['left'], c['right']) for c in found] == [
    ('mhr', 'lora'),
    ('mhr_z', 'lora'),
    ('mhr_z', 'mhr'),
    ('mhr', 'lora'),
  ]
  assert found[-1]['phase'] == 'alignment/effective/last'


def test_a_pre_training_that_is_no_method_has_a_row_of_its_own(tmp_path):
  study = make_study(methods=('lora', 'mhr_z'), comparisons='all')
  cells, _ = make_cells(tmp_path, study)
  cells.run(('mhr', 'multi_task', 0), lambda: CellScores(9.0, {'t': 9.0}))
  rows = study_results.to_results(study, cells)['methods']
  assert list(rows) == ['lora', 'mhr', 'mhr_z']
  assert rows['mhr']['multi_task']['values'] == [9.0]


def test_the_csv_holds_every_number_once(tmp_path):
  study = make_study(seeds=(0, 1), draws=(8, 9))
  cells, scores = make_cells(tmp_path, study, draws=(8, 9))
  rows = list(csv.DictReader(io.StringIO(study_files.to_csv(study, cells))))
  keys = [tuple(row.values())[:-1] for row in rows]
  assert len(set(keys)) == len(keys)
  found = dict(zip(keys, (float(row['value']) for row in rows), strict=True))
  for draw in (8, 9):
    value = scores['mhr'][1][draw]['cb_a']
    key = ('mhr', 'few_shot', '1', str(draw), 'cb_a')
    assert found[*key, 'rouge_l'] == value
    assert found[*key, 'exact_match'] == value / 2
  means = [scores['mhr'][1][draw]['cb_a'] for draw in (8, 9)]
  assert found['mhr', 'few_shot', '1', '', 'cb_a', 'rouge_l'] == np.mean(means)
  assert found['mhr', 'few_shot', '1', '', '', 'trainable_parameters'] == 7
  assert found['mhr', 'alignment', '1', '', '', 'effective/last'] == 0.6


def test_markdown_and_figures_say_what_the_results_say(tmp_path):
  study = make_study()
  cells, _ = make_cells(tmp_path, study)
  results = study_results.to_results(study, cells)
  paths = study_files.write_results(tmp_path, results, study, cells)
  assert json.loads(paths[0].read_text()) == results
  text = paths[2].read_text()
  claims = text.partition('## Claims')[2].partition('\n## ')[0]
  (row,) = [x for x in claims.splitlines() if 'finer \\| better' in x]
  cells_of_row = [x.strip() for x in row.replace('\\|', '/').split('|')[1:-1]]
  found = results['comparisons'][0]
  assert cells_of_row[2] == 'mhr − lora'
  assert cells_of_row[3] == f'{found["over_seeds"]["mean"]:+.1f}'
  assert cells_of_row[6] == f'{found["over_seeds"]["wins"]}/3'
  assert cells_of_row[-1] == study_tables.verdict(found)
  assert text.index('## Scores') < text.index('## Claims')
  names = {path.name for path in (tmp_path / 'figures').iterdir()}
  assert {'scores_by_method.svg', 'paired_differences.png'} <= names
  svg = study_figures.study_figures(results)[1].svg
  assert 'mhr − lora, few-shot' in svg


@pytest.mark.parametrize(
  't, expected',
  [
    ((0.1, 2.0), 'mhr higher'),
    ((-2.0, -0.1), 'lora higher'),
    ((-0.1, 2.0), 'undecided'),
    ((None, None), 'one pair: no interval'),
  ],
)
def test_a_verdict_is_that_of_the_interval(t, expected):
  one = {'left': 'mhr', 'right': 'lora', 'over_seeds': {'t': t}}
  assert study_tables.verdict(one) == expected


def test_cells_and_parts_are_run_once(tmp_path):
  key = ('mhr, shuffled task ids', 'few_shot', 3)
  calls = []

  def part():
    calls.append('part')
    return [{'task': 'a'}]

  def cell():
    calls.append('cell')
    return CellScores(2.0, {'a': 2.0})

  for _ in range(2):
    cells = Cells(tmp_path)
    assert cells.run_part(key, 0, part) == [{'task': 'a'}]
    cells.run(key, cell)
    assert cells.scores[key] == CellScores(2.0, {'a': 2.0})
  assert calls == ['part', 'cell']
  name = 'mhr-shuffled_task_ids-few_shot-seed3'
  assert study_cells.cell_name(key) == name
  assert (tmp_path / 'cells' / f'{name}.json').exists()


def test_alignment_is_read_from_the_metrics_of_a_run(tmp_path):
  lines = [
    {'step': 0, 'alignment/effective': None, 'train/loss': 1.0},
    {'step': 10, 'alignment/effective': 0.25},
    {'step': 20, 'alignment/effective': 0.5, 'alignment/inventories/a': 1.0},
  ]
  text = ''.join(f'{json.dumps(line)}\n' for line in lines)
  (tmp_path / 'metrics.jsonl').write_text(text)
  assert study_running.alignment_of(tmp_path) == {
    'effective/last': 0.5,
    'effective/mean': 0.375,
    'inventories/a/last': 1.0,
    'inventories/a/mean': 1.0,
  }


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'methods': ('lora', 'poly')}, "says nothing of 'poly'"),
    ({'metric': 'accuracy'}, "reports 'accuracy'"),
    ({'mean_over': 'task'}, "is 'task'; one of .*'categories'"),
    ({'comparisons': 'some'}, "not 'some'"),
    ({'comparisons': {'c': ('mhr', 'lora')}}, 'left, right, phase'),
    ({'comparisons': {'c': ('mhr', 'lorra', 'few_shot')}}, "'lora'"),
    ({'comparisons': {'c': ('mhr', 'lora', 'fewshot')}}, "'few_shot'"),
  ],
)
def test_a_mistake_in_the_settings_is_an_error(changes, message):
  with pytest.raises(UserError, match=message):
    make_study(**changes)
