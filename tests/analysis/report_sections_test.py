"""What the report's figures of training, routing and adaptation are made of."""

import re

import numpy as np
import pytest

from mhr_jax import reporting, run_files
from mhr_jax.analysis import (
  gradients,
  report,
  report_training,
  routing,
  routing_figures,
  run_reading,
  skills,
)
from mhr_jax.task_table import TaskTable


def _write_run(folder, lines):
  run_files.write_json(folder / run_files.RUN_FILE, {'method': folder.name})
  with reporting.MetricsWriter(folder, writers=()) as writer:
    for step, numbers in lines.items():
      writer.write(step, numbers)


def _aligned(value):
  return {
    'alignment/inventories': value,
    'alignment/effective': value / 2,
    'alignment/effective/encoder/attention': value / 4,
    'alignment/effective/b': value / 8,
    'alignment/backbone/encoder/pre_mlp_layer_norm': 1.0,
    'alignment/tasks': 3,
    'alignment/zero_gradients': 1,
  }


def test_alignment_has_a_panel_a_group_and_dashes_by_definition(tmp_path):
  _write_run(tmp_path / 'mhr', {10: _aligned(0.4), 20: _aligned(0.8)})
  (run,) = run_reading.read_runs(tmp_path)
  (figure,) = report_training.alignment_figures([run])
  titles = ['all parameters', 'encoder/attention', 'all b']
  places = [figure.svg.index(f'>{title}<') for title in titles]
  assert places == sorted(places)
  assert '>inventories<' in figure.svg and '>effective<' in figure.svg
  assert 'layer_norm' not in figure.svg
  assert 'Up to 1 tasks had a gradient of 0' in figure.caption
  # They have a section of their own and are no learning curves.
  assert report_training.curve_figures([run]) == []


def test_what_was_measured_later_joins_the_curves(tmp_path):
  _write_run(tmp_path / 'mhr', {10: _aligned(0.4), 20: {'train/loss': 1.0}})
  later = {'alignment/effective': 0.3, 'alignment/tasks': 3.0}
  for step in (10, 20):
    gradients.save_alignment(tmp_path / 'mhr', step, later)
  (run,) = run_reading.read_runs(tmp_path)
  measured = {
    line['step']: line['alignment/effective']
    for line in run.metrics
    if 'alignment/effective' in line
  }
  assert measured == {10: pytest.approx(0.2), 20: 0.3}


def test_routing_along_training_is_by_stack_where_there_are_stacks(tmp_path):
  stacked = {
    f'routing/{name}{stack}': 0.5
    for name in ('entropy', 'evenness', 'discreteness', 'active')
    for stack in ('', '/encoder', '/decoder')
  }
  _write_run(tmp_path / 'mhr', {10: stacked, 20: stacked})
  (figure,) = report_training.routing_curves(run_reading.read_runs(tmp_path))
  assert '>encoder<' in figure.svg and '>decoder<' in figure.svg
  assert '>all<' not in figure.svg
  _write_run(tmp_path / 'one', {10: {'routing/entropy': 0.5}})
  runs = run_reading.read_runs(tmp_path / 'one')
  (figure,) = report_training.routing_curves(runs)
  assert '>entropy of the weights<' in figure.svg


def test_use_is_of_every_router_and_the_encoder_comes_first():
  weights = {
    'decoder/mlp/wo': np.full((1, 2, 1, 2), 0.5),
    'encoder/mlp/wi': np.array([[[[1.0, 0], [0, 1]], [[0.5, 0.5], [0, 1]]]]),
    'encoder/mlp/wo': np.full((3, 2, 1, 2), 0.5),
  }
  found = routing.shares_of_use(weights)
  assert list(found) == ['encoder', 'decoder']
  shares = found['encoder']['mlp']
  assert shares.shape == (3 + 2, 2)
  assert sorted(map(tuple, shares.tolist()))[-1] == (0.75, 0.25)


def test_the_tree_joins_what_is_alike_first():
  similarity = np.eye(4)
  similarity[0, 2] = similarity[2, 0] = 0.9
  similarity[1, 3] = similarity[3, 1] = 0.6
  tree = routing.cluster_tasks(similarity)
  assert set(tree[0, :2]) == {0, 2}
  assert tree[:, 2].tolist() == pytest.approx([0.1, 0.4, 1.0])
  assert routing.cluster_tasks(np.eye(2)) is None
  tasks = ['a', 'b', 'c', 'd']
  figure = routing_figures.draw_similarity(
    similarity, tasks, title='x', name='x'
  )
  rows = [figure.svg.index(f'>{task}<') for task in tasks]
  assert abs(rows[0] - rows[2]) < abs(rows[0] - rows[1])
  assert '1 − likeness' in figure.svg


def test_the_page_has_all_sections(tmp_path):
  folder = tmp_path / 'mhr'
  _write_run(folder, {10: {**_aligned(0.4), 'routing/entropy': 0.9}})
  weights = np.random.default_rng(0).dirichlet(np.ones(4), (2, 3, 2))
  routing.save_routing(
    folder, {'encoder/q': weights}, TaskTable(('a', 'b', 'c'))
  )
  skills.save_skills(folder, {'encoder/q': np.ones((2, 2, 4, 4))})
  norms = {'encoder/attention': {'start': 2.0, 'change': 1.0}}
  moved = {
    'adapters': norms | {'decoder/mlp': {'start': 0.0, 'change': 1.0}},
    'mixing_weights': {
      'encoder/attention': {
        'change': 0.25,
        'entropy_start': 1.0,
        'entropy_end': 0.5,
      }
    },
  }
  for seed in (0, 1):
    run_files.write_json(
      folder / 'few_shot' / 'mhr' / 'task' / f'seed{seed}' / 'adapted.json',
      {'method': 'mhr', 'moved': moved},
    )
  text = report.write_report(folder).read_text()
  titles = re.findall(r'aria-label="([^"]*)"', text)
  assert titles == [
    'Gradient alignment between tasks',
    'Routing along training',
    'Routing of mhr',
    'Use of the skills of mhr',
    'Likeness of tasks under mhr',
    'Likeness of skills of mhr',
    'What few-shot adaptation moved',
  ]
  for section in ('alignment', 'routing', 'adaptation'):
    assert f'<section id="{section}">' in text
  cells = run_reading.read_adapted(folder)
  assert [cell.moved for cell in cells] == [moved, moved]


def test_cells_of_a_study_are_found_and_old_ones_have_moved_nothing(tmp_path):
  path = 'few_shot/mhr_z/seed0/task/seed0/adapted.json'
  run_files.write_json(tmp_path / path, {'method': 'mhr_z', 'losses': []})
  (cell,) = run_reading.read_adapted(tmp_path)
  assert cell == run_reading.AdaptedFacts('mhr_z', {})
  assert 'id="adaptation"' not in report.write_report(tmp_path).read_text()
