"""Whole models in float64 throughout, against transformers and PEFT.

Their T5 has float32 inside whatever its dtype: the variance of a norm, and the
softmax. Here both are float64 there too, so that formulas are compared and not
how numbers round. The models are those of `tests/parity`.
"""

import dataclasses

import jax
import numpy as np
import pytest

from mhr_jax.convert import hf_t5
from mhr_jax.convert import peft as peft_format
from mhr_jax.model import RoutedT5
import random_peft
import transformers_weights

pytestmark = [
  pytest.mark.interop,
  pytest.mark.usefixtures('peft'),
  # PEFT asks transformers in words that are going.
  pytest.mark.filterwarnings(
    'ignore:.is_gradient_checkpointing. is deprecated:FutureWarning'
  ),
]

TOLERANCE = 1e-10


@pytest.fixture
def widened(torch, transformers, monkeypatch):
  """transformers' T5 has float64 where it asks for float32."""
  norm = transformers.models.t5.modeling_t5.T5LayerNorm

  def normalize(self, x):
    variance = x.pow(2).mean(-1, keepdim=True)
    return self.weight * x * torch.rsqrt(variance + self.variance_epsilon)

  monkeypatch.setattr(norm, 'forward', normalize)
  monkeypatch.setattr(torch.Tensor, 'float', torch.Tensor.double)


def run_theirs(model, inputs):
  """Returns logits, the loss, and the gradients of what trains, by name."""
  import torch

  inputs = {name: torch.tensor(leaf) for name, leaf in inputs.items()}
  result = model(**inputs)
  result.loss.backward()
  assert result.logits.dtype == torch.float64
  gradients = {
    name: leaf.grad.numpy()
    for name, leaf in model.named_parameters()
    if leaf.requires_grad
  }
  return result.logits.detach().numpy(), result.loss.item(), gradients


def run_ours(model, params, inputs, labels):
  """Returns logits, the loss, and the gradients of what trains."""
  batch = {
    'encoder_input_tokens': inputs['input_ids'],
    'encoder_mask': inputs['attention_mask'] > 0,
    'decoder_input_tokens': inputs['decoder_input_ids'],
    'decoder_target_tokens': np.maximum(inputs['labels'], 0),
    'decoder_loss_weights': (inputs['labels'] != -100).astype(np.float64),
  }
  if 'task_ids' in inputs:
    batch['task_ids'] = inputs['task_ids'].astype(np.int32)
  config = dataclasses.replace(model.config, dtype='float64')
  model = dataclasses.replace(model, config=config)

  def loss(trained):
    total, weights, _ = model.loss(params | trained, batch)
    return total / weights

  with jax.enable_x64(True):
    params = jax.tree.map(np.float64, params)
    trained = {label: params[label] for label in labels}
    value, gradients = jax.jit(jax.value_and_grad(loss))(trained)
    logits = jax.jit(model.logits)(params, batch)
  return jax.tree.map(np.asarray, (logits, value, gradients))


def read_inputs(folder, *, tasks):
  """Returns what transformers is given, of one of the fixtures."""
  names = ['input_ids', 'attention_mask', 'decoder_input_ids', 'labels']
  with np.load(folder / 'fixture.npz') as arrays:
    return {name: arrays[name] for name in [*names, 'task_ids'][: 4 + tasks]}


def load_theirs(folder):
  import transformers

  return transformers.T5ForConditionalGeneration.from_pretrained(folder)


@pytest.fixture
def check(report_difference):
  """A function that compares what `run_ours` and `run_theirs` return."""

  def check(name, reference, ours, theirs):
    for what, actual, expected in zip(
      ('logits', 'loss', 'gradients'), ours, theirs, strict=True
    ):
      case = f'{name}: {what}'
      difference = report_difference(case, reference, actual, expected)
      assert difference <= TOLERANCE

  return check


@pytest.mark.usefixtures('widened')
def test_the_backbone(shared_dir, check):
  folder = shared_dir / 'fixtures' / 'hf_t5_tiny'
  inputs = read_inputs(folder, tasks=False)
  logits, loss, gradients = run_theirs(
    load_theirs(folder).double().eval(), inputs
  )
  config, backbone = hf_t5.read_backbone(folder)
  gradients = transformers_weights.to_backbone(gradients, config)
  ours = run_ours(
    RoutedT5(config), {'backbone': backbone}, inputs, ['backbone']
  )
  theirs = (logits, loss, {'backbone': gradients})
  check('T5 1.1', 'transformers, live, float64 throughout', ours, theirs)


@pytest.mark.usefixtures('widened')
@pytest.mark.parametrize('name', ['mhr', 'poly', 'lora'])
def test_adapted_models(shared_dir, peft, check, name):
  fixtures = shared_dir / 'fixtures'
  folder = fixtures / 'peft_parity' / name
  inputs = read_inputs(folder, tasks=name != 'lora')
  adapted = peft.PeftModel.from_pretrained(
    load_theirs(fixtures / 'hf_t5_tiny'), folder / 'adapter', is_trainable=True
  )
  logits, loss, gradients = run_theirs(adapted.double().eval(), inputs)
  config, backbone = hf_t5.read_backbone(fixtures / 'hf_t5_tiny')
  bundle = peft_format.read_adapter(folder / 'adapter', config)
  gradients = random_peft.by_our_names(gradients, config, bundle.config)
  ours = run_ours(
    RoutedT5(config, bundle.config),
    bundle.params | {'backbone': backbone},
    inputs,
    list(bundle.params),
  )
  theirs = (logits, loss, gradients)
  check(name, 'PEFT, live, float64 throughout', ours, theirs)
