"""Our T5 against transformers', with random shapes and weights."""

import functools

import jax
import numpy as np
import pytest

from mhr_jax.model import RoutedT5
from mhr_jax.t5.decoding import DecodingSettings
import random_t5

pytestmark = [
  pytest.mark.interop,
  pytest.mark.usefixtures('transformers'),
  pytest.mark.parametrize('seed', [2, 8]),
  pytest.mark.parametrize('family', ['t5_1_1', 't5_1_0']),
]


def test_logits_and_loss(torch, family, seed):
  config = random_t5.draw_config(family, seed)
  theirs, backbone = random_t5.build(config, seed)
  batch = random_t5.draw_batch(config, seed)
  with torch.no_grad():
    expected = theirs(**random_t5.as_their_inputs(batch))

  model, params = RoutedT5(config), {'backbone': backbone}
  logits = jax.jit(model.logits)(params, batch)
  np.testing.assert_allclose(logits, expected.logits, atol=1e-5)
  total, weight, _ = jax.jit(model.loss)(params, batch)
  np.testing.assert_allclose(total / weight, expected.loss, atol=1e-5)


@pytest.mark.parametrize('num_beams', [1, 4])
def test_decoding(family, seed, num_beams):
  config = random_t5.draw_config(family, seed)
  theirs, backbone = random_t5.build(config, seed)
  batch = random_t5.draw_batch(config, seed, rows=12)
  inputs = random_t5.as_their_inputs(batch)
  del inputs['labels']
  length = 16
  expected = theirs.generate(
    **inputs,
    num_beams=num_beams,
    max_new_tokens=length,
    do_sample=False,
    use_cache=False,  # which has the encoder's depth, not the decoder's
  ).numpy()[:, 1:]  # without the start token
  ends = expected == config.eos_id
  # After the end theirs repeats it where pad_id is 0, in beam search.
  expected = np.where(ends.cumsum(axis=1) - ends > 0, config.pad_id, expected)

  settings = DecodingSettings(length, num_beams=num_beams)
  generate = functools.partial(RoutedT5(config).generate, settings=settings)
  actual = jax.jit(generate)({'backbone': backbone}, batch)
  width = expected.shape[1]
  np.testing.assert_array_equal(actual[:, :width], expected)
  np.testing.assert_array_equal(actual[:, width:], 0)
  assert ends.any() and not ends.any(axis=1).all()
