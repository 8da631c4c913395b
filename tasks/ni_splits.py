"""Which instances of a Super-NaturalInstructions task are in which split.

Two choices, by `SplitSettings.order`:

'file', ours, where no task's choice depends on another task's file:
  train          of a training task, what is not held back, in file order
  validation     held back: those with the smallest sha256 of `validation <id>`
  few_shot       the last instances of a test task's file
  test           the first 100 that are not in `few_shot`
  official_test  the first 100, as the official evaluation has them

'authors', that of microsoft/mttl (branch mhr_camera_ready, c66b20d,
`ni_original_dataset.py`), which shuffles with Python's generator:
  train          the first 100 of a training task, shuffled with seed 42
  validation     those that follow them
  few_shot_seed13, few_shot_seed42, few_shot_seed58
                 the first 32 of a test task's instances behind its first 100,
                 shuffled with the seed; a smaller pool begins a larger one
  test           the first 100, also as official_test

There one generator runs through all training tasks and then all test tasks in
the lists' order, so every choice depends on how many instances the files of
the tasks before have: a part of the repository gives other choices than the
whole of it. (The authors' own runs may have seen others again: the library
that they read with keeps the choice of the first seed.)
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import hashlib
import random
from typing import Any, Literal

from etils import epath
import numpy as np

from mhr_jax.errors import UserError, nearest
from mhr_jax.setting_checks import check_fields
from mhr_jax.tasks import ni_files
from mhr_jax.tasks.ni_files import OFFICIAL_TEST, Role, Track

Order = Literal['file', 'authors']
Shortfall = Literal['refuse', 'take_all']
Instances = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class SplitSettings:
  """Which instances of a file are in which split.

  Attributes:
    order: see the module.
    validation_instances: held back of each training task; by 'file', of small
      ones a fifth of their instances at most.
    max_train_instances: of each training task; all of them by default.
    few_shot_pool: of each test task, to draw few-shot examples from.
    test_instances: of each test task, from its beginning.
    seed: of the choice of training instances by 'authors'.
    few_shot_seeds: of the choices of few-shot examples by 'authors'.
    shortfall: what to do with a test task that has fewer instances behind its
      first 100 than `few_shot_pool`, by 'authors': an error, or take what
      there is; where there is nothing, it has no few-shot splits.
  """

  order: Order = 'file'
  validation_instances: int = 20
  max_train_instances: int | None = None
  few_shot_pool: int = 32
  test_instances: int = OFFICIAL_TEST
  seed: int = 42
  few_shot_seeds: tuple[int, ...] = (13, 42, 58)
  shortfall: Shortfall = 'refuse'

  def __post_init__(self):
    object.__setattr__(self, 'few_shot_seeds', tuple(self.few_shot_seeds))
    counts = ('max_train_instances', 'few_shot_pool', 'test_instances')
    check_fields(self, least=dict.fromkeys(counts, 1))

  @classmethod
  def of(cls, options: 'SplitSettings | Mapping[str, Any] | None'):
    """Returns settings that were given as such, as options, or not at all.

    Raises:
      UserError: there is no such option.
    """
    if isinstance(options, SplitSettings):
      return options
    known = [field.name for field in dataclasses.fields(cls)]
    for name in options or ():
      if name not in known:
        raise UserError(
          f'splits: there is no option {name!r}.{nearest(name, known)}'
        )
    return cls(**(options or {}))

  @property
  def least_pool(self) -> int:
    """The instances that a task needs to be adapted to."""
    return 1 if self.shortfall == 'take_all' else self.few_shot_pool

  def names(self, role: Role) -> tuple[str, ...]:
    """Returns the splits of a task."""
    if role == 'train':
      return 'train', 'validation'
    if self.order == 'file':
      return 'few_shot', 'test', 'official_test'
    pools = (f'few_shot_seed{seed}' for seed in self.few_shot_seeds)
    return *pools, 'test', 'official_test'


def choose_splits(
  instances: Instances,
  role: Role,
  settings: SplitSettings,
  *,
  path: epath.Path,
  track: Track = 'default',
) -> dict[str, list[Mapping[str, Any]]]:
  """Returns the instances of each split of a task.

  Args:
    instances: of the task file, in its order.
    role: which list the task is in.
    settings: sizes, seeds, and whose choice.
    path: of the task file, in its repository.
    track: of the lists.

  Raises:
    UserError: a test task has too few instances for its few-shot pool.
  """
  if settings.order == 'authors':
    return _choose_as_authors(instances, role, settings, path, track)
  if role == 'train':
    held_back = min(settings.validation_instances, len(instances) // 5)
    ranked = sorted(instances, key=lambda one: _rank(one['id']))
    chosen = {one['id'] for one in ranked[:held_back]}
    train = [one for one in instances if one['id'] not in chosen]
    return {
      'train': train[: settings.max_train_instances],
      'validation': [one for one in instances if one['id'] in chosen],
    }
  rest = len(instances) - settings.few_shot_pool
  if rest <= 0:
    raise UserError(
      f'{path} has {len(instances)} instances: a few-shot pool of'
      f' {settings.few_shot_pool} leaves none to test on.'
    )
  return {
    'few_shot': list(instances[rest:]),
    'test': list(instances[: min(rest, settings.test_instances)]),
    'official_test': list(instances[: settings.test_instances]),
  }


def _choose_as_authors(instances, role, settings, path, track):
  folder = str(path.parent.parent)

  def shuffled(seed: int) -> list[Mapping[str, Any]]:
    order = _orders(folder, track, seed)[role, path.stem]
    start = 0 if role == 'train' else OFFICIAL_TEST
    return [instances[start + int(i)] for i in order]

  if role == 'train':
    order = shuffled(settings.seed)
    first = settings.max_train_instances
    first = len(order) if first is None else first
    held_back = order[first : first + settings.validation_instances]
    return {'train': order[:first], 'validation': held_back}
  behind = max(0, len(instances) - OFFICIAL_TEST)
  if behind < settings.few_shot_pool and settings.shortfall == 'refuse':
    raise UserError(
      f'{path} has {behind} instances behind its first {OFFICIAL_TEST};'
      f' {settings.few_shot_pool} are wanted as few_shot_pool: lower it, leave'
      " the task out, or take what there is with shortfall='take_all'."
    )
  pools = {
    f'few_shot_seed{seed}': shuffled(seed)[: settings.few_shot_pool]
    for seed in settings.few_shot_seeds
  }
  test = list(instances[: settings.test_instances])
  return {**pools, 'test': test, 'official_test': test}


def list_few_shot_tasks(
  folder: epath.Path, settings: SplitSettings, track: Track = 'default'
) -> list[epath.Path]:
  """Returns the test tasks with enough instances to adapt to.

  By 'authors' that reads all files of both lists, as their choice does.
  """
  paths = ni_files.list_tasks(folder, 'test', track)
  if settings.order == 'file':
    return paths
  counts = _counts(str(folder), track)
  return [p for p in paths if counts['test', p.stem] >= settings.least_pool]


@functools.lru_cache(maxsize=8)
def _orders(
  folder: str, track: Track, seed: int
) -> dict[tuple[Role, str], np.ndarray]:
  """Returns the order of every task's instances, one generator for all."""
  generator = random.Random(seed)
  orders = {}
  for (role, task), count in _counts(folder, track).items():
    order = list(range(count))
    generator.shuffle(order)
    orders[role, task] = np.array(order, np.int32)
  return orders


@functools.lru_cache(maxsize=2)
def _counts(folder: str, track: Track) -> dict[tuple[Role, str], int]:
  """Counts what is shuffled of each task; reads all files of both lists."""
  counts: dict[tuple[Role, str], int] = {}
  roles: tuple[tuple[Role, int], ...] = (('train', 0), ('test', OFFICIAL_TEST))
  for role, left_out in roles:
    for path in ni_files.list_tasks(epath.Path(folder), role, track):
      instances = ni_files.read_task_file(path)['Instances']
      counts[role, path.stem] = max(0, len(instances) - left_out)
  return counts


def _rank(instance_id: str) -> str:
  return hashlib.sha256(f'validation {instance_id}'.encode()).hexdigest()
