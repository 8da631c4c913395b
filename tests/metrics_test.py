"""Scores against small cases by hand and the published copying baseline."""

import json

import numpy as np
import pytest

from mhr_jax import metrics
from mhr_jax.errors import UserError


@pytest.mark.parametrize(
  ('prediction', 'references', 'expected'),
  [
    ('The cat.', ['the cat'], 100),
    ('cat', ['the cat'], 0),  # articles stay
    ('a  b\n', ['A b!'], 100),
    ('no', ['yes', 'No.'], 100),
    ('', ['...'], 100),
    ('é', ['e'], 0),
  ],
)
def test_exact_match(prediction, references, expected):
  assert metrics.exact_match([prediction], [references]) == [expected]


def _longest_common_subsequence(a, b):
  table = np.zeros((len(a) + 1, len(b) + 1), int)
  for i, x in enumerate(a):
    for j, y in enumerate(b):
      table[i + 1, j + 1] = (
        table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
      )
  return table[-1, -1]


def test_rouge_l_is_the_best_f_measure_over_references():
  prediction = 'a big cat on one mat'
  references = ['the dog', 'cat on big mat', 'a cat on the mat']
  expected = []
  for reference in references:
    a, b = prediction.split(), reference.split()
    common = _longest_common_subsequence(a, b)
    expected.append(200 * common / (len(a) + len(b)))
  scores = metrics.rouge_l([prediction, 'x'], [references, ['y']])
  np.testing.assert_allclose(scores, [max(expected), 0])


def test_rouge_l_stems_and_ignores_case_and_punctuation():
  scores = metrics.rouge_l(['Running dogs!'], [['run, dog']])
  np.testing.assert_allclose(scores, [100])


@pytest.mark.parametrize(
  ('name', 'mean'), [('exact_match', 50), ('rouge_l', 75)]
)
def test_of_a_set_an_instance_metric_is_its_mean(name, mean):
  assert metrics.score_set(name, ['a', 'b c'], [['a'], ['b d']]) == mean


@pytest.mark.parametrize('references', [[['a']], [['a'], []], [['a'], 'b']])
def test_missing_references_are_an_error(references):
  with pytest.raises(UserError, match='references'):
    metrics.exact_match(['a', 'b'], references)


def test_copying_the_input_of_the_test_tasks_scores_as_published(shared_dir):
  folder = shared_dir / 'data/natural_instructions_subset'
  inputs, references = [], []
  names = (folder / 'splits/default/test_tasks.txt').read_text().split()
  for name in names:
    task = json.loads((folder / f'tasks/{name}.json').read_text())
    for instance in task['Instances'][:100]:
      inputs.append(instance['input'])
      references.append(instance['output'])
  scores = metrics.rouge_l(inputs, references)
  assert len(scores) == 700
  np.testing.assert_allclose(scores.mean(), 34.1332, atol=5e-5)
