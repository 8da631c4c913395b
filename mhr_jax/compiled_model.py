"""A model's programs: NumPy batches in, NumPy out, compiled once a shape.

Models of one configuration share their programs.
"""

from collections.abc import Mapping
import functools
from typing import Any

import jax
from jaxtyping import Float32, Int32
import numpy as np

from mhr_jax import evaluation
from mhr_jax.model import Params, RoutedT5
from mhr_jax.t5.decoding import DecodingSettings
from mhr_jax.task_choice import TaskRows

HostBatch = Mapping[str, np.ndarray]


class CompiledModel:
  """Runs a model for given tasks, or with its average adapter.

  A batch is what `RoutedT5` takes, but for `task_ids`, which come apart: ids,
  'average' or None (see `task_choice.choose_tasks`).
  """

  def __init__(self, model: RoutedT5, params: Params):
    self._model = model, params

  @functools.cached_property
  def averaged(self) -> tuple[RoutedT5, Params]:
    """The model and parameters of the average adapter."""
    return evaluation.average_model(*self._model)

  def logits(
    self, batch: HostBatch, tasks: TaskRows
  ) -> Float32[np.ndarray, 'batch length vocab']:
    """Returns the logits of the target tokens."""
    model, params, placed = self._place(batch, tasks)
    return np.asarray(_compile_logits(model)(params, placed), np.float32)

  def generate(
    self,
    batch: HostBatch,
    tasks: TaskRows,
    settings: DecodingSettings,
    key: jax.Array,
  ) -> Int32[np.ndarray, 'batch max_new_tokens']:
    """Returns the tokens written, without the start token."""
    model, params, placed = self._place(batch, tasks)
    return np.asarray(_compile_generate(model, settings)(params, placed, key))

  def score(
    self, batch: HostBatch, tasks: TaskRows
  ) -> Float32[np.ndarray, 'batch']:
    """Returns the log-probability of each row's targets, summed over tokens."""
    model, params, placed = self._place(batch, tasks)
    return np.asarray(_compile_score(model)(params, placed), np.float32)

  def _place(
    self, batch: HostBatch, tasks: TaskRows
  ) -> tuple[RoutedT5, Params, dict[str, Any]]:
    model, params = self.averaged if isinstance(tasks, str) else self._model
    if isinstance(tasks, np.ndarray):
      batch = {**batch, 'task_ids': tasks}
    return model, params, evaluation.place(batch, params)


@functools.lru_cache(maxsize=32)
def _compile_logits(model: RoutedT5):
  return jax.jit(model.logits)


@functools.lru_cache(maxsize=32)
def _compile_score(model: RoutedT5):
  return jax.jit(model.score)


@functools.lru_cache(maxsize=32)
def _compile_generate(model: RoutedT5, settings: DecodingSettings):
  def generate(params, batch, key):
    return model.generate(params, batch, settings, key=key)

  return jax.jit(generate)
