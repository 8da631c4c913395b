"""Checkpoints on Orbax: saved in the background, whole or not at all.

A step holds three items: `trainable` (the labelled subtrees that train),
`optimizer` (its state) and `metadata` (JSON). What does not train is saved
once a run (`save_tree`, see `run_folder`). Restoring is strict: a leaf that is
missing, extra or of another shape is an error that names it.
"""

from collections.abc import Iterator, Mapping
import contextlib
import logging
from typing import Any

from etils import epath
import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from mhr_jax.errors import UserError
from mhr_jax.tree_paths import leaves_by_path

CHECKPOINTS_FOLDER = 'checkpoints'

_PROBLEMS_SHOWN = 8


class Checkpoints:
  """The checkpoints of one run folder.

  A context manager: leaving it waits for what is being saved.
  """

  def __init__(
    self,
    run_dir: epath.PathLike,
    *,
    keep: int = 3,
    keep_every: int | None = None,
  ):
    """Opens `run_dir/checkpoints`, which is made at the first save.

    Args:
      run_dir: the run folder.
      keep: how many of the last steps to keep.
      keep_every: keep also the steps that this divides, for good.
    """
    keeps: list[Any] = [policies.LatestN(keep)]
    if keep_every:
      keeps.append(policies.EveryNSteps(keep_every))
    self.folder = absolute(run_dir) / CHECKPOINTS_FOLDER
    self._manager = ocp.CheckpointManager(
      self.folder,
      item_handlers={
        'trainable': ocp.PyTreeCheckpointHandler(),
        'optimizer': ocp.PyTreeCheckpointHandler(),
        'metadata': ocp.JsonCheckpointHandler(),
      },
      options=ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(keeps),
        cleanup_tmp_directories=True,
      ),
    )

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, *exc_info: Any):
    self.close()

  @property
  def steps(self) -> tuple[int, ...]:
    """The steps that are committed, in order."""
    return tuple(sorted(self._manager.all_steps()))

  @property
  def latest_step(self) -> int | None:
    """The last committed step."""
    return self._manager.latest_step()

  def save(
    self,
    step: int,
    *,
    trainable: Any,
    optimizer: Any,
    metadata: Mapping[str, Any],
  ):
    """Saves a step; returns when the arrays are copied, writes behind.

    A step that is committed already is left as it is. One without optimizer
    state (None) can be read, not resumed.
    """
    if step in self._manager.all_steps():
      return
    items: dict[str, Any] = {
      'trainable': ocp.args.PyTreeSave(trainable),
      'metadata': ocp.args.JsonSave(dict(metadata)),
    }
    if optimizer is not None:
      items['optimizer'] = ocp.args.PyTreeSave(optimizer)
    self._manager.save(step, args=ocp.args.Composite(**items), force=True)

  def metadata(self, step: int) -> dict[str, Any]:
    """Returns the JSON saved with a step, without reading its arrays."""
    args = ocp.args.Composite(metadata=ocp.args.JsonRestore())
    with explained(f'{self.folder}/{step}/metadata'):
      return dict(self._manager.restore(step, args=args)['metadata'])

  def restore(self, step: int, *, trainable: Any, optimizer: Any) -> Any:
    """Returns (trainable, optimizer) of a step.

    Args:
      step: a committed step.
      trainable: `jax.ShapeDtypeStruct`s with shardings, or arrays.
      optimizer: likewise; None leaves the optimizer's state out.

    Raises:
      UserError: a leaf is missing, extra or of another shape; the step has no
        optimizer state; or its files are damaged.
    """
    targets = {'trainable': trainable}
    if optimizer is not None:
      targets['optimizer'] = optimizer
      if not (self.folder / str(step) / 'optimizer').exists():
        raise UserError(
          f'{self.folder}/{step} has no optimizer state, so it cannot be'
          ' resumed; a new run can start from its parameters: start_from ='
          f' {str(self.folder.parent)!r}, with another run_dir.'
        )
    for item, target in targets.items():
      folder = self.folder / str(step) / item
      check_tree(saved_structure(folder), target, where=str(folder))
    args = {item: _restore_args(target) for item, target in targets.items()}
    with explained(f'{self.folder}/{step}'):
      found = self._manager.restore(step, args=ocp.args.Composite(**args))
    return found['trainable'], found.get('optimizer')

  def wait(self):
    """Waits until everything saved is committed."""
    self._manager.wait_until_finished()

  def close(self):
    """Waits, then frees the threads."""
    self._manager.close()


def committed_steps(run_dir: epath.PathLike) -> tuple[int, ...]:
  """Returns the committed steps of a run folder, which it only reads."""
  folder = absolute(run_dir) / CHECKPOINTS_FOLDER
  if not folder.exists():
    return ()
  return tuple(sorted(ocp.utils.checkpoint_steps(folder)))


def read_metadata(run_dir: epath.PathLike, step: int) -> dict[str, Any]:
  """Returns the JSON saved with a step of a run folder.

  Raises:
    UserError: it is absent or damaged.
  """
  folder = _item_folder(run_dir, step, 'metadata')
  with (
    explained(str(folder)),
    ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer,
  ):
    return checkpointer.restore(folder)


def read_trainable(run_dir: epath.PathLike, step: int, target: Any) -> Any:
  """Returns the trainable subtrees of a step (see `restore_tree`)."""
  return restore_tree(_item_folder(run_dir, step, 'trainable'), target)


def read_optimizer(run_dir: epath.PathLike, step: int, target: Any) -> Any:
  """Returns the optimizer's state of a step (see `restore_tree`)."""
  return restore_tree(_item_folder(run_dir, step, 'optimizer'), target)


def _item_folder(run_dir: epath.PathLike, step: int, item: str) -> epath.Path:
  return absolute(run_dir) / CHECKPOINTS_FOLDER / str(step) / item


def save_tree(folder: epath.PathLike, tree: Any):
  """Saves a tree of arrays as one folder; replaces what was there."""
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    checkpointer.save(
      absolute(folder), args=ocp.args.PyTreeSave(tree), force=True
    )


def restore_tree(folder: epath.PathLike, target: Any) -> Any:
  """Returns a tree of arrays that `save_tree` saved.

  Args:
    folder: where it lies.
    target: `jax.ShapeDtypeStruct`s with shardings, or arrays; a leaf of
      another floating type is converted.

  Raises:
    UserError: a leaf is missing, extra or of another shape, or a file is
      absent or damaged.
  """
  folder = absolute(folder)
  check_tree(saved_structure(folder), target, where=str(folder))
  with (
    explained(str(folder)),
    _without_metadata_warning(),
    ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer,
  ):
    return checkpointer.restore(folder, args=_restore_args(target))


@contextlib.contextmanager
def _without_metadata_warning() -> Iterator[None]:
  """An item of a step has no metadata of its own: Orbax need not warn."""

  def keep(record: logging.LogRecord) -> bool:
    return 'Metadata file does not exist' not in record.getMessage()

  log = logging.getLogger('absl')
  log.addFilter(keep)
  try:
    yield
  finally:
    log.removeFilter(keep)


def saved_structure(folder: epath.PathLike) -> Any:
  """Returns the tree of what lies in a folder, by metadata alone.

  Raises:
    UserError: a file is absent or damaged.
  """
  folder = absolute(folder)
  with (
    explained(str(folder)),
    _without_metadata_warning(),
    ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer,
  ):
    saved = checkpointer.metadata(folder).item_metadata
    if saved is None:
      raise FileNotFoundError('the list of its arrays is absent or damaged')
    return saved.tree


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
  """Says which folder could not be read, where reading it fails.

  Args:
    what: the folder.

  Raises:
    UserError: instead of what Orbax raises where files are not as written.
  """
  try:
    yield
  except (KeyError, OSError, TypeError, ValueError) as error:
    reason = str(error).partition('\n')[0][:300]
    raise UserError(
      f'{what} cannot be read: {reason}. It was cut short, altered or not'
      ' copied with the rest: copy it again.'
    ) from error


def _restore_args(target: Any) -> ocp.args.PyTreeRestore:
  target = with_shardings(target)
  return ocp.args.PyTreeRestore(
    item=target,
    restore_args=ocp.checkpoint_utils.construct_restore_args(target),
  )


def with_shardings(target: Any, where: Any = None) -> Any:
  """Returns `jax.ShapeDtypeStruct`s with shardings.

  Args:
    target: arrays or shapes; a leaf without a sharding of its own goes to the
      first device.
    where: a tree of shardings to use instead.
  """
  first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

  def one(leaf, sharding=None):
    sharding = sharding or getattr(leaf, 'sharding', None) or first
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  if where is None:
    return jax.tree.map(one, target)
  return jax.tree.map(one, target, where)


def check_tree(saved: Any, target: Any, *, where: str):
  """Compares what is saved with what is wanted.

  Raises:
    UserError: they differ; the message names leaves and both shapes.
  """
  have = {k: tuple(v.shape) for k, v in leaves_by_path(saved).items()}
  want = {k: tuple(v.shape) for k, v in leaves_by_path(target).items()}
  problems = [
    f'{path}: the checkpoint has no such array, the model wants {shape}'
    for path, shape in want.items()
    if path not in have
  ]
  problems += [
    f'{path}: the model has no such parameter, the checkpoint has {shape}'
    for path, shape in have.items()
    if path not in want
  ]
  problems += [
    f'{path}: the checkpoint has {have[path]}, the model wants {shape}'
    for path, shape in want.items()
    if have.get(path, shape) != shape
  ]
  if problems:
    shown = '\n  '.join(problems[:_PROBLEMS_SHOWN])
    rest = len(problems) - _PROBLEMS_SHOWN
    more = f'\n  … and {rest} more' if rest > 0 else ''
    raise UserError(f'{where} does not fit the model:\n  {shown}{more}')


def absolute(path: epath.PathLike) -> epath.Path:
  """Returns a path that does not depend on the working directory."""
  path = epath.Path(path)
  if '://' in str(path):
    return path
  return epath.Path(path.expanduser().resolve())
