"""Evaluation against a plain loop over instances, one task at a time."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rouge_score import rouge_scorer

from mhr_jax import evaluation, partitioning
from mhr_jax.errors import UserError
from mhr_jax.t5.decoding import DecodingSettings
import toy_text

SETTINGS = evaluation.EvaluationSettings(
  decoding=DecodingSettings(max_new_tokens=6)
)


@pytest.fixture(scope='module')
def trained():
  model = toy_text.make_model()
  return model, toy_text.make_params(model)


def _predict(model, params, settings=SETTINGS, batches=None):
  return evaluation.predict(
    model,
    params,
    toy_text.make_batches() if batches is None else batches,
    toy_text.VOCABULARY,
    settings=settings,
  )


def _logits(model, params, batch):
  return jax.jit(model.logits)(params, batch.arrays)


def _with_task(batches, change):
  """Returns batches whose task ids went through `change`."""
  return [
    dataclasses.replace(
      batch,
      arrays={**batch.arrays, 'task_ids': change(batch.arrays['task_ids'])},
    )
    for batch in batches
  ]


def test_predictions_equal_decoding_one_instance_at_a_time(trained):
  model, params = trained
  found = _predict(model, params)
  generate = jax.jit(lambda p, b: model.generate(p, b, SETTINGS.decoding))
  for prediction in found[::4]:
    ids = toy_text.VOCABULARY.encode(prediction.input) + [1]
    tokens = np.zeros((1, 8), np.int32)
    tokens[0, : len(ids)] = ids
    batch = {
      'encoder_input_tokens': jnp.asarray(tokens),
      'task_ids': jnp.array([toy_text.TASKS.id_of(prediction.task)]),
    }
    out = generate(params, batch)
    expected = toy_text.VOCABULARY.decode(np.asarray(out)[0].tolist()).strip()
    assert prediction.prediction == expected


def test_every_instance_once_and_fillers_never(trained):
  found = _predict(*trained)
  names = [(p.task, p.example_id) for p in found]
  assert len(set(names)) == len(names) == 15
  assert [p.category for p in found] == ['plain'] * 10 + [None] * 5


def test_scores_equal_rouge_score_on_the_written_predictions(trained, tmp_path):
  found = evaluation.evaluate_generation(
    *trained,
    toy_text.make_batches(),
    toy_text.VOCABULARY,
    settings=SETTINGS,
    folder=tmp_path,
  )
  scorer = rouge_scorer.RougeScorer(['rougeL'], use_stemmer=True)
  lines = [
    json.loads(line)
    for line in (tmp_path / 'predictions.jsonl').read_text().splitlines()
  ]
  expected = [
    100
    * max(
      scorer.score(r, line['prediction'])['rougeL'].fmeasure
      for r in line['references']
    )
    for line in lines
  ]
  assert found.overall['rouge_l'] == pytest.approx(np.mean(expected))
  assert found.overall['instances'] == 15
  written = json.loads((tmp_path / 'scores.json').read_text())
  assert written['tasks'].keys() == set(toy_text.TASKS.names)


@pytest.mark.parametrize('n', [2, 3, 8, 61])
def test_derangement_is_a_permutation_without_fixed_points(n):
  seen = set()
  for seed in range(20):
    ids = evaluation.derangement(n, seed)
    assert sorted(ids) == list(range(n))
    assert not np.any(ids == np.arange(n))
    seen.add(tuple(ids))
  assert len(seen) > 1 or n == 2
  again = evaluation.derangement(n, 3)
  np.testing.assert_array_equal(again, evaluation.derangement(n, 3))


def test_one_task_cannot_be_deranged():
  with pytest.raises(UserError, match='at least two tasks'):
    evaluation.derangement(1, 0)


def test_shuffled_runs_each_task_with_another_ones_row(trained):
  settings = dataclasses.replace(SETTINGS, task_ids='shuffled', seed=5)
  shuffled = _predict(*trained, settings)
  other = evaluation.derangement(len(toy_text.TASKS), 5)
  by_hand = _predict(
    *trained,
    batches=_with_task(toy_text.make_batches(), lambda ids: other[ids]),
  )
  assert shuffled == by_hand
  assert shuffled != _predict(*trained)


def test_average_adapter_equals_uniform_mixing(trained):
  model, params = trained
  averaged, average_params = evaluation.average_model(model, params)
  assert averaged.adapters.n_skills == averaged.adapters.n_splits == 1
  assert set(average_params) == {'backbone', 'adapters'}
  uniform = toy_text.make_model(mixing='uniform')
  (batch, *_) = toy_text.make_batches()
  expected = _logits(uniform, params, batch)
  found = _logits(averaged, average_params, batch)
  np.testing.assert_allclose(found, expected, atol=2e-5)
  settings = dataclasses.replace(SETTINGS, adapter='average')
  expected = _predict(averaged, average_params)
  assert _predict(model, params, settings) == expected
  assert expected != _predict(model, params)


def test_shuffling_without_routing_is_an_error(trained):
  settings = dataclasses.replace(SETTINGS, task_ids='shuffled')
  with pytest.raises(UserError, match='routes by task'):
    _predict(*evaluation.average_model(*trained), settings)
  settings = dataclasses.replace(settings, adapter='average')
  with pytest.raises(UserError, match='no task ids to shuffle'):
    _predict(*trained, settings)


def test_bad_settings_are_errors():
  for change in ({'adapter': 'mean'}, {'task_ids': 'wrong'}):
    with pytest.raises(UserError, match='is wanted'):
      dataclasses.replace(SETTINGS, **change)


def test_loss_equals_a_plain_loop_over_instances(trained):
  model, params = trained
  found = evaluation.evaluate_loss(model, params, toy_text.make_batches())
  sums = {}
  for batch in toy_text.make_batches():
    logits = np.asarray(_logits(model, params, batch), np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for row, record in enumerate(batch.records):
      targets = batch.arrays['decoder_target_tokens'][row]
      for position, token in enumerate(targets):
        if token:
          sums.setdefault(record.task, []).append(-log_p[row, position, token])
  every = np.concatenate(list(sums.values()))
  assert found['loss'] == pytest.approx(every.mean(), rel=1e-5)
  for task, values in sums.items():
    assert found[f'loss/{task}'] == pytest.approx(np.mean(values), rel=1e-5)


def test_on_a_mesh_as_on_one_device(trained):
  model, params = trained
  mesh = partitioning.make_mesh(4, 2)
  found = partitioning.shardings(model.logical_axes(), mesh, params)
  spread = partitioning.put(params, found.tree)
  assert _predict(model, spread) == _predict(model, params)
  one = evaluation.evaluate_loss(
    model, params, toy_text.make_batches(batch_size=6)
  )
  other = evaluation.evaluate_loss(
    model, spread, toy_text.make_batches(batch_size=6)
  )
  assert one == pytest.approx(other, rel=1e-5)


def test_the_trainers_evaluate(trained):
  model, params = trained
  evaluate = evaluation.make_evaluate(
    model, toy_text.make_batches, toy_text.VOCABULARY, settings=SETTINGS
  )
  numbers = evaluate(10, params)
  assert list(numbers) == [
    'heldback/loss',
    'heldback/exact_match',
    'heldback/rouge_l',
  ]
  losses = evaluation.make_evaluate(model, toy_text.make_batches, part='x')
  assert losses(10, params) == {'x/loss': numbers['heldback/loss']}


def test_one_compilation_a_shape(trained):
  model, params = trained
  settings = DecodingSettings(max_new_tokens=5)
  generate = evaluation._compiled_generate(model, settings, None)
  before = generate._cache_size()
  _predict(model, params, evaluation.EvaluationSettings(decoding=settings))
  _predict(model, params, evaluation.EvaluationSettings(decoding=settings))
  assert generate._cache_size() == before + 1


def test_average_of_a_bare_backbone_is_itself():
  model = dataclasses.replace(toy_text.make_model(), adapters=None)
  params = {'backbone': {}}
  assert evaluation.average_model(model, params) == (model, params)
