"""Scores against rouge_score applied to what was written, and plain means."""

import dataclasses
import json

import numpy as np
import pytest
from rouge_score import rouge_scorer

from mhr_jax import metrics, scores
from mhr_jax.errors import UserError


def _prediction(
  index, task, prediction, references, category=None, metric=None
):
  return scores.Prediction(
    example_id=f'{task}-{index}',
    task=task,
    category=category,
    input='in\u2028put',
    prediction=prediction,
    references=tuple(references),
    metric=metric,
  )


PREDICTIONS = [
  _prediction(0, 'a', 'the cat sat', ['a dog', 'the cat sat down'], 'x'),
  _prediction(1, 'a', 'Yes.', ['yes'], 'x'),
  _prediction(0, 'b', 'running quickly', ['runs quick', 'no'], 'x'),
  _prediction(0, 'c', '', ['nothing'], None),
]


def test_written_predictions_rescored_by_rouge_score_give_the_scores(tmp_path):
  found, values = scores.score_predictions(PREDICTIONS)
  scores.write_scores(tmp_path, found, PREDICTIONS, values)
  scorer = rouge_scorer.RougeScorer(['rougeL'], use_stemmer=True)
  text = (tmp_path / 'predictions.jsonl').read_text()
  lines = [json.loads(line) for line in text.splitlines()]
  expected = [
    100
    * max(
      scorer.score(reference, line['prediction'])['rougeL'].fmeasure
      for reference in line['references']
    )
    for line in lines
  ]
  assert [line['rouge_l'] for line in lines] == pytest.approx(expected)
  written = json.loads((tmp_path / 'scores.json').read_text())
  assert written['overall']['rouge_l'] == pytest.approx(np.mean(expected))
  assert written['tasks']['a']['rouge_l'] == pytest.approx(
    np.mean(expected[:2])
  )
  assert written['categories']['x']['rouge_l'] == pytest.approx(
    np.mean(expected[:3])
  )
  assert written['mean_over_tasks']['rouge_l'] == pytest.approx(
    np.mean([np.mean(expected[:2]), expected[2], expected[3]])
  )


def test_exact_match_and_counts():
  found, _ = scores.score_predictions(PREDICTIONS, metrics=('exact_match',))
  assert found.overall == {'instances': 4, 'exact_match': 25.0}
  assert found.tasks['a'] == {'instances': 2, 'exact_match': 50.0}
  assert list(found.categories) == ['x']
  assert found.of_tasks('exact_match') == {'a': 50.0, 'b': 0.0, 'c': 0.0}


def test_round_trip(tmp_path):
  found, values = scores.score_predictions(PREDICTIONS)
  scores.write_scores(tmp_path, found, PREDICTIONS, values)
  assert scores.read_predictions(tmp_path) == PREDICTIONS


def test_nothing_to_score_and_unknown_metrics_are_errors():
  with pytest.raises(UserError, match='no instance'):
    scores.score_predictions([])
  with pytest.raises(UserError, match="Did you mean 'rouge_l'"):
    scores.score_predictions(PREDICTIONS, metrics=('rouge',))


def _own(task, metric, predictions, references, category):
  pairs = enumerate(zip(predictions, references, strict=True))
  return [
    _prediction(i, task, text, [right], category, metric)
    for i, (text, right) in pairs
  ]


OWN = [
  *_own('f1', 'crossfit_classification_f1', 'aab', 'abb', 'x'),
  *_own('acc', 'crossfit_accuracy', ['A', 'no'], ['a', 'yes'], 'x'),
  *_own('r', 'crossfit_pearson', '1247', '1358', 'y'),
  *_own('undefined', 'crossfit_pearson', ['1', 'one'], '12', 'y'),
]


def test_each_task_is_scored_by_its_own_metric(tmp_path):
  found, values = scores.score_predictions(
    OWN, metrics=('own_metric', 'exact_match', 'crossfit_classification_f1')
  )
  pearson = 100 * float(np.corrcoef([1, 2, 4, 7], [1, 3, 5, 8])[0, 1])
  f1 = 200 / 3  # Each label: one right, one wrong.
  tasks = found.of_tasks('own_metric')
  assert np.isnan(tasks.pop('undefined'))
  assert tasks == pytest.approx({'f1': f1, 'acc': 50.0, 'r': pearson})
  # Undefined counts as 0 in means; sizes of tasks do not count.
  assert found.overall['own_metric'] == pytest.approx((f1 + 50 + pearson) / 4)
  assert found.mean_over_tasks['own_metric'] == found.overall['own_metric']
  assert found.categories['x']['own_metric'] == pytest.approx((f1 + 50) / 2)
  assert found.categories['y']['own_metric'] == pytest.approx(pearson / 2)
  assert found.own_metrics['acc'] == 'crossfit_accuracy'
  # A metric of instances beside it is over instances, as ever.
  right = [p.prediction.lower() == p.references[0] for p in OWN]
  assert found.overall['exact_match'] == pytest.approx(100 * np.mean(right))
  assert 'crossfit_classification_f1' not in values
  scores.write_scores(tmp_path, found, OWN, values)
  assert scores.read_predictions(tmp_path) == OWN
  lines = (tmp_path / 'predictions.jsonl').read_text().splitlines()
  own = [json.loads(line)['own_metric'] for line in lines]
  assert own == [None, None, None, 100, 0, *[None] * 6]


def test_a_set_metric_of_one_task_is_that_of_the_set():
  for name, metric in metrics.SET_METRICS.items():
    found, _ = scores.score_predictions(OWN[5:9], metrics=(name,))
    expected = metric('1247', [[x] for x in '1358'])
    assert found.overall[name] == found.tasks['r'][name] == expected


def test_tasks_without_a_metric_of_their_own_are_an_error():
  with pytest.raises(UserError, match="Task 'a' names no metric of its own"):
    scores.score_predictions(PREDICTIONS, metrics=('own_metric',))


def _ranked(task, label, choice_scores, category=None):
  choices = tuple(f'choice {i}' for i in range(len(choice_scores)))
  taken = choices[choice_scores.index(max(choice_scores))]
  return dataclasses.replace(
    _prediction(0, task, taken, [choices[label]], category),
    choices=choices,
    choice_scores=tuple(choice_scores),
    label=label,
  )


RANKED = [
  # Task: one template; category: the data set. Right: 2 of 3, 1 of 2, 0 of 1.
  _ranked('one', 1, [-2.0, -1.0], 'set'),
  _ranked('one', 1, [-2.0, -1.0, -3.0], 'set'),
  _ranked('one', 0, [-2.0, -1.5], 'set'),
  _ranked('two', 0, [-1.0, -1.0], 'set'),  # of equal ones the first
  _ranked('two', 1, [-1.0, -1.0], 'set'),
  _ranked('three', 3, [-1.0, -2.0, -3.0, -4.0], 'set'),
  _ranked('alone', 0, [-1.0, -2.0]),
]


def test_accuracy_counts_labels_beside_chance_and_majority(tmp_path):
  found, values = scores.score_predictions(RANKED, metrics=('accuracy',))
  assert found.tasks['one'] == pytest.approx(
    {
      'instances': 3,
      'accuracy': 200 / 3,
      'chance': (50 + 100 / 3 + 50) / 3,
      'majority': 200 / 3,
    }
  )
  assert found.tasks['two']['accuracy'] == found.tasks['two']['majority'] == 50
  assert found.tasks['three']['chance'] == 25
  assert found.overall['accuracy'] == pytest.approx(400 / 7)
  assert found.mean_over_tasks['accuracy'] == pytest.approx(
    (200 / 3 + 50 + 0 + 100) / 4
  )
  assert list(found.category_spread) == ['set']
  spread = found.category_spread['set']['accuracy']
  # By hand: of 0, 50, 66.7 the quartiles are 25 and 58.3.
  assert spread.tasks == 3 and spread.median == 50
  assert spread.mean == pytest.approx(350 / 9)
  assert spread.interquartile_range == pytest.approx(175 / 3 - 25)
  assert list(values) == ['accuracy']
  scores.write_scores(tmp_path, found, RANKED, values)
  assert scores.read_predictions(tmp_path) == RANKED
  again, _ = scores.score_predictions(
    scores.read_predictions(tmp_path), metrics=('accuracy',)
  )
  assert again == found


def test_a_tasks_own_accuracy_is_of_texts_or_of_what_was_ranked():
  written = _own('written', 'accuracy', ['a', 'A', 'b'], ['a', 'a', 'b'], None)
  ranked = [dataclasses.replace(each, metric='accuracy') for each in RANKED[:3]]
  found, values = scores.score_predictions(
    [*written, *ranked], metrics=('own_metric',)
  )
  assert found.of_tasks('own_metric') == pytest.approx(
    {'written': 200 / 3, 'one': 200 / 3}
  )
  assert values['own_metric'].tolist() == [100, 0, 100, 100, 100, 0]


def test_accuracy_needs_ranked_choices():
  with pytest.raises(UserError, match="'a-0' of task 'a' has none: .*metrics"):
    scores.score_predictions(PREDICTIONS, metrics=('accuracy',))
