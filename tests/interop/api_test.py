"""What `mhr_jax.load` returns answers as transformers and PEFT do."""

import numpy as np
import pytest

import mhr_jax
import random_peft
import random_t5

pytestmark = [
  pytest.mark.interop,
  # PEFT asks transformers in words that are going.
  pytest.mark.filterwarnings(
    'ignore:.is_gradient_checkpointing. is deprecated:FutureWarning'
  ),
]

LENGTH = 12


def draw_inputs(config, seed, rows):
  """Returns token ids, and a mask that hides padding and some tokens."""
  rng = np.random.default_rng(seed)
  batch = random_t5.draw_batch(config, seed, rows=rows, inputs=14)
  tokens = batch['encoder_input_tokens']
  mask = (tokens != config.pad_id) & (rng.random(tokens.shape) < 0.8)
  mask[:, 0] = True
  return tokens, mask.astype(np.int64), batch['decoder_input_tokens']


def as_tensors(torch, **arrays):
  return {k: torch.tensor(v, dtype=torch.long) for k, v in arrays.items()}


def their_tokens(torch, model, tokens, mask, num_beams=1, **more):
  """Returns what their `generate` returns, padded after the end."""
  found = model.generate(
    **as_tensors(torch, input_ids=tokens, attention_mask=mask, **more),
    num_beams=num_beams,
    max_new_tokens=LENGTH,
    do_sample=False,
    use_cache=False,  # which has the encoder's depth, not the decoder's
  ).numpy()
  # Their beam search repeats the end where the padding's id is 0.
  ends = found == 1
  return np.where(ends.cumsum(axis=1) - ends > 0, 0, found)


@pytest.fixture(scope='module', params=['t5_1_1', 't5_1_0'])
def folder(request, transformers, tmp_path_factory):
  """A folder that transformers wrote; its model, its config."""
  config = random_t5.draw_config(request.param, 8)
  model, _ = random_t5.build(config, 8)
  path = tmp_path_factory.mktemp(request.param)
  model.save_pretrained(path)
  return path, model, config, request.param


def test_logits(torch, folder, report_difference):
  path, theirs, config, family = folder
  tokens, mask, targets = draw_inputs(config, 1, rows=5)
  inputs = as_tensors(
    torch, input_ids=tokens, attention_mask=mask, decoder_input_ids=targets
  )
  with torch.no_grad():
    expected = theirs(**inputs).logits.numpy()
  actual = mhr_jax.load(path).logits(tokens, targets, mask)
  case = f'mhr_jax.load of their folder, {family}, masked logits'
  assert report_difference(case, 'transformers, live', actual, expected) <= 1e-5


@pytest.mark.parametrize('num_beams', [1, 4])
def test_generate_ids(torch, folder, num_beams):
  path, theirs, config, _ = folder
  ours = mhr_jax.load(path)
  tokens, mask, _ = draw_inputs(config, 2, rows=12)
  expected = their_tokens(torch, theirs, tokens, mask, num_beams)
  settings = {'max_new_tokens': LENGTH, 'num_beams': num_beams}
  actual = ours.generate_ids(tokens, mask, **settings)
  assert actual.shape == expected.shape
  np.testing.assert_array_equal(actual, expected)
  # The rows that end, by themselves: both are cut at the longest.
  ended = np.flatnonzero((expected == 1).any(axis=1))
  lengths = (expected == 1).argmax(axis=1)[ended]
  short = ended[lengths < lengths.max()] if len(set(lengths)) > 1 else ended
  assert len(short)
  expected = their_tokens(torch, theirs, tokens[short], mask[short], num_beams)
  actual = ours.generate_ids(tokens[short], mask[short], **settings)
  assert actual.shape == expected.shape and expected.shape[1] <= LENGTH
  np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize('method', ['mhr', 'lora'])
def test_generate_ids_with_peft_adapters(torch, peft, tmp_path, method):
  config, added = random_peft.draw(method, 3)
  random_t5.build(config, 3)[0].save_pretrained(tmp_path / 'backbone')
  theirs, _ = random_peft.wrap(config, added, 3)
  theirs.save_pretrained(tmp_path / 'adapter')
  ours = mhr_jax.load(tmp_path / 'backbone', adapter=tmp_path / 'adapter')
  tokens, mask, _ = draw_inputs(config, 4, rows=8)
  task_ids = np.random.default_rng(0).integers(0, added.n_tasks, 8)
  more = {} if random_peft.is_lora(added) else {'task_ids': task_ids}
  expected = their_tokens(torch, theirs, tokens, mask, **more)
  actual = ours.generate_ids(tokens, mask, **more, max_new_tokens=LENGTH)
  np.testing.assert_array_equal(actual, expected)
  bare = mhr_jax.load(tmp_path / 'backbone')
  without = bare.generate_ids(tokens, mask, max_new_tokens=LENGTH)
  assert without.shape != actual.shape or (without != actual).any()


def test_what_we_save_of_a_task_is_that_task_elsewhere(
  torch, transformers, peft, tmp_path
):
  config, added = random_peft.draw('mhr', 5)
  base, _ = random_t5.build(config, 5)
  base.save_pretrained(tmp_path / 'backbone')
  random_peft.wrap(config, added, 5)[0].save_pretrained(tmp_path / 'adapter')
  ours = mhr_jax.load(tmp_path / 'backbone', adapter=tmp_path / 'adapter')
  ours.save(tmp_path / 'fused', 'hf', task=2)
  ours.save(tmp_path / 'lora', 'peft-lora', task=2)
  tokens, mask, _ = draw_inputs(config, 6, rows=8)
  expected = ours.generate_ids(
    tokens, mask, task_ids=2, max_new_tokens=LENGTH, num_beams=3
  )
  fused = transformers.T5ForConditionalGeneration.from_pretrained(
    tmp_path / 'fused'
  ).eval()
  one = peft.PeftModel.from_pretrained(base, tmp_path / 'lora').eval()
  for theirs in (fused, one):
    actual = their_tokens(torch, theirs, tokens, mask, num_beams=3)
    np.testing.assert_array_equal(actual, expected)
