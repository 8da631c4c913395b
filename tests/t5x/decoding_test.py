"""T5X's decoding of mixed tasks, and ours in its form: the same tokens."""

import functools
import importlib

import jax
import numpy as np
import pytest

from mhr_jax.convert import t5x_tree
from mhr_jax.t5.decoding import DecodingSettings
from mhr_jax.t5x import installation
import t5x_in_process as in_process

pytestmark = [
  pytest.mark.t5x,
  pytest.mark.timeout(900),
  pytest.mark.filterwarnings('ignore'),
]

BATCH = in_process.draw_batch(0, targets=8)


@pytest.fixture(scope='module')
def build(t5x_dir):
  """A function that returns T5X's model over a routed one."""
  del t5x_dir
  installation.prepare_imports()

  def build_theirs(model, **settings):
    seqio = importlib.import_module('seqio')
    optimizer = importlib.import_module('mhr_jax.t5x.optimizer')
    module = importlib.import_module('mhr_jax.t5x.model')
    vocabulary = seqio.PassThroughVocabulary(model.config.vocab_size, eos_id=1)
    return module.RoutedEncoderDecoderModel(
      model, vocabulary, vocabulary, optimizer.RoutedOptimizer(), **settings
    )

  return build_theirs


def decode(theirs, params, batch, **settings):
  """Returns T5X's tokens [batch, length]."""
  predict = functools.partial(theirs.predict_batch_with_aux, **settings)
  return np.asarray(jax.jit(predict)(t5x_tree.to_t5x(params), batch)[0])


@pytest.mark.parametrize('adapters', ['mhr', 'poly'])
@pytest.mark.parametrize('beams', [2, 4])
def test_both_beam_searches_write_the_same(build, adapters, beams):
  model, params = in_process.build(adapters)
  # A large exponent: with T5X's default most rows end at once.
  theirs = decode(
    build(model),
    params,
    BATCH,
    num_decodes=beams,
    decoder_params={'alpha': 3.0},
  )
  settings = DecodingSettings(
    8, num_beams=beams, length_penalty='t5x', length_exponent=3.0
  )
  ours = decode(build(model, decoding=settings), params, BATCH)
  np.testing.assert_array_equal(theirs, ours)
  assert len({tuple(row) for row in theirs}) > 2


def test_greedy_by_their_sampling_is_our_greedy(build):
  model, params = in_process.build('mhr')
  sampling = importlib.import_module('t5x.decoding').temperature_sample
  greedy = functools.partial(sampling, temperature=0.0)
  theirs = decode(build(model, decode_fn=greedy), params, BATCH, num_decodes=1)
  ours = model.generate(
    params,
    {**BATCH, 'task_ids': BATCH['task_ids'][:, 0]},
    DecodingSettings(8),
  )
  np.testing.assert_array_equal(theirs, ours)


def test_mixed_tasks_decode_as_each_row_alone(build):
  model, params = in_process.build('mhr')
  theirs = build(model)
  together = decode(theirs, params, BATCH, num_decodes=4)
  for i in range(len(together)):
    one = {name: x[i : i + 1] for name, x in BATCH.items()}
    alone = decode(theirs, params, one, num_decodes=4)
    np.testing.assert_array_equal(together[i], alone[0])
  shuffled = {**BATCH, 'task_ids': (BATCH['task_ids'] + 1) % in_process.N_TASKS}
  other = decode(theirs, params, shuffled, num_decodes=4)
  assert (other != together).any()


def test_scores_are_log_probabilities(build):
  model, params = in_process.build('mhr')
  scores = build(model).score_batch(t5x_tree.to_t5x(params), BATCH)
  batch = {**BATCH, 'task_ids': BATCH['task_ids'][:, 0]}
  np.testing.assert_allclose(scores, model.score(params, batch), rtol=1e-5)
