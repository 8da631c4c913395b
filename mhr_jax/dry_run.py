"""What a run would do, on abstract values: nothing is drawn, trained, written.

The description holds the parameter table with shardings, one decoded example
a task, the size of a step and of an epoch, and the memory that the compiled
step takes on a device.
"""

from collections.abc import Iterator, Mapping, Sequence
import math
from typing import Any

import jax
import numpy as np

from mhr_jax import optim, partitioning
from mhr_jax.data import ordered, records
from mhr_jax.data.loader import describe_cuts
from mhr_jax.jobs import Job
from mhr_jax.train_state import make_train_step, plan_state

_TASKS_SHOWN = 8
_CHARACTERS_SHOWN = 160


def describe(job: Job) -> str:
  """Returns the whole description as text.

  Raises:
    UserError: the step cannot be built from the job's settings.
  """
  params = job.model.abstract_params()
  axes = {label: job.model.logical_axes()[label] for label in params}
  found = partitioning.shardings(axes, job.mesh, params)
  parts = [
    f'{job.method.name}: {job.method.summary}',
    _parameter_table(params, found.tree, job.settings.trains),
    *found.notes,
    '\n'.join(_data_lines(job)),
    '\n'.join(_example_lines(job)),
    '\n'.join(_memory_lines(job, params)),
  ]
  return '\n\n'.join(part for part in parts if part)


def _parameter_table(
  params: Mapping[str, Any], places: Any, trains: Sequence[str]
) -> str:
  """Counts parameters by label and group, with dtypes and shardings."""
  total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
  rows = [('part', 'parameters', 'share', 'trains', 'dtype', 'sharding')]
  for label, tree in params.items():
    for group, subtree in tree.items():
      leaves = jax.tree.leaves(subtree)
      count = sum(math.prod(leaf.shape) for leaf in leaves)
      specs = jax.tree.leaves(places[label][group])
      rows.append(
        (
          f'{label}/{group}',
          f'{count:,}',
          f'{count / total:.2%}',
          'yes' if label in trains else 'no',
          ', '.join(sorted({str(leaf.dtype) for leaf in leaves})),
          ', '.join(sorted({_spec(place) for place in specs})),
        )
      )
  counts = [
    sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params[label]))
    for label in trains
  ]
  share = f'{sum(counts) / total:.2%}'
  rows.append(('all', f'{total:,}', '', f'{sum(counts):,} ({share})', '', ''))
  return _table(rows)


def _spec(place: jax.sharding.NamedSharding) -> str:
  axes = [axis for axis in place.spec if axis is not None]
  return '×'.join(map(str, axes)) if axes else 'whole'


def _table(rows: Sequence[Sequence[str]]) -> str:
  """Lays out rows of cells in columns."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return '\n'.join(
    '  '.join(
      cell.ljust(width) for cell, width in zip(row, widths, strict=True)
    ).rstrip()
    for row in rows
  )


def _data_lines(job: Job) -> Iterator[str]:
  loader, settings = job.loader, job.loader.settings
  tokens = settings.batch_size * (
    settings.input_length + settings.target_length
  )
  epochs = job.settings.steps / loader.steps_per_epoch
  shape = ' × '.join(f'{size} {name}' for name, size in job.mesh.shape.items())
  yield f'mesh         {shape} ({jax.devices()[0].platform})'
  yield (
    f'data         {loader.n_examples:,} examples of {len(job.task_table)}'
    f' tasks ({loader.padding_share:.0%} padding)'
  )
  yield (
    f'step         {settings.batch_size} rows × ({settings.input_length} +'
    f' {settings.target_length}) tokens = {tokens:,} tokens'
  )
  yield (
    f'epoch        {loader.steps_per_epoch:,} steps; {job.settings.steps:,}'
    f' steps are {epochs:.2f} epochs'
  )
  cuts = describe_cuts(loader.report())
  if cuts:
    yield f'cut          {cuts}'


def _example_lines(job: Job) -> Iterator[str]:
  """Yields the first example of the first tasks, as the model reads it."""
  names = job.mixture.tasks[:_TASKS_SHOWN]
  tasks = records.open_tasks(job.data.data_dir, names)
  batches = ordered.eval_batches(
    [task.source(job.split) for task in tasks],
    batch_size=len(names),
    input_length=job.loader.settings.input_length,
    target_length=job.loader.settings.target_length,
    task_table=job.task_table,
    limit=1,
  )
  for batch in batches:
    arrays = batch.arrays
    for row, record in enumerate(batch.records):
      inputs = arrays['encoder_input_tokens'][row]
      targets = arrays['decoder_target_tokens'][row]
      yield f'task {arrays["task_ids"][row]}, {record.task}'
      yield f'  inputs     {_decoded(job, inputs)}'
      yield f'  targets    {_decoded(job, targets)}'
  if len(job.mixture.tasks) > len(names):
    yield f'… and {len(job.mixture.tasks) - len(names)} tasks more'


def _decoded(job: Job, ids: np.ndarray) -> str:
  """Returns the text of token ids and how many there are."""
  text = repr(job.vocabulary.decode(ids.tolist()))
  if len(text) > _CHARACTERS_SHOWN:
    text = f'{text[:_CHARACTERS_SHOWN]}…'
  return f'{text} ({int((ids != 0).sum())} tokens)'


def _memory_lines(job: Job, params: Mapping[str, Any]) -> Iterator[str]:
  """Yields what the compiled step takes on a device."""
  yield memory_line(_compile_step(job, params))


def memory_line(compiled: Any) -> str:
  """Says what a compiled training takes on a device."""
  memory = compiled.memory_analysis()
  if memory is None:
    return 'memory       not known on this platform'
  arguments = memory.argument_size_in_bytes
  out = memory.output_size_in_bytes - memory.alias_size_in_bytes
  temporary = memory.temp_size_in_bytes
  total = arguments + out + temporary
  return (
    f'memory       {gib(total)} a device ({jax.devices()[0].platform}):'
    f' {gib(arguments)} parameters, optimizer and batch,'
    f' {gib(temporary + out)} in the step'
  )


def _compile_step(job: Job, params: Mapping[str, Any]) -> Any:
  """Compiles the training step for the job's devices, without any values."""
  rule = optim.make_optimizer(job.optimizer, job.settings.steps)
  state, places, _ = plan_state(
    params,
    rule,
    job.settings.trains,
    mesh=job.mesh,
    logical_axes=job.model.logical_axes(),
  )
  train_step = make_train_step(
    job.model,
    rule,
    accumulation=job.settings.accumulation,
    label_smoothing=job.settings.label_smoothing,
    z_loss=job.settings.z_loss,
    normalisation=job.settings.loss_normalisation,
    uniform_share=job.settings.uniform_share,
    places=places,
  )
  rows = partitioning.batch_sharding(job.mesh)
  batch = {
    name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=rows)
    for name, array in job.loader.batch(0).items()
  }
  key = jax.eval_shape(lambda: jax.random.key(0))
  return train_step.lower(state, batch, key).compile()


def gib(size: int) -> str:
  """Returns a number of bytes for people."""
  return (
    f'{size / 2**30:.2f} GiB' if size > 2**28 else f'{size / 2**20:.1f} MiB'
  )
