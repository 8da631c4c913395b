"""Our adapters against PEFT's, with its parameters copied into ours."""

import functools

import jax
import numpy as np
import pytest

from mhr_jax.model import RoutedT5
from mhr_jax.t5.decoding import DecodingSettings
import random_peft

pytestmark = [
  pytest.mark.interop,
  pytest.mark.usefixtures('peft'),
  # PEFT asks transformers in words that are going.
  pytest.mark.filterwarnings(
    'ignore:.is_gradient_checkpointing. is deprecated:FutureWarning'
  ),
]


@pytest.mark.parametrize('seed', [0, 1, 2])
@pytest.mark.parametrize('method', ['poly', 'mhr', 'lora'])
def test_logits_on_a_batch_of_mixed_tasks(
  torch, report_difference, method, seed
):
  config, added = random_peft.draw(method, seed)
  theirs, params = random_peft.wrap(config, added, seed)
  batch = random_peft.draw_batch(config, added, seed)
  with torch.no_grad():
    expected = theirs(**random_peft.as_their_inputs(added, batch)).logits
  logits = jax.jit(RoutedT5(config, added).logits)(params, batch)
  case = f'logits, {method}'
  assert report_difference(case, 'PEFT, live', logits, expected) < 1e-5


@pytest.mark.parametrize('method', ['poly', 'mhr'])
def test_greedy_tokens(method):
  config, added = random_peft.draw(method, 3)
  theirs, params = random_peft.wrap(config, added, 3)
  batch = random_peft.draw_batch(config, added, 3)
  inputs = random_peft.as_their_inputs(added, batch)
  del inputs['labels'], inputs['decoder_input_ids']
  expected = theirs.generate(
    **inputs, max_new_tokens=12, do_sample=False, use_cache=False
  ).numpy()[:, 1:]
  settings = DecodingSettings(12)
  generate = functools.partial(
    RoutedT5(config, added).generate, settings=settings
  )
  actual = jax.jit(generate)(params, batch)
  np.testing.assert_array_equal(actual[:, : expected.shape[1]], expected)
