"""Reading a model from whatever holds one: a run, or a backbone with adapters."""

import dataclasses

from etils import epath

from mhr_jax import partitioning, run_folder
from mhr_jax.model import Params, RoutedT5
from mhr_jax.task_table import TaskTable
from mhr_jax.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class LoadedModel:
  """A model with its parameters and what belongs to it.

  Attributes:
    model: backbone, adapters and routing as configured.
    params: all parameters.
    task_table: which id is which task, where that is known.
    vocabulary: None where there is none with the model.
    source: where it was read from.
  """

  model: RoutedT5
  params: Params
  task_table: TaskTable | None = None
  vocabulary: Vocabulary | None = None
  source: str = ''


def read_run(
  path: epath.PathLike,
  *,
  step: int | None = None,
  dtype: str | None = None,
  mesh: partitioning.Mesh | None = None,
) -> LoadedModel:
  """Reads a run folder.

  Raises:
    UserError: it is none, or not whole.
  """
  run = run_folder.load_run(
    path, step, mesh=mesh, backbone_dtype=dtype or 'float32'
  )
  return LoadedModel(
    run.model, run.params, run.task_table, run.vocabulary, str(path)
  )
