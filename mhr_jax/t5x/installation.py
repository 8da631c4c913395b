"""Whether T5X can be imported here, and what its imports miss.

T5X at its last commit (cc342d4) imports two packages that do not install with
current JAX, for names that routed models never use: `airio` (in `isinstance`
checks) and `jestimator` (the Amos optimizer). Where they are absent, empty
classes of those names stand in.
"""

import importlib
import importlib.util
import os
import sys
import types
from typing import Any

from mhr_jax.errors import UserError

T5X_DIR = 'T5X_DIR'

INSTALL = (
  'git clone https://github.com/google-research/t5x, then'
  f' `pip install --no-deps -e t5x`, or set ${T5X_DIR} to the checkout'
)

_STAND_INS: dict[str, tuple[str, ...]] = {
  'airio': (),
  'airio.core': ('AirIODatasetIterator', 'DatasetProviderBase', 'Mixture',
                 'Task'),
  'jestimator': (),
  'jestimator.amos': ('ScaleByAmosState',),
  'jestimator.amos_helper': (),
}  # fmt: skip
_FUNCTIONS = {
  'jestimator.amos': 'amos',
  'jestimator.amos_helper': 'state_partition_rule',
}


def prepare_imports() -> None:
  """Makes `import t5x` work, or says what is missing.

  Raises:
    UserError: T5X, or what it needs beside its stand-ins, is not installed.
  """
  _find_t5x()
  if importlib.util.find_spec('seqio') is None:
    raise UserError(
      "T5X needs seqio and TensorFlow: pip install 'mhr_jax[data]'."
    )
  for name in ('airio', 'jestimator'):
    if not _works(f'{name}.core' if name == 'airio' else f'{name}.amos'):
      _stand_in(name)


def _find_t5x() -> None:
  folder = os.environ.get(T5X_DIR)
  if folder:
    if not os.path.isfile(os.path.join(folder, 't5x', 'main.py')):
      raise UserError(
        f'${T5X_DIR} is {folder}, which is no checkout of T5X: it has no'
        ' t5x/main.py.'
      )
    if folder not in sys.path:
      sys.path.insert(0, folder)
    importlib.invalidate_caches()
  if importlib.util.find_spec('t5x') is None:
    raise UserError(f'T5X is not installed: {INSTALL}.')


def _works(module: str) -> bool:
  if module in sys.modules:
    return True
  try:
    importlib.import_module(module)
  except (ImportError, AttributeError):
    # jestimator 0.3.3 fails with an AttributeError on jax 0.10.
    _forget(module.partition('.')[0])
    return False
  return True


def _forget(package: str) -> None:
  for name in [*sys.modules]:
    if name == package or name.startswith(f'{package}.'):
      del sys.modules[name]


def _stand_in(package: str) -> None:
  for name, classes in _STAND_INS.items():
    if name.partition('.')[0] != package:
      continue
    module: Any = types.ModuleType(name, 'Stands in for an absent package.')
    module.__path__ = []
    for class_name in classes:
      setattr(module, class_name, type(class_name, (), {'__module__': name}))
    if name in _FUNCTIONS:
      setattr(module, _FUNCTIONS[name], _refuse)
    sys.modules[name] = module
    parent, _, child = name.rpartition('.')
    if parent:
      setattr(sys.modules[parent], child, module)


def _refuse(*args: Any, **kwargs: Any):
  """What a function of an absent package does."""
  raise UserError('Amos needs the package jestimator, which is not installed.')
