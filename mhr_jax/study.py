"""A study: backbone, multi-task training, zero-shot, few-shot, one table.

    backbone ─┬─ untrained scores
              └─ for each method's pre-training and seed
                   ├─ multi-task scores (and with shuffled task ids)
                   ├─ alignment of the tasks' gradients, where it was measured
                   ├─ zero-shot: as the method serves unseen tasks
                   └─ few-shot: as the method adapts, on new draws a seed

A seed is one of pre-training; its few-shot examples are drawn by the same
seed (or by `FewShot.draws`), so every value behind a mean has a pre-training
of its own. Each cell's result is kept in `cells/`, and a study that is started
again goes on with those that are missing.
"""

from collections.abc import Mapping
import dataclasses

from etils import epath

from mhr_jax import (
  configuration_values,
  processes,
  run_files,
  study_files,
  train,
)
from mhr_jax.analysis import report
from mhr_jax.errors import UserError
from mhr_jax.study_cells import Cells
from mhr_jax.study_results import to_results
from mhr_jax.study_running import Runner
from mhr_jax.study_settings import (
  Comparison,
  FewShot,
  Study,
  TestSet,
  Training,
)

__all__ = (
  'Comparison',
  'FewShot',
  'Study',
  'TestSet',
  'Training',
  'run_study',
  'study',
)

# What may differ when a study goes on: it changes no cell.
_FREE = ('baselines', 'comparisons', 'mean_over', 'methods', 'seeds')
# By method: those of other methods may come in.
_BY_METHOD = 'few_shot.adaptation.'


def study(
  run_dir: str, *, settings: Study, config_text: str = '', command: str = ''
) -> dict:
  """Runs a study, prints its tables and writes its results and report.

  Args:
    run_dir: the study's folder; see `run_study`. Gets `results.json`,
      `results.csv`, `results.md`, `figures/` and `report.html`.
    settings: what to run.
    config_text: the resolved configuration, kept in every run folder.
    command: what started the study, for the model cards.

  Returns:
    The content of `results.json`.

  Raises:
    UserError: something does not fit, or a folder holds another run.
  """
  processes.check_alone('A study')
  cells = run_study(run_dir, settings, config_text=config_text, command=command)
  results = to_results(settings, cells)
  paths = study_files.write_results(run_dir, results, settings, cells)
  study_files.print_tables(results, cells.console)
  for claim in results['untested']:
    cells.say(f'Nothing was measured for the claim {claim!r}.')
  paths.append(report.write_report(run_dir))
  cells.say('\n'.join(map(str, paths)))
  return results


def run_study(run_dir: epath.PathLike, settings: Study, **origin: str) -> Cells:
  """Runs what is missing of a study and returns all of its cells.

  Args:
    run_dir: the study's folder: a run folder for each training, `cells/`, and
      the predictions of every evaluation.
    settings: what to run.
    **origin: `config_text` and `command`, see `study`.

  Raises:
    UserError: something does not fit, or a folder holds another run.
  """
  _check_settings(epath.Path(run_dir), settings)
  cells = Cells(run_dir)
  Runner(run_dir, settings, cells, **origin).run()
  return cells


def _check_settings(run_dir: epath.Path, settings: Study) -> None:
  """Notes what the cells of a folder are made with, or compares.

  Raises:
    UserError: they were made with other settings.
  """
  asked = {
    field.name: getattr(settings, field.name)
    for field in dataclasses.fields(settings)
    if field.name not in _FREE
  }
  asked['adapters'] = settings.adapters(n_tasks=1)
  asked['seeds[0]'] = settings.seeds[0]  # That of the backbone.
  values = train.flat_settings(asked)
  path = run_dir / train.SETTINGS_FILE
  known = run_files.read_json(path) if path.exists() else {}
  if known:
    known = train.with_defaults(known, asked)
  changed = configuration_values.diff(
    *(_common(some, of) for some, of in ((known, values), (values, known)))
  )
  if known and changed:
    raise UserError(
      f'{run_dir} holds a study with other settings:\n  '
      + '\n  '.join(changed)
      + '\nChoose another run_dir; methods may be added, and seeds'
      ' behind the first one.'
    )
  if values != known:
    run_files.write_json(path, {**known, **values})


def _common(
  some: Mapping[str, str], others: Mapping[str, str]
) -> dict[str, str]:
  """Leaves out what is of methods that the others say nothing of."""
  methods = {_method_of(key) for key in others}
  return {
    key: value
    for key, value in some.items()
    if not (_method_of(key) and _method_of(key) not in methods)
  }


def _method_of(key: str) -> str:
  """Returns the method whose adaptation a setting is part of, or ''."""
  if not key.startswith(_BY_METHOD):
    return ''
  return key.removeprefix(_BY_METHOD).partition('.')[0]
