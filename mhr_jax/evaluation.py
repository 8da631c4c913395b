"""Evaluating a model: texts that it writes, answer choices that it ranks,
and losses on given targets.

Batches are those of `data.ordered.eval_batches`: every instance exactly once,
rows that only fill up dropped. In a run of several processes each one passes
the same whole batches; all of them get the same scores.

References: Wang et al. 2022 (arXiv:2204.07705) and the official
`compute_metrics.py` of allenai/natural-instructions: the best score over an
instance's references, the mean over instances, times 100.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import dataclasses
import functools
from typing import Any, Literal

from etils import epath
import jax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Int32
import numpy as np

from mhr_jax import adapters, metrics, partitioning, ranking, scores
from mhr_jax.data.ordered import EvalBatch, report_cuts
from mhr_jax.errors import UserError
from mhr_jax.model import RoutedT5
from mhr_jax.progress import Progress
from mhr_jax.ranking import ChoiceSettings
from mhr_jax.setting_checks import check_fields
from mhr_jax.t5.decoding import DecodingSettings
from mhr_jax.vocabulary import Vocabulary

Params = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
  """How instances become predictions.

  Attributes:
    decoding: how texts are written; not needed where choices are ranked.
    metrics: names of `metrics.METRICS` and `metrics.SET_METRICS`, and
      'own_metric', by which each task is scored by the metric it names. With
      'accuracy' among them nothing is written: the predictions are the answer
      choices that rank first.
    choices: how answer choices are ranked.
    adapter: 'task' mixes each instance's adapter by its task's routing;
      'average' uses the average adapter for all, as for unseen tasks.
    task_ids: 'shuffled' runs each task with another task's routing: what
      remains of the scores does not come from the routing.
    seed: of the shuffling and of sampled decoding.
  """

  decoding: DecodingSettings | None = None
  metrics: tuple[str, ...] = scores.METRICS
  choices: ChoiceSettings = ChoiceSettings()
  adapter: Literal['task', 'average'] = 'task'
  task_ids: Literal['right', 'shuffled'] = 'right'
  seed: int = 0

  def __post_init__(self):
    object.__setattr__(self, 'metrics', tuple(self.metrics))
    check_fields(self)
    for name in self.metrics:
      if name not in (scores.ACCURACY, *scores.BASELINES, scores.OWN_METRIC):
        metrics.check_name(name)
    if self.decoding is None and not self.ranks:
      raise UserError(
        f'The metrics {", ".join(self.metrics)} score texts, which need'
        ' EvaluationSettings.decoding (DecodingSettings); the metric'
        f' {scores.ACCURACY!r} ranks answer choices instead.'
      )

  @property
  def ranks(self) -> bool:
    """Whether answer choices are ranked, and no texts written."""
    return scores.ACCURACY in self.metrics


def derangement(n: int, seed: int) -> Int32[np.ndarray, 'n']:
  """Returns a seeded permutation of n ids that leaves none where it was.

  It is one cycle through all of them (Sattolo's algorithm).

  Raises:
    UserError: there is only one id, which has nowhere to go.
  """
  if n < 2:
    raise UserError('Shuffling task ids needs at least two tasks.')
  rng = np.random.default_rng(seed)
  ids = np.arange(n, dtype=np.int32)
  for i in range(n - 1, 0, -1):
    j = rng.integers(i)
    ids[i], ids[j] = ids[j], ids[i]
  return ids


def average_model(
  model: RoutedT5, params: Params
) -> tuple[RoutedT5, dict[str, Any]]:
  """Returns the model and parameters of the average adapter (the paper's μ).

  Exact: the same function as uniform mixing over the inventory, with one
  adapter a linear and no routers. A model without adapters stays as it is.
  """
  if model.adapters is None:
    return model, dict(params)
  config = model.adapters.without_routing()
  averaged = {
    'backbone': params['backbone'],
    'adapters': adapters.average_adapters(params['adapters']),
  }
  return dataclasses.replace(model, adapters=config), averaged


def evaluate_generation(
  model: RoutedT5,
  params: Params,
  batches: Iterable[EvalBatch],
  vocabulary: Vocabulary,
  *,
  settings: EvaluationSettings,
  folder: epath.PathLike | None = None,
  progress: Progress | None = None,
) -> scores.Scores:
  """Predicts an answer for every instance and scores it.

  The answer is a text, or where the metrics ask for it the choice that ranks
  first.

  Args:
    model: the model; compiled once a shape of batch.
    params: its parameters.
    batches: what to evaluate on.
    vocabulary: turns token ids into text.
    settings: how.
    folder: where `scores.json` and `predictions.jsonl` go; None for nowhere.
    progress: is told of every batch.

  Raises:
    UserError: there is nothing to evaluate, no routing to shuffle, or an
      instance without choices to rank.
  """
  batches = report_cuts(batches)
  predictions = predict(
    model, params, batches, vocabulary, settings=settings, progress=progress
  )
  found, values = scores.score_predictions(
    predictions, metrics=settings.metrics
  )
  if folder is not None and jax.process_index() == 0:
    scores.write_scores(folder, found, predictions, values)
  return found


def predict(
  model: RoutedT5,
  params: Params,
  batches: Iterable[EvalBatch],
  vocabulary: Vocabulary,
  *,
  settings: EvaluationSettings,
  progress: Progress | None = None,
) -> list[scores.Prediction]:
  """Predicts an answer for every instance; see `evaluate_generation`."""
  change_ids = _id_change(model, settings)
  if settings.adapter == 'average':
    model, params = average_model(model, params)
  if settings.ranks:
    start, read = _ranking(model, params, settings)
  else:
    start, read = _writing(model, params, settings, vocabulary)
  found: list[scores.Prediction] = []

  def finish(batch: EvalBatch, result: Any):
    found.extend(read(batch, result))
    if progress is not None:
      done = len(found)
      progress.update(done, examples=len(batch.records))

  waiting: tuple[EvalBatch, Any] | None = None
  for step, batch in enumerate(batches):
    batch = dataclasses.replace(batch, arrays=dict(change_ids(batch.arrays)))
    result = start(step, batch)
    if waiting is not None:  # The host reads while the device computes.
      finish(*waiting)
    waiting = batch, result
  if waiting is not None:
    finish(*waiting)
  return found


# Starts the device on the batch of a step, and reads what it found.
_Start = Callable[[int, EvalBatch], Any]
_Read = Callable[[EvalBatch, Any], Iterable[scores.Prediction]]


def _writing(
  model: RoutedT5,
  params: Params,
  settings: EvaluationSettings,
  vocabulary: Vocabulary,
) -> tuple[_Start, _Read]:
  """Returns what writes a text for every instance of a batch."""
  assert settings.decoding is not None  # It was checked with the metrics.
  generate = _compiled_generate(
    model, settings.decoding, replicated_like(params)
  )
  key = jax.random.key(settings.seed)

  def start(step, batch):
    arrays = place(batch.arrays, params)
    return generate(params, arrays, jax.random.fold_in(key, step))

  def read(batch, tokens):
    return to_predictions(batch, np.asarray(tokens), vocabulary)

  return start, read


def _ranking(
  model: RoutedT5, params: Params, settings: EvaluationSettings
) -> tuple[_Start, _Read]:
  """Returns what ranks the answer choices of every instance of a batch."""
  score = _compiled_score(model, replicated_like(params))

  def start(step, batch):
    del step
    widths = ranking.choice_widths([batch])
    return score(params, place(ranking.with_choices(batch, widths), params))

  def read(batch, found):
    log_probs, lengths = map(np.asarray, found)
    return ranking.to_predictions(batch, log_probs, lengths, settings.choices)

  return start, read


def to_predictions(
  batch: EvalBatch,
  tokens: Int32[np.ndarray, 'row length'],
  vocabulary: Vocabulary,
) -> Iterator[scores.Prediction]:
  """Yields the predictions of a batch's instances, fillers left out."""
  for record, ids in zip(batch.records, tokens, strict=False):
    yield scores.Prediction(
      example_id=record.example_id,
      task=record.task,
      category=record.category,
      input=record.inputs,
      prediction=vocabulary.decode(ids.tolist()).strip(),
      references=record.targets,
      metric=record.metric,
    )


def _id_change(
  model: RoutedT5, settings: EvaluationSettings
) -> Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]:
  if settings.task_ids == 'right':
    return lambda arrays: arrays
  if model.adapters is None or model.adapters.mixing == 'uniform':
    raise UserError(
      "task_ids='shuffled' needs a model that routes by task; this one does"
      ' not.'
    )
  if settings.adapter == 'average':
    raise UserError('The average adapter has no task ids to shuffle.')
  other = derangement(model.adapters.n_tasks, settings.seed)
  return lambda arrays: {**arrays, 'task_ids': other[arrays['task_ids']]}


@functools.lru_cache(maxsize=32)
def _compiled_score(model: RoutedT5, out_sharding: NamedSharding | None):
  return jax.jit(model.score_choices, out_shardings=out_sharding)


@functools.lru_cache(maxsize=32)
def _compiled_generate(
  model: RoutedT5,
  decoding: DecodingSettings,
  out_sharding: NamedSharding | None,
):
  def generate(params, batch, key):
    return model.generate(params, batch, decoding, key=key)

  return jax.jit(generate, out_shardings=out_sharding)


def replicated_like(params: Params) -> NamedSharding | None:
  """Where results go so that every process can read them."""
  mesh = mesh_of(params)
  return None if mesh is None else partitioning.replicated(mesh)


def as_whole(found: Any, params: Params) -> Any:
  """Returns what was computed from parameters where this process can read it.

  Args:
    found: a tree of arrays.
    params: on a mesh, perhaps of several processes, or anywhere else.
  """
  where = replicated_like(params)
  return found if where is None else jax.device_put(found, where)


def mesh_of(params: Params) -> Mesh | None:
  """Returns the mesh that parameters are on, if any."""
  for leaf in jax.tree.leaves(params):
    sharding = getattr(leaf, 'sharding', None)
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
      return sharding.mesh
  return None


def place(arrays: Mapping[str, np.ndarray], params: Params) -> dict[str, Any]:
  """Puts a whole batch where the parameters are, rows over `data` if it can.

  Args:
    arrays: the batch, the same in every process.
    params: on a mesh, or anywhere else, which leaves the batch as it is.
  """
  mesh = mesh_of(params)
  if mesh is None:
    return dict(arrays)
  rows = len(next(iter(arrays.values())))
  even = rows % mesh.shape[partitioning.DATA_AXIS] == 0
  where = (
    partitioning.batch_sharding(mesh) if even else partitioning.replicated(mesh)
  )
  return partitioning.put(dict(arrays), where)


def evaluate_loss(
  model: RoutedT5, params: Params, batches: Iterable[EvalBatch]
) -> dict[str, float]:
  """Returns the mean loss a target token, over all and by task.

  Args:
    model: the model; compiled once a shape of batch.
    params: its parameters.
    batches: the target is each instance's first reference.

  Returns:
    'loss', and 'loss/TASK' of each task.

  Raises:
    UserError: there is nothing to evaluate.
  """
  row_losses = _compiled_loss(model, replicated_like(params))
  sums: dict[str, np.ndarray] = {}
  for batch in batches:
    nll, weights = row_losses(params, place(batch.arrays, params))
    rows = np.stack([np.asarray(nll), np.asarray(weights)], axis=1)
    for record, row in zip(batch.records, rows.astype(float), strict=False):
      sums[record.task] = sums.get(record.task, 0.0) + row
  if not sums:
    raise UserError('There is nothing to evaluate: no instance was given.')
  total = np.sum(list(sums.values()), axis=0)
  by_task = {f'loss/{task}': _ratio(of) for task, of in sums.items()}
  return {'loss': _ratio(total), **by_task}


def _ratio(nll_and_weight: np.ndarray) -> float:
  return float(nll_and_weight[0] / max(nll_and_weight[1], 1e-9))


@functools.lru_cache(maxsize=32)
def _compiled_loss(model: RoutedT5, out_sharding: NamedSharding | None):
  def row_losses(params, batch):
    _, _, parts = model.loss(params, batch)
    return parts['row_nll'], parts['row_weights']

  return jax.jit(row_losses, out_shardings=out_sharding)


def make_evaluate(
  model: RoutedT5,
  batches: Callable[[], Iterable[EvalBatch]],
  vocabulary: Vocabulary | None = None,
  *,
  settings: EvaluationSettings | None = None,
  part: str = 'heldback',
) -> Callable[[int, Params], dict[str, float]]:
  """Returns the trainer's `evaluate`: (step, params) -> numbers by name.

  Args:
    model: the model.
    batches: starts the batches anew at each evaluation.
    vocabulary: with `settings`, to write and score texts too.
    settings: how to write texts; None evaluates losses only.
    part: first word of the numbers' names.
  """

  def evaluate(step: int, params: Params) -> dict[str, float]:
    del step
    numbers = {'loss': evaluate_loss(model, params, batches())['loss']}
    if settings is not None and vocabulary is not None:
      found = evaluate_generation(
        model, params, batches(), vocabulary, settings=settings
      )
      numbers |= {name: found.overall[name] for name in settings.metrics}
    return {f'{part}/{name}': value for name, value in numbers.items()}

  return evaluate
