"""What gin files may name under `--safe_config`.

A gin file is a program: it imports modules, and calls what it finds in them
with what it likes (`import os`, `@os.system()`). Under limits it may import our
modules alone, and refer to nothing but settings and commands.
"""

from collections.abc import Iterable, Mapping
import dataclasses
from typing import Any

from gin import config as gin_config

from mhr_jax.configuration_errors import Place
from mhr_jax.configuration_values import (
  MACRO,
  Key,
  is_macro,
  macro_value,
  references,
)
from mhr_jax.errors import UserError

_GIN_FEATURES = '__gin__'
_GIN_NAMES = frozenset({MACRO, 'gin.constant'})
_REMEDY = 'Leave --safe_config out if you trust the file as you trust a program'


@dataclasses.dataclass(frozen=True)
class Limits:
  """What gin files may import, configure and refer to.

  Attributes:
    packages: what may be imported, with all that lies in it.
    names: full names (`mhr_jax.train.train`) of what may be configured and
      referred to.
    module_parameters: full names of classes and functions, each with its
      parameter that names a module to import.
  """

  packages: tuple[str, ...]
  names: frozenset[str]
  module_parameters: Mapping[str, str]

  def check_import(self, module: str, place: Place) -> None:
    """Raises where a file may not import this module.

    Raises:
      UserError: it is in none of `packages`; the message names the place.
    """
    if module.partition('.')[0] != _GIN_FEATURES:
      self._check_module(module, place)

  def check_names(
    self, configurables: Iterable[gin_config.Configurable], place: Place
  ) -> None:
    """Raises for the first function or class that a file may not name.

    Raises:
      UserError: it is not in `names`; the message names the place.
    """
    for configurable in configurables:
      name = full_name(configurable.wrapped)
      if name not in self.names and configurable.selector not in _GIN_NAMES:
        raise UserError(
          f'{place}: --safe_config: {name} is neither a setting nor a command.'
          f' {_REMEDY}.'
        )

  def check_module_parameters(self, places: Mapping[Key, Place]) -> None:
    """Raises for the first value that names a module of someone else.

    Args:
      places: where each parameter was bound, all files read.

    Raises:
      UserError: a value is in none of `packages`, or it is not a text.
    """
    for (scope, selector, parameter), place in places.items():
      name = full_name(gin_config._REGISTRY[selector].wrapped)
      if self.module_parameters.get(name) == parameter:
        value = _literal(gin_config._CONFIG[scope, selector][parameter])
        self._check_module(value, place)

  def _check_module(self, module: Any, place: Place) -> None:
    inside = isinstance(module, str) and any(
      module == package or module.startswith(f'{package}.')
      for package in self.packages
    )
    if not inside:
      raise UserError(
        f'{place}: --safe_config: {module} may not be imported, only what is in'
        f' {", ".join(self.packages)}. {_REMEDY}.'
      )


def full_name(configurable: Any) -> str:
  """Returns the name of a function or a class, with its module's."""
  module = getattr(configurable, '__module__', None)
  return f'{module}.{getattr(configurable, "__qualname__", configurable)}'


def named_in(value: Any) -> Iterable[gin_config.Configurable]:
  """Yields what a parsed value refers to."""
  return (reference.configurable for reference in references(value))


def _literal(value: Any) -> Any:
  """Returns a value, or what the macro that it is was set to."""
  while isinstance(value, gin_config.ConfigurableReference) and is_macro(value):
    value = macro_value('/'.join(value.scopes))
  return value
