"""Files and folders on a local disk or in a bucket, written whole; JSON read.

Where a store cannot append, a file is written whole each time.
"""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import hashlib
import json
import math
import os
import time
from typing import Any, Protocol
import uuid

from etils import epath
import jax
import numpy as np

from mhr_jax import json_text
from mhr_jax.errors import UserError

METRICS_FILE = 'metrics.jsonl'
RUN_FILE = 'run.json'
CARD_FILE = 'README.md'
TASKS_FILE = 'tasks.json'
CONFIG_FILE = 'config.gin'
SCORES_FILE = 'scores.json'
PREDICTIONS_FILE = 'predictions.jsonl'
RESULTS_FILE = 'results.json'
REPORT_FILE = 'report.html'
TENSORBOARD_FOLDER = 'tensorboard'
EVALUATIONS_FOLDER = 'evaluations'

# A bucket's object is written whole each time: not at every line.
_SECONDS_BETWEEN_WRITES = 30.0


def write_text(path: epath.PathLike, text: str) -> None:
  """Writes a file of text whole; see `write_bytes`."""
  write_bytes(path, text.encode())


def write_bytes(path: epath.PathLike, data: bytes) -> None:
  """Writes a file so that no reader ever sees half of it.

  On a local disk: to a name of its own beside it, then renamed. A bucket's
  objects are whole by themselves.

  Raises:
    UserError: it cannot be written; what was there before is as it was.
  """
  path = epath.Path(path)
  with written(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    if is_remote(path):
      path.write_bytes(data)
      return
    temporary = path.parent / f'.{path.name}.tmp'
    temporary.unlink(missing_ok=True)  # A link there would be followed.
    try:
      temporary.write_bytes(data)
      temporary.replace(path)
    finally:  # A folder of that name, or a full disk: nothing is left behind.
      temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def written(path: epath.PathLike) -> Iterator[None]:
  """Names the file where writing it fails: no room, a quota, no permission.

  Raises:
    UserError: instead of an `OSError`, which need not say of which file.
  """
  try:
    yield
  except OSError as error:
    reason = str(error.strerror or error).partition('\n')[0]
    raise UserError(f'{path} cannot be written: {reason}.') from error


def write_json(path: epath.PathLike, value: Any) -> None:
  """Writes `value` as indented JSON (see `write_text`); NaN becomes null."""
  write_text(path, json.dumps(to_json_value(value), indent=1) + '\n')


def to_json_value(value: Any) -> Any:
  """Turns arrays, tuples and dataclasses into what JSON has; NaN into null."""
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    return to_json_value(dataclasses.asdict(value))
  if isinstance(value, Mapping):
    return {str(k): to_json_value(v) for k, v in value.items()}
  if isinstance(value, (list, tuple, set, frozenset)):
    return [to_json_value(v) for v in value]
  if isinstance(value, (np.ndarray, np.generic, jax.Array)):
    return to_json_value(np.asarray(value).tolist())
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if value is None or isinstance(value, (bool, int, str)):
    return value
  return str(value)


def digest(value: Any) -> str:
  """Returns 32 hex digits over what JSON has of a value."""
  text = json.dumps(value, sort_keys=True)
  return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def seal(values: Mapping[str, Any]) -> dict[str, Any]:
  """Returns values with their digest, which `check_seal` compares."""
  return {**values, _DIGEST: digest(values)}


def check_seal(values: Mapping[str, Any], *, where: str, remedy: str) -> None:
  """Refuses values that changed since they were sealed, if they were.

  Args:
    values: what a file holds.
    where: the file.
    remedy: what to do: the message's last sentence.

  Raises:
    UserError: they did.
  """
  rest = {key: value for key, value in values.items() if key != _DIGEST}
  if _DIGEST in values and values[_DIGEST] != digest(rest):
    raise UserError(
      f'{where} was altered or damaged after it was written. {remedy}'
    )


_DIGEST = 'digest'


def read_json(path: epath.PathLike, kind: type = dict) -> Any:
  """Returns what a JSON file holds.

  Args:
    path: of the file.
    kind: of the value, dict or list.

  Raises:
    UserError: there is no such file, or it is cut short, altered or of another
      kind; the message names the line and the column.
  """
  path = epath.Path(path)
  try:
    value = json_text.parse(path.read_bytes())
  except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
    raise UserError(
      f'{path} is absent. It was not copied with the rest, or removed.'
    ) from None
  except json.JSONDecodeError as error:
    raise UserError(
      f'{path} is not whole JSON: {error.msg} at line {error.lineno}, column'
      f' {error.colno}. It was cut short or altered: mend it there, or copy it'
      ' again.'
    ) from error
  except UnicodeDecodeError as error:
    raise UserError(f'{path} is no JSON: {error}.') from error
  if not isinstance(value, kind):
    wanted = 'object' if kind is dict else 'list'
    raise UserError(f'{path} holds no JSON {wanted}.')
  return value


def check_kind(value: Any, kind: type, *, where: str) -> Any:
  """Returns a value of a JSON file, which must be of a kind.

  Args:
    value: what the file holds.
    kind: int, float (which a whole number is, too), bool, str, dict or list.
    where: the file and the key, for the message.

  Raises:
    UserError: it is of another kind.
  """
  kinds = (int, float) if kind is float else (kind,)
  flag = (
    isinstance(value, bool) and kind is not bool
  )  # Python's bool is an int.
  if flag or not isinstance(value, kinds):
    raise UserError(f'{where} is {value!r}; {_KINDS[kind]} is wanted.')
  return value


_KINDS = {
  int: 'a whole number',
  float: 'a number',
  bool: 'true or false',
  str: 'a text',
  dict: 'an object',
  list: 'a list',
}


def check_format(facts: Mapping[str, Any], newest: int, *, where: str) -> None:
  """Refuses a file of a format that this version does not read.

  Args:
    facts: with `format_version`; 0 without.
    newest: the newest format that is read.
    where: the file, for the message.
  """
  version = facts.get('format_version', 0)
  check_kind(version, int, where=f'{where}: format_version')
  if version > newest:
    raise UserError(
      f'{where} has format {version}; this version of mhr_jax reads up to'
      f' {newest}. Install a newer one.'
    )


@contextlib.contextmanager
def new_folder(folder: epath.PathLike) -> Iterator[epath.Path]:
  """Yields where to write what lies in `folder` once it is whole.

  That is a folder of its own name beside it, renamed at the end, or removed
  where writing fails. A bucket cannot rename: there `folder` itself is
  written to, and the file that says what it is must come last.

  Args:
    folder: absent or empty.

  Raises:
    UserError: it is neither, or cannot be written.
  """
  folder = epath.Path(folder)
  place = folder
  try:
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
      raise UserError(
        f'{folder} exists and is not an empty folder: nothing is overwritten.'
        ' Choose a new folder.'
      )
    if not is_remote(folder):
      place = folder.parent / f'.{folder.name}.{uuid.uuid4().hex}.partial'
    place.mkdir(parents=True, exist_ok=True)
    yield place
    if place != folder:
      os.rename(place, folder)  # An empty folder gives way.
  except OSError as error:
    raise UserError(f'{folder} cannot be written: {error}.') from error
  finally:
    if place != folder and place.exists():
      place.rmtree()


def is_remote(path: epath.PathLike) -> bool:
  """Whether a path is in a store that can neither append nor rename."""
  return '://' in str(path)


class AppendFile(Protocol):
  """What `open_append` returns."""

  def write(self, data: bytes, /) -> Any: ...

  def flush(self) -> None: ...

  def close(self) -> None: ...


class _WholeFile:
  """A file for a store without append: written whole, every so often."""

  def __init__(self, path: epath.Path, *, start: bytes = b''):
    self._path = path
    self._data = bytearray(start)
    self._changed = False
    self._written_at = -math.inf

  def write(self, data: bytes):
    self._data += data
    self._changed = True

  def flush(self):
    if time.monotonic() - self._written_at > _SECONDS_BETWEEN_WRITES:
      self.close()

  def close(self):
    if self._changed:
      self._path.write_bytes(bytes(self._data))
      self._changed = False
      self._written_at = time.monotonic()


def open_append(path: epath.Path, *, start: bytes = b'') -> AppendFile:
  """Opens a file to append to, after the bytes `start`."""
  path.parent.mkdir(parents=True, exist_ok=True)
  if is_remote(path):
    return _WholeFile(path, start=start)
  if start or os.path.lexists(path):
    write_bytes(path, start)
  return open(path, 'ab')
