"""mttl's checkpoints as Lightning pickles them, with their settings."""

import dataclasses

import jax
import numpy as np
import pytest

from mhr_jax.convert import mttl
from mhr_jax.errors import UserError
import mttl_checkpoints
import random_adapters

pytestmark = pytest.mark.interop

BACKBONE = random_adapters.BACKBONE
SETTINGS = {
  'lora_alpha': 16.0,
  'lora_rank': 2,
  'model_modifier': 'poly',
  'module_logits_l2_norm': False,
  'module_logits_relaxed_bernoulli': True,
  'module_logits_straight_through': False,
  'n_skills': 3,
  'n_splits': 4,
  'n_tasks': 5,
  'poly_average_correction': False,
  'poly_use_shared_skill': False,
  'router_granularity': 'finegrained',
  'router_selector': 'poly',
}


def save(torch, path, bundle, settings, *, half=False):
  """Saves what Lightning does, of a bundle's tensors."""
  tensors = {
    name: torch.tensor(x)
    for name, x in mttl_checkpoints.to_state_dict(bundle, names='first').items()
  }
  if half:
    tensors = {name: x.to(torch.bfloat16) for name, x in tensors.items()}
  checkpoint = {
    'callbacks': {'ModelCheckpoint': {'best_model_score': torch.tensor(0.3)}},
    'epoch': 3,
    'hyper_parameters': SETTINGS | settings,
    'loops': {},
    'optimizer_states': [],
    'state_dict': tensors,
  }
  torch.save(checkpoint, path)


def read(path, **settings):
  return mttl.read_adapter(path, BACKBONE, allow_pickle=True, **settings)


@pytest.mark.parametrize(
  'settings, ours',
  [
    ({}, {'mixing': 'relaxed_bernoulli'}),
    ({'module_logits_relaxed_bernoulli': False}, {'mixing': 'sigmoid'}),
    (
      {
        'module_logits_relaxed_bernoulli': False,
        'module_logits_straight_through': True,
        'router_granularity': 'layerwise',
      },
      {'mixing': 'straight_through', 'router_scope': 'layer'},
    ),
    (
      {'module_logits_l2_norm': True, 'poly_average_correction': True},
      {'mixing': 'l2_norm'},
    ),
    (
      {'poly_average_correction': True, 'poly_use_shared_skill': True},
      {
        'mixing': 'relaxed_bernoulli',
        'normalisation': 'sqrt',
        'shared_skill': True,
      },
    ),
    (
      {'router_granularity': 'coarsegrained'},
      {'mixing': 'relaxed_bernoulli', 'router_scope': 'model'},
    ),
  ],
)
def test_settings_say_how_skills_are_mixed(torch, tmp_path, settings, ours):
  bundle = random_adapters.draw_bundle(alpha=16.0, names=False, **ours)
  save(torch, tmp_path / 'best.ckpt', bundle, settings)
  messages = []
  back = read(tmp_path / 'best.ckpt', on_message=messages.append)
  assert back.config == bundle.config
  jax.tree.map(np.testing.assert_array_equal, back.params, bundle.params)
  assert not messages


def test_dropped_gates_are_said(torch, tmp_path):
  bundle = random_adapters.draw_bundle()
  settings = {'module_logits_dropout': 0.1}
  save(torch, tmp_path / 'best.ckpt', bundle, settings)
  messages = []
  read(tmp_path / 'best.ckpt', on_message=messages.append)
  [message] = messages
  assert 'module_logits_dropout=0.1 is left out' in message


@pytest.mark.parametrize(
  'settings, ours',
  [
    ({'router_selector': 'average'}, {'mixing': 'uniform', 'n_tasks': 1}),
    ({'router_selector': 'private'}, {'mixing': 'private', 'n_skills': 5}),
    (
      {'router_selector': None, 'model_modifier': 'skilled'},
      {'mixing': 'private', 'n_skills': 5},
    ),
  ],
)
def test_routing_without_logits(torch, tmp_path, settings, ours):
  bundle = random_adapters.draw_bundle(alpha=16.0, names=False, **ours)
  save(torch, tmp_path / 'best.ckpt', bundle, settings)
  back = read(tmp_path / 'best.ckpt')
  assert back.config == bundle.config
  jax.tree.map(np.testing.assert_array_equal, back.params, bundle.params)


def test_arguments_come_before_settings(torch, tmp_path):
  bundle = random_adapters.draw_bundle(names=False)
  save(torch, tmp_path / 'best.ckpt', bundle, {})
  back = read(tmp_path / 'best.ckpt', alpha=2.0, mixing='straight_through')
  assert back.config == dataclasses.replace(
    bundle.config, alpha=2.0, mixing='straight_through'
  )


def test_bfloat16_becomes_float32(torch, tmp_path):
  bundle = random_adapters.draw_bundle()
  save(torch, tmp_path / 'best.ckpt', bundle, {}, half=True)
  back = read(tmp_path / 'best.ckpt')

  def check(actual, expected):
    rounded = torch.tensor(expected).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(actual, rounded)
    assert actual.dtype == np.float32

  jax.tree.map(check, back.params, bundle.params)


def test_a_warm_up_that_is_not_saved(torch, tmp_path):
  bundle = random_adapters.draw_bundle()
  save(torch, tmp_path / 'best.ckpt', bundle, {'lora_warmup': True})
  with pytest.raises(UserError, match='lora_warmup=True'):
    read(tmp_path / 'best.ckpt')


def test_a_bare_state_dict_has_no_settings(torch, tmp_path):
  bundle = random_adapters.draw_bundle(router_scope='block', names=False)
  tensors = mttl_checkpoints.to_state_dict(bundle)
  tensors = {name: torch.tensor(x) for name, x in tensors.items()}
  torch.save(tensors, tmp_path / 'adapters.pt')
  back = read(tmp_path)
  assert back.config == bundle.config
  jax.tree.map(np.testing.assert_array_equal, back.params, bundle.params)
