"""What values of settings may be: of their type, finite, within bounds.

A settings dataclass calls `check_fields` first thing, so that a wrong value is
refused where it is given, by the name that a person wrote. NaN passes every
comparison that is written as "is it too small?", so it is asked for here.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
import dataclasses
import functools
import math
import numbers
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from mhr_jax.errors import UserError, nearest

Bounds = Mapping[str, float]

_KINDS: dict[Any, tuple[type, str]] = {
  int: (numbers.Integral, 'a whole number is wanted'),
  float: (numbers.Real, 'a number is wanted'),
  bool: (bool, 'True or False is wanted'),
  str: (str, 'a text is wanted'),
}


class SettingError(UserError):
  """A field of settings has a value that cannot be.

  Attributes:
    setting: class and field, such as 'TrainSettings.steps'.
  """

  def __init__(self, setting: str, message: str):
    super().__init__(message)
    self.setting = setting


def check_fields(
  settings: Any,
  *,
  least: Bounds | None = None,
  most: Bounds | None = None,
  above: Bounds | None = None,
  below: Bounds | None = None,
  signed: Collection[str] = (),
) -> None:
  """Checks the fields of a settings dataclass by their annotations.

  Numbers must be finite, and at least 0 where nothing else is said. Fields of
  other types than numbers, flags, texts, literals, None and sequences of these
  are passed over.

  Args:
    settings: an instance.
    least: lowest values, by field.
    most: highest values.
    above: values that a field must exceed.
    below: values that a field must stay under.
    signed: fields that may be negative.

  Raises:
    SettingError: names class, field and value, and says what is wanted.
  """
  least = dict(least or {})
  for name, hint in _hints(type(settings)).items():
    if name not in signed:
      least.setdefault(name, 0)
    _check(
      f'{type(settings).__name__}.{name}',
      getattr(settings, name),
      hint,
      _Bounds(
        least.get(name),
        (most or {}).get(name),
        (above or {}).get(name),
        (below or {}).get(name),
      ),
    )


def check_count(name: str, value: Any, *, least: int = 1) -> None:
  """Checks an argument that is a whole number; None passes.

  Args:
    name: the argument, as a person wrote it.
    value: what was given.
    least: the lowest value.

  Raises:
    SettingError: it is no whole number, or too low.
  """
  if value is not None:
    _check(name, value, int, _Bounds(least))


@dataclasses.dataclass(frozen=True)
class _Bounds:
  """Which numbers a field may have; None for no bound."""

  least: float | None = None
  most: float | None = None
  above: float | None = None
  below: float | None = None

  def problem(self, value: Any) -> str | None:
    """Says what is wanted instead of a number that is out of bounds."""
    if self.least is not None and value < self.least:
      return f'at least {self.least}'
    if self.most is not None and value > self.most:
      return f'at most {self.most}'
    if self.above is not None and value <= self.above:
      return f'above {self.above}'
    if self.below is not None and value >= self.below:
      return f'below {self.below}'
    return None


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
  hints = get_type_hints(cls)
  return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _check(name: str, value: Any, hint: Any, bounds: _Bounds) -> None:
  """Checks one value by its annotation; unknown annotations pass."""
  problems = list(_problems(value, hint, bounds))
  # Of a union one part must fit; a part that is not known fits anything.
  if problems and all(problems):
    problem = str(problems[0])
    end = '' if problem.endswith('?') else '.'
    raise SettingError(name, f'{name} is {value!r}; {problem}{end}')


def _problems(value: Any, hint: Any, bounds: _Bounds) -> Iterator[str | None]:
  """Yields for each part of an annotation what is wrong, None where it fits."""
  origin = get_origin(hint)
  if origin in (Union, types.UnionType):
    for part in get_args(hint):
      if part is not type(None) or value is None:
        yield from _problems(value, part, bounds)
  elif hint is type(None):
    yield None
  elif hint in _KINDS:
    yield _problem_of_plain(value, hint, bounds)
  elif origin is Literal:
    yield _problem_of_literal(value, get_args(hint))
  elif _is_sequence(origin):
    yield _problem_of_items(value, get_args(hint), bounds)
  else:
    yield None


def _problem_of_plain(value: Any, hint: Any, bounds: _Bounds) -> str | None:
  kind, wanted = _KINDS[hint]
  # Python's bool is an int.
  if not isinstance(value, kind) or (
    isinstance(value, bool) and hint is not bool
  ):
    return wanted
  if hint not in (int, float):
    return None
  try:
    is_finite = math.isfinite(value)
  except OverflowError:  # a whole number that no float holds
    is_finite = False
  if not is_finite:
    return 'a finite number is wanted'
  return bounds.problem(value)


def _problem_of_literal(value: Any, known: tuple[Any, ...]) -> str | None:
  if isinstance(value, str | int) and value in known:
    return None
  hint = nearest(str(value), map(str, known), limit=0)
  meant = f'.{hint}' if 'Did you mean' in hint else ''
  return f'one of {", ".join(map(repr, known))} is wanted{meant}'


def _is_sequence(origin: Any) -> bool:
  return isinstance(origin, type) and issubclass(origin, Sequence)


def _problem_of_items(
  value: Any, hints: tuple[Any, ...], bounds: _Bounds
) -> str | None:
  if isinstance(value, str) or not isinstance(value, tuple | list):
    return 'a list is wanted'
  for item in value:
    found = list(_problems(item, hints[0], bounds))
    if found and all(found):
      return f'of {item!r}: {found[0]}'
  return None
