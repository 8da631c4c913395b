"""CrossFit's ROUGE-L against the package that CrossFit calls."""

import numpy as np
import pytest

from mhr_jax import crossfit_metrics


def test_rouge_l_is_that_of_the_rouge_package(rouge):
  rng = np.random.default_rng(0)
  words = ['a', 'b', 'c', 'A', 'b,', '.', '. ', '!', 'd']

  def text():
    return ' '.join(rng.choice(words, rng.integers(1, 12))) + ' a'

  predictions = [text() for _ in range(300)]
  references = [[text(), text()] for _ in predictions]
  scorer = rouge.Rouge()
  expected = [
    max(
      scorer.get_scores(prediction.strip(), each, avg=True)['rouge-l']['f']
      for each in choices
    )
    for prediction, choices in zip(predictions, references, strict=True)
  ]
  found = crossfit_metrics.rouge_l(predictions, references)
  assert found == pytest.approx(100 * np.array(expected), abs=1e-9)
