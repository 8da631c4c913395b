"""Few-shot cells against training one by one; what changes and what stays."""

import dataclasses
import json

import jax
import numpy as np
import optax
import pytest
from safetensors import numpy as safetensors

from mhr_jax import adaptation, evaluation, methods, optim, side_by_side
from mhr_jax.errors import UserError
from mhr_jax.t5.decoding import DecodingSettings
import toy_text

OPTIMIZER = optim.OptimizerSettings(
  learning_rates={'adapters': 1e-2, 'routers': 0.2, 'backbone': 1e-2},
  warmup_proportion=0.0,
)
SETTINGS = adaptation.AdaptationSettings(optimizer=OPTIMIZER, side_by_side=4)
EVALUATE = evaluation.EvaluationSettings(
  decoding=DecodingSettings(max_new_tokens=4)
)


@pytest.fixture(scope='module')
def mhr():
  model = toy_text.make_model()
  return model, toy_text.make_params(model)


@pytest.fixture(scope='module')
def cells():
  return toy_text.make_cells()


def _adapt(trained, method, cells, settings=SETTINGS, **others):
  return adaptation.adapt(
    *trained,
    method,
    cells,
    toy_text.VOCABULARY,
    settings=settings,
    evaluate=EVALUATE,
    **others,
  )


@pytest.fixture(scope='module')
def adapted(mhr, cells):
  return _adapt(mhr, 'mhr', cells)


def _train_by_hand(model, start, trains, cell):
  """Plain AdamW over one cell: no scan, no vmap, none of our optimizer."""
  trainable = {label: start[label] for label in trains}
  frozen = {k: v for k, v in start.items() if k not in trains}
  rates = OPTIMIZER.learning_rates.as_dict()
  decay = OPTIMIZER.weight_decay.as_dict()
  n_steps = len(cell.batches['task_ids'])

  def rule(label):
    schedule = optax.linear_schedule(rates[label], 0.0, n_steps)
    return optax.adamw(schedule, weight_decay=decay[label])

  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.partition(
      {label: rule(label) for label in trains},
      {
        label: jax.tree.map(lambda _, label=label: label, tree)
        for label, tree in trainable.items()
      },
    ),
  )
  state = optimizer.init(trainable)

  @jax.jit
  def step(trainable, state, batch):
    def loss(trainable):
      total, weight, _ = model.loss({**frozen, **trainable}, batch)
      return total / weight

    value, grads = jax.value_and_grad(loss)(trainable)
    updates, state = optimizer.update(grads, state, trainable)
    return optax.apply_updates(trainable, updates), state, value

  losses = []
  for i in range(n_steps):
    batch = {name: array[i] for name, array in cell.batches.items()}
    trainable, state, value = step(trainable, state, batch)
    losses.append(float(value))
  return trainable, losses


def test_side_by_side_equals_plain_training(mhr, cells, adapted):
  model, params = mhr
  cell, result = cells[3], adapted[3]
  key, _ = adaptation._split_key(cell)
  one_task, start = adaptation.adaptation_start(model, params, 'mhr', key=key)
  trained, losses = _train_by_hand(
    one_task, start, ('adapters', 'routers'), cell
  )
  np.testing.assert_allclose(result.losses, losses, rtol=1e-4)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4),
    result.trained,
    trained,
  )


def test_side_by_side_equals_one_by_one(mhr, cells, adapted):
  """Six cells as groups of 3 (of at most 4) and as groups of 1."""
  alone = _adapt(
    mhr, 'mhr', cells, dataclasses.replace(SETTINGS, side_by_side=1)
  )
  for a, b in zip(adapted, alone, strict=True):
    assert (a.task, a.seed) == (b.task, b.seed)
    assert a.predictions == b.predictions
    np.testing.assert_allclose(a.losses, b.losses, rtol=1e-5)
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5),
      a.trained,
      b.trained,
    )


def test_predictions_are_those_of_each_cells_own_parameters(
  mhr, cells, adapted
):
  model, params = mhr
  config = methods.adapter_config(
    'mhr', model.adapters, phase='adapt', n_tasks=1
  )
  one_task = dataclasses.replace(model, adapters=config)
  result = adapted[-1]
  expected = evaluation.predict(
    one_task,
    {'backbone': params['backbone'], **result.trained},
    cells[-1].test,
    toy_text.VOCABULARY,
    settings=EVALUATE,
  )
  assert list(result.predictions) == expected
  assert len(expected) == 7


def test_nothing_pre_trained_is_changed(mhr, cells):
  model, params = mhr
  before = jax.tree.map(np.array, params)
  _adapt((model, params), 'mhr', cells[:3])
  jax.tree.map(np.testing.assert_array_equal, before, params)


@pytest.mark.parametrize(
  ('method', 'labels'),
  [
    ('mhr_z', {'routers'}),
    ('mhr', {'adapters', 'routers'}),
    ('mhr_mu', {'adapters'}),
    ('private', {'adapters'}),
  ],
)
def test_only_what_the_method_trains_is_trained(mhr, cells, method, labels):
  results = _adapt(mhr, method, cells[:3])
  for result in results:
    assert set(result.trained) == labels
    for leaf in jax.tree.leaves(result.trained.get('routers', {})):
      assert leaf.shape[-3] == 1
      assert np.abs(leaf).max() > 0.01
  first, second, _ = results
  assert first.losses[0] != second.losses[0]


def test_z_keeps_the_inventory(mhr, cells):
  """With the rows it trained, the pre-trained inventory gives its losses."""
  model, params = mhr
  cell = cells[0]
  key, _ = adaptation._split_key(cell)
  one_task, start = adaptation.adaptation_start(model, params, 'mhr_z', key=key)
  jax.tree.map(
    np.testing.assert_array_equal, start['adapters'], params['adapters']
  )
  result = _adapt(mhr, 'mhr_z', cells[:3])[0]
  _, losses = _train_by_hand(one_task, start, ('routers',), cell)
  np.testing.assert_allclose(result.losses, losses, rtol=1e-4)


def test_mu_starts_from_the_average(mhr):
  model, params = mhr
  one_task, start = adaptation.adaptation_start(
    model, params, 'mhr_mu', key=jax.random.key(0)
  )
  averaged, expected = evaluation.average_model(model, params)
  assert one_task.adapters == dataclasses.replace(averaged.adapters, n_tasks=1)
  jax.tree.map(np.testing.assert_array_equal, start, expected)


@pytest.mark.parametrize(
  ('method', 'labels', 'kept'),
  [
    ('lora_big', ('adapters',), True),
    ('mhr_rand', ('adapters', 'routers'), False),
    ('random', ('adapters', 'routers'), True),
    ('random_mu', ('adapters',), False),
  ],
)
def test_what_a_control_starts_from(method, labels, kept):
  """What is drawn and what is kept of the run of its pre-training."""
  base = toy_text.make_model().adapters
  config = methods.adapter_config(method, base)
  model = dataclasses.replace(toy_text.make_model(), adapters=config)
  params = toy_text.make_params(model)
  one_task, start = adaptation.adaptation_start(
    model, params, method, key=jax.random.key(0)
  )
  assert set(start) == {'backbone', *labels}
  assert one_task.adapters.n_tasks == 1
  jax.tree.map(
    lambda x, y: np.testing.assert_equal(x.shape, y.shape),
    start,
    one_task.abstract_params(),
  )
  assert (start['adapters'] is params['adapters']) == kept
  assert start['backbone'] is params['backbone']
  leaf = start['adapters']['encoder']['mlp']['wo']
  if method == 'lora_big':
    assert leaf['a'].shape == (1, 1, 1, 16, base.rank * base.n_skills)
  if method == 'mhr_rand':
    assert not leaf['b'].any()


@pytest.mark.slow
def test_full_trains_the_backbone(cells):
  model = dataclasses.replace(toy_text.make_model(), adapters=None)
  params = toy_text.make_params(model)
  results = _adapt((model, params), 'full', cells[:2])
  assert set(results[0].trained) == {'backbone'}
  expected = evaluation.predict(
    model,
    results[1].trained,
    cells[1].test,
    toy_text.VOCABULARY,
    settings=EVALUATE,
  )
  assert list(results[1].predictions) == expected


def test_adapters_without_a_model_that_has_some_is_an_error():
  model = dataclasses.replace(toy_text.make_model(), adapters=None)
  with pytest.raises(UserError, match='Start from a run of mhr'):
    adaptation.adaptation_start(
      model, {'backbone': {}}, 'mhr_z', key=jax.random.key(0)
    )


def test_learning_rates_share_one_program(mhr, cells, adapted):
  del adapted
  optimizer = dataclasses.replace(
    OPTIMIZER, learning_rates={'adapters': 0.0, 'routers': 0.0}
  )
  before = side_by_side._compiled_training.cache_info()
  results = _adapt(
    mhr,
    'mhr',
    cells[:3],
    dataclasses.replace(SETTINGS, optimizer=optimizer),
  )
  after = side_by_side._compiled_training.cache_info()
  assert after.misses == before.misses
  model, params = mhr
  jax.tree.map(
    np.testing.assert_array_equal,
    results[0].trained['adapters'],
    params['adapters'],
  )


def test_results_and_predictions_are_written(mhr, cells, tmp_path):
  settings = dataclasses.replace(SETTINGS, keep='trained')
  results = _adapt(mhr, 'mhr_z', cells, settings, folder=tmp_path)
  folder = tmp_path / 'upper' / 'seed1'
  result = results[-1]
  written = json.loads((folder / 'scores.json').read_text())
  assert written['overall'] == result.scores.overall
  lines = (folder / 'predictions.jsonl').read_text().splitlines()
  assert [json.loads(line)['prediction'] for line in lines] == [
    p.prediction for p in result.predictions
  ]
  facts = json.loads((folder / 'adapted.json').read_text())
  assert facts['method'] == 'mhr_z' and facts['trains'] == ['routers']
  assert facts['moved'] == result.moved
  moved = facts['moved']['mixing_weights']['encoder/attention']
  assert 0 < moved['change'] < 1
  assert moved['entropy_start'] > 0.99
  arrays = safetensors.load_file(folder / 'trained.safetensors')
  path = 'routers/encoder/attention/query/routing_logits'
  np.testing.assert_array_equal(
    arrays[path],
    result.trained['routers']['encoder']['attention']['query'][
      'routing_logits'
    ],
  )


def test_non_finite_loss_names_the_cell_and_the_step(mhr, cells):
  optimizer = dataclasses.replace(
    OPTIMIZER,
    learning_rates={'adapters': 1e30, 'routers': 1e30},
  )
  with pytest.raises(UserError, match='copy/seed0 is not finite at step'):
    _adapt(
      mhr,
      'mhr',
      cells[:3],
      dataclasses.replace(SETTINGS, optimizer=optimizer),
    )


def test_held_back_shots_give_a_loss_and_do_not_train(mhr):
  cells = toy_text.make_cells(seeds=(0,), held_back=2)
  cell = cells[0]
  assert sum(len(batch.records) for batch in cell.held_back) == 2
  held_back = {r.inputs for b in cell.held_back for r in b.records}
  trained_on = {
    toy_text.VOCABULARY.decode(row)
    for row in cell.batches['encoder_input_tokens'].reshape(-1, 8)
  }
  assert len(trained_on) <= 4 and not held_back & trained_on
  result = _adapt(mhr, 'mhr_z', cells)[0]
  assert result.held_back_loss > 0


@pytest.mark.parametrize(
  ('n', 'width', 'sizes'),
  [
    (24, 8, [8, 8, 8]),
    (9, 8, [5, 5]),
    (3, 8, [3]),
    (0, 8, []),
    (5, 1, [1] * 5),
  ],
)
def test_groups_have_one_size(n, width, sizes):
  groups = adaptation.split_groups(list(range(n)), width)
  assert [len(group) for group in groups] == sizes
  assert [c for g in groups for c in g][:n] == list(range(n))


def test_zero_shot_by_method(mhr):
  """As it is, averaged, or not defined: as the table of methods says."""
  model, params = mhr

  def run(method, model=model, params=params):
    return adaptation.zero_shot(
      model,
      params,
      method,
      toy_text.make_batches(),
      toy_text.VOCABULARY,
      settings=EVALUATE,
    )

  average = dataclasses.replace(EVALUATE, adapter='average')
  expected = evaluation.evaluate_generation(
    model,
    params,
    toy_text.make_batches(),
    toy_text.VOCABULARY,
    settings=average,
  )
  assert run('mhr') == expected
  assert run('mhr_mu', *evaluation.average_model(model, params)) == expected
  assert run('mhr_z') is None
  assert run('private') is None
