"""Reads what a run or a study left in its folder, for the report.

A study is a folder with `results.json` and one sub-folder a run; a run is a
folder with `run.json` or `metrics.jsonl`. Whatever is absent is left out of
the report: nothing here is required.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from etils import epath
import numpy as np

from mhr_jax import adaptation, reporting, run_files
from mhr_jax.analysis import gradients, routing, skills
from mhr_jax.errors import UserError
from mhr_jax.task_table import TaskTable

_DEPTH = 3
# RUN/few_shot/METHOD/TASK/seedN, STUDY/few_shot/METHOD/seedN/TASK/seedN.
_ADAPTED_DEPTH = 6
_NO_CELLS = ('backbone', 'checkpoints', 'tensorboard', 'vocabulary')


@dataclasses.dataclass(frozen=True)
class RunFacts:
  """One run folder's files.

  Attributes:
    name: the folder's path below the report's, such as 'mhr/seed0'.
    facts: what `run.json` holds; {} without it.
    metrics: the lines of `metrics.jsonl`, and those of `alignment.json` at
      steps that it says nothing of.
    scores: what each `scores.json` holds, by the name of its folder, which
      lies in the run's or in its `evaluations`; '' is the run's own.
    config_text: the resolved configuration, '' without it.
    weights: mixing weights by path of the linear, or None.
    tasks: names of the tasks of `weights`.
    skills: cosines between skills by path of the linear, or None.
    group_name: see `group`; '' where the name decides.
  """

  name: str
  facts: Mapping[str, Any]
  metrics: list[dict[str, Any]]
  scores: Mapping[str, Any]
  config_text: str
  weights: Mapping[str, np.ndarray] | None
  tasks: TaskTable | None
  skills: Mapping[str, np.ndarray] | None = None
  group_name: str = ''

  @property
  def group(self) -> str:
    """What the run has in common with its other seeds.

    METHOD of a folder METHOD/seedN; else the method, or the folder's name.
    """
    if self.group_name:
      return self.group_name
    parent, slash, _ = self.name.rpartition('/')
    return parent if slash else self.facts.get('method') or self.name

  @property
  def trains_backbone(self) -> bool:
    """Whether the run trains the backbone, so that its loss is another one."""
    parts = self.facts.get('parameters', ())
    return any(p['trains'] and p['label'] == 'backbone' for p in parts)


def read_run(folder: epath.PathLike, *, name: str = '') -> RunFacts:
  """Reads one run folder; see `RunFacts`."""
  folder = epath.Path(folder)
  config = folder / run_files.CONFIG_FILE
  routed = routing.load_routing(folder)
  weights, tasks = routed or (None, None)
  return RunFacts(
    name=name or folder.name,
    facts=read_object(folder / run_files.RUN_FILE),
    metrics=_read_metrics(folder),
    scores=_read_scores(folder),
    config_text=config.read_text() if config.exists() else '',
    weights=weights,
    tasks=tasks,
    skills=skills.load_skills(folder),
  )


def _read_metrics(folder: epath.Path) -> list[dict[str, Any]]:
  lines = reporting.read_metrics(folder)
  name = f'{gradients.PART}/tasks'
  known = {line['step'] for line in lines if name in line}
  later = gradients.load_alignment(folder).items()
  return lines + [{'step': s, **of} for s, of in later if s not in known]


def _read_scores(folder: epath.Path) -> dict[str, Any]:
  found = {'': read_object(folder / run_files.SCORES_FILE)}
  for parent in (folder, folder / run_files.EVALUATIONS_FOLDER):
    children = parent.iterdir() if parent.is_dir() else ()
    for child in sorted(children, key=lambda path: path.name):
      if child.is_dir():
        found[child.name] = read_object(child / run_files.SCORES_FILE)
  return {name: scores for name, scores in found.items() if scores}


def read_runs(folder: epath.PathLike) -> list[RunFacts]:
  """Reads `folder` itself, where it is a run, and the runs below it.

  Raises:
    UserError: there is no such folder.
  """
  folder = epath.Path(folder)
  if not folder.is_dir():
    raise UserError(f'There is no folder {folder}.')
  runs = [read_run(folder)] if is_run(folder) else []
  return runs + list(_runs_below(folder, '', _DEPTH))


def _runs_below(folder: epath.Path, prefix: str, depth: int):
  if not depth:
    return
  for child in sorted(folder.iterdir(), key=lambda path: path.name):
    if not child.is_dir() or child.name.startswith('.'):
      continue
    name = f'{prefix}{child.name}'
    if is_run(child):
      yield read_run(child, name=name)
    else:
      yield from _runs_below(child, f'{name}/', depth - 1)


def is_run(folder: epath.PathLike) -> bool:
  """Whether a folder is itself a run's, and not only has runs below it."""
  folder = epath.Path(folder)
  names = (run_files.RUN_FILE, run_files.METRICS_FILE)
  return any((folder / name).exists() for name in names)


@dataclasses.dataclass(frozen=True)
class AdaptedFacts:
  """What `adapted.json` of one few-shot cell says.

  Attributes:
    method: that adapted.
    moved: see `movement.measure_movement`; {} in older files.
  """

  method: str
  moved: Mapping[str, Any]


def read_adapted(folder: epath.PathLike) -> list[AdaptedFacts]:
  """Reads every few-shot cell's facts below a folder."""
  return list(_adapted_below(epath.Path(folder), _ADAPTED_DEPTH))


def _adapted_below(folder: epath.Path, depth: int):
  path = folder / adaptation.ADAPTED_FILE
  if path.exists():
    facts = run_files.read_json(path)
    yield AdaptedFacts(facts.get('method', ''), facts.get('moved') or {})
  elif depth:
    for child in sorted(folder.iterdir(), key=lambda path: path.name):
      if child.is_dir() and child.name not in _NO_CELLS:
        yield from _adapted_below(child, depth - 1)


def read_object(path: epath.PathLike) -> dict[str, Any]:
  """Returns a JSON file's object; {} where there is no file.

  Raises:
    UserError: the file is damaged.
  """
  path = epath.Path(path)
  return run_files.read_json(path) if path.exists() else {}
