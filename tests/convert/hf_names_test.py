"""Tests of transformers' names beside ours."""

from flax import traverse_util
import jax
import jax.numpy as jnp
import pytest

from mhr_jax.convert import hf_names
from mhr_jax.t5 import network
from mhr_jax.t5.config import list_linears, t5_config


@pytest.mark.parametrize('name', ['t5_1_1_tiny', 't5_1_0_tiny'])
def test_leaves_are_the_parameters_of_the_unrolled_network(name):
  config = t5_config(
    name, vocab_size=50, num_decoder_layers=1, scan_layers=False
  )
  token = jnp.zeros((1, 1), jnp.int32)
  params = jax.eval_shape(
    network.T5(config).init, jax.random.key(0), token, token
  )['params']
  flat = traverse_util.flatten_dict(params, sep='/')
  leaves = list(hf_names.list_leaves(config))
  assert sorted(leaf.path for leaf in leaves) == sorted(flat)
  assert len({leaf.name for leaf in leaves}) == len(leaves)


def test_a_module_name_leads_back_to_its_linear():
  config = t5_config('t5_1_0_tiny')
  for path, linear in list_linears(config).items():
    for layer in range(linear.layers):
      name = hf_names.module_name(path, layer)
      assert hf_names.find_linear(name) == (path, layer)


@pytest.mark.parametrize(
  'name', ['lm_head', 'encoder.block.0.layer.1.EncDecAttention.q', 'shared']
)
def test_other_modules_are_no_linears(name):
  assert hf_names.find_linear(name) is None
