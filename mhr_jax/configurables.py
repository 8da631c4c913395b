"""What gin may configure without an import: `--gin.AdapterConfig.rank=4`."""

from collections.abc import Callable

from mhr_jax import commands, study, train
from mhr_jax.adaptation import AdaptationSettings
from mhr_jax.adapter_soup import SoupSettings
from mhr_jax.adapters import AdapterConfig
from mhr_jax.analysis.gradients import AlignmentSettings
from mhr_jax.analysis.routing_statistics import RoutingStatisticsSettings
from mhr_jax.configuration_limits import Limits, full_name
from mhr_jax.data.mixture_settings import MixtureSettings
from mhr_jax.evaluation import EvaluationSettings
from mhr_jax.few_shot import FewShotSettings
from mhr_jax.jobs import HeldBackSettings
from mhr_jax.optim import OptimizerSettings
from mhr_jax.ranking import ChoiceSettings
from mhr_jax.side_by_side import LossSettings
from mhr_jax.t5.config import T5Config, t5_config
from mhr_jax.t5.decoding import DecodingSettings
from mhr_jax.task_data import TaskData, TaskModule
from mhr_jax.trainer import TrainSettings

# What our presets refer to beside settings; their modules import TensorFlow.
_BY_NAME = ('mhr_jax.tasks.natural_instructions.score_copies',)


def roots() -> dict[Callable, tuple[str, ...]]:
  """Returns what commands call, each with what the command itself gives."""
  return {
    train.train: (
      'mode',
      'config_change',
      'resume_from',
      'config_text',
      'command',
    ),
    commands.adapt: ('mode',),
    commands.align: (),
    commands.evaluate: ('mode',),
    study.study: ('config_text', 'command'),
  }


def all_configurables() -> tuple[Callable, ...]:
  """Returns the roots and every class of settings."""
  return (
    *roots(),
    AdaptationSettings,
    AdapterConfig,
    AlignmentSettings,
    ChoiceSettings,
    DecodingSettings,
    EvaluationSettings,
    FewShotSettings,
    HeldBackSettings,
    LossSettings,
    MixtureSettings,
    OptimizerSettings,
    RoutingStatisticsSettings,
    SoupSettings,
    study.FewShot,
    study.Study,
    study.TestSet,
    study.Training,
    T5Config,
    TaskData,
    TaskModule,
    TrainSettings,
    t5_config,
  )


def safe_limits() -> Limits:
  """Returns what gin files may name under `--safe_config`."""
  names = {full_name(configurable) for configurable in all_configurables()}
  return Limits(
    packages=('mhr_jax',),
    names=frozenset(names.union(_BY_NAME)),
    module_parameters={full_name(TaskModule): 'name'},
  )
