"""Where arrays live: a `data × model` mesh and rules from axis names to it.

Every parameter has a name for each of its axes (`RoutedT5.logical_axes`). The
rules give each name an axis of the mesh, or none. An axis that does not divide
evenly stays whole and is reported. Adapters and routers are moreover spread
over all of the mesh, along their longest axis that divides: with Adam they
would otherwise be held whole on every device.
What lives in between, `placement` pins.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any

import jax
from jax.experimental import mesh_utils
import numpy as np

from mhr_jax.errors import UserError
from mhr_jax.placement import DATA_AXIS, MODEL_AXIS
from mhr_jax.tree_paths import leaves_by_path, names_of

Mesh = jax.sharding.Mesh
NamedSharding = jax.sharding.NamedSharding
PartitionSpec = jax.sharding.PartitionSpec
Rules = tuple[tuple[str, str | None], ...]

LOGICAL_AXIS_RULES: Rules = (
  # T5X's names; parameters are split over `model` along one axis.
  ('batch', DATA_AXIS),
  ('vocab', MODEL_AXIS),
  ('mlp', MODEL_AXIS),
  ('heads', MODEL_AXIS),
  ('joined_kv', MODEL_AXIS),
  ('kv', None),
  ('embed', None),
  ('length', None),
  ('layers', None),
  ('relpos_buckets', None),
  # Ours. A split is a block of features, so it takes the place of features
  # that the network has over `model` (see `_axis_of`).
  ('task', None),
  ('split', MODEL_AXIS),
  ('skill', None),
  ('rank', None),
)

# Parameters split over both axes of the mesh (T5X's "2D").
LOGICAL_AXIS_RULES_2D: Rules = tuple(
  (name, DATA_AXIS if name == 'embed' else axis)
  for name, axis in LOGICAL_AXIS_RULES
)

SPREAD_LABELS = ('adapters', 'routers')

# A slice along `layers` or `task` is read at a time: splitting them would make
# each read a collective. Mixing sums over skills: splitting those would leave
# every device with partial sums for all rows of the batch.
_UNSPREAD_AXES = ('layers', 'task', 'skill')

_SPLIT = 'split'

# Adafactor's moments, and which axis of the parameter each is a mean over.
_AVERAGED_AXES = {'row': -1, 'col': -2, 'full': None}


@dataclasses.dataclass(frozen=True)
class Shardings:
  """A tree of shardings and what could not be split.

  Attributes:
    tree: a `NamedSharding` in place of each leaf.
    notes: a sentence for each axis that stayed whole though a rule splits it.
  """

  tree: Any
  notes: tuple[str, ...] = ()


def make_mesh(
  data: int = -1,
  model: int = 1,
  *,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """Returns a mesh with the axes `data` and `model`.

  Args:
    data: devices along `data`; -1 takes what is left.
    model: devices along `model`; -1 takes what is left.
    devices: all of this program's devices by default.

  Raises:
    UserError: the numbers do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  shape = [data, model]
  if shape.count(-1) == 1:
    rest = math.prod(n for n in shape if n != -1)
    shape = [len(devices) // max(rest, 1) if n == -1 else n for n in shape]
  if min(shape) < 1 or math.prod(shape) != len(devices):
    raise UserError(
      f'A mesh of data={data} × model={model} does not fit the'
      f' {len(devices)} devices there are. Use -1 for "what is left".'
    )
  grid = mesh_utils.create_device_mesh(
    shape, devices, allow_split_physical_axes=True
  )
  return Mesh(grid, (DATA_AXIS, MODEL_AXIS))


def shardings(
  logical_axes: Any, mesh: Mesh, shapes: Any, *, rules: Rules | None = None
) -> Shardings:
  """Returns where each parameter lives.

  Args:
    logical_axes: a tree of tuples of names, with the parameters' structure.
    mesh: the devices.
    shapes: the parameters or `jax.ShapeDtypeStruct`s in their place.
    rules: `LOGICAL_AXIS_RULES` by default.

  Raises:
    UserError: an axis has no rule, or the number of names is not the number
      of axes.
  """
  table = dict(LOGICAL_AXIS_RULES if rules is None else rules)
  axes = leaves_by_path(logical_axes, is_leaf=lambda x: isinstance(x, tuple))
  notes: list[str] = []

  def one(path, leaf):
    name = '/'.join(names_of(path))
    names = axes.get(name)
    if names is None or len(names) != len(leaf.shape):
      raise UserError(
        f'{name} has shape {tuple(leaf.shape)} but logical axes {names}.'
      )
    entries = _entries(name, names, leaf.shape, mesh, table, notes)
    if names_of(path)[0] in SPREAD_LABELS:
      _spread(entries, names, leaf.shape, mesh)
    return NamedSharding(mesh, _spec(entries))

  tree = jax.tree_util.tree_map_with_path(one, shapes)
  return Shardings(tree, tuple(notes))


def _entries(
  path: str,
  names: tuple[str, ...],
  shape: tuple[int, ...],
  mesh: Mesh,
  table: Mapping[str, str | None],
  notes: list[str],
) -> list[tuple[str, ...]]:
  """Returns the mesh axes of each axis of a parameter, by the rules."""
  entries: list[tuple[str, ...]] = []
  for name, size in zip(names, shape, strict=True):
    if name not in table:
      raise UserError(f'There is no rule for the axis {name!r} of {path}.')
    axis = _axis_of(name, names, table)
    taken = any(axis in entry for entry in entries)
    if axis is None or taken or mesh.shape[axis] == 1:
      entries.append(())
    elif size % mesh.shape[axis]:
      if name != _SPLIT:  # The features inside it take its place.
        notes.append(
          f'{path}: {name} of {size} does not divide by {axis} of'
          f' {mesh.shape[axis]}; it is not split.'
        )
      entries.append(())
    else:
      entries.append((axis,))
  return entries


def _axis_of(
  name: str, names: tuple[str, ...], table: Mapping[str, str | None]
) -> str | None:
  """Returns the mesh axis of a name; a split has that of its features."""
  if name != _SPLIT:
    return table[name]
  features = {table.get(other) for other in names if other != _SPLIT}
  return table[name] if table[name] in features else None


def _spread(
  entries: list[tuple[str, ...]],
  names: tuple[str, ...],
  shape: tuple[int, ...],
  mesh: Mesh,
):
  """Adds what is left of the mesh to the longest axis that divides, in place.

  `data` comes last: it is the minor part of an axis that has both, so rows can
  change places with it.
  """
  by_length = sorted(range(len(shape)), key=lambda i: -shape[i])
  for axis in (MODEL_AXIS, DATA_AXIS):
    if mesh.shape[axis] == 1 or any(axis in entry for entry in entries):
      continue
    for i in by_length:
      parts = math.prod(mesh.shape[each] for each in entries[i])
      divides = shape[i] % (parts * mesh.shape[axis]) == 0
      if divides and names[i] not in _UNSPREAD_AXES:
        entries[i] = (*entries[i], axis)
        break


def _spec(entries: list[tuple[str, ...]]) -> PartitionSpec:
  """Returns the spec in its shortest form, so that equal ones compare equal."""
  while entries and not entries[-1]:
    entries = entries[:-1]
  return PartitionSpec(*(e[0] if len(e) == 1 else e or None for e in entries))


def train_state_shardings(
  state: Any, params_shardings: Any, params: Any, mesh: Mesh
) -> Any:
  """Returns the shardings of a train state, optimizer state included.

  A leaf of the state belongs to the parameter whose path ends its own path,
  where the shapes agree too; it lives where the parameter lives. Factored
  moments, a mean over one of its axes, live where its other axes do: of a
  low rank they are as large as the adapter. The others (counters, moments of
  routing logits as matrices) are small and replicated.

  Args:
    state: arrays or `jax.ShapeDtypeStruct`s.
    params_shardings: the tree of `shardings`.
    params: the parameters or their shapes.
    mesh: the devices.
  """
  shapes = {k: tuple(v.shape) for k, v in leaves_by_path(params).items()}
  places = leaves_by_path(params_shardings)

  def one(path, leaf):
    names = names_of(path)
    for start in range(len(names)):
      suffix = '/'.join(names[start:])
      if shapes.get(suffix) == tuple(leaf.shape):
        return places[suffix]
    for start in range(len(names) - 1):
      owner = '/'.join(names[start:-1])
      if owner in shapes and names[-1] in _AVERAGED_AXES:
        return _factored(
          leaf, shapes[owner], places[owner], _AVERAGED_AXES[names[-1]]
        )
    return replicated(mesh)

  return jax.tree_util.tree_map_with_path(one, state)


def _factored(
  leaf: Any, shape: tuple[int, ...], place: NamedSharding, axis: int | None
) -> NamedSharding:
  """Returns where a mean over an axis of a parameter lives; None for all."""
  entries = [*place.spec, *[None] * (len(shape) - len(place.spec))]
  sizes = list(shape)
  if axis is not None:
    del entries[axis], sizes[axis]
  if tuple(sizes) != tuple(leaf.shape):
    return NamedSharding(place.mesh, PartitionSpec())
  while entries and entries[-1] is None:
    entries.pop()
  return NamedSharding(place.mesh, PartitionSpec(*entries))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of what every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of a batch: rows over `data`."""
  return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def data_shard(mesh: Mesh) -> tuple[int, int]:
  """Returns (index, count): which part of each batch this process supplies.

  Processes that hold the same rows (where `model` reaches over processes) get
  the same index. Where a process's devices do not follow each other along
  `data`, as on a torus of chips, its part stands in the batch where they do.

  Raises:
    UserError: two processes share some rows and not others.
  """
  rows = np.moveaxis(mesh.devices, mesh.axis_names.index(DATA_AXIS), 0)
  held: dict[int, list[int]] = {}
  for i, row in enumerate(rows):
    for process in sorted({device.process_index for device in np.ravel(row)}):
      held.setdefault(process, []).append(i)
  parts = sorted({tuple(mine) for mine in held.values()})
  if {len(part) * len(parts) for part in parts} != {len(rows)}:
    raise UserError(
      'Processes share some rows of the batch and not others: choose another'
      f' mesh than data={len(rows)}, model={mesh.devices.size // len(rows)}.'
    )
  return parts.index(tuple(held[jax.process_index()])), len(parts)


def put_batch(
  batch: Mapping[str, np.ndarray], mesh: Mesh
) -> dict[str, jax.Array]:
  """Moves a batch to the devices, rows over `data`.

  Args:
    batch: this process's rows (see `data_shard`).
    mesh: the devices.

  Raises:
    UserError: the rows do not divide by the devices along `data`.
  """
  count = data_shard(mesh)[1]
  rows = len(next(iter(batch.values()))) * count
  if rows % mesh.shape[DATA_AXIS]:
    raise UserError(
      f'A batch of {rows} rows does not divide by the'
      f' {mesh.shape[DATA_AXIS]} devices along `data`.'
    )
  where = batch_sharding(mesh)
  return {
    name: jax.make_array_from_process_local_data(where, np.asarray(value))
    for name, value in batch.items()
  }


def put(tree: Any, where: Any) -> Any:
  """Moves host or device arrays to their shardings, from every process.

  Args:
    tree: arrays that every process holds whole, or global arrays.
    where: a tree of shardings with the same structure, or one for all.
  """
  if isinstance(where, jax.sharding.Sharding):
    return jax.tree.map(lambda x: _put(x, where), tree)
  return jax.tree.map(_put, tree, where)


def _put(x: Any, where: jax.sharding.Sharding) -> jax.Array:
  if isinstance(x, jax.Array) and not x.is_fully_addressable:
    return jax.device_put(x, where)
  if jax.process_count() == 1:
    return jax.device_put(x, where)
  host = np.asarray(x)
  return jax.make_array_from_callback(host.shape, where, lambda i: host[i])
