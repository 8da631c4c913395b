"""What gin may configure without an import: `--gin.AdapterConfig.rank=4`."""

from collections.abc import Callable

from mhr_jax import commands, train
from mhr_jax.adaptation import AdaptationSettings
from mhr_jax.adapters import AdapterConfig
from mhr_jax.data.mixture_settings import MixtureSettings
from mhr_jax.evaluation import EvaluationSettings
from mhr_jax.few_shot import FewShotSettings
from mhr_jax.jobs import HeldBackSettings
from mhr_jax.optim import OptimizerSettings
from mhr_jax.side_by_side import LossSettings
from mhr_jax.t5.config import T5Config, t5_config
from mhr_jax.t5.decoding import DecodingSettings
from mhr_jax.task_data import TaskData, TaskModule
from mhr_jax.trainer import TrainSettings


def roots() -> tuple[Callable, ...]:
  """Returns what a command calls with its configured arguments."""
  return (train.train, commands.adapt, commands.evaluate)


def all_configurables() -> tuple[Callable, ...]:
  """Returns the roots and every class of settings."""
  return (
    *roots(),
    AdaptationSettings,
    AdapterConfig,
    DecodingSettings,
    EvaluationSettings,
    FewShotSettings,
    HeldBackSettings,
    LossSettings,
    MixtureSettings,
    OptimizerSettings,
    T5Config,
    TaskData,
    TaskModule,
    TrainSettings,
    t5_config,
  )
