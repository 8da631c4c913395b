"""Rank classification against a plain loop over choices."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from mhr_jax import evaluation, partitioning, ranking, scores
from mhr_jax.data.ordered import eval_batches
from mhr_jax.errors import UserError
from mhr_jax.ranking import ChoiceSettings
import toy_text

SETTINGS = evaluation.EvaluationSettings(metrics=('accuracy',))


@pytest.fixture(scope='module')
def trained():
  model = toy_text.make_model()
  return model, toy_text.make_params(model)


def _batches(**changes):
  sources = [
    toy_text.make_choices(task, n)
    for task, n in (('copy', 6), ('first', 3), ('upper', 4))
  ]
  options = {'batch_size': 5, 'task_table': toy_text.TASKS} | changes
  return list(eval_batches(sources, **{**toy_text.WIDTHS, **options}))


def _rank(trained, settings=SETTINGS, folder=None, **changes):
  return evaluation.evaluate_generation(
    *trained,
    _batches(**changes),
    toy_text.VOCABULARY,
    settings=settings,
    folder=folder,
  )


@pytest.fixture(scope='module')
def one_by_one(trained):
  """Each instance's choices: their -log p a token, one forward pass each."""
  model, params = trained
  logits = jax.jit(model.logits)
  found = []
  for batch in _batches():
    for row, record in enumerate(batch.records):
      of_choices = []
      for choice in record.choices:
        ids = np.array([*toy_text.VOCABULARY.encode(choice), 1])
        read = {
          'encoder_input_tokens': batch.arrays['encoder_input_tokens'][[row]],
          'task_ids': batch.arrays['task_ids'][[row]],
          'decoder_input_tokens': np.array([[0, *ids[:-1]]]),
        }
        out = np.asarray(logits(params, read)[0], np.float64)
        log_p = out - np.log(np.exp(out).sum(-1, keepdims=True))
        of_choices.append(log_p[np.arange(len(ids)), ids])
      found.append((record, of_choices))
  return found


@pytest.mark.parametrize('power', [0.0, 1.0])
def test_equals_a_plain_loop_over_choices(trained, one_by_one, power, tmp_path):
  settings = dataclasses.replace(
    SETTINGS, choices=ChoiceSettings(length_norm=power)
  )
  found = _rank(trained, settings, tmp_path)
  right = []
  predictions = scores.read_predictions(tmp_path)
  for prediction, (record, log_probs) in zip(
    predictions, one_by_one, strict=True
  ):
    expected = [x.sum() / len(x) ** power for x in log_probs]
    np.testing.assert_allclose(prediction.choice_scores, expected, atol=5e-5)
    chosen = int(np.argmax(expected))
    assert prediction.prediction == record.choices[chosen]
    assert prediction.choices == record.choices
    assert prediction.label == record.label
    assert prediction.example_id == record.example_id
    right.append((record.task, chosen == record.label))
  assert found.overall['accuracy'] == pytest.approx(
    100 * np.mean([yes for _, yes in right])
  )
  for task in toy_text.TASKS.names:
    assert found.tasks[task]['accuracy'] == pytest.approx(
      100 * np.mean([yes for name, yes in right if name == task])
    )
  chances = [100 / len(record.choices) for record, _ in one_by_one]
  assert found.overall['chance'] == pytest.approx(np.mean(chances))
  written = json.loads((tmp_path / 'scores.json').read_text())
  spread = written['category_spread']['all of copy']['accuracy']
  assert spread['tasks'] == 1
  assert spread['median'] == found.tasks['copy']['accuracy']


def test_norms_differ_and_other_metrics_score_what_was_chosen(trained):
  settings = dataclasses.replace(SETTINGS, metrics=('accuracy', 'exact_match'))
  found = _rank(trained, settings)
  assert found.overall['exact_match'] == found.overall['accuracy']
  sums = dataclasses.replace(settings, choices=ChoiceSettings(length_norm=0.0))
  batches = _batches()
  one, other = (
    evaluation.predict(*trained, batches, toy_text.VOCABULARY, settings=each)
    for each in (settings, sums)
  )
  assert [p.prediction for p in one] != [p.prediction for p in other]


@pytest.mark.slow
def test_on_a_mesh_as_on_one_device(trained):
  model, params = trained
  mesh = partitioning.make_mesh(4, 2)
  found = partitioning.shardings(model.logical_axes(), mesh, params)
  spread = partitioning.put(params, found.tree)
  one, other = (
    evaluation.predict(
      model,
      each,
      _batches(batch_size=4),
      toy_text.VOCABULARY,
      settings=SETTINGS,
    )
    for each in (params, spread)
  )
  for a, b in zip(one, other, strict=True):
    assert a.prediction == b.prediction
    np.testing.assert_allclose(a.choice_scores, b.choice_scores, atol=1e-5)


def test_examples_without_choices_are_named(trained):
  source = toy_text.make_source('copy', 2)
  batches = list(eval_batches([source], batch_size=2, **toy_text.WIDTHS))
  with pytest.raises(
    UserError, match=r"'copy', example 'copy-0': .* no answer choices .*metrics"
  ):
    evaluation.predict(
      *trained, batches, toy_text.VOCABULARY, settings=SETTINGS
    )


def test_texts_need_to_be_told_how_they_are_written():
  with pytest.raises(UserError, match=r'need\s+EvaluationSettings.decoding'):
    evaluation.EvaluationSettings()
  with pytest.raises(UserError, match='length_norm is -1'):
    ranking.ChoiceSettings(length_norm=-1)


def test_scores_that_are_not_finite_are_named():
  (batch, *_) = _batches()
  log_probs = np.zeros((5, 4))
  lengths = np.ones((5, 4))
  log_probs[0, len(batch.records[0].choices) :] = np.nan  # No choice there.
  found = ranking.to_predictions(batch, log_probs, lengths, ChoiceSettings())
  assert len(list(found)) == 5
  log_probs[2, 1] = np.nan
  found = ranking.to_predictions(batch, log_probs, lengths, ChoiceSettings())
  name = re.escape(repr(batch.records[2].example_id))
  with pytest.raises(UserError, match=f"'copy', example {name}: .* is nan"):
    list(found)


def test_rows_that_fill_up_have_no_choices():
  *_, last = _batches()
  assert last.row_weights.tolist() == [1, 1, 1, 0, 0]
  laid = ranking.with_choices(last, ranking.choice_widths([last]))
  counts = [len(record.choices) for record in last.records]
  assert laid['choice_mask'].sum(axis=1).tolist() == [*counts, 0, 0]
  assert not laid['choice_tokens'][3:].any()


def test_cut_choices_are_told():
  (batch, *_) = _batches(target_length=2)
  for record in batch.records:
    assert 'choices' in record.cut or max(map(len, record.choices)) == 1
