"""Adapters trained in PyTorch and by our trainer, side by side.

Both sides start from the same numbers, see the same batches of mixed tasks
and take the same steps: PEFT's adapters with torch's and transformers'
optimizers and schedules there, `trainer.fit` here. Nothing is sampled: there
is no dropout, and PEFT's routers alone are in eval mode.

Where the gradient itself is not defined, or is 0, rounding decides what it is,
and rules that divide a gradient by its own size (Adafactor; AdamW as far as
its epsilon lets it) make whole steps of that. So no input or target has fewer
than three tokens, since attention over one key has no gradient for its query
and key; and relu, which has none at 0, is trained by SGD alone.
"""

import functools

import jax
import numpy as np
import pytest

from mhr_jax import partitioning, trainer
from mhr_jax.model import RoutedT5
from mhr_jax.optim import OptimizerSettings
import random_peft

pytestmark = [
  pytest.mark.interop,
  pytest.mark.usefixtures('peft'),
  # PEFT asks transformers in words that are going.
  pytest.mark.filterwarnings(
    'ignore:.is_gradient_checkpointing. is deprecated:FutureWarning'
  ),
]

STEPS = 30
_SMALL = {'adapters': 0.01, 'routers': 0.1}
_ADAFACTOR = functools.partial(
  OptimizerSettings,
  'adafactor',
  weight_decay={'adapters': 0.1, 'routers': 0.01},
  clip_norm=None,
)
# The bounds of the gradients' norm bind at some steps and not at others.
RULES = {
  'sgd': OptimizerSettings(
    'sgd',
    {'adapters': 0.05, 'routers': 1.0},
    'constant',
    warmup_steps=3,
    weight_decay={'adapters': 0.1, 'routers': 0.01},
    clip_norm=None,
  ),
  'sgd with momentum': OptimizerSettings(
    'sgd',
    {'adapters': 0.1, 'routers': 1.0},
    'cosine',
    warmup_steps=4,
    weight_decay={'adapters': 0.0},
    clip_norm=0.03,
    momentum=0.9,
  ),
  'adamw': OptimizerSettings(
    'adamw',
    _SMALL,
    'linear',
    warmup_steps=5,
    weight_decay={'adapters': 0.1},
    clip_norm=0.15,
  ),
  'adafactor': _ADAFACTOR(
    _SMALL, 'constant', warmup_steps=0, scale_parameter=False
  ),
  'scaled adafactor': _ADAFACTOR(
    {'adapters': 0.05, 'routers': 0.5},
    'linear',
    warmup_steps=2,
    scale_parameter=True,
  ),
}
POLY = [('poly', seed) for seed in (0, 2, 5)]
MHR = [('mhr', seed) for seed in (0, 3, 9)]
LORA = [('lora', seed) for seed in (0, 2, 4)]
DRAWS = {
  'sgd': POLY[:2] + MHR[:2],
  'sgd with momentum': POLY[2:] + MHR[2:],
  'adamw': POLY + MHR + LORA,
  'adafactor': POLY[:1] + MHR[1:],
  'scaled adafactor': POLY[1:2] + MHR[:2],
}
CASES = [(rule, *draw) for rule, draws in DRAWS.items() for draw in draws]


@pytest.fixture(autouse=True, scope='module')
def _compiles_in_half_the_time():
  """The same programs, but machine code that is not optimised."""
  name = 'jax_disable_most_optimizations'
  jax.config.update(name, True)
  yield
  jax.config.update(name, False)


def draw_batch(config, added, seed, step):
  return random_peft.draw_batch(config, added, 100 * seed + step)


def train_theirs(torch, model, settings, inputs):
  """Trains PEFT's model in place and returns the losses.

  Args:
    torch: the module.
    model: as `random_peft.wrap` returns it.
    settings: of our optimizer; theirs is made from them.
    inputs: the model's arguments at a step.
  """
  import peft
  import transformers

  model.train()
  for module in model.modules():
    if isinstance(module, peft.tuners.poly.router.PolyRouter):
      module.eval()
  optimizer = make_their_optimizer(torch, transformers, model, settings)
  schedule = settings.schedule
  scheduler = transformers.get_scheduler(
    'constant_with_warmup' if schedule == 'constant' else schedule,
    optimizer,
    settings.warmup_steps,
    STEPS,
  )
  trained = [p for p in model.parameters() if p.requires_grad]
  losses = []
  for step in range(STEPS):
    optimizer.zero_grad()
    loss = model(**inputs(step)).loss
    loss.backward()
    if settings.clip_norm is not None:
      torch.nn.utils.clip_grad_norm_(trained, settings.clip_norm)
    optimizer.step()
    scheduler.step()
    losses.append(loss.item())
  return losses


def make_their_optimizer(torch, transformers, model, settings):
  labelled = {'adapters': [], 'routers': []}
  for name, parameter in model.named_parameters():
    if parameter.requires_grad:
      label = 'routers' if 'poly_router' in name else 'adapters'
      labelled[label].append(parameter)
  groups = [
    {
      'params': parameters,
      'lr': getattr(settings.learning_rates, label),
      'weight_decay': getattr(settings.weight_decay, label),
    }
    for label, parameters in labelled.items()
    if parameters
  ]
  if settings.name == 'sgd':
    return torch.optim.SGD(groups, momentum=settings.momentum)
  if settings.name == 'adamw':
    betas = settings.b1, settings.b2
    return torch.optim.AdamW(groups, betas=betas, eps=settings.eps)
  return transformers.optimization.Adafactor(
    groups,
    scale_parameter=settings.scale_parameter,
    clip_threshold=settings.clip_threshold,
    decay_rate=settings.decay_rate,
    relative_step=False,
    warmup_init=False,
  )


def train_ours(model, params, settings, batches):
  """Returns the losses, and what trained after the last step."""
  losses = []
  state = trainer.fit(
    model,
    params,
    batches,
    settings=trainer.TrainSettings(
      STEPS, trains=tuple(set(params) - {'backbone'}), log_every=1
    ),
    optimizer=settings,
    mesh=partitioning.make_mesh(devices=jax.devices()[:1]),
    on_log=lambda step, metrics: losses.append(metrics['train/loss']),
  )
  return losses, state.trainable


@pytest.mark.parametrize(('rule', 'method', 'seed'), CASES)
def test_thirty_steps(torch, report_difference, rule, method, seed):
  settings = RULES[rule]
  config, added = random_peft.draw(method, seed, smooth=settings.name != 'sgd')
  theirs, params = random_peft.wrap(config, added, seed)
  batches = functools.partial(draw_batch, config, added, seed)
  losses, trained = train_ours(
    RoutedT5(config, added), params, settings, batches
  )
  expected_losses = train_theirs(
    torch,
    theirs,
    settings,
    lambda step: random_peft.as_their_inputs(added, batches(step)),
  )
  expected = random_peft.read_added(theirs, config, added)
  start = {label: params[label] for label in expected}
  moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), expected, start)
  assert min(jax.tree.leaves(moved)) > 1e-4  # more than may differ
  name, reference = f'{method}, {rule}', 'PyTorch training'
  report_difference(f'{name}: losses', reference, losses, expected_losses)
  np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
  case = f'{name}: parameters'
  assert report_difference(case, reference, trained, expected) < 1e-4


@pytest.mark.parametrize(('method', 'seed'), POLY + MHR)
def test_batches_lack_tasks_and_have_padding_and_gaps(method, seed):
  config, added = random_peft.draw(method, seed)
  seen, padded, uncounted = [], 0, 0
  for step in range(STEPS):
    batch = draw_batch(config, added, seed, step)
    seen.append(set(batch['task_ids'].tolist()))
    labels = random_peft.as_their_inputs(added, batch)['labels']
    padded += (batch['decoder_target_tokens'] == 0).sum()
    uncounted += (labels == -100).sum().item()
  assert uncounted - 50 > padded > 50
  assert any(len(tasks) < added.n_tasks for tasks in seen)
  assert set.union(*seen) == set(range(added.n_tasks))
