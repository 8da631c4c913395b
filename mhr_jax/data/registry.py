"""Tasks and mixtures by name: a thin layer over seqio's registries.

Registering is idempotent: the same name with the same definition is a no-op,
with another one an error that names both modules. A user's own tasks need
nothing from here; `seqio.TaskRegistry.add` with features `inputs` and
`targets` is enough; a feature `references` (a list of texts) holds all
acceptable targets, and features `choices` (a list of texts) and `label` (an
index into it) hold the answer choices.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import itertools
from typing import Any, Literal

import seqio

from mhr_jax import vocabulary as vocabulary_lib
from mhr_jax.data import fingerprints, preprocessors, sources
from mhr_jax.data.record_format import Record
from mhr_jax.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class RegisteredBy(seqio.SourceInfo):
  """Which module registered a task or a mixture."""

  module: str = ''


@dataclasses.dataclass(frozen=True)
class TaskRates:
  """A mixture resolved into tasks, in the order of their ids.

  Attributes:
    tasks: names of the tasks, sorted.
    rates: the mixing rate of each.
  """

  tasks: tuple[str, ...]
  rates: tuple[float, ...]


def add_task(
  name: str,
  source: sources.ExampleSource,
  vocabulary: vocabulary_lib.Vocabulary,
  *,
  module: str,
  metrics: Sequence[str] = ('exact_match', 'rouge_l'),
) -> seqio.Task:
  """Registers a text-to-text task; again with the same definition: no-op.

  Args:
    name: letters, digits and underscores.
    source: its examples.
    vocabulary: of inputs and targets.
    module: the registering module's `__name__`, for messages and lists.
    metrics: names of `mhr_jax.metrics`, for seqio's own evaluation.

  Raises:
    UserError: the name is taken by another definition.
  """
  feature = seqio.Feature(
    vocabulary=preprocessors.to_seqio(vocabulary), add_eos=True
  )
  task = seqio.Task(
    name,
    source=source,
    output_features={'inputs': feature, 'targets': feature},
    preprocessors=list(preprocessors.STANDARD),
    postprocess_fn=preprocessors.references_or_text,
    metric_fns=[preprocessors.seqio_metric(metric) for metric in metrics],
    source_info=RegisteredBy(module=module),
  )
  return _add(seqio.TaskRegistry, task, define_task)


def add_mixture(
  name: str,
  tasks: Sequence[str] | Mapping[str, float],
  *,
  module: str,
) -> seqio.Mixture:
  """Registers a mixture; again with the same definition: no-op.

  Args:
    name: letters, digits and underscores.
    tasks: names of tasks or mixtures, each at rate 1, or rates by name.
    module: the registering module's `__name__`, for messages and lists.

  Raises:
    UserError: the name is taken by another definition, or a task is unknown.
  """
  rates = tasks if isinstance(tasks, Mapping) else dict.fromkeys(tasks, 1.0)
  for task in rates:
    _get(task)
  mixture = seqio.Mixture(
    name, list(rates.items()), source_info=RegisteredBy(module=module)
  )
  return _add(seqio.MixtureRegistry, mixture, _define_mixture)


def list_tasks(module: str | None = None) -> list[str]:
  """Returns the names of all tasks, or of those that a module registered."""
  return _names(seqio.TaskRegistry, module)


def list_mixtures(module: str | None = None) -> list[str]:
  """Returns the names of all mixtures, or of those of a module."""
  return _names(seqio.MixtureRegistry, module)


def get_task(name: str) -> seqio.Task:
  """Returns a task.

  Raises:
    UserError: there is none of that name; the message has the nearest.
  """
  if name not in seqio.TaskRegistry.names():
    raise UserError(
      f'There is no task {name!r}.{nearest(name, list_tasks())} Is the module'
      ' that registers it imported?'
    )
  return seqio.TaskRegistry.get(name)


def resolve(name: str) -> TaskRates:
  """Returns the tasks and rates of a mixture, or of a task by itself.

  Raises:
    UserError: there is neither a mixture nor a task of that name.
  """
  found = _get(name)
  if isinstance(found, seqio.Task):
    return TaskRates((name,), (1.0,))
  tasks = sorted(found.tasks, key=lambda task: task.name)
  return TaskRates(
    tuple(task.name for task in tasks),
    tuple(float(found.get_rate(task)) for task in tasks),
  )


def is_mixture(name: str) -> bool:
  """Whether a mixture (and not a task) has this name."""
  return name in seqio.MixtureRegistry.names()


def read_examples(name: str, split: str, n: int) -> list[Record]:
  """Returns the first examples of a task, as text and as token ids.

  Raises:
    UserError: the task or the split does not exist.
  """
  task = get_task(name)
  if split not in task.splits:
    raise UserError(
      f'Task {name!r} has no split {split!r}.{nearest(split, task.splits)}'
    )
  return list(itertools.islice(sources.read_task(task).splits[split], n))


def define_task(
  task: seqio.Task, *, paths: Literal['full', 'name'] = 'full'
) -> dict[str, Any]:
  """Returns a task's definition as JSON, without the contents of files.

  Args:
    task: any seqio task.
    paths: whether paths count whole, or by their last part alone.
  """
  return {
    'source': sources.define_source(task.source, paths=paths),
    'preprocessors': fingerprints.describe(list(task.preprocessors)),
    'features': sorted(task.output_features),
    'vocabulary': sources.task_vocabulary(task).fingerprint,
  }


def _define_mixture(mixture: seqio.Mixture) -> dict[str, Any]:
  return fingerprints.describe(mixture.rate_per_task_name)


def _add(registry: Any, item: Any, define: Callable[[Any], Any]) -> Any:
  """Adds an item, or returns the equal one that is there."""
  if item.name not in registry.names():
    registry.add_provider(item.name, item)
    return item
  there = registry.get(item.name)
  if define(there) != define(item):
    raise UserError(
      f'{item.name!r} is registered twice with different definitions: by'
      f' {_registered_by(there)} and by {_registered_by(item)}. Give one of'
      ' them another name.'
    )
  return there


def _registered_by(item: Any) -> str:
  info = item.source_info
  if isinstance(info, RegisteredBy):
    return info.module
  return (info and info.file_path) or 'a call of seqio itself'


def _names(registry: Any, module: str | None) -> list[str]:
  return sorted(
    name
    for name in registry.names()
    if module is None or _registered_by(registry.get(name)) == module
  )


def _get(name: str) -> seqio.Task | seqio.Mixture:
  if is_mixture(name):
    return seqio.MixtureRegistry.get(name)
  if name in seqio.TaskRegistry.names():
    return seqio.TaskRegistry.get(name)
  known = [*list_mixtures(), *list_tasks()]
  raise UserError(
    f'There is no mixture or task {name!r}.{nearest(name, known)} Is the'
    ' module that registers it imported?'
  )
