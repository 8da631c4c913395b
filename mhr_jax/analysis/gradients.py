"""Gradient alignment: how far the tasks pull what they share the same way.

    a task's examples ── loss ── backward ──▶ gradient of its adapter
                                                   │  back through mixing,
                                                   ▼  the routing held fixed
                                              gradient of the inventories

The alignment of T tasks is the mean of cos(g_s, g_t) over all pairs of them,
g_t the gradient of the task's loss on a few examples of its own, with routing
as in evaluation (no noise) and no dropout. It is measured with respect to

* `inventories`: what the tasks share; the routing logits are not part of it.
  Tasks whose skills are disjoint have cosine 0, whatever they ask for: with
  an adapter a task (`private`) all have, and it is not measured.
* `effective`: the adapter that the task's routing mixes: the pair (a_t, b_t)
  before the scale alpha / rank, or the `scale` of (IA)³. The gradients of all
  tasks lie in one space, that of a
  plain LoRA, also where their skills are disjoint. With one adapter for all
  tasks (`lora`) it is the same as `inventories`.
* `backbone`: for a model without adapters, all of its parameters.

No pair of tasks is ever formed: with unit gradients ĝ_t, the mean over pairs
is (‖Σ ĝ_t‖² − T) / (T (T − 1)). What is kept is Σ ĝ_t, so memory does not grow
with T (`unit_gradients` counts it). Each group of layers is measured in the
same way, its gradients normalised on their own.

A gradient that is exactly 0 has no direction (b is 0 at the start, so that of
every a is): such a task is left out of the group where that is so, and a group
in which fewer than two tasks are left has no alignment. Gradients of few
examples are noisy, which draws every cosine towards 0: compare numbers that
were measured on as many examples.

This measure is ours. The paper (Caccia et al. 2023, arXiv:2211.03831) speaks
of gradient alignment between training tasks; its code has been released
without it.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import Any, Literal, NamedTuple

from etils import epath
import jax
from jax import numpy as jnp
from jaxtyping import Array, PyTree
import numpy as np

from mhr_jax import adapters as adapters_lib
from mhr_jax import evaluation, partitioning, run_files
from mhr_jax.analysis import unit_gradients
from mhr_jax.data import mixing, ordered, records
from mhr_jax.data.batching import Batch
from mhr_jax.errors import UserError, blaming
from mhr_jax.model import RoutedT5
from mhr_jax.setting_checks import check_fields
from mhr_jax.task_table import TaskTable

Wrt = Literal['inventories', 'effective']
Params = Mapping[str, PyTree]
Sums = dict[str, list[unit_gradients.Part]]
Source = records.TaskSource | ordered.ExampleSource

PART = 'alignment'
ZERO = 'zero_gradients'
ALIGNMENT_FILE = 'alignment.json'

_CHOICE_STREAM = 0x616C6967


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlignmentSettings:
  """When gradient alignment is measured while training, and on what.

  Attributes:
    every: steps between measurements, one more at the end; 0 for none.
    tasks: how many of the training tasks, drawn by `seed`; all, where there
      are no more.
    examples: of each task, drawn by `seed` and the same every time.
    batch_size: rows of a backward pass; on several devices a multiple of
      their number along `data`.
    split: of every task, to draw the examples from.
    wrt: with respect to what; see the module. A model without adapters is
      measured with respect to its backbone.
    seed: of the draws.

  Raises:
    UserError: a number is out of range, or a name is unknown.
  """

  every: int = 1000
  tasks: int = 32
  examples: int = 16
  batch_size: int = 16
  split: str = 'train'
  wrt: tuple[Wrt, ...] = ('inventories', 'effective')
  seed: int = 0

  def __post_init__(self):
    wrt = (self.wrt,) if isinstance(self.wrt, str) else tuple(self.wrt)
    object.__setattr__(self, 'wrt', wrt)
    check_fields(self, least={'tasks': 2, 'examples': 1, 'batch_size': 1})
    if not wrt:
      raise UserError('AlignmentSettings.wrt is empty: nothing to measure.')


class TaskBatches(NamedTuple):
  """The fixed examples of one task.

  Attributes:
    task_id: of the task.
    batches: arrays of one shape; rows that only fill up have weight 0.
  """

  task_id: int
  batches: tuple[Batch, ...]


def choose_tasks(names: Sequence[str], n: int, seed: int) -> tuple[str, ...]:
  """Draws at most `n` tasks, in the order in which they stand in `names`."""
  if len(names) <= n:
    return tuple(names)
  rng = np.random.default_rng((_CHOICE_STREAM, seed))
  chosen = np.sort(rng.choice(len(names), n, replace=False))
  return tuple(names[i] for i in chosen)


def build_task_batches(
  sources: Sequence[Source],
  task_table: TaskTable,
  settings: AlignmentSettings,
  *,
  input_length: int,
  target_length: int,
) -> list[TaskBatches]:
  """Reads the examples of every task, once and for all.

  Args:
    sources: of the tasks that `choose_tasks` chose.
    task_table: gives their ids.
    settings: how many examples, and the rows of a batch.
    input_length: tokens of the inputs; longer ones are cut.
    target_length: tokens of the first reference, likewise.

  Returns:
    The tasks that have an example.
  """
  found = []
  for source in sources:
    batches = ordered.eval_batches(
      [_draw_examples(source, settings)],
      batch_size=min(settings.batch_size, settings.examples),
      input_length=input_length,
      target_length=target_length,
      task_table=task_table,
    )
    arrays = tuple(batch.arrays for batch in batches)
    if arrays:
      found.append(TaskBatches(task_table.id_of(source.name), arrays))
  return found


def _draw_examples(
  source: Source, settings: AlignmentSettings
) -> ordered.ExampleSource:
  """Returns a task's examples: drawn, for the first ones may be of a kind."""
  words = (_CHOICE_STREAM, settings.seed, mixing.key_of(source.name))
  rng = np.random.default_rng(words)
  n = min(settings.examples, len(source))
  indices = np.sort(rng.choice(len(source), n, replace=False)).tolist()
  return ordered.ExampleSource(source.name, source.__getitems__(indices))


def make_alignment(
  model: RoutedT5, tasks: Sequence[TaskBatches], wrt: Sequence[Wrt]
) -> Callable[[int, Params], dict[str, float]]:
  """Returns what the trainer calls: (step, params) -> numbers by name.

  Names are `alignment/inventories`, `alignment/inventories/encoder/attention`
  and so on; see `measure_alignment`.
  """

  def measure(step: int, params: Params) -> dict[str, float]:
    del step
    found = measure_alignment(model, params, tasks, wrt)
    return {f'{PART}/{name}': value for name, value in found.items()}

  return measure


def measure_alignment(
  model: RoutedT5,
  params: Params,
  tasks: Sequence[TaskBatches],
  wrt: Sequence[Wrt] = ('inventories', 'effective'),
) -> dict[str, float]:
  """Returns the gradient alignment of some tasks.

  Args:
    model: compiled once for the shape of the batches.
    params: its parameters, on a mesh or not.
    tasks: their examples; batches of all tasks have one shape.
    wrt: with respect to what.

  Returns:
    For each of `wrt` (of a model without adapters, 'backbone'): the alignment
    over all parameters under its name, over each group of layers under
    `NAME/encoder/attention` and so on, over all a and all b under `NAME/a` and
    `NAME/b` ((IA)³ has one leaf a linear, `scale`, so nothing to tell apart).
    Groups with fewer than two gradients are left out, and 'inventories' where
    each task has its own. Moreover 'tasks', how many there were, and
    'zero_gradients', how many had a gradient of 0 with respect to everything
    that was measured.

  Raises:
    UserError: there are fewer than two tasks.
  """
  if len(tasks) < 2:
    raise UserError(
      f'Gradient alignment is between tasks; there are {len(tasks)}.'
    )
  kinds = _kinds(model, wrt)
  if not kinds:
    return {'tasks': float(len(tasks))}
  sums = _start_sums(model, params, kinds)
  leaves, structure = jax.tree.flatten(sums)
  programs = _build_programs(
    model, kinds, structure, tuple(leaf.sharding for leaf in leaves)
  )
  for task in tasks:
    task_id = np.int32(task.task_id)
    total = None
    for batch in task.batches:
      gradient = programs.backward(
        params, task_id, evaluation.place(batch, params)
      )
      total = gradient if total is None else _add_trees(total, gradient)
    sums = programs.add(sums, params, task_id, total)
    # Many programs at once make several processes wait for each other for
    # ever (on CPUs), and hold as many gradients.
    jax.block_until_ready(sums)
  return _to_numbers(jax.device_get(programs.finish(sums)), len(tasks))


def save_alignment(
  run_dir: epath.PathLike, step: int, numbers: Mapping[str, float]
) -> None:
  """Puts a measurement into `alignment.json`, {step: numbers by name}."""
  path = epath.Path(run_dir) / ALIGNMENT_FILE
  known = load_alignment(run_dir) | {step: dict(numbers)}
  if jax.process_index() == 0:
    run_files.write_json(path, {str(s): known[s] for s in sorted(known)})


def load_alignment(run_dir: epath.PathLike) -> dict[int, dict[str, float]]:
  """Reads what `save_alignment` wrote; {} where there is nothing."""
  path = epath.Path(run_dir) / ALIGNMENT_FILE
  if not path.exists():
    return {}
  with blaming(path, 'what `mhr-jax align` wrote'):
    return {
      int(step): {name: float(value) for name, value in of.items()}
      for step, of in run_files.read_json(path).items()
    }


_add_trees = functools.partial(jax.tree.map, jnp.add)


def _to_numbers(
  found: Mapping[str, Mapping[str, tuple[Any, Any]]], n_tasks: int
) -> dict[str, float]:
  """Returns alignments by name, of {kind: {group: (alignment, gradients)}}."""
  numbers = {
    f'{kind}/{group}' if group else kind: float(alignment)
    for kind, groups in found.items()
    for group, (alignment, n) in groups.items()
    if n >= 2
  }
  most = max(int(groups[''][1]) for groups in found.values())
  return numbers | {'tasks': float(n_tasks), ZERO: float(n_tasks - most)}


def _kinds(model: RoutedT5, wrt: Sequence[Wrt]) -> tuple[str, ...]:
  """Returns what a model is measured with respect to."""
  if model.adapters is None:
    return ('backbone',)
  if model.adapters.mixing != 'private':
    return tuple(wrt)
  return tuple(kind for kind in wrt if kind != 'inventories')


def _start_sums(model: RoutedT5, params: Params, kinds: Sequence[str]) -> Sums:
  """Returns zeros, beside what they are gradients of where that is split."""
  mesh = evaluation.mesh_of(params)
  everywhere = None if mesh is None else partitioning.replicated(mesh)
  like = {'inventories': params.get('adapters'), 'backbone': params['backbone']}
  if model.adapters is not None:
    like['effective'] = jax.eval_shape(_make_mix(model), params, np.int32(0))
  return {
    kind: unit_gradients.start_sums(like[kind], kind, everywhere)
    for kind in kinds
  }


class _Programs(NamedTuple):
  """Compiled once for a model and a shape of batch.

  Attributes:
    backward: (parameters, task id, batch) -> gradient of the task's adapter,
      or of the backbone.
    add: (sums, parameters, task id, that gradient) -> sums.
    finish: sums -> alignment and number of gradients, by kind and group.
  """

  backward: Callable[..., PyTree]
  add: Callable[..., Sums]
  finish: Callable[..., Any]


@functools.lru_cache(maxsize=8)
def _build_programs(
  model: RoutedT5,
  kinds: tuple[str, ...],
  structure: Any,
  places: tuple[Any, ...],
) -> _Programs:
  """Compiles for sums of that structure, which stay in those places."""
  where = jax.tree.unflatten(structure, places)

  def add(sums, params, task_id, gradient):
    gradients = {'effective': gradient, 'backbone': gradient}
    if 'inventories' in kinds:
      gradients['inventories'] = _pull_back(model, params, task_id, gradient)
    return {
      kind: unit_gradients.add_gradient(sums[kind], gradients[kind], kind)
      for kind in kinds
    }

  def finish(sums):
    return {
      kind: unit_gradients.finish_sums(sums[kind], kind) for kind in kinds
    }

  return _Programs(
    jax.jit(_make_backward(model)),
    jax.jit(add, donate_argnums=0, out_shardings=where),
    jax.jit(finish),
  )


def _make_mix(model: RoutedT5) -> Callable[..., PyTree]:
  """Returns (parameters, task id) -> the adapter that the task's routing mixes.

  In the form of an inventory of one skill and one split: the model without
  routing then computes with it what the routed model computes for the task,
  the scale alpha / rank included.
  """
  config = model.adapters
  assert config is not None

  def mix(params, task_id):
    mixed = adapters_lib.task_adapter(params, task_id, config, scale=1.0)
    return jax.tree.map(lambda x: x[:, None, None], mixed)

  return mix


def _make_backward(model: RoutedT5) -> Callable[..., PyTree]:
  """Returns (parameters, task id, batch) -> gradient of the summed loss."""
  config = model.adapters
  single = None if config is None else config.without_routing()
  bare = dataclasses.replace(model, adapters=single)

  def loss(tree, params, batch):
    label = 'backbone' if config is None else 'adapters'
    everything = {'backbone': params['backbone'], label: tree}
    return bare.loss(everything, batch)[0]

  def backward(params, task_id, batch):
    if config is None:
      return jax.grad(loss)(params['backbone'], params, batch)
    adapter = _make_mix(model)(params, task_id)
    return jax.grad(loss)(adapter, params, batch)

  return backward


def _pull_back(
  model: RoutedT5, params: Params, task_id: Array, gradient: PyTree
) -> PyTree:
  """Takes the gradient of a task's adapter back to the inventories."""

  def mix(inventories):
    return _make_mix(model)({**params, 'adapters': inventories}, task_id)

  _, pull = jax.vjp(mix, params['adapters'])
  return pull(gradient)[0]
