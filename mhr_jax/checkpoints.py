"""Checkpoints on Orbax: saved in the background, whole or not at all.

A step holds three items: `trainable` (the labelled subtrees that train),
`optimizer` (its state) and `metadata` (JSON, with a checksum of each item).
What does not train is saved once a run (`save_tree`, see `run_folder`).
Restoring is strict: a leaf that is missing, extra, of another shape or with
other bits than were saved is an error that names it.
"""

from collections.abc import Iterator, Mapping
import contextlib
import logging
import os
import re
from typing import Any

from etils import epath
import jax
from jax.experimental import multihost_utils
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from mhr_jax import orbax_reports, run_files
from mhr_jax.checksums import checksum
from mhr_jax.errors import UserError
from mhr_jax.tree_check import check_tree
from mhr_jax.tree_paths import leaves_by_path

CHECKPOINTS_FOLDER = 'checkpoints'
SET_ASIDE_FOLDER = 'checkpoints_set_aside'

_CHECKSUMS = 'checksums'
_UNFINISHED = '.orbax-checkpoint-tmp'
_REASON_SHOWN = 160
_OS_ERROR = re.compile(r"(?:os_error_code='|OS error )(\d+)")


class DamagedError(UserError):
  """Files are absent, cut short or altered; they were right once."""


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
    _remove_unfinished(self.folder)
    self._manager = ocp.CheckpointManager(
      self.folder,
      item_handlers={
        'trainable': ocp.PyTreeCheckpointHandler(),
        'optimizer': ocp.PyTreeCheckpointHandler(),
        'metadata': ocp.JsonCheckpointHandler(),
      },
      options=ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(keeps),
        # Made behind, a folder that cannot be made is noticed by nobody, and
        # the threads that wait for it keep the process for ten minutes.
        async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
      ),
    )

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, *exc_info: Any):
    self.close()

  @property
  def aside(self) -> epath.Path:
    """Where `set_aside` moves steps to."""
    return self.folder.parent / SET_ASIDE_FOLDER

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

    Raises:
      UserError: it, or the save before it, cannot be written.
    """
    if step in self._manager.all_steps():
      return
    trees = {'trainable': trainable}
    if optimizer is not None:
      trees['optimizer'] = optimizer
    facts = _with_checksums(metadata, trees)
    with self._written():
      self._manager.save(
        step,
        args=ocp.args.Composite(
          metadata=ocp.args.JsonSave(facts),
          **{name: ocp.args.PyTreeSave(tree) for name, tree in trees.items()},
        ),
        force=True,
      )

  def check(self):
    """Says now, and not at the next save, that one behind has failed.

    Raises:
      UserError: it has.
    """
    with self._written():
      self._manager.check_for_errors()

  def set_aside(self, after: int):
    """Moves the steps after one out of the way; nothing is deleted."""
    self.wait()
    if jax.process_index() == 0:
      for step in self.steps:
        if step > after:
          _move_aside(self.folder / str(step))
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices('checkpoints set aside')
    self._manager.reload()

  @contextlib.contextmanager
  def _written(self) -> Iterator[None]:
    """Says what stands where saving fails: a full disk, a quota, a lost mount.

    Orbax raises what its parts raise; one that failed behind, from any call.
    """
    orbax_reports.silence_given_up()
    try:
      yield
    except (OSError, RuntimeError, ValueError) as error:
      steps = committed_steps(self.folder.parent)
      last = (
        f'What was committed before (step {steps[-1]}) is whole'
        if steps
        else 'Nothing was committed before'
      )
      raise UserError(
        f'A checkpoint in {self.folder} could not be written:'
        f' {_reason(error)}. {last}. Make room, or mend what is wrong, and give'
        ' the same command again.'
      ) from error

  def metadata(self, step: int) -> dict[str, Any]:
    """Returns the JSON saved with a step, without reading its arrays."""
    return read_metadata(self.folder.parent, step)

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
    sums = _read_facts(self.folder.parent, step)[1]
    targets = {'trainable': trainable}
    if optimizer is not None:
      targets['optimizer'] = optimizer
      kept = self.folder / str(step) / 'optimizer'
      if not ('optimizer' in sums if sums else kept.exists()):
        raise UserError(
          f'{self.folder}/{step} has no optimizer state, so it cannot be'
          ' resumed; a new run can start from its parameters: start_from ='
          f' {str(self.folder.parent)!r}, with another run_dir.'
        )
    found = {
      item: restore_tree(
        self.folder / str(step) / item, target, expected=sums.get(item)
      )
      for item, target in targets.items()
    }
    return found['trainable'], found.get('optimizer')

  def wait(self):
    """Waits until everything saved is committed."""
    with self._written():
      self._manager.wait_until_finished()

  def close(self):
    """Waits, then frees the threads."""
    with self._written():
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
  return _read_facts(run_dir, step)[0]


def _read_facts(
  run_dir: epath.PathLike, step: int
) -> tuple[dict[str, Any], dict[str, str]]:
  """Returns the JSON saved with a step, and each item's checksum.

  A step from before there were checksums has none.
  """
  folder = _item_folder(run_dir, step, 'metadata')
  with (
    explained(str(folder)),
    ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer,
  ):
    facts = dict(checkpointer.restore(folder))
  sums = facts.pop(_CHECKSUMS, {})
  if sums and sums.get('metadata') != _digest(facts, sums):
    raise DamagedError(f'{folder} {_ALTERED}')
  return facts, sums


def read_trainable(run_dir: epath.PathLike, step: int, target: Any) -> Any:
  """Returns the trainable subtrees of a step (see `restore_tree`)."""
  return _read_item(run_dir, step, 'trainable', target)


def read_optimizer(run_dir: epath.PathLike, step: int, target: Any) -> Any:
  """Returns the optimizer's state of a step (see `restore_tree`)."""
  return _read_item(run_dir, step, 'optimizer', target)


def _read_item(
  run_dir: epath.PathLike, step: int, item: str, target: Any
) -> Any:
  sums = _read_facts(run_dir, step)[1]
  folder = _item_folder(run_dir, step, item)
  return restore_tree(folder, target, expected=sums.get(item))


def _item_folder(run_dir: epath.PathLike, step: int, item: str) -> epath.Path:
  return absolute(run_dir) / CHECKPOINTS_FOLDER / str(step) / item


def _with_checksums(
  metadata: Mapping[str, Any], trees: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns the metadata with the checksum of each item, and of itself."""
  sums = {item: checksum(tree) for item, tree in trees.items()}
  sums['metadata'] = _digest(metadata, sums)
  return {**metadata, _CHECKSUMS: sums}


def _digest(metadata: Mapping[str, Any], sums: Mapping[str, str]) -> str:
  """Returns 32 hex digits over metadata and the checksums of the arrays."""
  kept = {item: value for item, value in sums.items() if item != 'metadata'}
  return run_files.digest([dict(metadata), kept])


def _remove_unfinished(folder: epath.Path):
  """Removes what saves that were broken off have left.

  Not left to Orbax, whose thread for it may meet the first save at its work.
  """
  if jax.process_index() == 0 and folder.exists():
    for path in folder.iterdir():
      if _UNFINISHED in path.name:
        path.rmtree()


def _move_aside(folder: epath.Path):
  """Moves the folder of a step to where the run does not look for steps."""
  aside = folder.parent.parent / SET_ASIDE_FOLDER
  aside.mkdir(parents=True, exist_ok=True)
  place, number = aside / folder.name, 1
  while place.exists():
    number += 1
    place = aside / f'{folder.name}_{number}'
  folder.rename(place)


def save_tree(folder: epath.PathLike, tree: Any):
  """Saves a tree of arrays as one folder; replaces what was there.

  Raises:
    UserError: it cannot be written.
  """
  orbax_reports.silence_given_up()
  try:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
      checkpointer.save(
        absolute(folder), args=ocp.args.PyTreeSave(tree), force=True
      )
  except (OSError, RuntimeError, ValueError) as error:
    raise UserError(
      f'{folder} could not be written: {_reason(error)}.'
    ) from error


def restore_tree(
  folder: epath.PathLike, target: Any, *, expected: str | None = None
) -> Any:
  """Returns a tree of arrays that `save_tree` saved.

  Args:
    folder: where it lies.
    target: `jax.ShapeDtypeStruct`s with shardings, or arrays; a leaf of
      another floating type is converted.
    expected: the tree's checksum when it was saved, where somebody kept it.
      What is converted to other types is not compared.

  Raises:
    UserError: a leaf is missing, extra or of another shape, or a file is
      absent, damaged or altered.
  """
  folder = absolute(folder)
  saved = saved_structure(folder)
  check_tree(saved, target, where=str(folder))
  with (
    explained(str(folder)),
    _without_metadata_warning(),
    ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer,
  ):
    found = checkpointer.restore(folder, args=_restore_args(target))
  same_types = _types(saved) == _types(target)
  if expected is not None and same_types and checksum(found) != expected:
    raise DamagedError(f'{folder} {_ALTERED}')
  return found


def _types(tree: Any) -> dict[str, Any]:
  return {path: str(x.dtype) for path, x in leaves_by_path(tree).items()}


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
    DamagedError: instead of what Orbax raises where files are not as written.
  """
  orbax_reports.silence_given_up()
  try:
    yield
  except _UNREADABLE as error:
    raise DamagedError(
      f'{what} cannot be read: {_reason(error)}. It was cut short, altered or'
      ' not copied with the rest: copy it again.'
    ) from error


_UNREADABLE = (KeyError, OSError, RuntimeError, TypeError, ValueError)
_ALTERED = (
  'holds other values than were saved: its checksum differs. It was altered or'
  ' damaged: copy it again.'
)


def _reason(error: BaseException) -> str:
  """Returns what a library says, not too long, and what the system said to it.

  TensorStore begins with paths and has the system's word at the end.
  """
  text = str(error).partition('\n')[0].rstrip('. ')
  code = _OS_ERROR.search(str(error))
  if code is None or len(text) <= _REASON_SHOWN:
    return text[:_REASON_SHOWN]
  return f'{os.strerror(int(code.group(1)))} ({text[:_REASON_SHOWN]}…)'


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


def absolute(path: epath.PathLike) -> epath.Path:
  """Returns a path that does not depend on the working directory."""
  path = epath.Path(path)
  if '://' in str(path):
    return path
  return epath.Path(path.expanduser().resolve())
