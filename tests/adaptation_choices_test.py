"""Few-shot cells on answer choices: T-Few's loss, ranked test sets."""

import dataclasses
import json

import jax
import numpy as np
import optax
import pytest

from mhr_jax import (
  adaptation,
  evaluation,
  few_shot,
  optim,
  side_by_side,
  train_state,
)
from mhr_jax.choice_losses import ChoiceLoss
from mhr_jax.errors import UserError
import toy_text

OPTIMIZER = optim.OptimizerSettings(
  name='sgd',
  schedule='constant',
  learning_rates={'adapters': 0.05, 'routers': 0.05},
  weight_decay={'adapters': 0.0},
  warmup_proportion=0.0,
)
LOSS = side_by_side.LossSettings(
  choice_loss=0.5, unlikelihood=2.0, length_norm=0.5
)
SETTINGS = adaptation.AdaptationSettings(optimizer=OPTIMIZER, loss=LOSS)
EVALUATE = evaluation.EvaluationSettings(metrics=('accuracy',))


@pytest.fixture(scope='module')
def mhr():
  model = toy_text.make_model()
  return model, toy_text.make_params(model)


@pytest.fixture(scope='module')
def cells():
  """Two cells that differ in their largest number of choices."""
  tasks = [
    few_shot.FewShotTask(
      toy_text.make_choices(task, 5, forms=3, most=most),
      toy_text.make_choices(task, n, seed=1, most=most),
    )
    for task, n, most in (('copy', 5, 4), ('upper', 3, 3))
  ]
  settings = few_shot.FewShotSettings(
    shots=5,
    forms='one_each',
    seeds=(0,),
    steps=3,
    batch_size=4,
    test_batch_size=4,
    **toy_text.WIDTHS,
  )
  found = few_shot.build_cells(tasks, settings)
  widths = [cell.batches['choice_mask'].shape[-1] for cell in found]
  assert widths == [4, 3]
  return found


def _adapt(mhr, cells, settings=SETTINGS, evaluate=EVALUATE, **others):
  return adaptation.adapt(
    *mhr,
    'mhr',
    cells,
    toy_text.VOCABULARY,
    settings=settings,
    evaluate=evaluate,
    **others,
  )


@pytest.fixture(scope='module')
def adapted(mhr, cells, tmp_path_factory):
  folder = tmp_path_factory.mktemp('adapted')
  return _adapt(mhr, cells, folder=folder), folder


def _start(mhr, cell):
  key, _ = adaptation._split_key(cell)
  return adaptation.adaptation_start(*mhr, 'mhr', key=key)


def test_cells_are_trained_and_ranked_each_with_its_own(mhr, cells, adapted):
  results, _ = adapted
  for cell, result in zip(cells, results, strict=True):
    model, _ = _start(mhr, cell)
    params = {'backbone': mhr[1]['backbone'], **result.trained}
    expected = evaluation.predict(
      model, params, cell.test, toy_text.VOCABULARY, settings=EVALUATE
    )
    assert len(expected) == len(result.predictions)
    for one, other in zip(result.predictions, expected, strict=True):
      assert one.prediction == other.prediction
      np.testing.assert_allclose(
        one.choice_scores, other.choice_scores, atol=1e-4
      )
    assert result.scores.metrics == ('accuracy',)


def test_losses_are_the_sum_of_their_parts(adapted):
  results, folder = adapted
  for result in results:
    parts = result.loss_parts
    total = parts['likelihood'] + 0.5 * parts['choice']
    total = total + 2.0 * parts['unlikelihood']
    np.testing.assert_allclose(result.losses, total, rtol=1e-5)
    written = json.loads(
      (folder / result.task / 'seed0' / 'adapted.json').read_text()
    )
    np.testing.assert_allclose(
      written['loss_parts']['choice'], parts['choice'], rtol=1e-5
    )


@pytest.mark.slow
def test_equals_plain_training(mhr, cells, adapted):
  """One cell alone, by plain gradient descent on the model's own loss."""
  cell, result = cells[1], adapted[0][1]
  model, start = _start(mhr, cell)
  frozen = {'backbone': start.pop('backbone')}
  settings = ChoiceLoss(choice_loss=0.5, unlikelihood=2.0, length_norm=0.5)

  @jax.jit
  def step(trainable, batch):
    def loss(trainable):
      return model.choice_loss({**frozen, **trainable}, batch, settings)[0]

    value, grads = jax.value_and_grad(loss)(trainable)
    norm = optax.tree.norm(grads)
    rate = 0.05 / jax.numpy.maximum(norm, 1.0)
    return jax.tree.map(lambda x, g: x - rate * g, trainable, grads), value

  losses = []
  for i in range(3):
    batch = {name: array[i] for name, array in cell.batches.items()}
    start, value = step(start, batch)
    losses.append(float(value))
  np.testing.assert_allclose(result.losses, losses, rtol=1e-4)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
    result.trained,
    start,
  )


@pytest.mark.slow
def test_accumulated_micro_batches_give_the_whole_batchs_step(mhr, cells):
  """Rows with 2 to 4 choices: no micro-batch has the batch's weights."""
  cell = cells[0]
  model, start = _start(mhr, cell)
  batch = {name: array[0] for name, array in cell.batches.items()}
  on_choices = side_by_side._OnChoices(model, LOSS.on_choices)
  rule = optim.make_optimizer(OPTIMIZER, 3)
  found = []
  for accumulation in (1, 2):
    state = train_state.init_state(start, rule, ('adapters', 'routers'))
    step = train_state.make_train_step(
      on_choices,
      rule,
      accumulation=accumulation,
      weigh=model.weigh_choice_parts,
    )
    state, metrics = step(state, batch, jax.random.key(0))
    found.append((state.trainable, metrics['loss_sum'], metrics['choice']))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *found)


def test_shots_without_choices_are_named(mhr):
  cells = toy_text.make_cells(seeds=(0,))
  with pytest.raises(
    UserError, match='copy/seed0 have no answer choices.*LossSettings'
  ):
    _adapt(mhr, cells)


def test_test_sets_without_choices_are_named_before_training(
  mhr, cells, monkeypatch
):
  monkeypatch.setattr(adaptation, 'train_cells', None)
  bare = toy_text.make_cells(seeds=(0,))[0]
  mixed = dataclasses.replace(cells[0], test=bare.test)
  with pytest.raises(UserError, match="'copy-0': there are no answer choices"):
    _adapt(mhr, [cells[1], mixed])


def test_settings_that_do_not_go_together_are_refused():
  with pytest.raises(UserError, match='normalisation stays at its default'):
    dataclasses.replace(LOSS, normalisation='examples')
  with pytest.raises(UserError, match='choice_loss is -1'):
    side_by_side.LossSettings(choice_loss=-1)
  assert side_by_side.LossSettings().on_choices is None
