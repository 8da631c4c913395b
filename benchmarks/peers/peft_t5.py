"""PEFT's adapters on transformers' T5, in a loop as its users write it.

Defaults are those of transformers' Trainer: fused AdamW, gradients clipped to
a norm of 1, gradients set to None. All cores work, unless
OMP_NUM_THREADS says how many, and nothing is dropped.
"""

from collections.abc import Mapping
import os
import pathlib
from typing import Any

from benchmarks import setting as setting_lib
from benchmarks import weights
from benchmarks.setting import Setting
from benchmarks.works import Works
from mhr_jax.errors import UserError

STEP = 'step'
GRADIENTS = 'forward and backward'
FLOOR = 'forward and input gradient'
DECODE = 'greedy decoding'
_CLIP_NORM = 1.0


def import_libraries() -> tuple[Any, Any, Any]:
  """Returns torch, transformers and PEFT.

  Raises:
    UserError: one is not installed.
  """
  try:
    import peft
    import torch
    import transformers
  except ImportError as error:
    raise UserError(
      f'The peers need {error.name}, which is not installed: pip install -c'
      " constraints.txt -e '.[interop]'."
    ) from error
  transformers.logging.set_verbosity_error()
  cores = len(os.sched_getaffinity(0))
  torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', cores)))
  return torch, transformers, peft


def read_model(folder: pathlib.Path, method: str | None) -> Any:
  """Returns the backbone in evaluation mode, with adapters that can train.

  Args:
    folder: of `weights.write_weights`.
    method: 'mhr', 'lora', or None.
  """
  _, transformers, peft = import_libraries()
  model = transformers.T5ForConditionalGeneration.from_pretrained(
    folder / weights.BACKBONE
  )
  if method is not None:
    model = peft.PeftModel.from_pretrained(
      model, str(folder / method), is_trainable=True
    )
  else:
    model.requires_grad_(False)
  return model.eval()


def as_inputs(
  sizes: Setting, method: str | None, *, device: str = 'cpu'
) -> dict[str, Any]:
  """Returns the batch as arguments of the model."""
  torch, _, _ = import_libraries()
  batch = {k: torch.tensor(v) for k, v in sizes.draw_batch().items()}
  inputs = {
    'input_ids': batch['encoder_input_tokens'].long(),
    'attention_mask': torch.ones_like(batch['encoder_input_tokens']).long(),
    'decoder_input_ids': batch['decoder_input_tokens'].long(),
    'labels': batch['decoder_target_tokens'].long(),
  }
  if method == weights.MHR:
    inputs['task_ids'] = batch['task_ids'].long()
  return {name: value.to(device) for name, value in inputs.items()}


def train_step(
  setting: Mapping[str, Any], method: str, weights_folder: str
) -> Works:
  """Builds PEFT's training of a method.

  Args:
    setting: of `Setting.as_json`.
    method: 'mhr' or 'lora'.
    weights_folder: of `weights.write_weights`.
  """
  torch, _, _ = import_libraries()
  sizes = setting_lib.from_json(setting)
  model = read_model(pathlib.Path(weights_folder), method)
  inputs = as_inputs(sizes, method)
  trained = [p for p in model.parameters() if p.requires_grad]
  optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=True)
  with torch.no_grad():
    loss = float(model(**inputs).loss)
  model.train()

  def gradients() -> None:
    optimizer.zero_grad(set_to_none=True)
    model(**inputs).loss.backward()

  def step() -> None:
    gradients()
    torch.nn.utils.clip_grad_norm_(trained, _CLIP_NORM)
    optimizer.step()

  facts = {'parameters': sum(p.numel() for p in trained), 'loss': loss}
  return Works({STEP: step, GRADIENTS: gradients}, facts)


def decode(
  setting: Mapping[str, Any], method: str | None, weights_folder: str
) -> Works:
  """Builds greedy decoding, with keys and values kept; no token ends it.

  Args:
    setting: of `Setting.as_json`.
    method: 'mhr', or None for the bare backbone.
    weights_folder: of `weights.write_weights`.
  """
  torch, _, _ = import_libraries()
  sizes = setting_lib.from_json(setting)
  model = read_model(pathlib.Path(weights_folder), method)
  model.generation_config.eos_token_id = None
  inputs = as_inputs(sizes, method)
  for name in ('decoder_input_ids', 'labels'):
    del inputs[name]

  def generate() -> Any:
    with torch.inference_mode():
      return model.generate(
        **inputs,
        max_new_tokens=sizes.target_length,
        do_sample=False,
        use_cache=True,
      )

  tokens = generate()[:, 1:].tolist()
  return Works({DECODE: lambda: _nothing(generate())}, {'tokens': tokens})


def floor(setting: Mapping[str, Any], weights_folder: str) -> Works:
  """Builds the frozen backbone's forward pass and input gradient."""
  sizes = setting_lib.from_json(setting)
  model = read_model(pathlib.Path(weights_folder), None)
  inputs = as_inputs(sizes, None)
  embed = model.get_input_embeddings()
  for old, new in (
    ('input_ids', 'inputs_embeds'),
    ('decoder_input_ids', 'decoder_inputs_embeds'),
  ):
    inputs[new] = embed(inputs.pop(old)).detach().requires_grad_()

  def run() -> float:
    for name in ('inputs_embeds', 'decoder_inputs_embeds'):
      inputs[name].grad = None
    loss = model(**inputs).loss
    loss.backward()
    return float(loss)

  loss = run()
  return Works({FLOOR: lambda: _nothing(run())}, {'loss': loss})


def _nothing(_: Any) -> None:
  """Forgets a value: a work returns seconds or nothing."""
