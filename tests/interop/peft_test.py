"""Our adapters against PEFT's, with its parameters copied into ours."""

import functools

from flax import traverse_util
import jax
import numpy as np
import optax
import pytest

from mhr_jax import optim
from mhr_jax.adapters import AdapterConfig
from mhr_jax.model import RoutedT5
from mhr_jax.t5 import config as config_lib
from mhr_jax.t5.decoding import DecodingSettings
import random_t5
import transformers_weights

pytestmark = [
  pytest.mark.interop,
  # PEFT asks transformers in words that are going.
  pytest.mark.filterwarnings(
    'ignore:.is_gradient_checkpointing. is deprecated:FutureWarning'
  ),
]

CONFIG = config_lib.t5_config(
  't5_1_1_tiny',
  vocab_size=50,
  emb_dim=20,
  num_heads=3,
  head_dim=4,
  mlp_dim=28,
  num_encoder_layers=2,
  num_decoder_layers=1,
)
LINEARS = config_lib.list_linears(CONFIG)
THEIR_LINEARS = ['q', 'k', 'v', 'o', 'wi_0', 'wi_1', 'wo']
RATES = {'adapters': 0.01, 'routers': 0.1}
BATCH = random_t5.draw_batch(CONFIG, 0, rows=6) | {
  'task_ids': np.array([4, 0, 2, 2, 3, 0], np.int32)
}
POLY = AdapterConfig(n_tasks=5, n_skills=3, n_splits=4, rank=2)
LORA = AdapterConfig(n_tasks=1, n_skills=1, rank=3, alpha=2, mixing='uniform')


def wrap(peft, settings):
  """Returns their adapted model with random adapters, and our backbone."""
  import torch

  base, backbone = random_t5.build(CONFIG, 0)
  model = peft.get_peft_model(base, settings).eval()
  rng = np.random.default_rng(1)
  for parameter in model.parameters():
    if parameter.requires_grad:
      draw = rng.normal(size=parameter.shape)
      parameter.data = torch.tensor(0.3 * draw, dtype=torch.float32)
  return model, backbone


def stack_theirs(model, path, suffix, transpose):
  """Returns one kind of adapter parameter of a linear, over its layers."""
  prefix, found = 'base_model.model.', dict(model.named_parameters())
  return np.stack(
    [
      transpose(found[f'{prefix}{name}.{suffix}'].detach().numpy())
      for name in (
        transformers_weights.module_name(path, i)
        for i in range(LINEARS[path].layers)
      )
    ]
  )


def poly_params(model):
  """Returns our adapters and routers with PEFT Poly's numbers."""
  adapters, routers = {}, {}

  def as_is(x):
    return x.copy()

  def split(logits):
    return logits.reshape(-1, POLY.n_splits, POLY.n_skills).copy()

  for path in LINEARS:
    take = functools.partial(stack_theirs, model, path)
    adapters[f'{path}/a'] = take('poly_lora_A.default', as_is)
    adapters[f'{path}/b'] = take('poly_lora_B.default', as_is)
    routers[f'{path}/routing_logits'] = take(
      'poly_router.default.module_logits', split
    )
  return {
    'adapters': traverse_util.unflatten_dict(adapters, sep='/'),
    'routers': traverse_util.unflatten_dict(routers, sep='/'),
  }


def lora_params(model):
  """Returns our adapters with PEFT LoRA's numbers."""
  adapters = {}
  for path in LINEARS:
    take = functools.partial(stack_theirs, model, path)
    for ours, theirs in (('a', 'lora_A'), ('b', 'lora_B')):
      adapters[f'{path}/{ours}'] = take(
        f'{theirs}.default.weight', lambda x: x.T[None, None]
      )
  return {'adapters': traverse_util.unflatten_dict(adapters, sep='/')}


def make_poly(peft):
  """Returns their Poly and our parameters."""
  settings = peft.PolyConfig(
    task_type='SEQ_2_SEQ_LM',
    r=POLY.rank,
    n_tasks=POLY.n_tasks,
    n_skills=POLY.n_skills,
    n_splits=POLY.n_splits,
    target_modules=THEIR_LINEARS,
  )
  model, backbone = wrap(peft, settings)
  return model, {'backbone': backbone} | poly_params(model)


def their_inputs(torch):
  task_ids = torch.tensor(BATCH['task_ids'], dtype=torch.long)
  return random_t5.as_their_inputs(BATCH) | {'task_ids': task_ids}


def test_poly_logits_on_a_batch_of_mixed_tasks(torch, peft):
  theirs, params = make_poly(peft)
  with torch.no_grad():
    expected = theirs(**their_inputs(torch)).logits
  logits = jax.jit(RoutedT5(CONFIG, POLY).logits)(params, BATCH)
  np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_poly_greedy_tokens(torch, peft):
  theirs, params = make_poly(peft)
  inputs = their_inputs(torch)
  del inputs['labels']
  expected = theirs.generate(
    **inputs, max_new_tokens=12, do_sample=False, use_cache=False
  ).numpy()[:, 1:]
  settings = DecodingSettings(12)
  generate = functools.partial(
    RoutedT5(CONFIG, POLY).generate, settings=settings
  )
  actual = jax.jit(generate)(params, BATCH)
  np.testing.assert_array_equal(actual[:, : expected.shape[1]], expected)


def test_lora_logits(torch, peft):
  settings = peft.LoraConfig(
    task_type='SEQ_2_SEQ_LM',
    r=LORA.rank,
    lora_alpha=LORA.alpha,
    target_modules=THEIR_LINEARS,
  )
  theirs, backbone = wrap(peft, settings)
  with torch.no_grad():
    expected = theirs(**random_t5.as_their_inputs(BATCH)).logits
  params = {'backbone': backbone} | lora_params(theirs)
  logits = jax.jit(RoutedT5(CONFIG, LORA).logits)(params, BATCH)
  np.testing.assert_allclose(logits, expected, atol=1e-5)


def train_theirs(torch, transformers, model, steps):
  """Returns the losses of training PEFT Poly with transformers' Adafactor."""
  groups = {'adapters': [], 'routers': []}
  for name, parameter in model.named_parameters():
    if parameter.requires_grad:
      label = 'routers' if 'poly_router' in name else 'adapters'
      groups[label].append(parameter)
  optimizer = transformers.optimization.Adafactor(
    [{'params': groups[label], 'lr': RATES[label]} for label in groups],
    relative_step=False,
    warmup_init=False,
    weight_decay=0.01,
  )
  losses = []
  for _ in range(steps):
    optimizer.zero_grad()
    loss = model(**their_inputs(torch)).loss
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
  return losses


def train_ours(params, steps):
  """Returns the losses, and adapters and routers after the last step."""
  model = RoutedT5(CONFIG, POLY)
  settings = optim.OptimizerSettings(
    name='adafactor',
    learning_rates=RATES,
    weight_decay={'adapters': 0.01, 'routers': 0.01},
    schedule='constant',
    warmup_steps=0,
    clip_norm=None,
  )
  optimizer = optim.make_optimizer(settings, steps)
  backbone = params['backbone']
  trained = {label: params[label] for label in RATES}

  def loss_of(trained):
    loss, weight, _ = model.loss({'backbone': backbone} | trained, BATCH)
    return loss / weight

  @jax.jit
  def step(trained, state):
    loss, grads = jax.value_and_grad(loss_of)(trained)
    updates, state = optimizer.update(grads, state, trained)
    return optax.apply_updates(trained, updates), state, loss

  state, losses = optimizer.init(trained), []
  for _ in range(steps):
    trained, state, loss = step(trained, state)
    losses.append(float(loss))
  return losses, trained


def test_training_poly_with_adafactor(torch, transformers, peft):
  theirs, params = make_poly(peft)  # in eval mode: its mixing draws no noise
  losses, trained = train_ours(params, steps=10)
  expected = train_theirs(torch, transformers, theirs, steps=10)
  assert losses[-1] < 0.9 * losses[0]
  np.testing.assert_allclose(losses, expected, atol=1e-5)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=1e-5),
    trained,
    poly_params(theirs),
  )
