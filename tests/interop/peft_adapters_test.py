"""Adapter folders that we write, loaded by the real PEFT, and the reverse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mhr_jax import adapter_folder, fusing
from mhr_jax.convert import hf_t5, tensor_files
from mhr_jax.convert import peft as peft_format
from mhr_jax.model import RoutedT5
import random_adapters
import random_t5

pytestmark = [
  pytest.mark.interop,
  # PEFT asks transformers in words that are going.
  pytest.mark.filterwarnings(
    'ignore:.is_gradient_checkpointing. is deprecated:FutureWarning'
  ),
]

TOLERANCE = 1e-5
BACKBONES = {
  't5_1_1': random_adapters.BACKBONE,
  't5_1_0': random_adapters.BACKBONE_1_0,
}


def draw_batch(backbone, n_tasks, seed=0):
  rng = np.random.default_rng(seed)
  batch = random_t5.draw_batch(backbone, seed, rows=8)
  task_ids = rng.integers(0, n_tasks, 8).astype(np.int32)
  assert len(set(task_ids)) > min(2, n_tasks - 1)
  return batch | {'task_ids': task_ids}


def our_logits(bundle, backbone, batch):
  params = {'backbone': backbone} | dict(bundle.params)
  return compile_logits(bundle.model)(params, batch)


@functools.cache
def compile_logits(model):
  return jax.jit(model.logits)


def their_logits(torch, peft, base, folder, batch, *, task_ids=False):
  """Returns the logits of PEFT's model, loaded from `folder` upon `base`."""
  model = peft.PeftModel.from_pretrained(base, folder).eval()
  inputs = random_t5.as_their_inputs(batch)
  if task_ids:
    inputs['task_ids'] = torch.tensor(batch['task_ids'], dtype=torch.long)
  with torch.no_grad():
    logits = model(**inputs).logits.numpy()
    with model.disable_adapter():
      bare = model(**random_t5.as_their_inputs(batch)).logits.numpy()
  assert np.abs(logits - bare).max() > 0.1  # the adapters matter
  return logits


@pytest.mark.parametrize(
  'family, settings',
  [
    ('t5_1_1', {}),
    ('t5_1_1', {'n_splits': 1, 'targets': random_adapters.ATTENTION}),
    ('t5_1_1', {'alpha': 16.0, 'router_scope': 'layer'}),
    ('t5_1_0', {'alpha': 16.0, 'router_scope': 'block', 'rank': 3}),
    ('t5_1_1', {'alpha': 0.3, 'router_scope': 'stack'}),
    ('t5_1_1', {'router_scope': 'model', 'mixing': 'relaxed_bernoulli'}),
    ('t5_1_1', {'mixing': 'uniform'}),
  ],
)
def test_peft_loads_our_poly(
  torch, peft, tmp_path, report_difference, family, settings
):
  config = BACKBONES[family]
  base, backbone = random_t5.build(config, 0)
  bundle = random_adapters.draw_bundle(backbone=config, **settings)
  peft_format.write_poly(tmp_path, bundle)
  batch = draw_batch(config, 5)
  theirs = their_logits(torch, peft, base, tmp_path, batch, task_ids=True)
  ours = our_logits(bundle, backbone, batch)
  case = ', '.join(f'{k}={v}' for k, v in settings.items() if k != 'targets')
  assert (
    report_difference(
      f'our POLY export, {family}, {case or "module scope"}',
      'peft.PeftModel.from_pretrained',
      ours,
      theirs,
    )
    < TOLERANCE
  )


@pytest.mark.parametrize(
  'mixing, task',
  [
    *(('sigmoid', task) for task in (0, 1, 2, 3, 4, 'average')),
    ('softmax', 3),
    ('straight_through', 1),
  ],
)
def test_peft_loads_our_lora_of_each_task(
  torch, peft, tmp_path, report_difference, mixing, task
):
  config = BACKBONES['t5_1_1']
  base, backbone = random_t5.build(config, 0)
  bundle = random_adapters.draw_bundle(
    alpha=16.0, router_scope='layer', mixing=mixing
  )
  one = adapter_folder.effective_bundle(bundle, task)
  peft_format.write_lora(tmp_path, one)
  batch = draw_batch(config, 5)
  theirs = their_logits(torch, peft, base, tmp_path, batch)
  if task == 'average':
    ours = our_logits(one, backbone, batch)
  else:
    batch |= {'task_ids': np.full(8, task, np.int32)}
    ours = our_logits(bundle, backbone, batch)
  assert (
    report_difference(
      f'our LORA export of one task, {mixing}, alpha 16, layer scope',
      'peft.PeftModel.from_pretrained',
      ours,
      theirs,
    )
    < TOLERANCE
  )


def test_the_average_is_uniform_mixing(torch, peft, tmp_path):
  """Against PEFT's own mixing, with routing logits of zero."""
  config = BACKBONES['t5_1_1']
  base, backbone = random_t5.build(config, 0)
  bundle = random_adapters.draw_bundle()
  zeros = jax.tree.map(np.zeros_like, bundle.params['routers'])
  uniform = adapter_folder.AdapterBundle(
    bundle.config,
    {'adapters': bundle.params['adapters'], 'routers': zeros},
    None,
    config,
  )
  peft_format.write_poly(tmp_path, uniform)
  batch = draw_batch(config, 5)
  theirs = their_logits(torch, peft, base, tmp_path, batch, task_ids=True)
  one = adapter_folder.effective_bundle(bundle, 'average')
  np.testing.assert_allclose(
    our_logits(one, backbone, batch), theirs, atol=TOLERANCE
  )


def save_theirs(torch, peft, base, settings, folder):
  """Saves PEFT's own adapter with random numbers; returns its model."""
  model = peft.get_peft_model(base, settings).eval()
  rng = np.random.default_rng(1)
  for name, parameter in model.named_parameters():
    if parameter.requires_grad:
      spread = 2.0 if name.endswith('logits') else 0.1
      draw = spread * rng.normal(size=parameter.shape)
      parameter.data = torch.tensor(draw, dtype=torch.float32)
  model.save_pretrained(folder)
  (folder / 'README.md').unlink()
  return model


SHORT = ['q', 'k', 'v', 'o', 'wi_0', 'wi_1', 'wo']


@pytest.mark.parametrize(
  'settings',
  [
    {'r': 3, 'lora_alpha': 16, 'target_modules': SHORT},
    {'r': 4, 'lora_alpha': 6, 'target_modules': ['q'], 'use_rslora': True},
    {
      'r': 2,
      'lora_alpha': 4,
      'target_modules': SHORT,
      'rank_pattern': {'q': 5, r'encoder\.block\.1.*wo': 1},
      'alpha_pattern': {'wi_0': 1.5, 'decoder.*k': 7},
    },
    {
      'r': 2,
      'lora_alpha': 4,
      'target_modules': SHORT,
      'exclude_modules': r'.*\.(k|wo)',
      'use_rslora': True,
      'rank_pattern': {'o': 3},
    },
  ],
)
def test_we_read_their_lora(torch, peft, tmp_path, report_difference, settings):
  config = BACKBONES['t5_1_1']
  base, backbone = random_t5.build(config, 0)
  lora = peft.LoraConfig(task_type='SEQ_2_SEQ_LM', **settings)
  model = save_theirs(torch, peft, base, lora, tmp_path)
  batch = draw_batch(config, 1)
  with torch.no_grad():
    theirs = model(**random_t5.as_their_inputs(batch)).logits.numpy()
    with model.disable_adapter():
      bare = model(**random_t5.as_their_inputs(batch)).logits.numpy()
  assert np.abs(theirs - bare).max() > 0.1
  bundle = peft_format.read_adapter(tmp_path, config)
  ours = our_logits(bundle, backbone, batch)
  difference = report_difference(
    'their LORA, ranks and alphas by pattern, rslora', 'PEFT LORA', ours, theirs
  )
  assert difference < TOLERANCE


def test_we_read_their_poly(torch, peft, tmp_path, report_difference):
  config = BACKBONES['t5_1_0']
  base, backbone = random_t5.build(config, 0)
  poly = peft.PolyConfig(
    task_type='SEQ_2_SEQ_LM',
    r=2,
    n_tasks=4,
    n_skills=3,
    n_splits=2,
    target_modules=r'decoder.*(q|wi|EncDecAttention\.o)',
  )
  model = save_theirs(torch, peft, base, poly, tmp_path)
  batch = draw_batch(config, 4)
  task_ids = torch.tensor(batch['task_ids'], dtype=torch.long)
  with torch.no_grad():
    theirs = model(
      **random_t5.as_their_inputs(batch), task_ids=task_ids
    ).logits.numpy()
  bundle = peft_format.read_adapter(tmp_path, config)
  assert len(bundle.config.targets) == 4
  ours = our_logits(bundle, backbone, batch)
  difference = report_difference(
    'their POLY, some linears', 'PEFT POLY', ours, theirs
  )
  assert difference < TOLERANCE


def test_a_pickled_adapter(torch, peft, tmp_path):
  config = BACKBONES['t5_1_1']
  base, _ = random_t5.build(config, 0)
  lora = peft.LoraConfig(r=2, target_modules=['q'], task_type='SEQ_2_SEQ_LM')
  save_theirs(torch, peft, base, lora, tmp_path)
  expected = peft_format.read_adapter(tmp_path, config)
  path = tmp_path / 'adapter_model.safetensors'
  tensors = tensor_files.read_tensors(path)
  path.unlink()
  tensors = {name: torch.tensor(x) for name, x in tensors.items()}
  torch.save(tensors, tmp_path / 'adapter_model.bin')
  bundle = peft_format.read_adapter(tmp_path, config, allow_pickle=True)
  jax.tree.map(np.testing.assert_array_equal, bundle.params, expected.params)


@pytest.mark.parametrize('task', [2, 'average'])
def test_transformers_loads_our_fused_backbone(
  torch, transformers, tmp_path, report_difference, task
):
  config = BACKBONES['t5_1_1']
  _, backbone = random_t5.build(config, 0)
  bundle = random_adapters.draw_bundle(alpha=16.0, router_scope='layer')
  fused = fusing.fuse(backbone, config, bundle.params, bundle.config, task)
  hf_t5.write_backbone(tmp_path, config, fused)
  model = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path)
  batch = draw_batch(config, 5)
  with torch.no_grad():
    inputs = random_t5.as_their_inputs(batch)
    theirs = model.eval()(**inputs).logits.numpy()
  one = adapter_folder.effective_bundle(bundle, task)
  ours = our_logits(one, backbone, batch)
  bare = jax.jit(RoutedT5(config).logits)({'backbone': backbone}, batch)
  assert jnp.abs(ours - bare).max() > 0.1
  difference = report_difference(
    'fused export', 'transformers from_pretrained', ours, theirs
  )
  assert difference < TOLERANCE
