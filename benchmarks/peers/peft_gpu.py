"""PEFT's MHR on a random T5 in bfloat16 on a GPU, eager or compiled.

The backbone is stored in bfloat16 and the adapters in float32; products run
under autocast, as transformers' Trainer has it with `bf16`.
"""

from collections.abc import Mapping, Sequence
import statistics
import time
from typing import Any

from benchmarks import setting as setting_lib
from benchmarks import weights
from benchmarks.peers import peft_t5
from benchmarks.setting import Setting
from benchmarks.works import Works
from mhr_jax.convert import hf_config
from mhr_jax.errors import UserError

_WARM_UP = 2
_PEAK = 'device peak bytes'


def build(
  settings: Sequence[Mapping[str, Any]],
  times: int,
  compiled: bool,
  device: str,
) -> Works:
  """Measures a training step at each setting; returns facts alone.

  Args:
    settings: of `Setting.as_json`; they differ in the batch alone.
    times: steps that are timed, each to its end.
    compiled: by `torch.compile`.
    device: of torch, 'cuda' or, to try the code, 'cpu'.

  Raises:
    UserError: torch has no such device.
  """
  torch, transformers, peft = peft_t5.import_libraries()
  if device == 'cuda' and not torch.cuda.is_available():
    raise UserError(
      'torch has no CUDA here: install a build of torch that has it.'
    )
  sizes = [setting_lib.from_json(setting) for setting in settings]
  model = _make_model(torch, transformers, peft, sizes[0], device)
  tried = []
  for one in sizes:
    try:
      measured = _measure(torch, model, one, times, compiled, device)
    except torch.OutOfMemoryError:
      measured = {'failed': 'does not fit the memory of the device'}
      torch.cuda.empty_cache()
    tried.append({'setting': one.as_json(), **measured})
  return Works({}, {'tried': tried})


def _measure(
  torch: Any,
  model: Any,
  sizes: Setting,
  times: int,
  compiled: bool,
  device: str,
) -> dict[str, Any]:
  """Returns the seconds of steps, and the memory of the device."""
  trained = [p for p in model.parameters() if p.requires_grad]
  optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=True)
  inputs = peft_t5.as_inputs(sizes, weights.MHR, device=device)
  called = torch.compile(model) if compiled else model

  def step() -> None:
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(device, torch.bfloat16):
      loss = called(**inputs).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    if device == 'cuda':
      torch.cuda.synchronize()

  def timed(count: int) -> list[float]:
    seconds = []
    for _ in range(count):
      start = time.perf_counter()
      step()
      seconds.append(time.perf_counter() - start)
    return seconds

  if device == 'cuda':
    torch.cuda.reset_peak_memory_stats()
  warm, seconds = timed(_WARM_UP), timed(times)
  found = {
    'seconds': statistics.median(seconds),
    'rounds': seconds,
    'warm_up_seconds': sum(warm),
  }
  if device == 'cuda':
    found[_PEAK] = torch.cuda.max_memory_allocated()
  return found


def _make_model(
  torch: Any, transformers: Any, peft: Any, sizes: Setting, device: str
) -> Any:
  values = hf_config.to_json(sizes.backbone, dtype='float32')
  config = transformers.T5Config(**values)
  with torch.device(device):
    base = transformers.T5ForConditionalGeneration(config).to(torch.bfloat16)
    # transformers 5 ties the output layer whatever the config says.
    shape = base.lm_head.weight.shape
    base.lm_head.weight = torch.nn.Parameter(
      torch.randn(shape, dtype=torch.bfloat16)
    )
  poly = peft.PolyConfig(
    task_type='SEQ_2_SEQ_LM',
    r=sizes.rank,
    n_tasks=sizes.n_tasks,
    n_skills=sizes.n_skills,
    n_splits=sizes.n_splits,
    target_modules=['q', 'k', 'v', 'o', 'wi_0', 'wi_1', 'wo'],
  )
  model = peft.get_peft_model(base, poly).to(device)
  for parameter in model.parameters():
    if parameter.requires_grad:
      parameter.data = parameter.data.float()
  return model.train()
