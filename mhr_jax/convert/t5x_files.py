"""T5X's checkpoints as files: found, opened, read leaf by leaf, written.

`checkpoint_N` has one of two forms. The current one is Orbax's: `state` holds
{state: {step, param_states}, target: parameters}. In the older one a msgpack
file `checkpoint` holds the same, small arrays in themselves and large ones as
TensorStore specs of zarr folders that lie beside it
(t5x/checkpoints.py: Checkpointer).
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import logging
import math
import re
from typing import Any, Literal

from etils import epath
from flax import serialization
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from mhr_jax import checkpoints, file_names
from mhr_jax.errors import UserError, blaming
from mhr_jax.tree_paths import leaves_by_path

_log = logging.getLogger(__name__)

PartName = Literal['target', 'state']

STATE = 'state'
PREFIX = 'checkpoint'
_MSGPACK = 'checkpoint'
_HELD_BY: dict[PartName, str] = {
  'target': 'its parameters',
  'state': "its step and the optimizer's state",
}
_STEP = re.compile(rf'{PREFIX}_(\d+)')
_ORBAX_FILES = ('_METADATA', 'manifest.ocdbt', 'checkpoint')
_STORES = {'gs': 'gcs', 's3': 's3'}
# Before its version 3 T5X wrote bfloat16 as the integers of the same bits.
_BFLOAT16_AS_INTEGERS = np.dtype('uint16')
# Chunks have up to 64 MB and leave that much behind in every thread that
# decoded some, which is a share of a small model: one thread decodes all.
_ONE_BY_ONE = {
  'data_copy_concurrency': {'limit': 1},
  'file_io_concurrency': {'limit': 1},
}


@dataclasses.dataclass(frozen=True)
class Part:
  """The parameters of one checkpoint, or what else it holds.

  Attributes:
    where: the folder, for messages.
    shapes: of every leaf, by T5X's name of it.
    read: returns one leaf by name; a UserError where it cannot be read.
  """

  where: str
  shapes: Mapping[str, tuple[int, ...]]
  read: Callable[[str], np.ndarray]


def as_tree(
  shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns shapes by name as `tree_check.check_tree` takes them."""
  return {
    name: jax.ShapeDtypeStruct(shape, np.float32)
    for name, shape in shapes.items()
  }


def find_checkpoint(folder: epath.PathLike) -> epath.Path:
  """Returns the checkpoint that a folder is, or the newest that it holds.

  Args:
    folder: `checkpoint_N`, or what T5X calls a model's directory. Checkpoints
      that were not written to the end are passed over.

  Raises:
    UserError: there is none.
  """
  folder = checkpoints.absolute(folder)
  if _is_checkpoint(folder):
    return folder
  found = _checkpoints_in(folder)
  if not found:
    raise UserError(_no_checkpoint(folder))
  newest = found[max(found)]
  if len(found) > 1:
    _log.warning(
      '%s holds %d T5X checkpoints; the newest is taken: %s.',
      folder,
      len(found),
      newest.name,
    )
  return newest


def holds_checkpoint(folder: epath.PathLike) -> bool:
  """Whether a folder is a checkpoint of T5X's or holds some."""
  folder = checkpoints.absolute(folder)
  return _is_checkpoint(folder) or bool(_checkpoints_in(folder))


def _checkpoints_in(folder: epath.Path) -> dict[int, epath.Path]:
  if not folder.is_dir():
    return {}
  steps = ((_STEP.fullmatch(path.name), path) for path in folder.iterdir())
  return {
    int(step[1]): path for step, path in steps if step and _is_checkpoint(path)
  }


def _is_checkpoint(folder: epath.Path) -> bool:
  if _is_begun(folder):
    return False
  if _is_orbax(folder):
    return ocp.utils.is_checkpoint_finalized(folder)
  return _first_byte(folder / _MSGPACK) in _MSGPACK_MAPS


def _is_orbax(folder: epath.Path) -> bool:
  return any((folder / STATE / name).exists() for name in _ORBAX_FILES)


_MSGPACK_MAPS = frozenset([*range(0x80, 0x90), 0xDE, 0xDF])


def _first_byte(path: epath.Path) -> int | None:
  if not path.exists() or path.is_dir():
    return None
  with path.open('rb') as file:
    return next(iter(file.read(1)), None)


def _no_checkpoint(folder: epath.Path) -> str:
  if not folder.is_dir():
    return f'There is no folder {folder}.'
  message = (
    f'{folder} is no T5X checkpoint: it has neither {STATE}/ as Orbax writes'
    f' it, nor a msgpack file {_MSGPACK!r}, and no finished {PREFIX}_N that'
    ' does.'
  )
  if _first_byte(folder / _MSGPACK) == ord('m'):  # model_checkpoint_path: …
    message += " Its checkpoint is TensorFlow's: convert it with T5X first."
  begun = [path.name for path in (folder, *folder.iterdir()) if _is_begun(path)]
  if begun:
    message += f' Not written to the end: {", ".join(sorted(begun))}.'
  return message


def _is_begun(path: epath.Path) -> bool:
  return bool(_STEP.match(path.name)) and 'tmp' in path.name


@contextlib.contextmanager
def open_part(
  folder: epath.PathLike, part: PartName = 'target'
) -> Iterator[Part]:
  """Opens a part of a checkpoint; reads no array yet.

  Args:
    folder: see `find_checkpoint`.
    part: 'target' has the parameters; 'state' has the step and, under
      `param_states`, the optimizer's state.

  Raises:
    UserError: there is no checkpoint, or it is not whole.
  """
  folder = find_checkpoint(folder)
  if not _is_orbax(folder):
    yield _open_msgpack(folder, part)
    return
  with contextlib.closing(ocp.PyTreeCheckpointHandler()) as reader:
    yield _open_orbax(folder / STATE, part, reader)


def _open_orbax(
  state: epath.Path, part: PartName, reader: ocp.PyTreeCheckpointHandler
) -> Part:
  """Opens the current form."""

  def read(name: str) -> np.ndarray:
    wanted: Any = ocp.RestoreArgs(restore_type=np.ndarray)
    for key in reversed([part, *name.split('/')]):
      wanted = {key: wanted}
    args = ocp.args.PyTreeRestore(
      item=jax.tree.map(lambda _: 0, wanted),
      restore_args=wanted,
      partial_restore=True,
    )
    with checkpoints.explained(f'{state}: {part}/{name}'):
      return jax.tree.leaves(reader.restore(state, args=args))[0]

  with checkpoints.explained(str(state)):
    saved = reader.metadata(state).tree
  leaves = leaves_by_path(_part_of(saved, part, state))
  shapes = {name: tuple(leaf.shape) for name, leaf in leaves.items()}
  return Part(str(state.parent), shapes, read)


def _part_of(
  content: Mapping[str, Any], part: PartName, where: epath.Path
) -> Any:
  if isinstance(content.get(part), Mapping):
    return content[part]
  raise UserError(
    f'{where} has no {part}, which is where T5X has {_HELD_BY[part]}; it has'
    f' {", ".join(sorted(content))}.'
  )


def _open_msgpack(folder: epath.Path, part: PartName) -> Part:
  """Opens the older form."""
  file = folder / _MSGPACK
  with checkpoints.explained(str(file)):
    content: Any = serialization.msgpack_restore(file.read_bytes())
  with blaming(file, "a checkpoint of T5X's"):
    found = _part_of(content.get('optimizer', content), part, file)
    leaves = leaves_by_path(found, is_leaf=_is_spec)
  context = ts.Context(_ONE_BY_ONE)
  arrays = {
    name: _open_zarr(folder, leaf, context)
    if _is_spec(leaf)
    else _as_array(leaf, f'{file}: {name}')
    for name, leaf in leaves.items()
  }

  def read(name: str) -> np.ndarray:
    array = arrays[name]
    if isinstance(array, ts.TensorStore):
      with checkpoints.explained(f'{folder}: {part}/{name}'):
        _check_chunks(array)
        array = array.read().result()
    if array.dtype == _BFLOAT16_AS_INTEGERS:
      return array.view(jnp.bfloat16)
    return array

  shapes = {name: tuple(array.shape) for name, array in arrays.items()}
  return Part(str(folder), shapes, read)


def _as_array(leaf: Any, where: str) -> np.ndarray:
  array = np.asarray(leaf)
  if array.dtype == object or array.dtype.kind in 'SU':
    raise UserError(f'{where} is no array, but {leaf!r:.80}.')
  return array


def _is_spec(node: Any) -> bool:
  return isinstance(node, dict) and {'driver', 'kvstore'} <= node.keys()


def _open_zarr(
  folder: epath.Path, spec: Mapping[str, Any], context: ts.Context
) -> ts.TensorStore:
  """Opens the array that a spec names, wherever it was when it was written."""
  with blaming(folder / _MSGPACK, "a checkpoint of T5X's"):
    stored = spec['kvstore'].get('path') or spec.get('path', '')
    name = stored.rstrip('/').rpartition('/')[2]
  beside = file_names.path_inside(folder, name, where=str(folder / _MSGPACK))
  found = {'driver': 'zarr', 'kvstore': _kvstore(beside)}
  with checkpoints.explained(str(beside)):
    return ts.open(found, read=True, context=context).result()


def _kvstore(path: epath.Path) -> dict[str, str]:
  """Returns TensorStore's description of a folder.

  >>> _kvstore(epath.Path('gs://bucket/t5/checkpoint_1/target.x'))
  {'driver': 'gcs', 'bucket': 'bucket', 'path': 't5/checkpoint_1/target.x/'}
  """
  store, _, rest = str(path).rpartition('://')
  if not store:
    return {'driver': 'file', 'path': f'{path}/'}
  bucket, _, inside = rest.partition('/')
  return {'driver': _STORES[store], 'bucket': bucket, 'path': f'{inside}/'}


def _check_chunks(array: Any) -> None:
  """Finds what was not copied: TensorStore reads an absent chunk as zeros."""
  chunks = array.spec().to_json()['metadata']['chunks']
  wanted = math.prod(
    -(-size // chunk) for size, chunk in zip(array.shape, chunks, strict=True)
  )
  keys = array.kvstore.list().result()
  found = sum(not key.startswith(b'.') for key in keys)
  if found < wanted:
    raise ValueError(f'{wanted - found} of its {wanted} chunks are absent')


def check_free(folder: epath.PathLike, step: int) -> None:
  """Refuses a folder in which a checkpoint would not be the newest.

  Readers take the newest of a folder, so that an older one, though written,
  would not be what they read.

  Args:
    folder: what holds the checkpoints, or will.
    step: of the checkpoint to write.

  Raises:
    UserError: the folder is, or is called like, a checkpoint itself; or it
      holds that step or a later one.
  """
  folder = checkpoints.absolute(folder)
  if _STEP.fullmatch(folder.name) or _is_checkpoint(folder):
    raise UserError(
      f'{folder} is the place of one checkpoint, and {PREFIX}_{step} wants the'
      f' folder that holds them: {folder.parent}, or a new one.'
    )
  checkpoint = folder / f'{PREFIX}_{step}'
  if checkpoint.exists() and any(checkpoint.iterdir()):
    raise UserError(
      f'{checkpoint} exists: nothing is overwritten. Choose another folder, or'
      ' remove it.'
    )
  newest = max(_checkpoints_in(folder), default=step)
  if newest > step:
    raise UserError(
      f'{folder} holds {PREFIX}_{newest}, and the newest is what is read:'
      f' {PREFIX}_{step} would not be. Choose another folder.'
    )


def write_state(
  folder: epath.PathLike,
  target: Mapping[str, Any],
  *,
  step: int,
  optimizer: Mapping[str, Any] | None = None,
) -> epath.Path:
  """Writes `checkpoint_<step>` in T5X's current form, whole or not at all.

  Args:
    folder: what holds the checkpoints.
    target: the parameters, as T5X nests them.
    step: the step it is called after.
    optimizer: the optimizer's state, as T5X nests `param_states`.

  Returns:
    The checkpoint's folder.

  Raises:
    UserError: see `check_free`.
  """
  folder = checkpoints.absolute(folder)
  check_free(folder, step)
  checkpoint = folder / f'{PREFIX}_{step}'
  if checkpoint.exists():
    checkpoint.rmdir()
  manager = ocp.CheckpointManager(
    folder,
    item_handlers={STATE: ocp.PyTreeCheckpointHandler(use_ocdbt=True)},
    options=ocp.CheckpointManagerOptions(
      step_prefix=PREFIX, enable_async_checkpointing=False
    ),
  )
  state = {
    'state': {'step': np.int32(step), 'param_states': dict(optimizer or {})},
    'target': dict(target),
  }
  with contextlib.closing(manager):
    # Unforced, Orbax passes over a step that is not the newest it finds.
    manager.save(
      step,
      args=ocp.args.Composite(**{STATE: ocp.args.PyTreeSave(state)}),
      force=True,
    )
  if not _is_checkpoint(checkpoint):
    raise RuntimeError(f'{checkpoint} was not written.')
  return checkpoint
