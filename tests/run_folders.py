"""Folders of runs as the trainer leaves them, of a few numbers each."""

import pathlib

import numpy as np

from mhr_jax import reporting, run_files
from mhr_jax.analysis import routing
from mhr_jax.task_table import TaskTable


def write_run(
  folder: pathlib.Path,
  *,
  text: str = 'plain',
  method: str = 'mhr',
  trains: str = 'adapters',
  **settings: str,
) -> None:
  """Writes a run's description, numbers and routing, `text` in all of them."""
  tasks = TaskTable((f'{text} one', f'{text} two', f'{text} three'))
  params = {trains: {text: np.zeros((4, 25), np.float32)}}
  reporting.write_run_folder(
    folder,
    reporting.RunDescription(
      name=text,
      summary=text,
      method=method,
      tasks=tasks,
      parameters=reporting.parameter_rows(params, trains=(trains,)),
      settings={text: text, **settings},
      command=text,
      config_text=text,
    ),
  )
  with reporting.MetricsWriter(folder, writers=()) as writer:
    for step in range(1, 6):
      writer.write(step, {'train/loss': 1 / step, f'{text}/loss': 2 / step})
  weights = np.random.default_rng(0).dirichlet(np.ones(4), (2, 3, 2))
  routing.save_routing(folder, {f'{text}/query': weights}, tasks)


def write_scores(folder: pathlib.Path, **by_task: float) -> None:
  """Writes the scores of an evaluation: exact match by task."""
  tasks = {
    name: {'instances': 4, 'exact_match': value}
    for name, value in by_task.items()
  }
  overall = {
    'instances': 4 * len(by_task),
    'exact_match': float(np.mean(list(by_task.values()))),
  }
  scores = {'overall': overall, 'mean_over_tasks': {}, 'tasks': tasks}
  run_files.write_json(folder / run_files.SCORES_FILE, scores)
