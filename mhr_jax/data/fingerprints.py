"""What a piece of prepared data was made from, as one sha256.

`describe` turns settings, functions and objects into JSON: functions by their
name and the text of the module that defines them, objects by their class and
attributes. Equal descriptions give equal fingerprints in every process.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import hashlib
import inspect
import json
import os
import pathlib
import re
import sys
from typing import Any, Literal

from etils import epath

_DEPTH = 8


def fingerprint(value: Any) -> str:
  """Returns the sha256 (hex) of a value's description."""
  text = json.dumps(describe(value), sort_keys=True, ensure_ascii=False)
  return hashlib.sha256(text.encode('utf-8')).hexdigest()


def describe(
  value: Any,
  *,
  paths: Literal['full', 'name'] = 'full',
  depth: int = _DEPTH,
) -> Any:
  """Returns a value as JSON that is the same in every process.

  An object with a text attribute `fingerprint` is described by that.

  Args:
    value: a setting, a function, a partial function or any other object.
    paths: whether a path counts whole, or by its last part alone.
    depth: how many levels of attributes are followed; deeper ones count by
      their class alone.
  """
  if value is None or isinstance(value, (bool, int, float, str)):
    return value
  if isinstance(value, bytes):
    return hashlib.sha256(value).hexdigest()
  if isinstance(value, os.PathLike):
    return os.fspath(value) if paths == 'full' else pathlib.Path(value).name
  if depth <= 0:
    return _type_name(value)
  inner = functools.partial(describe, paths=paths, depth=depth - 1)
  if isinstance(value, (Mapping, set, frozenset, Sequence)):
    return _describe_container(value, inner)
  if isinstance(value, functools.partial):
    return [inner(value.func), inner(value.args), inner(value.keywords)]
  if isinstance(value, type):
    return [_qualified_name(value), _code_digest(value)]
  if callable(value) and hasattr(value, '__code__'):
    return _describe_function(value, inner)
  return _describe_object(value, inner)


def file_digest(path: epath.PathLike) -> str:
  """Returns the sha256 (hex) of a file's contents, read in pieces."""
  digest = hashlib.sha256()
  with epath.Path(path).open('rb') as f:
    while piece := f.read(1 << 20):
      digest.update(piece)
  return digest.hexdigest()


def _describe_container(value: Any, inner: Callable[[Any], Any]) -> Any:
  if isinstance(value, Mapping):
    return {str(k): inner(v) for k, v in value.items()}
  if isinstance(value, (set, frozenset)):
    return sorted(json.dumps(inner(v), sort_keys=True) for v in value)
  return [inner(v) for v in value]


def _describe_function(function: Any, inner: Callable[[Any], Any]) -> Any:
  """Name, code, defaults and the values that the function closes over."""
  cells = function.__closure__ or ()
  closed = {
    name: inner(cell.cell_contents)
    for name, cell in zip(function.__code__.co_freevars, cells, strict=True)
    if name != '__class__'
  }
  return {
    'function': _qualified_name(function),
    'code': _code_digest(function),
    'defaults': inner([function.__defaults__, function.__kwdefaults__]),
    'closure': closed,
  }


def _describe_object(value: Any, inner: Callable[[Any], Any]) -> Any:
  """Class and attributes, without those that are only cached results."""
  known = getattr(value, 'fingerprint', None)
  if isinstance(known, str):
    return [_type_name(value), known]
  if dataclasses.is_dataclass(value):
    fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
  elif hasattr(value, '__dict__'):
    fields = {
      name: field
      for name, field in vars(value).items()
      if not isinstance(
        getattr(type(value), name, None), functools.cached_property
      )
    }
  else:
    return [_type_name(value), re.sub(r' at 0x[0-9a-f]+', '', repr(value))]
  return [_type_name(value), _code_digest(type(value)), inner(fields)]


def _qualified_name(value: Any) -> str:
  return f'{value.__module__}.{value.__qualname__}'


def _type_name(value: Any) -> str:
  return _qualified_name(type(value))


def _code_digest(value: Any) -> str:
  """Digest of the module of a function or class, or of its own code."""
  module = sys.modules.get(value.__module__)
  path = getattr(module, '__file__', None)
  if path and pathlib.Path(path).suffix == '.py' and os.path.exists(path):
    return _module_digest(path, os.path.getmtime(path))
  code = getattr(value, '__code__', None)
  if code is not None:
    return hashlib.sha256(code.co_code).hexdigest()
  try:
    return hashlib.sha256(inspect.getsource(value).encode()).hexdigest()
  except (OSError, TypeError):
    return ''


@functools.lru_cache(maxsize=1024)
def _module_digest(path: str, mtime: float) -> str:
  del mtime  # part of the cache's key: an edited module is read again
  return file_digest(path)
