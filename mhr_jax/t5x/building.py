"""What a gin file of T5X's builds of ours: the routed model and what it is."""

from collections.abc import Callable
import dataclasses
from typing import Any

from t5x import gin_utils

from mhr_jax import methods, run_folder
from mhr_jax.adapters import AdapterConfig
from mhr_jax.convert import t5x_routed
from mhr_jax.data import preprocessors
from mhr_jax.errors import UserError
from mhr_jax.model import MixIn, RoutedT5
from mhr_jax.optimizer_state import OptimizerDescription
from mhr_jax.t5.config import T5Config
from mhr_jax.t5x.optimizer import RoutedOptimizer
from mhr_jax.task_table import TaskTable
from mhr_jax.vocabulary import Vocabulary


def build_routed(
  backbone: T5Config,
  method: str,
  adapters: Callable[..., AdapterConfig],
  n_tasks: int,
  *,
  phase: methods.Phase = 'pretrain',
  scan_layers: bool = False,
  mix_in: MixIn = 'auto',
) -> RoutedT5:
  """Returns the model of a method in a phase.

  The averaged adapter (-mu) keeps its inventory here and mixes it uniformly,
  as the authors' code does: T5X restores arrays as they are.

  Args:
    backbone: the T5.
    method: a row of the table of methods.
    adapters: an `AdapterConfig` but for the number of tasks.
    n_tasks: of the mixture.
    phase: pre-training, or what follows it.
    scan_layers: whether layers are stacked; published T5 1.1 checkpoints are
      not.
    mix_in: see `RoutedT5`.

  Raises:
    UserError: the backbone is to be stored as T5X does not store it.
  """
  if backbone.storage != 'float32':
    raise UserError(
      f'T5X holds the backbone in float32, not {backbone.storage!r}: leave'
      ' T5Config.storage out.'
    )
  row = methods.get_method(method)
  base = adapters(n_tasks=n_tasks)
  config = dataclasses.replace(backbone, scan_layers=scan_layers)
  if phase != 'pretrain' and row.adapt_from == 'average':
    before = methods.adapter_config(row.pretrain_as, base)
    assert before is not None
    added = dataclasses.replace(
      before, mixing='uniform', normalisation='sum', shared_skill=False
    )
  else:
    added = methods.adapter_config(row, base, phase=phase)
  return RoutedT5(config, added, mix_in)


def summarize_config(
  model_dir: str,
  summary_writer: Any,
  step: int,
  *,
  model: Any,
  task_table: TaskTable,
) -> None:
  """Writes what `mhr_jax.load` needs beside T5X's checkpoints.

  T5X calls it once at the start (`train.summarize_config_fn`). Written are
  T5X's own summary and the files of `mhr_jax.convert.t5x_routed`: which model,
  tasks, vocabulary and optimizer it is.

  Args:
    model_dir: T5X's MODEL_DIR.
    summary_writer: T5X's.
    step: the first one.
    model: the `RoutedEncoderDecoderModel`.
    task_table: which id is which task.
  """
  gin_utils.summarize_gin_config(model_dir, summary_writer, step)
  run_folder.write_description(
    model_dir,
    model=model.routed,
    task_table=task_table,
    vocabulary=_find_vocabulary(model),
  )
  optimizer = model.optimizer_def
  if isinstance(optimizer, RoutedOptimizer):
    t5x_routed.write_optimizer(
      model_dir, OptimizerDescription(optimizer.settings, optimizer.trains)
    )


def _find_vocabulary(model: Any) -> Vocabulary | None:
  """Returns the vocabulary where it is one that can be saved."""
  try:
    return preprocessors.from_seqio(model.output_vocabulary)
  except UserError:
    return None
