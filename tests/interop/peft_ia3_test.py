"""PEFT's IA3: our folders loaded by the real PEFT, and the reverse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mhr_jax import adapter_folder
from mhr_jax.convert import peft as peft_format
from mhr_jax.errors import UserError
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
CONFIG = random_adapters.BACKBONE
# By short names in PEFT, and, with some layers' keys alone, by an expression.
TARGETS = {
  'T-Few': '.*/(key|value|wi_1)',
  'expression': '(encoder/attention|decoder/self_attention)/(key|out)',
}


def their_logits(torch, model, batch):
  """Returns the logits of PEFT's model; the adapters must matter."""
  inputs = random_t5.as_their_inputs(batch)
  with torch.no_grad():
    logits = model(**inputs).logits.numpy()
    with model.disable_adapter():
      bare = model(**inputs).logits.numpy()
  assert np.abs(logits - bare).max() > 0.1
  return logits


def our_logits(bundle, backbone, batch):
  params = {'backbone': backbone} | dict(bundle.params)
  return jax.jit(bundle.model.logits)(params, batch)


@pytest.mark.parametrize('targets', TARGETS)
@pytest.mark.parametrize('task', [1, 'average'])
def test_peft_loads_our_ia3_of_a_task(
  torch, peft, tmp_path, report_difference, targets, task
):
  base, backbone = random_t5.build(CONFIG, 0)
  bundle = random_adapters.draw_bundle(
    kind='ia3', rank=1, targets=(TARGETS[targets],)
  )
  one = adapter_folder.effective_bundle(bundle, task)
  peft_format.write_ia3(tmp_path, one)
  batch = random_t5.draw_batch(CONFIG, 0, rows=6)
  model = peft.PeftModel.from_pretrained(base, tmp_path).eval()
  theirs = their_logits(torch, model, batch)
  if task == 'average':
    ours = our_logits(one, backbone, batch)
  else:
    batch |= {'task_ids': np.full(6, task, np.int32)}
    ours = our_logits(bundle, backbone, batch)
  case = f'our IA3 export of one task, {targets} targets'
  assert (
    report_difference(case, 'peft.PeftModel.from_pretrained', ours, theirs)
    < TOLERANCE
  )
  model.merge_adapter()
  with torch.no_grad():
    theirs = model(**random_t5.as_their_inputs(batch)).logits.numpy()
  np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)


def save_theirs(torch, peft, base, folder, **settings):
  """Saves PEFT's own adapter, with random numbers around 1."""
  settings = peft.IA3Config(task_type='SEQ_2_SEQ_LM', **settings)
  model = peft.get_peft_model(base, settings).eval()
  rng = np.random.default_rng(1)
  for parameter in model.parameters():
    if parameter.requires_grad:
      draw = 1 + 0.5 * rng.normal(size=parameter.shape)
      parameter.data = torch.tensor(draw, dtype=torch.float32)
  model.save_pretrained(folder)
  return model


@pytest.mark.parametrize(
  'settings, linears',
  [
    # PEFT's own choice for T5: keys, values and what goes into wo.
    ({}, 8),
    (
      {
        'target_modules': ['q', 'o', 'wi_0', 'wi_1', 'wo'],
        'feedforward_modules': ['wo'],
      },
      10,
    ),
    (
      {
        'target_modules': r'decoder.*\.(k|wo)',
        'feedforward_modules': r'.*\.wo',
      },
      3,
    ),
  ],
)
def test_we_read_their_ia3(
  torch, peft, tmp_path, report_difference, settings, linears
):
  base, backbone = random_t5.build(CONFIG, 0)
  model = save_theirs(torch, peft, base, tmp_path, **settings)
  batch = random_t5.draw_batch(CONFIG, 1, rows=6)
  theirs = their_logits(torch, model, batch)
  bundle = peft_format.read_adapter(tmp_path, CONFIG)
  scales = jax.tree.leaves(bundle.params['adapters'])
  assert bundle.config.kind == 'ia3' and len(scales) == linears
  ours = our_logits(bundle, backbone, batch)
  bare = jax.jit(RoutedT5(CONFIG).logits)({'backbone': backbone}, batch)
  assert jnp.abs(ours - bare).max() > 0.1
  difference = report_difference(
    'their IA3, outputs and inputs of wo', 'PEFT IA3', ours, theirs
  )
  assert difference < TOLERANCE


def test_scaled_inputs_that_are_no_linears_output_are_refused(
  torch, peft, tmp_path
):
  base, _ = random_t5.build(random_adapters.BACKBONE_1_0, 0)
  save_theirs(
    torch,
    peft,
    base,
    tmp_path,
    target_modules=['k', 'wo'],
    feedforward_modules=['wo'],
  )
  with pytest.raises(UserError, match='scales the input of encoder/mlp/wo'):
    peft_format.read_adapter(tmp_path, random_adapters.BACKBONE_1_0)
