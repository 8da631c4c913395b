"""CrossFit (Ye et al. 2021): the NLP Few-shot Gym's tasks as it writes them.

    <folder>/<task>/<task>_<shots>_<seed>_{train,dev,test}.tsv

one example a line, `input \\t output \\t another output …`, as `_build_gym.py`
of INK-USC/CrossFit makes them, with five seeds (13, 21, 42, 87, 100). The input
of an example of `boolq` is ` [boolq] <input>`; all outputs are references.
(The paper's code also puts a space before every output, which T5's vocabulary
does not tell apart.)

Splits of a task:
  few_shot_seed13, …   the training examples of that seed, to adapt from
  dev_seed13, …        its development examples
  train                training and development examples of all seeds, one
                       seed behind the other, to pre-train on
  test                 the same for all seeds

Partitions of the tasks are JSON files, `{"train": [task, …], "dev": …, "test":
…}`, such as the eight in `dataloader/custom_tasks_splits/` there; each gives
the mixtures `crossfit_<file>_{train,dev,test}`. (The held-out tasks of the
partitions by kind, such as `train_non_nli_test_nli`, are under `dev`.)
"""

from collections.abc import Iterable, Mapping, Sequence
import functools
import logging
import os
import re
from typing import Literal, get_args

from etils import epath

from mhr_jax import run_files
from mhr_jax import vocabulary as vocabulary_lib
from mhr_jax.data import registry, sources
from mhr_jax.errors import UserError, nearest
from mhr_jax.tasks import ni_files
from mhr_jax.tasks.crossfit_tasks import METRIC_OF_TASK
from mhr_jax.vocabulary import Vocabulary

Part = Literal['train', 'dev', 'test']

_FILE = re.compile(r'(?P<prefix>.+_(?P<shots>\d+)_(?P<seed>\d+))_train\.tsv')
_PARTS: tuple[Part, ...] = get_args(Part)

_log = logging.getLogger(__name__)


def register(
  folder: epath.PathLike,
  *,
  vocabulary: Vocabulary | epath.PathLike,
  extra_ids: int = 100,
  name: str = 'crossfit',
  partitions: epath.PathLike | Sequence[epath.PathLike] = (),
  seeds: Sequence[int] | None = None,
  absent: Literal['refuse', 'leave_out'] = 'refuse',
) -> dict[str, tuple[str, ...]]:
  """Registers every task of a folder, and mixtures of them.

  No example is read until its task is prepared.

  Args:
    folder: holds a folder a task.
    vocabulary: an object, the path of a SentencePiece model, or 'bytes'.
    extra_ids: sentinels, where `vocabulary` is not an object.
    name: the prefix of all names: `glue-rte` becomes `crossfit_glue_rte`.
    partitions: JSON files, or a folder of them.
    seeds: which of the seeds there are; all by default.
    absent: what to do with tasks that a partition names and the folder lacks.

  Returns:
    The tasks of each mixture: `<name>_all`, and by partition.

  Raises:
    UserError: the folder or a partition is not of this form.
  """
  root = ni_files.absolute(folder)
  vocabulary = vocabulary_lib.load_vocabulary(vocabulary, extra_ids=extra_ids)
  found = {each.name: each for each in _task_folders(root)}
  for task, path in found.items():
    prefixes = find_prefixes(path, seeds)
    source = sources.ExampleSource(
      functools.partial(load_examples, path, prefixes),
      splits=_split_names(prefixes),
      files=[
        path / f'{prefix}_{part}.tsv'
        for prefix in prefixes.values()
        for part in _PARTS
      ],
    )
    registry.add_task(
      _task_name(name, task),
      source,
      vocabulary,
      module=__name__,
      metrics=(METRIC_OF_TASK.get(task, 'exact_match'),),
    )
  mixtures = {f'{name}_all': tuple(_task_name(name, task) for task in found)}
  for path in _partition_files(partitions):
    for part, tasks in read_partition(path, found, absent=absent).items():
      mixture = _task_name(name, f'{path.stem}_{part}')
      mixtures[mixture] = tuple(_task_name(name, task) for task in tasks)
  for mixture, tasks in mixtures.items():
    registry.add_mixture(mixture, tasks, module=__name__)
  return mixtures


def find_prefixes(
  folder: epath.Path, seeds: Sequence[int] | None = None
) -> dict[int, str]:
  """Returns the beginning of a task's file names by seed, sorted.

  Args:
    folder: of the task.
    seeds: which; all that are there by default.

  Raises:
    UserError: a file or a seed is absent, or there are two numbers of shots.
  """
  matches = [_FILE.fullmatch(path.name) for path in folder.glob('*_train.tsv')]
  matches = [match for match in matches if match]
  if not matches:
    raise UserError(
      f'{folder} has no files {folder.name}_<shots>_<seed>_train.tsv.'
    )
  shots = sorted({int(match['shots']) for match in matches})
  if len(shots) > 1:
    raise UserError(
      f'{folder} has files of {" and of ".join(map(str, shots))} shots: keep'
      ' those of one number in a folder.'
    )
  there = {int(match['seed']): match['prefix'] for match in matches}
  for seed in seeds or ():
    if seed not in there:
      known = ', '.join(map(str, sorted(there)))
      raise UserError(f'{folder} has no files of seed {seed}, only {known}.')
  chosen = {seed: there[seed] for seed in sorted(seeds or there)}
  for prefix in chosen.values():
    for part in _PARTS:
      path = folder / f'{prefix}_{part}.tsv'
      if not path.exists():
        raise UserError(f'There is no {path}: a seed has {", ".join(_PARTS)}.')
  return chosen


def load_examples(
  folder: epath.Path, prefixes: Mapping[int, str]
) -> sources.TaskExamples:
  """Returns the examples of one task by split, and its metric.

  Raises:
    UserError: a line is malformed, or the seeds' test sets differ.
  """
  task = folder.name

  def read(seed: int, part: Part) -> list[sources.TextExample]:
    path = folder / f'{prefixes[seed]}_{part}.tsv'
    return list(read_examples(path, task, prefix=f'{seed}/{part}'))

  few_shot = {seed: read(seed, 'train') for seed in prefixes}
  dev = {seed: read(seed, 'dev') for seed in prefixes}
  _check_tests(folder, prefixes)
  splits: dict[str, Iterable[sources.TextExample]] = {
    'train': [one for seed in prefixes for one in few_shot[seed] + dev[seed]],
    'test': read(min(prefixes), 'test'),
  }
  splits |= {f'few_shot_seed{seed}': of for seed, of in few_shot.items()}
  splits |= {f'dev_seed{seed}': of for seed, of in dev.items()}
  return sources.TaskExamples(splits, metric=METRIC_OF_TASK.get(task))


def read_examples(
  path: epath.Path, task: str, *, prefix: str
) -> Iterable[sources.TextExample]:
  """Yields the examples of a TSV file.

  Args:
    path: of the file.
    task: its name, for the inputs.
    prefix: of the examples' ids.

  Raises:
    UserError: the file is no text, or a line has no output or an empty field;
      the message names file and line.
  """
  lines = enumerate(ni_files.read_text(path).split('\n'), 1)
  for number, line in lines:
    if not line.strip():
      continue
    fields = line.split('\t')
    if len(fields) == 1:
      raise UserError(
        f'{path}:{number}: a line is an input and at least one output, with'
        ' tabs between them.'
      )
    empty = [i for i, field in enumerate(fields) if not field.strip()]
    if empty:
      what = f'output {empty[0]}' if empty[0] else 'the input'
      raise UserError(
        f'{path}:{number}: {what} of this line is empty: fill it, or remove'
        f' {"the empty output" if empty[0] and len(fields) > 2 else "the line"}'
        ' (from the test sets of all seeds alike).'
      )
    # The paper's code strips lines, whose fields it takes as they are.
    text, *others, last = fields
    yield sources.TextExample(
      f'{prefix}/{number}',
      f' [{task}] {text.lstrip()}',
      (*others, last.rstrip()),
    )


def read_partition(
  path: epath.Path,
  tasks: Iterable[str],
  *,
  absent: Literal['refuse', 'leave_out'] = 'refuse',
) -> dict[Part, tuple[str, ...]]:
  """Reads a partition of the tasks; parts without tasks are left out.

  Args:
    path: of the JSON file.
    tasks: those that there are.
    absent: what to do with others that it names.

  Raises:
    UserError: it is not of the form, names a task that there is not, or none
      that there is.
  """
  tasks = set(tasks)
  if absent not in ('refuse', 'leave_out'):
    raise UserError(f"absent is 'refuse' or 'leave_out', not {absent!r}.")
  content = run_files.read_json(path)
  if not set(_PARTS) & content.keys():
    raise UserError(f'{path} has none of {", ".join(_PARTS)}.')
  parts: dict[Part, tuple[str, ...]] = {}
  for part in _PARTS:
    named = content.get(part, [])
    if not isinstance(named, list) or not all(
      isinstance(each, str) for each in named
    ):
      raise UserError(
        f'{path}: {part!r} is a list of names of tasks, not {named!r}.'
      )
    missing = [task for task in named if task not in tasks]
    if missing and absent == 'refuse':
      raise UserError(
        f'{path}: {part!r} names {missing[0]!r}, which has no folder here'
        f' ({len(missing)} of {len(named)} have none).'
        f"{nearest(missing[0], tasks)} absent='leave_out' goes on without."
      )
    if missing:
      _log.warning('%s: %r goes without %s.', path, part, ', '.join(missing))
    kept = tuple(task for task in named if task in tasks)
    if kept:
      parts[part] = kept
  if not parts:
    raise UserError(
      f'{path} names no task that is here: {", ".join(_PARTS)} are empty.'
    )
  return parts


def _check_tests(folder: epath.Path, prefixes: Mapping[int, str]) -> None:
  """Refuses test sets that differ: one seed's may hold another's examples."""
  first, *others = (folder / f'{p}_test.tsv' for p in prefixes.values())
  expected = first.read_bytes() if others else b''
  for path in others:
    if path.read_bytes() != expected:
      raise UserError(
        f'{path} and {first} differ, though seeds share their test set: build'
        ' the task again, or register one seed alone (seeds).'
      )


def _split_names(prefixes: Mapping[int, str]) -> tuple[str, ...]:
  by_seed = (
    f'{kind}_seed{s}' for kind in ('few_shot', 'dev') for s in prefixes
  )
  return 'train', 'test', *by_seed


def _task_name(name: str, task: str) -> str:
  return re.sub(r'\W', '_', f'{name}_{task}')


def _task_folders(folder: epath.Path) -> list[epath.Path]:
  """Returns the folders that hold a task's files."""
  if not folder.is_dir():
    raise UserError(f'There is no folder {folder}.')
  found = sorted(
    each
    for each in folder.iterdir()
    if each.is_dir() and any(each.glob('*_train.tsv'))
  )
  if not found:
    raise UserError(
      f'{folder} has no folder of a task with files'
      ' <task>_<shots>_<seed>_train.tsv.'
    )
  return found


def _partition_files(
  given: epath.PathLike | Sequence[epath.PathLike],
) -> list[epath.Path]:
  """Returns the JSON files of a folder, of a list, or the one."""
  paths = [given] if isinstance(given, (str, os.PathLike)) else list(given)
  found = []
  for path in map(epath.Path, paths):
    path = path.expanduser()
    found += sorted(path.glob('*.json')) if path.is_dir() else [path]
  return found
