"""gin: search paths, explained errors, and where each value came from.

A run is described by gin files and by bindings on the command line, spelled as
T5X spells them (`--gin_file=runs/multi_task.gin --gin.RUN_DIR='"runs/a"'`).
`parse` reads them into gin's global configuration, statement by statement, so
that it knows the line of every binding; the result calls configured functions
and lists the resolved configuration.

Files say `from __gin__ import dynamic_registration` and import what they
configure, so no other module of the library knows of gin. gin's own reader of
packaged files is not used: it needs `importlib.util`, which it never imports.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import graphlib
import importlib.util
import inspect
import io
import pathlib
import re
import tokenize
from typing import Any, Literal

from etils import epath
import gin
from gin import config as gin_config
from gin import config_parser

from mhr_jax.configuration_errors import (
  COMMAND_LINE,
  Place,
  binding_flag,
  explain,
)
from mhr_jax.configuration_limits import Limits, named_in
from mhr_jax.configuration_values import (
  MACRO,
  Key,
  Resolved,
  is_macro,
  references,
  resolve,
)
from mhr_jax.errors import UserError, nearest
from mhr_jax.setting_checks import SettingError

# What gin raises for a mistake in a file; anything else is a bug.
_GIN_ERRORS = (
  AttributeError,
  ImportError,
  KeyError,
  NameError,
  RuntimeError,
  SyntaxError,
  TypeError,
  ValueError,
  tokenize.TokenError,
)


@dataclasses.dataclass(frozen=True)
class Configuration:
  """What gin files and bindings said. gin itself holds the values, globally.

  Attributes:
    files: every file read, in order, included ones too.
    places: where each parameter was last bound.
    search_paths: the folders that were searched.
  """

  files: tuple[str, ...]
  places: Mapping[Key, Place]
  search_paths: tuple[str, ...]

  def call(self, function: Callable, **arguments) -> Any:
    """Calls `function` with its configured arguments; `arguments` win.

    Raises:
      UserError: a required argument is not configured, or the function or
        what it is given raised one.
    """
    resolved = self.resolve(function, given=arguments)
    try:
      return gin.get_configurable(function)(**arguments)
    except UserError as error:
      message = str(error).split('\n  In call to configurable')[0]
      if isinstance(error, SettingError):
        message = f'{resolved.place_of(error.setting)}{message}'
      raise UserError(message) from error
    except RecursionError as error:
      raise UserError(
        f'A value of {", ".join(self.files) or COMMAND_LINE} refers to itself:'
        ' `f.x = @f()` never ends.'
      ) from error

  def resolve(
    self,
    function: Callable,
    *,
    given: Iterable[str] = (),
    missing: Literal['raise', 'show'] = 'raise',
  ) -> Resolved:
    """Returns each value that a call of `function` would use, defaults too.

    Args:
      function: the root; whatever its values refer to follows after it.
      given: parameters of the root that its caller gives.
      missing: whether required values that nothing sets are an error.

    Raises:
      UserError: a required parameter is bound nowhere.
    """
    _register(function)
    return resolve(function, self.places, given=given, missing=missing)

  def lend(self, source: Callable, function: Callable) -> 'Configuration':
    """Gives `function` the bindings of `source`, of parameters both have.

    So a command that needs a part of what another one does reads the same
    files.

    Raises:
      UserError: no parameter of `source` is bound.
    """
    _register(source)
    _register(function)
    lender, borrower = (
      gin_config._inverse_lookup(each).selector for each in (source, function)
    )
    places = dict(self.places)
    for (scope, selector, name), place in self.places.items():
      known = name in inspect.signature(function).parameters
      if selector == lender and not scope and known:
        value = gin_config._CONFIG[scope, selector][name]
        gin.bind_parameter(f'{borrower}.{name}', value)
        places[scope, borrower, name] = place
    if not self.bound([source]):
      raise UserError(
        f'{", ".join(self.files)} binds no parameter of {source.__name__}: add'
        ' a run, such as --gin_file=runs/multi_task.gin.'
      )
    return dataclasses.replace(self, places=places)

  def bound(self, functions: Iterable[Callable]) -> tuple[Callable, ...]:
    """Returns those of `functions` of which a parameter is bound."""
    selectors = {selector for _, selector, _ in self.places}
    found = []
    for function in functions:
      _register(function)
      if gin_config._inverse_lookup(function).selector in selectors:
        found.append(function)
    return tuple(found)


def parse(
  files: Sequence[str] = (),
  bindings: Sequence[str] = (),
  *,
  search_paths: Sequence[str] = (),
  configurables: Iterable[Callable] = (),
  limits: Limits | None = None,
) -> Configuration:
  """Reads gin files, then bindings, into gin's configuration, emptied before.

  Args:
    files: names of gin files, looked up in `search_folders`; later ones win.
    bindings: `NAME=value` statements, as after `--gin.`; they win over files.
    search_paths: folders to search first.
    configurables: what bindings may name without an import.
    limits: what files and bindings may name at all; everything by default.

  Raises:
    UserError: anything that a person can mend, with the place and a remedy.
  """
  gin.clear_config()
  for configurable in configurables:
    _register(configurable)
  reader = _Reader(tuple(search_paths), limits)
  for name in files:
    reader.read_file(name)
  for binding in bindings:
    reader.read_text(f'{binding}\n', COMMAND_LINE)
  configuration = Configuration(
    tuple(reader.files), dict(reader.places), tuple(search_paths)
  )
  _check_macros(reader.places, search_paths)
  if limits is not None:
    limits.check_module_parameters(reader.places)
  return configuration


def search_folders(search_paths: Sequence[str] = ()) -> tuple[epath.Path, ...]:
  """Returns the folders where gin files are looked up, in order.

  They are `search_paths`, the working directory, the checkout, the installed
  package (each also by its `configs` folder), and T5X's where it is installed.
  """
  package = pathlib.Path(__file__).resolve().parent
  folders = [*search_paths, pathlib.Path.cwd()]
  for root in (package.parent, package):
    if (root / 'configs').is_dir():
      folders += [root, root / 'configs']
  t5x = importlib.util.find_spec('t5x')
  if t5x is not None and t5x.submodule_search_locations:
    folders.append(pathlib.Path(t5x.submodule_search_locations[0]).parent)
  return tuple(dict.fromkeys(epath.Path(folder) for folder in folders))


def find_file(name: str, *, search_paths: Sequence[str] = ()) -> epath.Path:
  """Returns the first file called `name` in `search_folders`.

  Raises:
    UserError: there is none; lists each candidate and the nearest name.
  """
  tried = [folder / name for folder in search_folders(search_paths)]
  for path in dict.fromkeys(tried):
    if path.is_file():
      return path
  names = [file for file, _ in _gin_files(search_paths)]
  # Names with the same ending first: a wrong folder is the common slip.
  last = epath.Path(name).name
  same = [file for file in names if epath.Path(file).name == last]
  hint = f' Did you mean {same[0]!r}?' if same else nearest(name, names)
  candidates = ', '.join(str(path) for path in dict.fromkeys(tried))
  raise UserError(f'There is no gin file {name!r}.{hint}\nTried {candidates}.')


class _Reader:
  """Reads files and texts into gin and remembers where each binding stood."""

  def __init__(self, search_paths: tuple[str, ...], limits: Limits | None):
    self._search_paths = search_paths
    self._limits = limits
    self._open: list[epath.Path] = []
    self.files: list[str] = []
    self.places: dict[Key, Place] = {}

  def read_file(self, name: str, *, included_at: Place | None = None) -> None:
    """Reads the file `name` and what it includes."""
    try:
      path = find_file(name, search_paths=self._search_paths)
    except UserError as error:
      where = f'{included_at}: ' if included_at else ''
      raise UserError(f'{where}{error}') from None
    if path in self._open:
      raise UserError(f'{name} includes itself.')
    shown = _shown(path, name)
    self.files.append(shown)
    self._open.append(path)
    self.read_text(_text_of(path, shown), shown)
    self._open.pop()

  def read_text(self, text: str, name: str) -> None:
    """Reads statements; `name` is what error messages call their source."""
    lines = text.splitlines()

    def place(number: int) -> Place:
      line = lines[number - 1] if 0 < number <= len(lines) else ''
      return Place(name, number, line)

    with gin_config._parse_scope() as context:
      number = 1
      try:
        parser = config_parser.ConfigParser(
          io.StringIO(text), gin_config.ParserDelegate()
        )
        while True:
          number = parser.current_token.start[0]
          statement = parser.parse_statement()
          if statement is None:
            break
          number = statement.location.line_num
          self._apply(statement, context, place(number))
      except UserError:
        raise
      except _GIN_ERRORS as error:
        raise explain(
          error,
          place(_line_of(error) or _first_filled(lines, number)),
          symbols=context._symbol_table,
          registered=_registered(),
          find=lambda selector: context.get_configurable(selector).wrapped,
        ) from error
      gin_config._IMPORTS.update(context.imports)

  def _apply(self, statement: Any, context: Any, place: Place) -> None:
    """Applies one statement to gin's configuration."""
    match statement:
      case config_parser.BindingStatement():
        scope, selector, name, value, _ = statement
        if not name:  # A macro: the whole left side is its name.
          scope = f'{scope}/{selector}' if scope else selector
          selector, name = MACRO, 'value'
        key = gin_config.ParsedBindingKey.parse((scope, selector, name))
        if self._limits is not None:
          bound = gin_config._REGISTRY[key.complete_selector]
          self._limits.check_names([bound, *named_in(value)], place)
        gin_config.bind_parameter(key, value)
        self.places[key.scope, key.complete_selector, key.arg_name] = place
      case config_parser.ImportStatement():
        self._import(statement, context, place)
      case config_parser.IncludeStatement():
        self.read_file(statement.filename, included_at=place)
      case config_parser.BlockDeclaration():
        found = context.get_configurable(statement.selector)
        if self._limits is not None:
          self._limits.check_names([found], place)

  def _import(self, statement: Any, context: Any, place: Place) -> None:
    """Imports a module for the statements after it."""
    if self._limits is not None:
      self._limits.check_import(statement.module, place)
    try:
      context.process_import(statement)
    except ImportError:
      raise
    except Exception as error:
      kind = type(error).__name__
      raise UserError(
        f'{place}: importing {statement.module} failed: {kind}: {error}'
      ) from error


def _text_of(path: epath.Path, shown: str) -> str:
  content = path.read_bytes()
  try:
    return content.decode('utf-8')
  except UnicodeDecodeError as error:
    line = content.count(b'\n', 0, error.start) + 1
    raise UserError(
      f'{shown}:{line}: no text in UTF-8: {error.reason} at byte'
      f' {error.start}. Write the file again as UTF-8.'
    ) from None


def _first_filled(lines: Sequence[str], number: int) -> int:
  """Returns the first line from `number` on with something in it."""
  filled = (i for i in range(number, len(lines) + 1) if lines[i - 1].strip())
  return next(filled, number)


def _line_of(error: Exception) -> int | None:
  """Returns the line that gin says it was at."""
  if isinstance(error, SyntaxError):
    return error.lineno
  match = re.search(r'\n  In .*line (\d+)\n', str(error))
  return int(match.group(1)) if match else None


def _register(configurable: Callable) -> None:
  """Makes a function or class known to gin by its module's name."""
  if gin_config._inverse_lookup(configurable) is None:
    gin.external_configurable(configurable, module=configurable.__module__)


def _registered() -> list[str]:
  """Returns the full names of all that gin can configure."""
  return [
    configurable.selector
    for configurable in gin_config._INVERSE_REGISTRY.values()
    if not configurable.selector.startswith('gin.')
  ]


def _check_macros(
  places: Mapping[Key, Place], search_paths: Sequence[str]
) -> None:
  """Raises for the first binding that uses a macro which nothing sets."""
  for (scope, selector, name), place in places.items():
    for reference in references(gin_config._CONFIG[scope, selector][name]):
      macro = '/'.join(reference.scopes)
      if is_macro(reference) and (macro, MACRO, 'value') not in places:
        files = _files_that_set(macro, search_paths)
        known = [scope for scope, selector, _ in places if selector == MACRO]
        hint = f'`--gin_file={files[0]}` or ' if files else ''
        typo = nearest(macro, known)
        typo = typo if 'Did you mean' in typo and not files else ''
        raise UserError(
          f'{macro} is not set.{typo} It is used at {place}.'
          f' Add {hint}`{binding_flag(macro)}`.'
        )
  _check_circles(places)


def _check_circles(places: Mapping[Key, Place]) -> None:
  """Raises for macros that are set to each other."""
  graph = {
    scope: {
      '/'.join(reference.scopes)
      for reference in references(gin_config._CONFIG[scope, MACRO]['value'])
      if is_macro(reference)
    }
    for scope, selector, _ in places
    if selector == MACRO
  }
  try:
    graphlib.TopologicalSorter(graph).prepare()
  except graphlib.CycleError as error:
    circle = error.args[1]
    raise UserError(
      f'{places[circle[0], MACRO, "value"]}: {" = ".join(circle)} is a circle:'
      ' set one of them to a value.'
    ) from None


def _files_that_set(macro: str, search_paths: Sequence[str]) -> list[str]:
  """Returns the names of gin files with a line `macro = …`."""
  pattern = re.compile(rf'^{re.escape(macro)}\s*=(?!\s*%gin.REQUIRED)', re.M)
  return [
    name
    for name, path in _gin_files(search_paths)
    if pattern.search(path.read_bytes().decode('utf-8', 'replace'))
  ]


def _gin_files(search_paths: Sequence[str]) -> list[tuple[str, epath.Path]]:
  """Returns each gin file of the search folders, named as `--gin_file` may."""
  found = {}
  for folder in search_folders(search_paths):
    for pattern in ('*.gin', '*/*.gin', 'configs/*/*.gin'):
      for path in sorted(folder.glob(pattern)):
        name = str(path.relative_to(folder))
        found.setdefault(path, name)
  return [(name, path) for path, name in found.items()]


def _shown(path: epath.Path, name: str) -> str:
  """Returns a file's name for people: from the working directory, or `name`."""
  working = epath.Path(pathlib.Path.cwd())
  return (
    str(path.relative_to(working)) if path.is_relative_to(working) else name
  )
