"""Tests of config.json: what is carried over, and what is refused by name."""

import pytest

from mhr_jax.convert import hf_config
from mhr_jax.errors import UserError
from mhr_jax.t5.config import t5_config

# As t5-small, the first of them, was published: 2019's config.json.
T5_SMALL = {
  'architectures': ['T5WithLMHeadModel'],
  'd_ff': 2048,
  'd_kv': 64,
  'd_model': 512,
  'decoder_start_token_id': 0,
  'dropout_rate': 0.1,
  'eos_token_id': 1,
  'initializer_factor': 1.0,
  'is_encoder_decoder': True,
  'layer_norm_epsilon': 1e-06,
  'model_type': 't5',
  'n_positions': 512,
  'num_heads': 8,
  'num_layers': 6,
  'output_past': True,
  'pad_token_id': 0,
  'relative_attention_num_buckets': 32,
  'vocab_size': 32128,
}
# What the 1.1 family (LM-adapted, Flan, byT5 too) says beside.
OF_1_1 = {'feed_forward_proj': 'gated-gelu', 'tie_word_embeddings': False}


def read(changes=(), generation=(), *, base=T5_SMALL):
  values = {**base, **dict(changes)}
  return hf_config.from_json(values, dict(generation), where='folder')


def test_the_first_t5():
  assert read() == t5_config('t5_1_0_small', dropout_rate=0.1)


def test_t5_1_1():
  sizes = {'d_ff': 1024, 'num_heads': 6, 'num_layers': 8}
  assert read(OF_1_1 | sizes) == t5_config('t5_1_1_small', dropout_rate=0.1)


def test_mt5():
  # Its published configs say neither how tokens are tied nor the activation.
  config = read({'model_type': 'mt5', 'vocab_size': 250112})
  assert config.mlp_activations == ('gelu', 'linear')
  assert not config.logits_via_embedding


@pytest.mark.parametrize(
  ('changes', 'scaled'),
  [
    ({}, True),
    ({'tie_word_embeddings': True}, True),
    ({'tie_word_embeddings': None}, True),
    ({'tie_word_embeddings': False}, False),
    # transformers 5 says it apart.
    ({'tie_word_embeddings': True, 'scale_decoder_outputs': False}, False),
    ({'tie_word_embeddings': False, 'scale_decoder_outputs': True}, True),
    ({'model_type': 'mt5', 'tie_word_embeddings': True}, False),
  ],
)
def test_when_the_decoder_output_is_scaled(changes, scaled):
  assert read(changes).logits_via_embedding is scaled


@pytest.mark.parametrize(
  ('changes', 'activations'),
  [
    ({'feed_forward_proj': 'relu'}, ('relu',)),
    ({'feed_forward_proj': 'gated-gelu'}, ('gelu', 'linear')),
    ({'feed_forward_proj': 'gated-gelu_new'}, ('gelu', 'linear')),
    ({'feed_forward_proj': 'gated-silu'}, ('silu', 'linear')),
    ({'feed_forward_proj': 'gated-relu'}, ('relu', 'linear')),
    ({'feed_forward_proj': 'gelu_new'}, ('gelu',)),
    ({'dense_act_fn': 'gelu_new', 'is_gated_act': True}, ('gelu', 'linear')),
    ({'feed_forward_proj': 'gelu', 'dense_act_fn': 'silu'}, ('silu',)),
  ],
)
def test_activations(changes, activations):
  assert read(changes).mlp_activations == activations


@pytest.mark.parametrize(
  'changes',
  [
    {'feed_forward_proj': 'gelu'},
    OF_1_1 | {'dense_act_fn': 'gelu', 'is_gated_act': True},
  ],
)
def test_the_exact_gelu_is_refused(changes):
  with pytest.raises(UserError, match="config.json .* 'gelu' .* only the tanh"):
    read(changes)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'model_type': 'umt5'}, 'umt5.*scales'),
    ({'model_type': 'longt5'}, "'longt5'; read are .* t5, mt5"),
    ({'is_encoder_decoder': False}, 'is_encoder_decoder false'),
    ({'quantization_config': {'bits': 8}}, 'quantization_config'),
    ({'d_model': None}, 'config.json has no d_model'),
    ({'d_model': 'wide'}, "config.json: d_model is 'wide'; a whole number"),
    ({'dropout_rate': None}, 'config.json: dropout_rate is None; a number'),
    ({'layer_norm_epsilon': '1e-6'}, "layer_norm_epsilon is '1e-6'; a number"),
    ({'model_type': ['t5']}, 'config.json: model_type is .* a text is wanted'),
    ({'feed_forward_proj': 5}, 'feed_forward_proj is 5; a text is wanted'),
    ({'is_gated_act': 'no'}, "is_gated_act is 'no'; true or false is wanted"),
    ({'num_decoder_layers': 2.0}, 'num_decoder_layers is 2.0; a whole number'),
    ({'pad_token_id': True}, 'config.json, pad_token_id is True; one token'),
    ({'feed_forward_proj': 'twice-relu'}, "feed_forward_proj 'twice-relu'"),
    ({'feed_forward_proj': 'quick_gelu'}, "'quick_gelu'.*no equivalent"),
    ({'eos_token_id': [1, 2]}, r'eos_token_id is \[1, 2\]; one token'),
    ({'relative_attention_num_buckets': 2}, 'folder/config.json: relative_'),
    ({'dropout_rate': 1.5}, 'dropout_rate'),
  ],
)
def test_what_has_no_equivalent_is_refused_by_name(changes, message):
  with pytest.raises(UserError, match=message) as error:
    read(changes)
  assert str(error.value).count('folder') == 1


def test_sizes_that_may_differ():
  config = read({'num_layers': 12, 'num_decoder_layers': 4, 'num_heads': 7})
  assert (config.num_encoder_layers, config.num_decoder_layers) == (12, 4)
  assert config.joined_kv == 7 * 64 != config.emb_dim


def test_special_tokens_are_looked_for_in_both_files():
  ids = {'pad_token_id': 3, 'eos_token_id': [4], 'decoder_start_token_id': 5}
  bare = {k: v for k, v in T5_SMALL.items() if k not in ids}
  for changes, generation in ((ids, ids), (ids, {}), ({}, ids)):
    config = read(changes, generation, base=bare)
    found = config.pad_id, config.eos_id, config.decoder_start_token_id
    assert found == (3, 4, 5)
  config = read({'pad_token_id': 3}, base=bare)
  assert (config.eos_id, config.decoder_start_token_id) == (1, 3)
  with pytest.raises(UserError, match='eos_token_id is 1 in config.json and 7'):
    read({}, {'eos_token_id': 7})


@pytest.mark.parametrize(
  'config',
  [
    t5_config('t5_1_1_tiny', dropout_rate=0.1, num_decoder_layers=5),
    t5_config('t5_1_0_tiny', pad_id=2, eos_id=3, decoder_start_token_id=4),
    t5_config('t5_1_1_tiny', mlp_activations=('silu', 'linear')),
    t5_config('t5_1_1_tiny', mlp_activations=('linear',), mlp_dim=7),
    t5_config(
      't5_1_0_tiny',
      mlp_activations=('gelu',),
      relative_attention_num_buckets=6,
      relative_attention_max_distance=9,
      layer_norm_epsilon=1e-5,
    ),
  ],
)
def test_a_config_comes_back_as_it_was_written(config):
  values = hf_config.to_json(config, dtype='float32')
  assert read(base=values) == config


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'relative_positions': 'layer'}, "relative_positions 'layer'"),
    ({'mlp_activations': ('gelu', 'gelu')}, 'mlp_activations'),
    ({'mlp_activations': ('gelu', 'linear', 'linear')}, 'mlp_activations'),
  ],
)
def test_what_transformers_has_not_is_not_written(changes, message):
  with pytest.raises(UserError, match=message):
    hf_config.to_json(t5_config('t5_1_1_tiny', **changes), dtype='float32')
