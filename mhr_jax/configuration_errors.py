"""Turns gin's errors into one that says where, what is wrong and the remedy.

`configuration` reads gin files statement by statement and hands whatever gin
raises to `explain`, together with the place it was reading.
"""

from collections.abc import Iterable
import dataclasses
import inspect
import re
import tokenize
from typing import Any

from mhr_jax.errors import UserError, nearest

COMMAND_LINE = 'command line'


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a statement stands.

  Attributes:
    file: the file as a person would name it, or `COMMAND_LINE`.
    line: its number, from 1.
    text: the whole line.
  """

  file: str
  line: int
  text: str

  def __str__(self) -> str:
    return (
      self.file if self.file == COMMAND_LINE else f'{self.file}:{self.line}'
    )

  @property
  def comment(self) -> str:
    """What the line's trailing comment says."""
    return self.text.partition('#')[2].strip()

  def assign(self, name: str, value: str) -> str:
    """Returns `name = value` in the spelling of this place."""
    if self.file == COMMAND_LINE:
      return binding_flag(name, value)
    return f'{name} = {value}'


def binding_flag(name: str, value: str = '…') -> str:
  """Returns the flag that binds `name`, quoted for a shell.

  >>> binding_flag('RUN_DIR', '"runs/a"')
  '--gin.RUN_DIR=\\'"runs/a"\\''
  """
  quoted = f"'{value}'" if re.search(r'["\s(\[{*@]', value) else value
  return f'--gin.{name}={quoted}'


def explain(
  error: Exception,
  place: Place,
  *,
  symbols: dict[str, Any],
  registered: Iterable[str],
  find: Any,
) -> UserError:
  """Returns the `UserError` that says what `error` means for a person.

  Args:
    error: what gin raised while it read or applied one statement.
    place: the statement.
    symbols: the names that the file imported, with their modules.
    registered: full names (`mhr_jax.train.train`) of what can be configured.
    find: looks a selector up and returns the function or class, or raises.
  """
  message = str(error).split('\n  In ')[0].strip()
  names = tuple(registered)
  if isinstance(error, tokenize.TokenError):
    return UserError(f'{place}: a bracket is not closed, or a string not ended')
  if isinstance(error, SyntaxError):
    return UserError(f'{place}: {_syntax(error, place)}')
  if isinstance(error, ImportError):
    return UserError(f'{place}: {_missing_module(error)}')
  parameter = re.search(
    r"Configurable '(.*)' doesn't have a parameter named '(.*)'", message
  )
  if parameter:
    text = _unknown_parameter(*parameter.groups(), find=find)
    return UserError(f'{place}: {text}')
  unknown = _unknown_selector(message)
  if unknown:
    return UserError(f'{place}: {_unknown_name(unknown, symbols, names)}')
  return UserError(f'{place}: {message}')


def parameters(configurable: Any) -> dict[str, inspect.Parameter]:
  """Returns the named parameters of a function, or of a class's constructor."""
  return {
    name: parameter
    for name, parameter in inspect.signature(configurable).parameters.items()
    if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
  }


def _syntax(error: SyntaxError, place: Place) -> str:
  token = re.search(r"Failed to parse token '(.*)'", str(error.msg))
  name, equals, value = place.text.partition('=')
  if not token or not equals:
    return f'gin cannot read {place.text.strip()!r}: {error.msg}'
  name, value = name.strip(), value.partition('#')[0].strip()
  literal = {'true': 'True', 'false': 'False', 'none': 'None', 'null': 'None'}
  if value.lower() in literal:
    right = place.assign(name, literal[value.lower()])
    return f'{value} is no value in gin; write {right}'
  if token.group(1) == value or re.fullmatch(r'[\w./:-]+', value):
    return (
      f'strings need quotes: {place.assign(name, chr(34) + value + chr(34))}'
    )
  return f'{token.group(1)!r} in {value} is no value; strings need quotes'


def _missing_module(error: ImportError) -> str:
  module = error.name or ''
  if module in ('seqio', 'tensorflow', 'tensorflow_text'):
    return f"{module} is not installed; pip install 'mhr_jax[data]' brings it."
  return f'{error}. Is it installed, and is its folder on PYTHONPATH?'


def _unknown_parameter(selector: str, name: str, *, find: Any) -> str:
  known = parameters(find(selector))
  text = f'{selector} has no parameter {name!r}.{nearest(name, known)}'
  return text + (
    f' Parameters: {", ".join(known)}.' if 'Did you mean' in text else ''
  )


def _unknown_selector(message: str) -> str | None:
  """Returns the selector that gin, by this message, could not find."""
  patterns = (
    r"No configurable matching (?:reference )?'@?([\w./]+)",
    r"'(\w+)' was not provided by an import statement",
    r"Couldn't resolve selector ([\w.]+);",
  )
  for pattern in patterns:
    match = re.search(pattern, message)
    if match:
      return match.group(1).rpartition('/')[2]
  return None


def _unknown_name(
  selector: str, symbols: dict[str, Any], registered: tuple[str, ...]
) -> str:
  """Says what was meant by an unknown name, or which import is missing."""
  first, _, rest = selector.partition('.')
  if first in symbols and rest:
    module = symbols[first]
    public = [
      name
      for name, value in vars(module).items()
      if callable(value) and not name.startswith('_')
    ]
    hint = nearest(rest.rpartition('.')[2], public)
    return f'{module.__name__} has no {rest!r}.{hint}'
  for name in registered:
    module, _, last = name.rpartition('.')
    package, _, module_name = module.rpartition('.')
    if selector == last or first == module_name:
      line = f'from {package} ' if package else ''
      line += f'import {module_name}'
      return f'{selector!r} needs `{line}` above it ({module_name}.{last}).'
  known = {*symbols, *(name.rpartition('.')[2] for name in registered)}
  return f'There is no {selector!r} to configure.{nearest(selector, known)}'
