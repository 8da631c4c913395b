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

from mhr_jax import reporting, run_files
from mhr_jax.analysis import routing
from mhr_jax.errors import UserError
from mhr_jax.task_table import TaskTable

_DEPTH = 3


@dataclasses.dataclass(frozen=True)
class RunFacts:
  """One run folder's files.

  Attributes:
    name: the folder's path below the report's, such as 'mhr/seed0'.
    facts: what `run.json` holds; {} without it.
    metrics: the lines of `metrics.jsonl`.
    scores: what each `scores.json` holds, by the name of its sub-folder; ''
      is the run's own folder.
    config_text: the resolved configuration, '' without it.
    weights: mixing weights by path of the linear, or None.
    tasks: names of the tasks of `weights`.
  """

  name: str
  facts: Mapping[str, Any]
  metrics: list[dict[str, Any]]
  scores: Mapping[str, Any]
  config_text: str
  weights: Mapping[str, np.ndarray] | None
  tasks: TaskTable | None

  @property
  def group(self) -> str:
    """What the run has in common with its other seeds.

    METHOD of a folder METHOD/seedN; else the method, or the folder's name.
    """
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
    metrics=reporting.read_metrics(folder),
    scores=_read_scores(folder),
    config_text=config.read_text() if config.exists() else '',
    weights=weights,
    tasks=tasks,
  )


def _read_scores(folder: epath.Path) -> dict[str, Any]:
  children = sorted(folder.iterdir(), key=lambda path: path.name)
  found = {'': read_object(folder / run_files.SCORES_FILE)}
  for child in children:
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
  runs = [read_run(folder)] if _is_run(folder) else []
  return runs + list(_runs_below(folder, '', _DEPTH))


def _runs_below(folder: epath.Path, prefix: str, depth: int):
  if not depth:
    return
  for child in sorted(folder.iterdir(), key=lambda path: path.name):
    if not child.is_dir() or child.name.startswith('.'):
      continue
    name = f'{prefix}{child.name}'
    if _is_run(child):
      yield read_run(child, name=name)
    else:
      yield from _runs_below(child, f'{name}/', depth - 1)


def _is_run(folder: epath.Path) -> bool:
  names = (run_files.RUN_FILE, run_files.METRICS_FILE)
  return any((folder / name).exists() for name in names)


def read_object(path: epath.PathLike) -> dict[str, Any]:
  """Returns a JSON file's object; {} where there is no file.

  Raises:
    UserError: the file is damaged.
  """
  path = epath.Path(path)
  return run_files.read_json(path) if path.exists() else {}
