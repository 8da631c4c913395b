"""Decoding against transformers, full decoding and plain-Python searches."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mhr_jax import errors
from mhr_jax.t5 import config as config_lib
from mhr_jax.t5 import decoding, parameters
from mhr_jax.t5 import network as network_lib

VOCAB = 11
CONFIG = config_lib.t5_config(
  't5_1_1_tiny',
  vocab_size=VOCAB,
  emb_dim=16,
  num_heads=2,
  head_dim=8,
  mlp_dim=24,
)
TOKENS = jnp.array(
  [[5, 9, 3, 1, 0], [7, 7, 2, 8, 1], [6, 1, 0, 0, 0], [10, 4, 1, 0, 0]]
)
LENGTH = 7
DecodingSettings = decoding.DecodingSettings

decode = jax.jit(
  decoding.decode_tokens, static_argnames=('network', 'settings')
)


@functools.cache
def make_params():
  """Random weights whose logits are spread enough to end at various steps."""
  network = network_lib.T5(CONFIG)
  init = jax.jit(network.init)
  params = init(jax.random.key(3), TOKENS, TOKENS)['params']
  return jax.tree.map(lambda leaf: leaf * 1.2, params)


@functools.cache
def make_adapters(batch=4):
  rng = np.random.default_rng(0)
  tree = {}
  for path, (layers, width, out) in config_lib.list_linears(CONFIG).items():
    stack, sublayer, name = path.split('/')
    a = rng.normal(size=(layers, batch, width, 2)) / np.sqrt(width)
    b = rng.normal(size=(layers, batch, 2, out)) / 3
    pair = {'a': jnp.asarray(a, 'float32'), 'b': jnp.asarray(b, 'float32')}
    tree.setdefault(stack, {}).setdefault(sublayer, {})[name] = pair
  return tree


@functools.partial(jax.jit, static_argnums=0)
def full_logits(network, params, inputs, targets, adapters):
  return network.apply({'params': params}, inputs, targets, adapters)


def next_log_probs(example, adapters=None):
  """Returns prefix -> log-probabilities, by decoding in full every time."""
  network = network_lib.T5(CONFIG)

  def log_probs(prefix):
    targets = np.zeros((1, LENGTH + 1), 'int32')
    targets[0, 1 : 1 + len(prefix)] = prefix
    logits = full_logits(
      network, make_params(), TOKENS[example][None], targets, adapters
    )
    return np.asarray(jax.nn.log_softmax(logits[0, len(prefix)]), 'float64')

  return functools.cache(log_probs)


def greedy_by_hand(log_probs):
  prefix = ()
  while len(prefix) < LENGTH and prefix[-1:] != (1,):
    prefix += (int(np.argmax(log_probs(prefix))),)
  return prefix


def beams_by_hand(log_probs, num_beams, penalty):
  """transformers' search, one row, with lists of hypotheses."""
  running, finished = [(0.0, ())], []
  for length in range(1, LENGTH + 1):
    candidates = sorted(
      (
        (score + log_probs(prefix)[token], (*prefix, token))
        for score, prefix in running
        for token in range(VOCAB)
      ),
      reverse=True,
    )[: 2 * num_beams]
    last = length == LENGTH
    for score, prefix in candidates[:num_beams]:
      if prefix[-1] == 1 or last:
        finished.append((score / length**penalty, prefix))
    finished = sorted(finished, reverse=True)[:num_beams]
    running = [c for c in candidates if c[1][-1] != 1][:num_beams]
    best = running[0][0] / length**penalty
    if len(finished) == num_beams and best <= finished[-1][0]:
      break
  return finished[0][1]


def t5x_beams_by_hand(log_probs, num_beams, exponent):
  """T5X's search, one row, with lists of hypotheses."""

  def divisor(length):
    return ((5 + length) / 6) ** exponent

  running, finished = [(0.0, ())], []
  for length in range(1, LENGTH + 1):
    candidates = sorted(
      (
        (score + log_probs(prefix)[token], (*prefix, token))
        for score, prefix in running
        for token in range(VOCAB)
      ),
      reverse=True,
    )[: 2 * num_beams]
    ended = [c for c in candidates if c[1][-1] == 1]
    finished += [(score / divisor(length), prefix) for score, prefix in ended]
    finished = sorted(finished, reverse=True)[:num_beams]
    running = [c for c in candidates if c[1][-1] != 1][:num_beams]
    best = running[0][0] / divisor(LENGTH + 1)
    if len(finished) == num_beams and best < finished[-1][0]:
      break
  return (finished or running)[0][1]


def padded(prefix):
  return list(prefix) + [0] * (LENGTH - len(prefix))


@pytest.mark.parametrize(('name', 'num_beams'), [('greedy', 1), ('beam4', 4)])
def test_equals_transformers(hf_config, hf_params, hf_batch, name, num_beams):
  tokens = decode(
    network_lib.T5(hf_config),
    hf_params,
    jnp.asarray(hf_batch['input_ids']),
    None,
    DecodingSettings(16, num_beams=num_beams),
  )
  expected = hf_batch[f'{name}_16'][:, 1:]  # without the start token
  np.testing.assert_array_equal(tokens, expected)


@pytest.mark.parametrize(
  'scan_layers', [True, pytest.param(False, marks=pytest.mark.slow)]
)
def test_cached_steps_equal_full_decoding(scan_layers):
  config = dataclasses.replace(CONFIG, scan_layers=scan_layers)
  params = make_params()
  if not scan_layers:
    params = parameters.unstack_layers(params, config)
  network, adapters = network_lib.T5(config), make_adapters()
  targets = np.random.default_rng(0).integers(2, VOCAB, (4, LENGTH))
  expected = full_logits(network, params, TOKENS, targets, adapters)
  run = functools.partial(network.apply, {'params': params})
  encoded = jax.jit(functools.partial(run, method='encode'))(TOKENS, adapters)
  start = functools.partial(run, rows=4, length=LENGTH, method='start_cache')
  cache = jax.jit(start)(encoded, adapters)
  step = jax.jit(functools.partial(run, method='decode_step'))
  for t in range(LENGTH):
    position = jnp.int32(t)
    logits, cache = step(targets[:, t], position, cache, TOKENS > 0, adapters)
    np.testing.assert_allclose(logits, expected[:, t], rtol=1e-4, atol=1e-5)


def test_greedy_equals_full_decoding_by_hand():
  tokens = decode(
    network_lib.T5(CONFIG),
    make_params(),
    TOKENS,
    None,
    DecodingSettings(LENGTH),
  )
  by_hand = [greedy_by_hand(next_log_probs(i)) for i in range(4)]
  assert tokens.tolist() == [padded(prefix) for prefix in by_hand]
  lengths = {len(prefix) for prefix in by_hand}
  assert len(lengths) > 1  # some end early


@pytest.mark.parametrize(
  ('num_beams', 'penalty'), [(2, 1.0), (4, 1.0), (3, 0.0), (4, 2.0)]
)
def test_beams_equal_a_plain_search(num_beams, penalty):
  settings = DecodingSettings(
    LENGTH, num_beams=num_beams, length_exponent=penalty
  )
  tokens = decode(network_lib.T5(CONFIG), make_params(), TOKENS, None, settings)
  by_hand = [
    beams_by_hand(next_log_probs(i), num_beams, penalty) for i in range(4)
  ]
  assert tokens.tolist() == [padded(prefix) for prefix in by_hand]


@pytest.mark.parametrize(('num_beams', 'exponent'), [(2, 0.6), (4, 1.5)])
def test_beams_of_t5x_equal_a_plain_search(num_beams, exponent):
  settings = DecodingSettings(
    LENGTH,
    num_beams=num_beams,
    length_penalty='t5x',
    length_exponent=exponent,
  )
  tokens = decode(network_lib.T5(CONFIG), make_params(), TOKENS, None, settings)
  by_hand = [
    t5x_beams_by_hand(next_log_probs(i), num_beams, exponent) for i in range(4)
  ]
  assert tokens.tolist() == [padded(prefix) for prefix in by_hand]


@pytest.mark.parametrize(
  'num_beams', [pytest.param(1, marks=pytest.mark.slow), 4]
)
def test_mixed_adapters_equal_each_example_alone(num_beams):
  decode_with = functools.partial(
    decode,
    network_lib.T5(CONFIG),
    make_params(),
    settings=DecodingSettings(LENGTH, num_beams=num_beams),
  )
  adapters = make_adapters()
  together = decode_with(TOKENS, adapters)
  for i in range(4):
    own = jax.tree.map(lambda leaf, i=i: leaf[:, i : i + 1], adapters)
    alone = decode_with(TOKENS[i : i + 1], own)
    np.testing.assert_array_equal(together[i], alone[0])
  without = decode_with(TOKENS, None)
  assert (np.asarray(without) != np.asarray(together)).any()


@pytest.mark.parametrize('num_beams', [1, 4])
def test_a_row_of_padding_comes_back_as_padding(num_beams):
  settings = DecodingSettings(LENGTH, num_beams=num_beams)
  network, params = network_lib.T5(CONFIG), make_params()
  expected = decode(network, params, TOKENS, None, settings)
  tokens = decode(network, params, TOKENS.at[3].set(0), None, settings)
  assert tokens[3].tolist() == [0] * LENGTH
  np.testing.assert_array_equal(tokens[:3], expected[:3])


@pytest.mark.parametrize('num_beams', [1, 2])
def test_bfloat16_is_accepted(num_beams):
  config = dataclasses.replace(CONFIG, dtype='bfloat16')
  run = functools.partial(
    decoding.decode_tokens,
    network_lib.T5(config),
    settings=DecodingSettings(LENGTH, num_beams=num_beams),
  )
  tokens = jax.eval_shape(run, make_params(), TOKENS, make_adapters())
  assert (tokens.shape, tokens.dtype) == ((4, LENGTH), jnp.int32)


def test_samples_have_the_network_s_frequencies():
  settings = DecodingSettings(1, temperature=2.0)
  rows = jnp.tile(TOKENS[:1], (4000, 1))
  tokens = decode(
    network_lib.T5(CONFIG),
    make_params(),
    rows,
    None,
    settings,
    key=jax.random.key(0),
  )
  counts = np.bincount(np.asarray(tokens[:, 0]), minlength=VOCAB)
  scaled = next_log_probs(0)(()) / 2.0
  expected = np.exp(scaled) / np.exp(scaled).sum()
  np.testing.assert_allclose(counts / 4000, expected, atol=0.03)


def test_samples_depend_on_the_key_and_the_place_only():
  settings = DecodingSettings(LENGTH, temperature=1.5, top_k=6)
  sample = functools.partial(decode, network_lib.T5(CONFIG), make_params())
  tokens = sample(TOKENS, None, settings, key=jax.random.key(0))
  others = TOKENS.at[1:].set(TOKENS[0])
  again = sample(others, None, settings, key=jax.random.key(0))
  other_key = sample(TOKENS, None, settings, key=jax.random.key(1))
  np.testing.assert_array_equal(tokens[0], again[0])
  assert (np.asarray(tokens) != np.asarray(other_key)).any()


def test_keep_likely():
  probabilities = np.array([0.1, 0.4, 0.2, 0.3])
  logits = jnp.log(probabilities)

  def kept(top_k, top_p):
    likely = decoding.keep_likely(logits, top_k=top_k, top_p=top_p)
    return np.flatnonzero(np.isfinite(likely)).tolist()

  assert kept(0, 1.0) == [0, 1, 2, 3]
  assert kept(2, 1.0) == [1, 3]
  assert kept(9, 1.0) == [0, 1, 2, 3]
  assert kept(0, 0.35) == [1]
  assert kept(0, 0.65) == [1, 3]
  assert kept(0, 0.75) == [1, 2, 3]
  assert kept(3, 0.75) == [1, 3]  # 0.4 + 0.3 is 0.78 of what top_k left
  assert kept(0, 1e-6) == [1]


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'max_new_tokens': 0}, 'max_new_tokens'),
    ({'num_beams': 0}, 'num_beams'),
    ({'temperature': -1.0}, 'temperature'),
    ({'temperature': 1.0, 'top_p': 0.0}, 'top_p'),
    ({'temperature': 1.0, 'num_beams': 2}, 'does not sample'),
    ({'top_k': 3}, 'above 0'),
  ],
)
def test_impossible_settings_are_refused(fields, message):
  with pytest.raises(errors.UserError, match=message):
    DecodingSettings(**({'max_new_tokens': 4} | fields))


def test_sampling_needs_a_key_and_beams_a_vocabulary():
  network = network_lib.T5(CONFIG)
  with pytest.raises(errors.UserError, match='needs a key'):
    decoding.decode_tokens(
      network, {}, TOKENS, None, DecodingSettings(4, temperature=1.0)
    )
  with pytest.raises(errors.UserError, match='6 beams'):
    decoding.decode_tokens(
      network, {}, TOKENS, None, DecodingSettings(4, num_beams=6)
    )
