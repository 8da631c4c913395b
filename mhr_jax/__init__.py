"""Multi-Head Adapter Routing for JAX.

The names that most programs need, each from the module that documents it. A
module is imported when one of its names is first asked for: `import mhr_jax`
alone brings neither JAX nor TensorFlow.

    import mhr_jax

    model = mhr_jax.load('runs/mhr')
    config = mhr_jax.t5_config('t5_1_1_base')

Training is `mhr_jax.train.train`, of the module of that name.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from mhr_jax.adaptation import AdaptationSettings, adapt
  from mhr_jax.adapters import AdapterConfig
  from mhr_jax.api import Model, load
  from mhr_jax.backbones import load_backbone
  from mhr_jax.data.loader import build_loader
  from mhr_jax.data.mixture_settings import MixtureSettings
  from mhr_jax.errors import UserError
  from mhr_jax.evaluation import EvaluationSettings, evaluate_generation
  from mhr_jax.few_shot import FewShotSettings
  from mhr_jax.interception import route
  from mhr_jax.methods import METHODS, get_method
  from mhr_jax.model import RoutedT5
  from mhr_jax.modules import RoutedDense
  from mhr_jax.optim import OptimizerSettings
  from mhr_jax.run_folder import load_run
  from mhr_jax.t5.config import T5Config, t5_config
  from mhr_jax.t5.decoding import DecodingSettings
  from mhr_jax.task_data import TaskData
  from mhr_jax.task_table import TaskTable
  from mhr_jax.train_settings import TrainSettings
  from mhr_jax.trainer import fit
  from mhr_jax.vocabulary import load_vocabulary

__all__ = [
  'METHODS',
  'AdaptationSettings',
  'AdapterConfig',
  'DecodingSettings',
  'EvaluationSettings',
  'FewShotSettings',
  'MixtureSettings',
  'Model',
  'OptimizerSettings',
  'RoutedDense',
  'RoutedT5',
  'T5Config',
  'TaskData',
  'TaskTable',
  'TrainSettings',
  'UserError',
  'adapt',
  'build_loader',
  'evaluate_generation',
  'fit',
  'get_method',
  'load',
  'load_backbone',
  'load_run',
  'load_vocabulary',
  'route',
  't5_config',
]

_NAMES_BY_MODULE = {
  'adaptation': ('AdaptationSettings', 'adapt'),
  'adapters': ('AdapterConfig',),
  'api': ('Model', 'load'),
  'backbones': ('load_backbone',),
  'data.loader': ('build_loader',),
  'data.mixture_settings': ('MixtureSettings',),
  'errors': ('UserError',),
  'evaluation': ('EvaluationSettings', 'evaluate_generation'),
  'few_shot': ('FewShotSettings',),
  'interception': ('route',),
  'methods': ('METHODS', 'get_method'),
  'model': ('RoutedT5',),
  'modules': ('RoutedDense',),
  'optim': ('OptimizerSettings',),
  'run_folder': ('load_run',),
  't5.config': ('T5Config', 't5_config'),
  't5.decoding': ('DecodingSettings',),
  'task_data': ('TaskData',),
  'task_table': ('TaskTable',),
  'train_settings': ('TrainSettings',),
  'trainer': ('fit',),
  'vocabulary': ('load_vocabulary',),
}
_MODULES = {
  name: module for module, names in _NAMES_BY_MODULE.items() for name in names
}


def __getattr__(name: str) -> Any:
  """Imports the module of a public name, and keeps the name here."""
  if name == 'train':
    return importlib.import_module('mhr_jax.train')
  if name not in _MODULES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  value = getattr(importlib.import_module(f'mhr_jax.{_MODULES[name]}'), name)
  globals()[name] = value
  return value


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
