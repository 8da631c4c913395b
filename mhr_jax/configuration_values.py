"""The resolved configuration: each value a call would use, and its origin.

`configuration` parses; here gin's bindings are followed from one function to
whatever its values refer to, macros replaced, defaults filled in. The result
is a gin file that a run folder keeps, and a flat dict that a resumed run is
compared with.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import dataclasses
import inspect
from typing import Any, Literal

import gin
from gin import config as gin_config

from mhr_jax.configuration_errors import Place, binding_flag, parameters
from mhr_jax.errors import UserError

_EXTRA = inspect.Parameter('extra', inspect.Parameter.KEYWORD_ONLY)
# A parameter's full name in gin: scope, selector, parameter.
Key = tuple[str, str, str]
MACRO = 'gin.macro'


@dataclasses.dataclass(frozen=True)
class Setting:
  """One value of a resolved configuration.

  Attributes:
    key: scope, module, function and parameter: `train.train.seed`.
    text: the value as gin reads it, macros replaced by what they stand for.
    origin: `file:line`, `command line` or `default`.
    literal: whether gin can read `text`.
  """

  key: str
  text: str
  origin: str
  literal: bool = True


@dataclasses.dataclass(frozen=True)
class Resolved:
  """Every value that a call of one configured function would use.

  Attributes:
    settings: in the order in which the call reaches them.
    modules: the full name of the module that a key's module stands for.
  """

  settings: tuple[Setting, ...]
  modules: Mapping[str, str]

  def to_dict(self) -> dict[str, str]:
    """Returns the text of each value by its key."""
    return {setting.key: setting.text for setting in self.settings}

  def place_of(self, setting: str) -> str:
    """Returns 'file:line: ' where a setting was set; '' where that is unsure.

    Args:
      setting: a parameter of a class or function, 'TrainSettings.steps'.
    """
    tail = setting if '.' in setting else f'.{setting}'
    origins = {
      each.origin
      for each in self.settings
      if each.key.endswith(tail) and each.origin != 'default'
    }
    return f'{origins.pop()}: ' if len(origins) == 1 else ''

  def to_text(self) -> str:
    """Returns a gin file of all values, each with its origin as a comment."""
    lines = ['from __gin__ import dynamic_registration']
    lines += [_import(name, self.modules[name]) for name in self.modules]
    group = None
    for setting in self.settings:
      head = setting.key.rpartition('.')[0]
      if head != group:
        lines.append('')
        group = head
      mark = '' if setting.literal else '# '
      lines.append(f'{mark}{setting.key} = {setting.text}  # {setting.origin}')
    return '\n'.join([*lines, ''])


def diff(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
  """Returns one line for each key whose value differs.

  >>> diff({'train.seed': '0', 'train.steps': '9'}, {'train.seed': '1'})
  ['train.seed: 0 -> 1', 'train.steps: 9 -> (unset)']
  """
  unset = '(unset)'
  return [
    f'{key}: {old.get(key, unset)} -> {new.get(key, unset)}'
    for key in dict.fromkeys((*old, *new))
    if old.get(key, unset) != new.get(key, unset)
  ]


def resolve(
  function: Callable,
  places: Mapping[Key, Place],
  *,
  given: Iterable[str] = (),
  missing: Literal['raise', 'show'] = 'raise',
) -> Resolved:
  """Follows the bindings of `function` through gin's parsed configuration.

  Args:
    function: the function or class that would be called.
    places: where each parameter was bound.
    given: parameters that its caller gives; they need no binding.
    missing: `show` marks required values that nothing sets as `(required)`.

  Raises:
    UserError: a parameter without a default is bound nowhere.
  """
  walk = _Walk(places, missing)
  root = gin_config._inverse_lookup(function)
  settings = tuple(walk.visit(root, (), frozenset(given)))
  return Resolved(settings, walk.modules)


def references(value: Any) -> Iterator[gin_config.ConfigurableReference]:
  """Yields each reference in a parsed value, macros among them."""
  yield from gin_config.iterate_references({'': {'': value}})


def is_macro(reference: gin_config.ConfigurableReference) -> bool:
  """Whether a reference is `%NAME`."""
  return reference.configurable.selector == MACRO


def is_required(value: Any) -> bool:
  """Whether a parsed value is `%gin.REQUIRED`."""
  return (
    isinstance(value, gin_config.ConfigurableReference)
    and value.configurable.selector == 'gin.constant'
    and value.scoped_configurable_fn() is gin.REQUIRED
  )


def macro_value(name: str) -> Any:
  """Returns what the macro `name` was set to; `KeyError` where it was not."""
  return gin_config._CONFIG[name, MACRO]['value']


class _Required:
  """Stands where a required value is missing."""

  def __repr__(self) -> str:
    return '(required)'


class _Walk:
  """One pass over what a call reaches; remembers what it has seen."""

  def __init__(self, places: Mapping[Key, Place], missing: str):
    self._places = places
    self._missing = missing
    self._seen: set[tuple[str, str]] = set()
    self.modules: dict[str, str] = {}

  def visit(
    self,
    configurable: gin_config.Configurable,
    scope: tuple[str, ...],
    given: frozenset[str] = frozenset(),
    *,
    evaluated: bool = True,
  ) -> Iterator[Setting]:
    """Yields the settings of a call, then of what its values refer to.

    Where a value is a function itself (`@f`, not `@f()`), our code calls it
    later and gives what has no binding.
    """
    key = ('/'.join(scope), configurable.selector)
    if key in self._seen:
      return
    self._seen.add(key)
    bound = gin_config._get_bindings(configurable.selector, list(scope) or None)
    inner = []
    named = parameters(configurable.wrapped)
    # Also what `**arguments` takes, in the order of the bindings.
    extra = {name: _EXTRA for name in bound if name not in named}
    for name, parameter in (named | extra).items():
      required = parameter.default in (parameter.empty, gin.REQUIRED)
      left = required and not evaluated and name not in bound
      if name in given or left:
        continue
      try:
        value, place = self._value(configurable, scope, name, parameter, bound)
      except UserError as error:
        if self._missing == 'raise':
          raise
        value, place = _Required(), str(error)
      text, literal = self._text(value)
      prefix = '/'.join((*scope, self._name(configurable)))
      yield Setting(f'{prefix}.{name}', text, place, literal)
      inner.extend(self._inner(value, scope))
    for reference, inner_scope in inner:
      yield from self.visit(
        reference.configurable, inner_scope, evaluated=reference.evaluate
      )

  def _value(
    self,
    configurable: gin_config.Configurable,
    scope: tuple[str, ...],
    name: str,
    parameter: inspect.Parameter,
    bound: Mapping[str, Any],
  ) -> tuple[Any, str]:
    """Returns a parameter's value, macros followed, and where it came from."""
    if name not in bound:
      if parameter.default in (parameter.empty, gin.REQUIRED):
        raise _missing(configurable.name, name)
      return parameter.default, 'default'
    value = bound[name]
    place = self._place(scope, configurable.selector, name)
    while isinstance(value, gin_config.ConfigurableReference):
      if is_required(value):
        raise _required(f'{configurable.name}.{name}', place)
      if not is_macro(value):
        break
      macro = '/'.join(value.scopes)
      value = macro_value(macro)
      place = self._places[macro, MACRO, 'value']
      if is_required(value):
        raise _required(macro, place)
    return value, str(place)

  def _place(self, scope: tuple[str, ...], selector: str, name: str) -> Place:
    """Returns where a parameter was bound, innermost scope first."""
    for length in range(len(scope), -1, -1):
      key = ('/'.join(scope[:length]), selector, name)
      if key in self._places:
        return self._places[key]
    return Place('python', 0, '')

  def _inner(self, value: Any, scope: tuple[str, ...]):
    """Yields the references in a value, each with the scope it runs in."""
    for reference in references(value):
      if is_macro(reference):
        yield from self._inner(macro_value('/'.join(reference.scopes)), scope)
      elif reference.configurable.selector != 'gin.constant':
        yield reference, tuple(reference.scopes) or scope

  def _text(self, value: Any) -> tuple[str, bool]:
    """Returns a value as gin reads it, and whether gin can."""
    if isinstance(value, gin_config.ConfigurableReference):
      if is_macro(value):
        return self._text(macro_value('/'.join(value.scopes)))
      if value.configurable.selector == 'gin.constant':
        return repr(value), True
      name = '/'.join((*value.scopes, self._name(value.configurable)))
      return f'@{name}{"()" if value.evaluate else ""}', True
    if isinstance(value, dict):
      items = [
        (*self._text(key), *self._text(item)) for key, item in value.items()
      ]
      text = ', '.join(f'{key}: {item}' for key, _, item, _ in items)
      return f'{{{text}}}', all(a and b for _, a, _, b in items)
    if isinstance(value, list | tuple):
      texts = [self._text(item) for item in value]
      text = ', '.join(item for item, _ in texts)
      comma = ',' if len(texts) == 1 else ''
      form = f'[{text}]' if isinstance(value, list) else f'({text}{comma})'
      return form, all(literal for _, literal in texts)
    literal = value is None or isinstance(value, bool | int | float | str)
    return repr(value), literal

  def _name(self, configurable: gin_config.Configurable) -> str:
    """Returns `module.name`, with a name for the module that is its alone."""
    module = configurable.wrapped.__module__
    parts = module.split('.')
    for length in range(1, len(parts) + 1):
      symbol = '_'.join(parts[-length:])
      if self.modules.setdefault(symbol, module) == module:
        break
    return f'{symbol}.{configurable.wrapped.__qualname__}'


def _import(name: str, module: str) -> str:
  package, _, last = module.rpartition('.')
  line = f'from {package} import {last}' if package else f'import {last}'
  return line if name == last else f'{line} as {name}'


def _missing(function: str, name: str) -> UserError:
  return UserError(
    f'{function} needs `{name}`, which nothing sets.'
    f' Add {binding_flag(f"{function}.{name}")}'
  )


def _required(name: str, place: Place) -> UserError:
  comment = f' ({place.comment})' if place.comment else ''
  return UserError(
    f'{name} is not set{comment}; {place} requires it. Add {binding_flag(name)}'
  )
