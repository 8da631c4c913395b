"""The work of making batches from prepared data, with reading ahead."""

import itertools
from typing import Any

from benchmarks.works import Works
from mhr_jax.data.loader import build_loader
from mhr_jax.data.mixture_settings import MixtureSettings
from mhr_jax.data.read_ahead import ReadAhead

BATCHES = 'batches'


def build(
  data_dir: str,
  tasks: str | list[str],
  settings: dict[str, Any],
  batches: int,
  split: str = 'train',
) -> Works:
  """Builds the work of so many batches, one step after the other.

  Args:
    data_dir: of prepared data.
    tasks: a mixture, or names.
    settings: of `MixtureSettings`.
    batches: of each run.
    split: of every task.
  """
  mixture = MixtureSettings(**settings)
  loader = build_loader(data_dir, tasks, split, mixture)
  read = ReadAhead(loader)
  steps = itertools.count()

  def run() -> None:
    for step in itertools.islice(steps, batches):
      read(step)

  facts = {
    'tasks': len(loader.tasks),
    'records': loader.n_examples,
    'examples': batches * mixture.batch_size,
  }
  return Works({BATCHES: run}, facts)
