"""Which tasks a run is about, and making sure that they are prepared.

Tasks are names. Where the data of a name is there already, no module that
registers tasks is imported, and with it neither seqio nor TensorFlow; where it
is missing, the task modules of the settings are, and the data is prepared.

What a name was prepared with stands beside the data, so that data of other
options is not taken for what the settings ask for:

    <data_dir>/made_from/<name>.json    modules with their options, and the
                                        fingerprint of each task they made
"""

from collections.abc import Mapping, Sequence
import dataclasses
import importlib
import json
import logging
import traceback
from types import ModuleType
from typing import Any, Literal
from urllib import parse
import uuid

from etils import epath

from mhr_jax import processes, run_files
from mhr_jax.data import record_format, records
from mhr_jax.errors import UserError, blaming
from mhr_jax.startup_lines import without_startup_lines

DEFAULT_DATA_DIR = 'data_cache'
MADE_FROM = 'made_from'

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TaskModule:
  """A Python module that registers tasks with seqio.

  Attributes:
    name: the module, such as 'mhr_jax.tasks.skills'. Importing it registers
      tasks, or its function `register` does.
    options: arguments of `register`, such as the folder of a data set.
  """

  name: str
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def register(self) -> ModuleType:
    """Imports the module and registers its tasks; again: no-op.

    Raises:
      UserError: there is no such module, importing it fails, or it has no
        such option.
    """
    try:
      with without_startup_lines():
        module = importlib.import_module(self.name)
    except ModuleNotFoundError as error:
      raise UserError(_missing_module(self.name, error.name or '')) from error
    except Exception as error:  # whatever a module of somebody's does
      if self.name.startswith('mhr_jax.'):
        raise
      place = traceback.extract_tb(error.__traceback__)[-1]
      raise UserError(
        f'{self.name} cannot be imported: {place.filename}:{place.lineno}:'
        f' {type(error).__name__}: {error}.'
      ) from error
    register = getattr(module, 'register', None)
    if register is None:
      if self.options:
        raise UserError(
          f'{self.name} has no function `register` to take the options'
          f' {", ".join(self.options)}.'
        )
      return module
    try:
      register(**self.options)
    except TypeError as error:
      if 'argument' not in str(error):
        raise
      raise UserError(f'{self.name}: {error}.') from error
    return module


def _as_modules(given: Any) -> tuple[TaskModule, ...]:
  """Returns modules where some of them are names alone, as gin files have them.

  Raises:
    UserError: one is neither.
  """
  listed = given if isinstance(given, Sequence) else (given,)
  found = []
  for one in (listed,) if isinstance(listed, str) else listed:
    if not isinstance(one, (str, TaskModule)):
      raise UserError(
        f'TaskData.modules holds {one!r}; the name of a module is wanted, or'
        ' @task_data.TaskModule() with its name and options.'
      )
    found.append(TaskModule(one) if isinstance(one, str) else one)
  return tuple(found)


@dataclasses.dataclass(frozen=True)
class TaskData:
  """Names of tasks and where their prepared data lies.

  Attributes:
    tasks: a mixture, a task, or a list of tasks.
    data_dir: the folder of all prepared data, local or in a bucket.
    modules: what registers the tasks; needed where they are not prepared. A
      name, or one in the list, is a module without options.
    prepare: when to prepare: what is missing or was prepared with other
      modules or options, never, or whenever what the data was made from has
      changed (which imports seqio at every start).
  """

  tasks: str | Sequence[str]
  data_dir: str = DEFAULT_DATA_DIR
  modules: Sequence[TaskModule] = ()
  prepare: Literal['missing', 'stale', 'never'] = 'missing'

  def __post_init__(self):
    if not isinstance(self.tasks, str):
      if not isinstance(self.tasks, Sequence):
        raise UserError(
          f'TaskData.tasks is {self.tasks!r}; a name or a list of names is'
          ' wanted.'
        )
      object.__setattr__(self, 'tasks', tuple(self.tasks))
    object.__setattr__(self, 'modules', _as_modules(self.modules))
    if self.prepare not in ('missing', 'stale', 'never'):
      raise UserError(
        f"prepare is 'missing', 'stale' or 'never', not {self.prepare!r}."
      )

  @property
  def names(self) -> tuple[str, ...]:
    """What is asked for: mixtures and tasks."""
    return (self.tasks,) if isinstance(self.tasks, str) else tuple(self.tasks)

  @property
  def mixture_name(self) -> str | None:
    """The mixture that alone is asked for, once it is prepared."""
    if isinstance(self.tasks, str) and _is_mixture(self.data_dir, self.tasks):
      return self.tasks
    return None

  def resolve(self) -> records.Mixture:
    """Returns the tasks, in the order of their ids; prepares what is missing.

    What was prepared with other modules or options counts as missing. Of
    several processes the first prepares; the others wait for what it makes.

    Raises:
      UserError: something is neither prepared nor registered.
    """
    return processes.first_then_others(self._resolve, self._take_over)

  def _take_over(self) -> records.Mixture:
    """Opens what the first process prepared."""
    try:
      return self._open()
    except UserError as error:
      raise UserError(
        f'{error} The first process prepares data, for all: it failed, or'
        f' data_dir ({self.data_dir}) is not a folder that all of them see.'
      ) from error

  def _resolve(self) -> records.Mixture:
    """Prepares what is missing, and opens everything."""
    found = None if self.prepare == 'stale' else self._find()
    if found is not None and self.prepare == 'missing':
      changed = _first_change(self)
      if changed:
        _log.warning(
          '%s: what is stale is prepared again (prepare=%r keeps it as it is).',
          changed,
          'never',
        )
        found = None
    if found is None and self.prepare != 'never' and self.modules:
      prepare_tasks(self)
      found = self._find()
    if found is None:
      found = self._open()
    return found

  def _find(self) -> records.Mixture | None:
    try:
      return self._open()
    except UserError:
      return None

  def _open(self) -> records.Mixture:
    """Opens everything that is asked for, as one mixture."""
    tasks: dict[str, float] = {}
    for name in self.names:
      tasks |= _rates(self.data_dir, name)
    for task in tasks:
      records.open_task(self.data_dir, task)
    title = self.tasks if isinstance(self.tasks, str) else 'tasks'
    return records.Mixture(title, tuple(tasks), tuple(tasks.values()))


def prepare_tasks(
  data: TaskData, *, remake: Literal['stale', 'all'] = 'stale'
) -> list[Any]:
  """Registers the task modules and prepares what `data` names.

  Returns:
    What became of each task (`data.prepare.Prepared`).

  Raises:
    UserError: a name is not registered.
  """
  for module in data.modules:
    module.register()
  # seqio and TensorFlow are imported here and nowhere else in a run.
  with without_startup_lines():
    from mhr_jax.data import prepare

  prepared = prepare.prepare(data.data_dir, data.names, remake=remake)
  if data.modules:
    for name in data.names:
      _write_made_from(data, name)
  return prepared


def _first_change(data: TaskData) -> str | None:
  """Says what else a name was prepared with than `data` asks for, if any.

  A name without a record of that is taken as it is, and so is everything where
  no modules are given.
  """
  asked = _modules_as_json(data)
  for name in data.names if asked else ():
    path = _made_from_path(data.data_dir, name)
    if not path.exists():
      continue
    made = run_files.read_json(path)
    with blaming(path, 'what `mhr-jax prepare` wrote'):
      changed = _changed_options(made['modules'], asked)
    if made['modules'] != asked:
      return f'{name} was prepared with other {changed}'
    if made.get('tasks') != _fingerprints(data.data_dir, name):
      return f'Tasks of {name} were since prepared with other options'
  return None


def _changed_options(
  old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]
) -> str:
  """Returns 'modules', or which options of the same modules differ."""
  if [each['name'] for each in old] != [each['name'] for each in new]:
    return 'modules'
  pairs = [(a['options'], b['options']) for a, b in zip(old, new, strict=True)]
  names = [key for a, b in pairs for key in a | b if a.get(key) != b.get(key)]
  return f'options ({", ".join(dict.fromkeys(names))})'


def _write_made_from(data: TaskData, name: str) -> None:
  """Writes what a name was prepared with; other processes may do the same."""
  text = json.dumps(
    {
      'modules': _modules_as_json(data),
      'tasks': _fingerprints(data.data_dir, name),
    },
    indent=1,
  )
  path = _made_from_path(data.data_dir, name)
  if path.exists() and path.read_text() == text:
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.parent / f'{path.name}.{uuid.uuid4().hex}.partial'
  partial.write_text(text)
  partial.replace(path)


def _made_from_path(data_dir: str, name: str) -> epath.Path:
  file_name = parse.quote(name, safe='')
  return epath.Path(data_dir) / MADE_FROM / f'{file_name}.json'


def _modules_as_json(data: TaskData) -> list[dict[str, Any]]:
  return [
    {'name': module.name, 'options': run_files.to_json_value(module.options)}
    for module in data.modules
  ]


def _fingerprints(data_dir: str, name: str) -> dict[str, str]:
  """Returns what each task of a prepared name was made from, as a digest."""
  return {
    task: records.open_task(data_dir, task).fingerprint
    for task in _rates(data_dir, name)
  }


def _rates(data_dir: str, name: str) -> dict[str, float]:
  """Returns the tasks of a mixture with their rates, or of a task itself."""
  if not _is_mixture(data_dir, name):
    return {name: 1.0}
  mixture = records.open_mixture(data_dir, name)
  return dict(zip(mixture.tasks, mixture.rates, strict=True))


def _is_mixture(data_dir: str, name: str) -> bool:
  return record_format.mixture_file(data_dir, name).exists()


def _missing_module(name: str, missing: str) -> str:
  if missing in ('seqio', 'tensorflow', 'tensorflow_text'):
    return f"{name} needs {missing}: pip install 'mhr_jax[data]' brings it."
  return (
    f'There is no module {missing!r} (wanted: {name}). Is its folder on'
    ' PYTHONPATH?'
  )
