"""Answer choices from the command line: tables, evaluation, adaptation."""

import dataclasses
import json
import types

import gin
import numpy as np
import pytest

from mhr_jax import cli, commands, few_shot, scores, task_listing
from mhr_jax.task_data import TaskData
import toy_models
import toy_text


@pytest.fixture(autouse=True)
def _clean_gin():
  yield
  gin.clear_config()


def _scores(*accuracies):
  """Scores of tasks of one category, four instances of two choices each."""
  predictions = []
  for name, right in zip('abc', accuracies, strict=False):
    for i in range(4):
      predictions.append(
        scores.Prediction(
          example_id=str(i),
          task=f'set_{name}',
          category='set',
          input='',
          prediction='',
          references=('x',),
          choices=('x', 'y'),
          choice_scores=(0.0, -1.0) if i < right else (-1.0, 0.0),
          label=0,
        )
      )
  return scores.score_predictions(predictions, metrics=('accuracy',))[0]


def test_tables_have_chance_and_the_spread_over_templates():
  found = _scores(1, 2, 4)
  lines = [line.split() for line in commands.score_table(found).splitlines()]
  assert lines[0] == ['accuracy', 'chance', 'majority']
  assert ['set_a', '25.00', '50.00', '100.00'] in lines
  assert ['set', '3', '58.33', '50.00', '37.50', '50.00'] in lines
  results = [
    types.SimpleNamespace(task='set', seed=seed, scores=each, soup=None)
    for seed, each in enumerate((_scores(1), _scores(3)))
  ]
  table = commands.adaptation_table(results)
  assert '50.00  set  (25.0, 75.0), chance 50.0, majority 100.0' in table
  assert table.count('mean over seeds') == 1
  assert len(table.splitlines()) == 2  # It is tested on itself alone.


def test_each_template_has_a_line_below_its_data_set():
  results = [
    types.SimpleNamespace(task='set', seed=seed, scores=each, soup=None)
    for seed, each in enumerate((_scores(1, 4), _scores(3, 2)))
  ]
  lines = commands.adaptation_table(results).splitlines()
  assert [line.split()[:2] for line in lines[1:]] == [
    ['62.50', 'set'],
    ['50.00', 'set_a'],
    ['75.00', 'set_b'],
  ]
  assert lines[3].endswith('(100.0, 50.0), chance 50.0, majority 100.0')


def test_what_is_tested_on_is_found_by_the_tasks_name(tmp_path, write_task):
  for name in ('one', 'one_of_templates'):
    write_task(tmp_path, name, test=3, choices=(2, 3), train=5)
  data = TaskData(tasks='one', data_dir=str(tmp_path))
  found = commands.resolve_tests(data, ('one',), '{task}_of_templates')
  assert found == {'one': ('one_of_templates',)}
  assert commands.resolve_tests(data, ('one',), '{task}') is None
  (task,) = few_shot.open_few_shot_tasks(tmp_path, ['one'], test_tasks=found)
  assert task.name == 'one'
  assert [source.name for source in task.tests] == ['one_of_templates']


def test_examples_are_shown_with_their_choices(tmp_path, write_task):
  written = write_task(tmp_path, 'one', choices=(2, 4), train=1)['train'][0]
  data = TaskData(tasks=(), data_dir=str(tmp_path))
  shown = task_listing.show_examples(data, 'one').splitlines()
  assert [line.split(maxsplit=1)[1] for line in shown[5:]] == [
    repr(text) for text in written.choices_pretokenized
  ]


@pytest.fixture(scope='module')
def work(tmp_path_factory, write_task, write_mixture):
  """A run, and a data set of two templates with draws of two seeds."""
  folder = tmp_path_factory.mktemp('work')
  toy_models.write_run(folder / 'run', toy_models.make_model())
  options = {'vocabulary': toy_text.VOCABULARY, 'category': 'set'}
  for i, name in enumerate(('set_a', 'set_b')):
    write_task(
      folder / 'data', name, seed=i, choices=(2, 5), test=3 + i, **options
    )
  draws = {f'few_shot_seed{seed}': 4 for seed in (5, 6)}
  write_task(folder / 'data', 'set', choices=(2, 3), **options, **draws)
  write_mixture(folder / 'data', 'set_templates', ['set_a', 'set_b'], [1, 1])
  return folder


@pytest.mark.slow
def test_tasks_of_another_vocabulary_are_not_adapted_to(
  work, tmp_path, write_task, capsys
):
  write_task(tmp_path, 'other', choices=(2, 3), few_shot_seed5=4, test=2)
  argv = ['--gin_file=methods/mhr_z.gin', '--gin_file=runs/few_shot.gin']
  bindings = [
    'TASKS="other"',
    f'DATA_DIR="{tmp_path}"',
    'TRAIN_SPLIT="few_shot_seed5"',
  ]
  assert _main(work, ['adapt', *argv], *bindings) == 2
  assert "'other' was prepared with vocabulary" in capsys.readouterr().err


def _main(work, command, *bindings):
  given = [
    f'RUN_DIR="{work / "run"}"',
    f'DATA_DIR="{work / "data"}"',
    *bindings,
  ]
  widths = ['INPUT_LENGTH=8', 'TARGET_LENGTH=8']
  return cli.main([*command, *(f'--gin.{each}' for each in [*given, *widths])])


@pytest.mark.slow
def test_evaluate_ranks_and_writes(work, capsys):
  command = ['evaluate', '--gin_file=runs/rank_classification.gin']
  assert _main(work, command, 'TASKS="set_templates"') == 0
  assert 'accuracy over the tasks of' in capsys.readouterr().out
  folder = work / 'run' / 'evaluations' / 'set_templates_test'
  written = json.loads((folder / 'scores.json').read_text())
  predictions = scores.read_predictions(folder)
  again, _ = scores.score_predictions(predictions, metrics=('accuracy',))
  assert written['overall'] == pytest.approx(dict(again.overall))
  assert written['category_spread']['set']['accuracy'] == dataclasses.asdict(
    again.category_spread['set']['accuracy']
  )
  assert len(predictions) == 7
  for prediction in predictions:
    best = int(np.argmax(prediction.choice_scores))
    assert prediction.prediction == prediction.choices[best]


@pytest.mark.slow
def test_adapt_trains_on_choices_and_ranks_every_template(work, capsys):
  command = [
    'adapt',
    '--gin_file=methods/mhr_z.gin',
    '--gin_file=runs/few_shot_choices.gin',
  ]
  bindings = [
    'TASKS="set"',
    'TEST_TASKS="{task}_templates"',
    'TEST_SPLIT="test"',
    'SEEDS=(5, 6)',
    'STEPS=3',
    'OptimizerSettings.warmup_steps=1',
  ]
  assert _main(work, command, *bindings) == 0
  assert ', chance ' in capsys.readouterr().out
  folder = work / 'run' / 'few_shot' / 'mhr_z'
  for seed in (5, 6):
    cell = folder / 'set' / f'seed{seed}'
    found = json.loads((cell / 'scores.json').read_text())
    assert set(found['tasks']) == {'set_a', 'set_b'}
    facts = json.loads((cell / 'adapted.json').read_text())
    assert len(facts['loss_parts']['unlikelihood']) == 3
  results = json.loads((folder / 'results.json').read_text())
  assert set(results['accuracy']['tasks']) == {'set'}
