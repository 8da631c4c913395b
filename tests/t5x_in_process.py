"""T5X imported into this process, with one tiny routed model to compare on."""

import jax
import numpy as np

from mhr_jax.adapters import AdapterConfig
from mhr_jax.model import RoutedT5
from mhr_jax.t5 import config as config_lib

CONFIG = config_lib.t5_config(
  't5_1_1_tiny',
  vocab_size=64,
  emb_dim=16,
  num_heads=2,
  head_dim=8,
  mlp_dim=32,
  scan_layers=False,
)
N_TASKS = 5
ADAPTERS = {
  'mhr': AdapterConfig(N_TASKS, n_skills=3, n_splits=4, rank=2),
  'poly': AdapterConfig(N_TASKS, n_skills=3, rank=2),
}


def build(name: str) -> tuple[RoutedT5, dict]:
  """Returns a model, and parameters with adapters that are not zero."""
  model = RoutedT5(CONFIG, ADAPTERS[name])
  params = model.init(jax.random.key(0))
  leaves, structure = jax.tree.flatten(
    {label: params[label] for label in ('adapters', 'routers')}
  )
  rng = np.random.default_rng(1)
  drawn = [rng.normal(size=x.shape).astype(np.float32) * 0.3 for x in leaves]
  return model, {**params, **structure.unflatten(drawn)}


def draw_batch(seed: int, rows: int = 8, inputs: int = 9, targets: int = 6):
  """Returns a batch of mixed tasks with padding, as seqio hands it to T5X."""
  rng = np.random.default_rng(seed)

  def tokens(length):
    drawn = rng.integers(2, CONFIG.vocab_size, (rows, length))
    kept = np.arange(length) < rng.integers(2, length + 1, (rows, 1))
    return np.where(kept, drawn, 0).astype(np.int32)

  written = tokens(targets)
  shifted = np.pad(written[:, :-1], ((0, 0), (1, 0)))
  return {
    'encoder_input_tokens': tokens(inputs),
    'decoder_input_tokens': shifted,
    'decoder_target_tokens': written,
    'decoder_loss_weights': (written != 0).astype(np.int32),
    'task_ids': rng.integers(0, N_TASKS, (rows, 1)).astype(np.int32),
  }
