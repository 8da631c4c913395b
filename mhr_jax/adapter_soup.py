"""AdapterSoup: a new task starts from the average of its neighbours' adapters.

Of a run with an adapter a task (`private`), those of the training tasks that
are nearest to the new task, by the cosine of the tasks' embeddings, are
averaged; few-shot training goes on from there. Which training tasks are in a
soup depends on the new task's inputs alone: its shots', or, zero-shot, those of
its test set without their targets.

References: Chronopoulou et al. 2023 (arXiv:2302.07027); Caccia et al. 2023
(arXiv:2211.03831), who compare with it few-shot. How many neighbours either
takes is not in released code: `n_nearest` is ours.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import logging
from typing import Any, Literal, Protocol

from etils import epath
import jax
from jax import numpy as jnp
from jaxtyping import Float, Float32, PyTree
import numpy as np

from mhr_jax import (
  adapters,
  checksums,
  methods,
  run_files,
  task_embeddings,
)
from mhr_jax.data import few_shot, ordered, records
from mhr_jax.data.ordered import EvalBatch, ExampleSource
from mhr_jax.errors import UserError
from mhr_jax.model import RoutedT5
from mhr_jax.setting_checks import check_fields
from mhr_jax.task_embeddings import Space, TaskEmbeddings, Tokens, Vector
from mhr_jax.task_table import TaskTable

EMBEDDINGS_FILE = 'task_embeddings.npz'
_SEED = 0  # Of the draw of the training tasks' examples.
_ROWS = 64

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoupSettings:
  """Which training tasks' adapters a new task starts from the average of.

  Attributes:
    space: what nearness is measured in: 'backbone', 'text' or 'file' (see
      `task_embeddings`).
    n_nearest: training tasks in a soup.
    weights: 'equal', or in proportion to the 'similarity'.
    n_examples: of each training task, drawn at random; all where there are
      fewer. Of a new task all shots count.
    split: of the training tasks, to draw them from.
    data_dir: the folder of the training tasks' prepared data; None for that
      of the new tasks, in a study for that of its own multi-task training.
    file: with space 'file', the .npz of vectors by task.

  Raises:
    UserError: a setting is not possible.
  """

  space: Space = 'backbone'
  n_nearest: int = 5
  weights: Literal['equal', 'similarity'] = 'equal'
  n_examples: int = 100
  split: str = 'train'
  data_dir: str | None = None
  file: str | None = None

  def __post_init__(self):
    check_fields(self, least={'n_nearest': 1, 'n_examples': 1})
    if (self.space == 'file') != (self.file is not None):
      raise UserError(
        f"space='file' and a file go together; space is {self.space!r}, file"
        f' {self.file!r}.'
      )


@dataclasses.dataclass(frozen=True)
class Soup:
  """What is averaged for a new task.

  Attributes:
    tasks: training tasks, the nearest first.
    similarities: their cosines with the new task.
    weights: their shares in the average; sum to 1.
  """

  tasks: tuple[str, ...]
  similarities: tuple[float, ...]
  weights: tuple[float, ...]

  def __str__(self) -> str:
    pairs = zip(self.tasks, self.similarities, strict=True)
    return ', '.join(f'{task} {similarity:.3f}' for task, similarity in pairs)


@dataclasses.dataclass(frozen=True)
class SoupChooser:
  """Chooses soups of the training tasks of a run.

  Attributes:
    settings: how.
    known: the embeddings of all training tasks, in the order of their ids.

  Raises:
    UserError: a soup would have more tasks than there are.
  """

  settings: SoupSettings
  known: TaskEmbeddings

  def __post_init__(self):
    if self.settings.n_nearest > len(self.known.tasks):
      raise UserError(
        f'n_nearest is {self.settings.n_nearest}, and the run was trained on'
        f' {len(self.known.tasks)} tasks: SoupSettings.n_nearest must be at'
        f' most {len(self.known.tasks)}.'
      )

  def choose(self, task: str, inputs: Tokens) -> Soup:
    """Returns the soup of a new task.

    Args:
      task: its name.
      inputs: token ids of its inputs, padded with 0.
    """
    vector = self.known.embedder.embed(task, inputs)
    return choose_soup(vector, self.known, self.settings)

  def shares(self, soup: Soup) -> Float32[np.ndarray, 'task']:
    """Returns each training task's weight in a soup, by its id."""
    shares = np.zeros(len(self.known.tasks), np.float32)
    for task, weight in zip(soup.tasks, soup.weights, strict=True):
      shares[self.known.tasks.index(task)] = weight
    return shares


def choose_soup(
  vector: Vector, known: TaskEmbeddings, settings: SoupSettings
) -> Soup:
  """Returns the nearest tasks and their weights; of equals the first ones.

  Raises:
    UserError: no nearest task is alike, so that weights cannot follow it.
  """
  cosines = task_embeddings.cosine_similarities(vector, known.vectors)
  ids = np.argsort(-cosines, kind='stable')[: settings.n_nearest]
  return Soup(
    tasks=tuple(known.tasks[i] for i in ids),
    similarities=tuple(cosines[ids].tolist()),
    weights=tuple(_weights(cosines[ids], settings.weights).tolist()),
  )


def _weights(
  similarities: Float[np.ndarray, 'nearest'], how: str
) -> Float[np.ndarray, 'nearest']:
  """Returns weights that sum to 1; a task that is not alike has none."""
  if how == 'equal':
    return np.full(len(similarities), 1 / len(similarities))
  alike = np.maximum(similarities, 0)
  if not alike.any():
    raise UserError(
      'No training task is alike (the largest similarity is'
      f" {similarities.max():.3f}): weights='similarity' has nothing to go by;"
      " weights='equal' does without."
    )
  return alike / alike.sum()


def inputs_by_task(batches: Iterable[EvalBatch]) -> dict[str, Tokens]:
  """Returns the inputs of evaluation batches by task, fillers left out."""
  rows: dict[str, list[np.ndarray]] = {}
  for batch in batches:
    tokens = batch.arrays['encoder_input_tokens']
    for record, row in zip(batch.records, tokens, strict=False):
      rows.setdefault(record.task, []).append(row)
  return {task: np.stack(of_task) for task, of_task in rows.items()}


def serve_soups(
  model: RoutedT5,
  params: Mapping[str, PyTree],
  chooser: SoupChooser,
  batches: Iterable[EvalBatch],
) -> tuple[RoutedT5, dict[str, PyTree], list[EvalBatch], dict[str, Soup]]:
  """Makes a model that serves every new task by its soup, without training.

  Args:
    model: as it was pre-trained, with an adapter a task.
    params: its parameters.
    chooser: of the soups.
    batches: instances of new tasks.

  Returns:
    A model with one adapter a new task, its parameters, the batches with the
    ids of these tasks, and the soups by task.
  """
  assert model.adapters is not None
  batches = list(batches)
  soups = {
    task: chooser.choose(task, inputs)
    for task, inputs in inputs_by_task(batches).items()
  }
  averages = [
    adapters.average_adapters(params['adapters'], chooser.shares(soup))
    for soup in soups.values()
  ]
  # An inventory's axes are layer, split, skill …: one skill a new task.
  inventories = jax.tree.map(lambda *x: jnp.concatenate(x, axis=2), *averages)
  config = dataclasses.replace(
    model.adapters, n_tasks=len(soups), n_skills=len(soups)
  )
  served = dataclasses.replace(model, adapters=config)
  added = {'backbone': params['backbone'], 'adapters': inventories}
  table = TaskTable(tuple(soups))
  return served, added, [_with_ids(b, table) for b in batches], soups


def _with_ids(batch: EvalBatch, table: TaskTable) -> EvalBatch:
  """Returns a batch with the ids of a table; rows that fill up have id 0."""
  ids = np.zeros_like(batch.arrays['task_ids'])
  ids[: len(batch.records)] = table.ids(r.task for r in batch.records)
  return dataclasses.replace(batch, arrays={**batch.arrays, 'task_ids': ids})


class Pretrained(Protocol):
  """A run, just trained or read back."""

  @property
  def model(self) -> RoutedT5: ...
  @property
  def params(self) -> Mapping[str, PyTree]: ...
  @property
  def task_table(self) -> TaskTable | None: ...


def build_chooser(
  method: str | methods.Method,
  settings: SoupSettings,
  run: Pretrained,
  *,
  run_dir: epath.PathLike,
  data_dir: epath.PathLike,
  input_length: int,
) -> SoupChooser | None:
  """Returns what chooses soups from a run's training tasks.

  Their embeddings are kept in the run folder and read again where they were
  made from the same backbone, data and settings.

  Args:
    method: that adapts.
    settings: which tasks to choose.
    run: the pre-trained run.
    run_dir: its folder.
    data_dir: of the training tasks' prepared data, where settings name none.
    input_length: where the new tasks' inputs are cut, and so these.

  Returns:
    The chooser; None where the method starts from no soup.

  Raises:
    UserError: the training tasks are not known or not prepared, or settings
      do not fit them.
  """
  if methods.get_method(method).adapt_from != 'soup':
    return None
  if run.task_table is None:
    raise UserError(f'{run_dir} has no table of tasks to choose soups from.')
  names = run.task_table.names
  if settings.space == 'file':
    assert settings.file is not None
    embedder = task_embeddings.FileEmbedder(settings.file)
    empty = np.zeros((0, 1), np.int32)
    known = task_embeddings.embed_tasks(embedder, dict.fromkeys(names, empty))
    return SoupChooser(settings, known)
  sources = _open_sources(settings, settings.data_dir or data_dir, names)
  path = epath.Path(run_dir) / EMBEDDINGS_FILE
  made_from = _made_from(settings, run, sources, input_length)
  embedder = None
  if settings.space == 'backbone':
    embedder = task_embeddings.BackboneEmbedder(
      run.model.config, run.params['backbone']
    )
  known = task_embeddings.load_embeddings(path, embedder, made_from=made_from)
  if known is None:
    inputs = _draw_inputs(sources, settings, input_length)
    embedder = embedder or task_embeddings.TextEmbedder.fit(inputs.values())
    known = task_embeddings.embed_tasks(embedder, inputs)
    _save(path, known, made_from)
  return SoupChooser(settings, known)


def _open_sources(
  settings: SoupSettings, data_dir: epath.PathLike, names: Sequence[str]
) -> list[records.TaskSource]:
  try:
    tasks = records.open_tasks(data_dir, names)
    return [task.source(settings.split) for task in tasks]
  except UserError as error:
    raise UserError(
      f'Soups are chosen by examples of the {len(names)} training tasks:'
      f' {error} SoupSettings.data_dir and .split say where else they are;'
      " space='file' does without."
    ) from error


def _made_from(
  settings: SoupSettings,
  run: Pretrained,
  sources: Sequence[records.TaskSource],
  input_length: int,
) -> str:
  """Returns a digest of everything that decides the embeddings."""
  facts: dict[str, Any] = {
    'space': settings.space,
    'n_examples': settings.n_examples,
    'split': settings.split,
    'seed': _SEED,
    'input_length': input_length,
    'tasks': {source.name: source.task.fingerprint for source in sources},
  }
  if settings.space == 'backbone':
    facts['backbone'] = checksums.checksum(run.params['backbone'])
    facts['config'] = dataclasses.asdict(run.model.config)
  return run_files.digest(facts)


def _draw_inputs(
  sources: Sequence[records.TaskSource],
  settings: SoupSettings,
  input_length: int,
) -> dict[str, Tokens]:
  """Returns the inputs of some examples of each task."""
  inputs = {}
  for source in sources:
    n = min(settings.n_examples, len(source))
    drawn = few_shot.few_shot_examples(source, n, _SEED)
    batches = ordered.eval_batches(
      [ExampleSource(source.name, drawn.train)],
      batch_size=min(n, _ROWS),
      input_length=input_length,
      target_length=1,
    )
    inputs |= inputs_by_task(batches)
  return inputs


def _save(path: epath.Path, known: TaskEmbeddings, made_from: str) -> None:
  """Keeps embeddings, unless the run folder is somebody else's."""
  if jax.process_index() != 0:
    return
  try:
    task_embeddings.save_embeddings(path, known, made_from=made_from)
  except OSError as error:
    _log.warning(
      '%s cannot be written (%s): computed anew next time.', path, error
    )
