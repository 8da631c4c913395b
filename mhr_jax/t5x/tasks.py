"""seqio mixtures whose examples say which task they are of."""

from collections.abc import Mapping, Sequence
import functools
import importlib
from typing import Any

import seqio
import tensorflow as tf

from mhr_jax.data import registry
from mhr_jax.data.registry import RegisteredBy
from mhr_jax.t5x.features import TASK_IDS
from mhr_jax.task_table import TaskTable


def routed_mixture(mixture: str, modules: Sequence[str] = ()) -> str:
  """Registers a mixture's tasks again, with the feature `task_ids`.

  Ids are those of `task_table`. Task `a` of mixture `m` becomes `m__a`, and
  the mixture `m__routed`, at the same rates. Again: no-op.

  Args:
    mixture: a registered mixture or task; its tasks have `inputs` and
      `targets`.
    modules: modules whose import registers it, such as
      'mhr_jax.tasks.skills' (its `register()` is called where it has one).

  Returns:
    The name of the new mixture.

  Raises:
    UserError: there is no such mixture.
  """
  found = _resolve(mixture, tuple(modules))
  name = f'{mixture}__routed'
  if name in seqio.MixtureRegistry.names():
    return name
  rates = {}
  for i, (task, rate) in enumerate(zip(found.tasks, found.rates, strict=True)):
    rates[_add_task(mixture, task, i, len(found.tasks)).name] = rate
  seqio.MixtureRegistry.add(name, list(rates.items()))
  return name


def task_table(mixture: str, modules: Sequence[str] = ()) -> TaskTable:
  """Returns which id is which task: the mixture's tasks by name, in order."""
  return TaskTable(_resolve(mixture, tuple(modules)).tasks)


def count_tasks(mixture: str, modules: Sequence[str] = ()) -> int:
  """Returns how many tasks a mixture has: the rows of routing logits."""
  return len(task_table(mixture, modules))


def feature_lengths(inputs: int, targets: int) -> dict[str, int]:
  """Returns TASK_FEATURE_LENGTHS of a routed mixture."""
  return {'inputs': inputs, 'targets': targets, TASK_IDS: 1}


@functools.cache
def _resolve(mixture: str, modules: tuple[str, ...]) -> registry.TaskRates:
  for name in modules:
    register = getattr(importlib.import_module(name), 'register', None)
    if register is not None:
      register()
  return registry.resolve(mixture)


def _add_task(mixture: str, name: str, task_id: int, n_tasks: int):
  task = registry.get_task(name)
  features: Mapping[str, Any] = {
    **task.output_features,
    TASK_IDS: seqio.Feature(
      seqio.PassThroughVocabulary(size=n_tasks),
      add_eos=False,
      dtype=tf.int32,
      rank=1,
    ),
  }
  routed = seqio.Task(
    f'{mixture}__{name}',
    source=task.source,
    output_features=features,
    preprocessors=[
      *task.preprocessors,
      functools.partial(_add_task_id, task_id=task_id),
    ],
    postprocess_fn=task.postprocessor,
    metric_fns=task.metric_fns,
    source_info=RegisteredBy(module=__name__),
  )
  seqio.TaskRegistry.add_provider(routed.name, routed)
  return routed


def _add_task_id(dataset: tf.data.Dataset, task_id: int) -> tf.data.Dataset:
  return dataset.map(
    lambda example: {**example, TASK_IDS: tf.constant([task_id], tf.int32)},
    num_parallel_calls=tf.data.AUTOTUNE,
  )


def vocabulary(mixture: str, modules: Sequence[str] = ()) -> seqio.Vocabulary:
  """Returns the vocabulary of a mixture's targets."""
  first = _resolve(mixture, tuple(modules)).tasks[0]
  return registry.get_task(first).output_features['targets'].vocabulary
