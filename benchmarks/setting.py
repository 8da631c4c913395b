"""What is compared: a T5, adapters, and the shape of a batch."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np

from mhr_jax import methods
from mhr_jax.adapters import AdapterConfig
from mhr_jax.model import RoutedT5
from mhr_jax.t5.config import T5Config, t5_config

_FIRST_TOKEN = 3  # those before are padding, the end and an unknown piece


@dataclasses.dataclass(frozen=True)
class Setting:
  """Sizes of a comparison; the defaults are those of the goals.

  Attributes:
    model: a name for `t5_config`.
    dtype: of the backbone's products.
    rank: of the adapters, which every linear has.
    n_tasks: rows of the routing logits.
    n_skills: of the inventories.
    n_splits: of the features.
    batch_size: rows, each of a random task.
    input_length: tokens of every input; there is no padding.
    target_length: tokens of every target.
    layers: 'unrolled', as `models/t5_1_1_small.gin` has them, or 'scanned'.
    remat: see `T5Config`.
    mix_in: see `RoutedT5`.
  """

  model: str = 't5_1_1_small'
  dtype: str = 'float32'
  rank: int = 16
  n_tasks: int = 64
  n_skills: int = 8
  n_splits: int = 8
  batch_size: int = 8
  input_length: int = 128
  target_length: int = 32
  layers: str = 'unrolled'
  remat: str = 'none'
  mix_in: str = 'auto'

  @property
  def backbone(self) -> T5Config:
    """The backbone, without dropout."""
    return t5_config(
      self.model,
      dtype=self.dtype,
      remat=self.remat,
      dropout_rate=0.0,
      scan_layers=self.layers == 'scanned',
    )

  def routed(self, added: AdapterConfig | None) -> RoutedT5:
    """Returns the model with these adapters."""
    mix_in: Any = self.mix_in
    return RoutedT5(self.backbone, added, mix_in)

  def adapters(self, method: str, mixing: Any = 'sigmoid') -> AdapterConfig:
    """Returns the adapters of a method.

    Args:
      method: a row of `methods.METHODS` that has some.
      mixing: of routed ones.
    """
    base = AdapterConfig(
      n_tasks=self.n_tasks,
      n_skills=self.n_skills,
      n_splits=self.n_splits,
      rank=self.rank,
      mixing=mixing,
    )
    config = methods.adapter_config(method, base)
    assert config is not None
    return config

  def varied(self, **values: Any) -> 'Setting':
    """Returns the setting with some fields replaced."""
    return Setting(**(self.as_json() | values))

  def as_json(self) -> dict[str, Any]:
    """Returns the fields, for a worker's arguments."""
    return dataclasses.asdict(self)

  def draw_batch(self, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns a batch of random tokens of mixed tasks."""
    rng = np.random.default_rng(seed)
    shapes = {'input': self.input_length, 'target': self.target_length}
    tokens = {
      name: rng.integers(
        _FIRST_TOKEN, self.backbone.vocab_size, (self.batch_size, length)
      ).astype(np.int32)
      for name, length in shapes.items()
    }
    start = np.zeros((self.batch_size, 1), np.int32)
    return {
      'encoder_input_tokens': tokens['input'],
      'decoder_input_tokens': np.hstack([start, tokens['target'][:, :-1]]),
      'decoder_target_tokens': tokens['target'],
      'decoder_loss_weights': np.ones(tokens['target'].shape, np.float32),
      'task_ids': rng.integers(0, self.n_tasks, self.batch_size).astype(
        np.int32
      ),
    }


def from_json(values: Mapping[str, Any]) -> Setting:
  """Returns what `Setting.as_json` wrote."""
  return Setting(**values)
