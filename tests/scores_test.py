"""Scores against rouge_score applied to what was written, and plain means."""

import json

import numpy as np
import pytest
from rouge_score import rouge_scorer

from mhr_jax import scores
from mhr_jax.errors import UserError


def _prediction(index, task, prediction, references, category=None):
  return scores.Prediction(
    example_id=f'{task}-{index}',
    task=task,
    category=category,
    input='in\u2028put',
    prediction=prediction,
    references=tuple(references),
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
