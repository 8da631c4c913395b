"""The report is one file, holds the right numbers and escapes every text."""

import base64
import hashlib
import html.parser
import importlib.resources
import json
import re

import numpy as np
import pytest

from mhr_jax import run_files
from mhr_jax.analysis import figures, report, report_tables, routing
from mhr_jax.errors import UserError
from mhr_jax.task_table import TaskTable
import run_folders

_ANALYSIS = importlib.resources.files('mhr_jax.analysis')
HOSTILE = '<script>alert(1)</script>&"\'$\\frac$'

RESULTS = {
  'suite': 'skills',
  'seeds': [0, 1, 2],
  'untrained': 0.25,
  'methods': {
    'mhr': {
      'trainable_parameters': 12_345,
      'multi_task': {'mean': 96.0, 'values': [95.0, 96.0, 97.0]},
      'zero_shot': {'mean': 11.0, 'values': [11.0]},
      'few_shot': {
        'mean': 70.0,
        'values': [60.0, 70.0, 80.0],
        'tasks': {'new_a': 50.0, 'new_b': 90.0},
      },
    },
    'mhr_z': {
      'trainable_parameters': 64,
      'multi_task': None,
      'zero_shot': None,
      'few_shot': {'mean': 65.0, 'values': [64.0, 65.0, 66.0]},
    },
  },
}


class _Page(html.parser.HTMLParser):
  """Collects tags, attributes and the cells of the tables."""

  def __init__(self, text: str):
    super().__init__()
    self.tags: list[str] = []
    self.attributes: list[tuple[str, str | None]] = []
    self.rows: list[list[str]] = []
    self._in_cell = False
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += attrs
    if tag == 'tr':
      self.rows.append([])
    if tag in ('td', 'th'):
      self.rows[-1].append('')
      self._in_cell = True
    if tag == 'small' and self._in_cell:
      self.rows[-1][-1] += '\n'

  def handle_endtag(self, tag):
    if tag in ('td', 'th'):
      self._in_cell = False

  def handle_data(self, data):
    if self._in_cell:
      self.rows[-1][-1] += data

  def row(self, name: str) -> list[str]:
    return next(row for row in self.rows if row and row[0].strip() == name)


def test_study_shows_means_spread_and_values(tmp_path):
  run_files.write_json(tmp_path / 'results.json', RESULTS)
  page = _Page(report.write_report(tmp_path).read_text())
  mhr = page.row('mhr')
  assert mhr[1] == '12,345'
  assert mhr[2] == '96.0 ± 1.0 [93.5, 98.5]\n95.0  96.0  97.0'
  assert mhr[3] == '11.0'
  assert page.row('mhr_z')[2:4] == ['–', '–']
  assert page.row('untrained')[2:] == ['0.25'] * 3
  assert page.row('new_b') == ['new_b', '90.0']


def test_untrained_by_phase_and_baselines():
  results = RESULTS | {
    'untrained_by_phase': {
      'multi_task': {'mean': 0.5, 'tasks': {}},
      'few_shot': {'mean': 1.5, 'tasks': {'new_a': 1.0, 'new_b': 2.0}},
    },
    'baselines': {
      'copy the input': {
        'few_shot': {'mean': 34.1, 'tasks': {'new_a': 30, 'new_b': 38.2}}
      },
      'published': {'zero_shot': 50.0},
    },
  }
  page = _Page(report.render_report('x', [], results=results))
  assert page.row('untrained')[2:] == ['0.50', '–', '1.5']
  assert page.row('copy the input')[4] == '34.1'
  assert page.row('published')[2:] == ['–', '50.0', '–']
  assert page.row('task') == ['task', 'untrained', 'copy the input', 'mhr']
  assert page.row('new_b') == ['new_b', '2.0', '38.2', '90.0']


def test_gain_with_its_interval():
  results = json.loads(json.dumps(RESULTS))
  mhr = results['methods']['mhr']
  mhr['few_shot']['gain'] = {'mean': 12.34, 'interval': [-1.0, 25.0]}
  mhr['zero_shot']['gain'] = {'mean': 3.0, 'interval': [None, None]}
  page = _Page(report.render_report('x', [], results=results))
  rows = [row for row in page.rows if row and row[0] == 'mhr']
  assert rows[1] == ['mhr', '–', '+3.0', '+12.3 [-1.0, +25.0]']


def test_a_single_run_has_curves_routing_parameters_and_configuration(
  tmp_path,
):
  run_folders.write_run(tmp_path)
  scores = {
    'overall': {'instances': 4, 'rouge_l': 50.0},
    'mean_over_tasks': {'rouge_l': 40.0},
    'tasks': {'plain one': {'instances': 4, 'rouge_l': 50.0}},
  }
  run_files.write_json(tmp_path / 'few_shot' / run_files.SCORES_FILE, scores)
  text = report.write_report(tmp_path).read_text()
  page = _Page(text)
  for section in ('scores', 'curves', 'routing', 'parameters', 'configuration'):
    assert ('id', section) in page.attributes
  assert page.tags.count('svg') == 4
  assert page.row('plain one') == ['plain one', '4', '50.0']
  assert page.row('mean over tasks')[2] == '40.0'
  assert page.row('adapters/plain')[1:] == ['100', '100.00%', 'float32', 'yes']


def test_a_study_finds_its_runs_in_subfolders(tmp_path):
  for seed in range(2):
    run_folders.write_run(tmp_path / 'mhr' / f'seed{seed}')
  run_folders.write_run(
    tmp_path / 'backbone' / 'seed0', method='full', trains='backbone'
  )
  run_files.write_json(tmp_path / 'results.json', RESULTS)
  text = report.write_report(tmp_path).read_text()
  assert 'Learning curves: mhr' in text
  assert 'Learning curves: backbone' in text
  assert 'Routing of mhr/seed0' in text
  assert 'Routing of mhr/seed1' not in text


def test_nothing_in_it_comes_from_elsewhere(tmp_path):
  run_folders.write_run(tmp_path)
  page = _Page(report.write_report(tmp_path).read_text())
  assert not {'link', 'iframe', 'object'} & set(page.tags)
  for name, value in page.attributes:
    if name in ('src', 'href', 'xlink:href'):
      assert value.startswith(('#', 'data:')), value


def test_the_only_script_is_the_one_that_the_policy_names(tmp_path):
  text = report.write_report(tmp_path).read_text()
  scripts = re.findall(r'<script>(.*?)</script>', text, re.DOTALL)
  assert scripts == [(_ANALYSIS / 'report.js').read_text()]
  digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest())
  policy = dict(_Page(text).attributes)['content']
  assert policy is not None and policy.startswith("default-src 'none';")
  assert f"script-src 'sha256-{digest.decode()}'" in policy


def test_figures_as_files(tmp_path):
  run_folders.write_run(tmp_path)
  report.write_report(tmp_path, figures_folder=tmp_path / 'figures')
  names = {path.name for path in (tmp_path / 'figures').iterdir()}
  assert 'learning_curves_mhr.png' in names and len(names) == 4
  for name in names:
    start = (tmp_path / 'figures' / name).read_bytes()[:8]
    assert start == b'\x89PNG\r\n\x1a\n'


def test_ids_are_unique(tmp_path):
  for name in ('mhr', 'poly'):
    run_folders.write_run(tmp_path / name, method=name)
  page = _Page(report.write_report(tmp_path).read_text())
  ids = [value for name, value in page.attributes if name == 'id']
  assert len(ids) == len(set(ids))


def test_hostile_text_stays_text(tmp_path):
  """Names, settings, commands, configurations, figures and results."""
  run_folders.write_run(tmp_path / 'run', text='a', method=HOSTILE)
  folder = tmp_path / 'run'
  facts = json.loads((folder / run_files.RUN_FILE).read_text())
  facts['settings'] = {HOSTILE: HOSTILE}
  facts['command'] = facts['summary'] = HOSTILE
  facts['parameters'][0]['group'] = HOSTILE
  run_files.write_json(folder / run_files.RUN_FILE, facts)
  run_files.write_text(folder / run_files.CONFIG_FILE, HOSTILE)
  weights = np.random.default_rng(0).dirichlet(np.ones(4), (2, 3, 2))
  tasks = TaskTable((HOSTILE, HOSTILE + '2', HOSTILE + '3'))
  routing.save_routing(folder, {'a/query': weights}, tasks)
  results = {
    'suite': HOSTILE,
    'seeds': [HOSTILE],
    'metric': HOSTILE,
    'notes': [HOSTILE],
    'methods': {
      HOSTILE: {
        'few_shot': {'mean': 1.0, 'values': [1.0], 'tasks': {HOSTILE: 1.0}}
      }
    },
  }
  run_files.write_json(tmp_path / 'results.json', results)
  text = report.write_report(tmp_path).read_text()
  assert _Page(text).tags.count('script') == text.count('<script') == 1
  assert len(re.findall('alert', text)) > 10


def test_an_empty_folder_says_so_and_a_missing_one_is_an_error(tmp_path):
  text = report.write_report(tmp_path).read_text()
  assert 'holds no results' in text
  run_files.write_json(tmp_path / 'results.json', {'rouge_l': {'mean': 1.0}})
  assert 'holds no results' in report.write_report(tmp_path).read_text()
  with pytest.raises(UserError, match='There is no folder'):
    report.write_report(tmp_path / 'missing')


def test_chosen_heatmaps(tmp_path):
  run_folders.write_run(tmp_path)
  text = report.write_report(
    tmp_path, heatmaps=[('plain/query', 1)]
  ).read_text()
  assert 'plain/query, layer 1' in text
  assert 'plain/query, layer 0' not in text


def test_figures_take_the_pages_colours():
  curve = figures.Curve([1, 2], [3.0, 4.0], group='mhr', part='train')
  figure = figures.draw_curves({'loss': [curve]})
  assert 'currentColor' in figure.svg
  assert '#010203' not in figure.svg
  assert 'Date' not in figure.svg


def test_thinning_keeps_the_mean():
  steps, values = figures.thin(range(1000), np.arange(1000.0) ** 2, 100)
  assert len(steps) == 100
  assert values.mean() == pytest.approx(np.mean(np.arange(1000.0) ** 2))


def test_names_become_words():
  assert report_tables.to_words('rouge_l') == 'rouge l'
