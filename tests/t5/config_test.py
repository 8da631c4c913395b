"""Sizes, validation and the list of linears."""

import dataclasses
import math

import pytest

from mhr_jax import errors, run_folder
from mhr_jax.t5 import config as config_lib


def test_names_cover_both_families():
  names = config_lib.config_names()
  assert len(names) == 12
  assert 't5_1_1_xl' in names and 't5_1_0_small' in names


def test_unknown_name_says_which_was_meant():
  with pytest.raises(errors.UserError, match="Did you mean 't5_1_1_small'"):
    config_lib.t5_config('t5_1_1_smal')


def test_unknown_field_says_which_was_meant():
  with pytest.raises(errors.UserError, match="Did you mean 'dropout_rate'"):
    config_lib.t5_config('t5_1_1_tiny', droput_rate=0.1)


@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    ({'dtype': 'float16'}, 'become infinite'),
    ({'dtype': 'bfloat32'}, 'Did you mean'),
    ({'remat': 'minimal'}, 'remat'),
    ({'relative_positions': 'layers'}, "Did you mean 'layer'"),
    ({'num_heads': 0}, 'num_heads'),
    ({'mlp_dim': 3.5}, 'mlp_dim'),
    ({'dropout_rate': 1.0}, 'dropout_rate'),
    ({'mlp_activations': ('geglu',)}, 'mlp_activations'),
    ({'mlp_activations': ()}, 'mlp_activations'),
    ({'relative_attention_num_buckets': 7}, 'num_buckets'),
    ({'relative_attention_max_distance': 16}, 'max_distance'),
  ],
)
def test_impossible_settings_are_refused(overrides, message):
  with pytest.raises(errors.UserError, match=message):
    config_lib.t5_config('t5_1_1_tiny', **overrides)


def test_config_from_lists_is_hashable():
  config = config_lib.t5_config('t5_1_1_tiny', mlp_activations=['relu'])
  assert hash(config) == hash(
    config_lib.t5_config('t5_1_1_tiny', mlp_activations=('relu',))
  )


def test_a_description_of_before_has_one_table_a_stack():
  config = config_lib.t5_config('t5_1_1_tiny')
  values = dataclasses.asdict(config)
  del values['relative_positions']
  assert run_folder.config_from_json(values, where='model.json') == config


def test_linears_of_xl_hold_all_but_norms_tables_and_embeddings():
  config = config_lib.t5_config('t5_1_1_xl')
  linears = config_lib.list_linears(config)
  assert len(linears) == 7 + 11
  assert linears['encoder/mlp/wo'] == (24, 5120, 2048)
  inside = sum(math.prod(linear) for linear in linears.values())
  outside = 2 * 32_128 * 2048 + 2 * 32 * 32  # embedding, logits, tables
  norms = (24 * 2 + 24 * 3 + 2) * 2048
  assert inside + outside + norms == 2_849_757_184


def test_linears_of_t5_1_0_have_one_hidden_projection():
  linears = config_lib.list_linears(config_lib.t5_config('t5_1_0_small'))
  assert 'decoder/mlp/wi' in linears
  assert 'decoder/mlp/wi_0' not in linears
