"""What a run folder holds, and how a model is read back from one.

  model.json     the model's configuration, with a format version
  tasks.json     the task table
  vocabulary/    spec.json and the SentencePiece model, where there is one
  backbone/      the frozen backbone, once (likewise adapters/ where they are
                 frozen), with its checksum in frozen.json
  checkpoints/   a folder a step: what trains, its optimizer state, metadata
  checkpoints_set_aside/   what `resume_from` went back over
  train.lock/    while a training runs (`run_lock`)

Everything is read and written through `etils.epath`: local folders and
buckets alike. In a run of several processes the first writes the small files.
"""

from collections.abc import Iterable, Mapping
import dataclasses
from typing import Any, NamedTuple, get_type_hints
import warnings

from etils import epath
import jax

from mhr_jax import checkpoints, frozen, methods, partitioning, run_files
from mhr_jax import vocabulary as vocabulary_lib
from mhr_jax.adapters import AdapterConfig
from mhr_jax.errors import UserError
from mhr_jax.model import RoutedT5
from mhr_jax.t5 import storage
from mhr_jax.t5.config import T5Config
from mhr_jax.task_table import TaskTable

FORMAT_VERSION = 1
MODEL_FILE = 'model.json'
VOCABULARY_FOLDER = 'vocabulary'
VOCABULARY_FILE = 'spec.json'

# Settings that change neither parameters nor what they mean.
FREE_FIELDS = ('dropout_rate', 'dtype', 'remat', 'scan_layers', 'storage')


class Run(NamedTuple):
  """A run read back.

  Attributes:
    model: the model as it was configured.
    params: all parameters, frozen ones included.
    task_table: None where the run saved none.
    vocabulary: None where the run saved none.
    step: the step the parameters are from.
  """

  model: RoutedT5
  params: dict[str, Any]
  task_table: TaskTable | None
  vocabulary: vocabulary_lib.Vocabulary | None
  step: int


def model_to_json(model: RoutedT5) -> dict[str, Any]:
  """Returns what `model_from_json` needs to make the model again."""
  return {'format_version': FORMAT_VERSION, **dataclasses.asdict(model)}


def model_from_json(
  values: Mapping[str, Any], *, where: str = 'model.json'
) -> RoutedT5:
  """Makes a model from its JSON form; unknown keys are left out and reported.

  Args:
    values: what `model_to_json` returned.
    where: the file's name, for messages.

  Raises:
    UserError: the file is of a newer format, lacks a key, or has a value that
      is not possible.
  """
  values = dict(run_files.check_kind(values, dict, where=where))
  run_files.check_format(values, FORMAT_VERSION, where=where)
  values.pop('format_version', None)
  adapters = values.pop('adapters', None)
  config = config_from_json(values.pop('config', {}), where=f'{where}: config')
  if adapters is not None:
    adapters = settings_from_json(
      AdapterConfig, adapters, where=f'{where}: adapters'
    )
  values |= {'config': config, 'adapters': adapters}
  return settings_from_json(RoutedT5, values, where=where)


def config_from_json(values: Mapping[str, Any], *, where: str) -> T5Config:
  """Makes a backbone's configuration from its JSON form."""
  return settings_from_json(T5Config, values, where=where)


def settings_from_json(
  cls: type, values: Mapping[str, Any], *, where: str
) -> Any:
  """Makes a dataclass from its JSON form; unknown keys are reported.

  Raises:
    UserError: a key is missing, or a value is not possible.
  """
  run_files.check_kind(values, dict, where=where)
  known = {field.name for field in dataclasses.fields(cls)}
  unknown = sorted(set(values) - known)
  if unknown:
    warnings.warn(
      f'{where} has keys that this version does not know; they are left out:'
      f' {", ".join(unknown)}.',
      stacklevel=3,
    )
  kept = {
    key: tuple(value) if isinstance(value, list) else value
    for key, value in values.items()
    if key in known
  }
  kinds = get_type_hints(cls)
  for key, value in kept.items():
    if kinds[key] in (int, float, bool, str):
      run_files.check_kind(value, kinds[key], where=f'{where}: {key}')
  try:
    return cls(**kept)
  except (TypeError, UserError) as error:
    raise UserError(f'{where}: {error}') from error


def tasks_from_json(names: Any, *, where: str) -> TaskTable:
  """Makes a task table from its JSON form.

  Args:
    names: of the tasks.
    where: the file's name, and the key in it.

  Raises:
    UserError: they are no list of different names.
  """
  try:
    return TaskTable.from_names(names)
  except UserError as error:
    raise UserError(f'{where}: {error}') from error


def write_description(
  run_dir: epath.PathLike,
  *,
  model: Any = None,
  task_table: TaskTable | None = None,
  vocabulary: vocabulary_lib.Vocabulary | None = None,
):
  """Writes what a run is; where it is written already, it must be the same.

  Args:
    run_dir: the run folder.
    model: a `RoutedT5`; a model of another class is its owner's to rebuild.
    task_table: which id is which task.
    vocabulary: saved with its model file.

  Raises:
    UserError: the folder holds another model, task table or vocabulary.
  """
  run_dir = checkpoints.absolute(run_dir)
  if isinstance(model, RoutedT5):
    _write_model(run_dir / MODEL_FILE, model)
  if task_table is not None:
    _write_tasks(run_dir / run_files.TASKS_FILE, task_table)
  if vocabulary is not None:
    folder = run_dir / VOCABULARY_FOLDER
    old = read_vocabulary(run_dir)
    if old is not None and old != vocabulary:
      raise UserError(f'{folder} holds another vocabulary: {old}.{_REMEDY}')
    if jax.process_index() == 0:
      spec = vocabulary.save(folder)
      run_files.write_json(folder / VOCABULARY_FILE, spec)


_REMEDY = ' Choose another run folder, or go on with what this one has.'


def _write_model(path: epath.Path, model: RoutedT5):
  if path.exists():
    old = model_from_json(run_files.read_json(path), where=str(path))
    changed = _differences(old, model)
    if changed:
      raise UserError(
        f'{path} describes another model: {"; ".join(changed)}.{_REMEDY}'
      )
  if jax.process_index() == 0:
    run_files.write_json(path, model_to_json(model))


def _differences(old: RoutedT5, new: RoutedT5) -> list[str]:
  """Returns 'name: old, now new' for what decides the parameters' meaning."""
  found = []
  for name in ('config', 'adapters'):
    a, b = getattr(old, name), getattr(new, name)
    a, b = ({} if x is None else dataclasses.asdict(x) for x in (a, b))
    found += [
      f'{key}: {a.get(key)}, now {b.get(key)}'
      for key in a | b
      if a.get(key) != b.get(key) and key not in FREE_FIELDS
    ]
  if old.config.scan_layers != new.config.scan_layers:
    found.append('scan_layers changes how parameters are laid out')
  return found


def _write_tasks(path: epath.Path, task_table: TaskTable):
  if path.exists():
    old = read_tasks(path)
    if old != task_table:
      pairs = enumerate(zip(old.names, task_table.names, strict=False))
      i = next((i for i, (a, b) in pairs if a != b), None)
      first = (
        f'{len(old)} tasks, now {len(task_table)}'
        if i is None
        else f'task {i} is {old.names[i]}, now {task_table.names[i]}'
      )
      raise UserError(f'{path} holds other tasks: {first}.{_REMEDY}')
  if jax.process_index() == 0:
    run_files.write_text(path, task_table.to_json() + '\n')


def read_model(run_dir: epath.PathLike) -> RoutedT5:
  """Returns the model of a run folder, without its parameters."""
  path = checkpoints.absolute(run_dir) / MODEL_FILE
  if not path.exists():
    raise UserError(f'{run_dir} is not a run folder: it has no {MODEL_FILE}.')
  return model_from_json(run_files.read_json(path), where=str(path))


def read_task_table(run_dir: epath.PathLike) -> TaskTable | None:
  """Returns the task table of a run folder; None where there is none."""
  path = checkpoints.absolute(run_dir) / run_files.TASKS_FILE
  return read_tasks(path) if path.exists() else None


def read_tasks(path: epath.Path) -> TaskTable:
  """Returns the task table in a file."""
  return tasks_from_json(run_files.read_json(path, list), where=str(path))


def read_vocabulary(
  run_dir: epath.PathLike,
) -> vocabulary_lib.Vocabulary | None:
  """Returns the vocabulary of a run folder; None where there is none."""
  folder = checkpoints.absolute(run_dir) / VOCABULARY_FOLDER
  path = folder / VOCABULARY_FILE
  if not path.exists():
    return None
  try:
    return vocabulary_lib.from_spec(run_files.read_json(path), folder)
  except UserError as error:
    raise UserError(f'{path}: {error}') from error


def check_pretraining(
  run_dir: epath.PathLike, method: str | methods.Method
) -> None:
  """Refuses a method that does not start from what a run trained.

  A folder that does not say what trained it (`run.json`) is not checked.

  Args:
    run_dir: the run folder to start from.
    method: what goes on with it.

  Raises:
    UserError: the run is of another method's pre-training.
  """
  method = methods.get_method(method)
  path = checkpoints.absolute(run_dir) / run_files.RUN_FILE
  if not path.exists():
    return
  done = run_files.read_json(path).get('method')
  if done is None or done in (method.name, method.pretrain_as):
    return
  fitting = [
    each.name
    for each in methods.METHODS.values()
    if done in (each.name, each.pretrain_as)
  ]
  raise UserError(
    f'{run_dir} is a run of {done}, and {method.name} starts from a run of'
    f' {method.pretrain_as}. What starts from a run of {done}:'
    f' {", ".join(fitting) or "nothing known"}.'
  )


def open_run(
  run_dir: epath.PathLike,
  step: int | None = None,
  *,
  mesh: partitioning.Mesh | None = None,
  backbone_dtype: str | None = None,
) -> Run:
  """Returns a run without its numbers: as `load_run`, of shapes.

  Args:
    run_dir: see `load_run`.
    step: see `load_run`.
    mesh: see `load_run`.
    backbone_dtype: see `load_run`.

  Raises:
    UserError: there is no such step.
  """
  run_dir = checkpoints.absolute(run_dir)
  model = read_model(run_dir)
  step = find_step(run_dir, step)
  kept = checkpoints.read_metadata(run_dir, step).get('frozen', {})
  dtype = backbone_dtype if 'backbone' in kept else None
  labels = tuple(model.abstract_params())
  params = restore_target(model, labels, mesh=mesh, backbone_dtype=dtype)
  return Run(
    model, params, read_task_table(run_dir), read_vocabulary(run_dir), step
  )


def find_step(run_dir: epath.Path, step: int | None) -> int:
  """Returns the committed step that is asked for, the last one by default.

  Raises:
    UserError: there is none.
  """
  steps = checkpoints.committed_steps(run_dir)
  if not steps or (step is not None and step not in steps):
    listed = ', '.join(map(str, steps)) or 'none'
    wanted = 'a checkpoint' if step is None else f'step {step}'
    raise UserError(f'{run_dir} does not have {wanted}. It has: {listed}.')
  return steps[-1] if step is None else step


def load_run(
  run_dir: epath.PathLike,
  step: int | None = None,
  *,
  mesh: partitioning.Mesh | None = None,
  backbone_dtype: str | None = None,
) -> Run:
  """Reads a run back: model, all parameters, tasks, vocabulary, step.

  Args:
    run_dir: the run folder.
    step: a committed step; the last one by default.
    mesh: where to put the parameters; one device by default.
    backbone_dtype: what a frozen backbone is converted to; by default it stays
      as it is stored.

  Raises:
    UserError: there is no such step, or something does not fit.
  """
  run_dir = checkpoints.absolute(run_dir)
  model = read_model(run_dir)
  step = find_step(run_dir, step)
  kept = checkpoints.read_metadata(run_dir, step).get('frozen', {})
  frozen.check_frozen(run_dir, kept)
  dtype = backbone_dtype if 'backbone' in kept else None
  labels = tuple(model.abstract_params())
  target = restore_target(model, labels, mesh=mesh, backbone_dtype=dtype)
  params = checkpoints.read_trainable(
    run_dir, step, {k: v for k, v in target.items() if k not in kept}
  )
  for label in kept:
    params[label] = frozen.restore_frozen(run_dir / label, target[label])
  return Run(
    model, params, read_task_table(run_dir), read_vocabulary(run_dir), step
  )


def restore_target(
  model: RoutedT5,
  labels: Iterable[str],
  *,
  mesh: partitioning.Mesh | None,
  backbone_dtype: str | None = None,
) -> dict[str, Any]:
  """Returns shapes with shardings of some of a model's subtrees, to restore.

  Args:
    model: whose parameters.
    labels: which subtrees.
    mesh: where to put them; one device where it is None.
    backbone_dtype: of the backbone's leaves; by default as the model's config
      stores them.

  Raises:
    UserError: the backbone is stored as int8, and another dtype is wanted.
  """
  abstract, axes = model.abstract_params(), model.logical_axes()
  target = {label: abstract[label] for label in labels}
  if 'backbone' in target and backbone_dtype is not None:
    wanted = storage.as_storage(backbone_dtype)
    storage.check_change(model.config.storage, wanted)
    target['backbone'] = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, backbone_dtype),
      target['backbone'],
    )
  if mesh is None:
    return checkpoints.with_shardings(target)
  names = {label: axes[label] for label in target}
  places = partitioning.shardings(names, mesh, target).tree
  return checkpoints.with_shardings(target, places)
