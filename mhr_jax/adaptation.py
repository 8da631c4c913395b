"""Adapting a pre-trained model to new tasks: few-shot and zero-shot.

What an adaptation starts from and what trains is read from the table of
methods; cells (a task and a seed each) come from `few_shot`, and train and
decode side by side in `side_by_side`.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
from typing import Any, Literal
import zlib

from etils import epath
import jax
import numpy as np
from safetensors import numpy as safetensors

from mhr_jax import (
  adapter_soup,
  evaluation,
  file_names,
  methods,
  movement,
  optim,
  processes,
  ranking,
  routing,
  run_files,
  scores,
)
from mhr_jax.adapter_soup import Soup, SoupChooser, SoupSettings
from mhr_jax.data.ordered import EvalBatch
from mhr_jax.errors import UserError
from mhr_jax.evaluation import EvaluationSettings
from mhr_jax.few_shot import Cell
from mhr_jax.methods import Method
from mhr_jax.model import RoutedT5
from mhr_jax.progress import Progress
from mhr_jax.setting_checks import check_fields
from mhr_jax.side_by_side import (
  LossSettings,
  Trained,
  generate_cells,
  score_cells,
  train_cells,
)
from mhr_jax.tree_paths import leaves_by_path
from mhr_jax.vocabulary import Vocabulary

Params = dict[str, Any]

ADAPTED_FILE = 'adapted.json'
SOUPS_FILE = 'soups.json'
TRAINED_FILE = 'trained.safetensors'


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptationSettings:
  """How few-shot adaptation trains.

  Attributes:
    optimizer: how parameters move.
    loss: what the loss is.
    rows: how the new tasks' routing logits start.
    soup: which training tasks' adapters are averaged, where the method starts
      from a soup.
    side_by_side: cells that train and decode at once; more take more memory.
    keep: 'trained' writes each cell's trained parameters beside its scores.
  """

  optimizer: optim.OptimizerSettings = optim.OptimizerSettings()
  loss: LossSettings = LossSettings()
  rows: routing.RowInit = 'uniform'
  soup: SoupSettings = SoupSettings()
  side_by_side: int = 8
  keep: Literal['nothing', 'trained'] = 'nothing'

  def __post_init__(self):
    check_fields(self, least={'side_by_side': 1})


@dataclasses.dataclass(frozen=True)
class Adapted:
  """What became of one cell.

  Attributes:
    task: the task's name.
    seed: of the cell.
    scores: on the task's test set, after the last step.
    predictions: what the scores are of.
    values: one number a prediction, by metric, of those that have any.
    losses: of training, a token, by step; on answer choices the whole loss.
    held_back_loss: of the held-back shots, a token; None without any.
    trained: the parameters that trained, by label.
    moved: how far they are from where they started (`movement`).
    soup: what was averaged to start from; None where nothing was.
    loss_parts: of a loss on answer choices, by name, by step.
  """

  task: str
  seed: int
  scores: scores.Scores
  predictions: tuple[scores.Prediction, ...]
  values: Mapping[str, np.ndarray]
  losses: np.ndarray
  held_back_loss: float | None
  trained: Params
  moved: movement.Numbers
  soup: Soup | None = None
  loss_parts: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def adaptation_start(
  model: RoutedT5,
  params: Mapping[str, Any],
  method: str | Method,
  *,
  key: jax.Array,
  rows: routing.RowInit = 'uniform',
  shares: np.ndarray | None = None,
) -> tuple[RoutedT5, Params]:
  """Returns the model of one new task and the parameters it starts from.

  Args:
    model: as it was pre-trained.
    params: the pre-trained parameters.
    method: what adapts; of the methods that share this pre-training.
    key: of the new rows of routing logits, and of fresh adapters.
    rows: how those rows start.
    shares: of the training tasks in the task's soup, where the method starts
      from one.

  Raises:
    UserError: the method adapts adapters, but the model has none.
  """
  method = methods.get_method(method)
  if method.inventory == 'none':
    bare = dataclasses.replace(model, adapters=None)
    return bare, {'backbone': params['backbone']}
  if model.adapters is None:
    raise UserError(
      f'{method.name} adapts adapters; this model has none. Start from a run'
      f' of {method.pretrain_as}.'
    )
  config = methods.adapter_config(
    method, model.adapters, phase='adapt', n_tasks=1
  )
  start = methods.start_params(
    method,
    params,
    config,
    phase='adapt',
    rows=rows,
    key=key,
    shares=shares,
  )
  return dataclasses.replace(model, adapters=config), start


def zero_shot(
  model: RoutedT5,
  params: Mapping[str, Any],
  method: str | Method,
  batches: Iterable[EvalBatch],
  vocabulary: Vocabulary,
  *,
  settings: EvaluationSettings,
  soups: SoupChooser | None = None,
  folder: epath.PathLike | None = None,
) -> scores.Scores | None:
  """Evaluates on unseen tasks as the method serves them.

  Args:
    model: as it was pre-trained; for -mu, as `evaluation.average_model`
      returned it.
    params: its parameters; for -mu after the further training.
    method: the method.
    batches: instances of unseen tasks.
    vocabulary: turns token ids into text.
    settings: how to write texts.
    soups: chooses the soups of a method that serves them.
    folder: where scores and predictions go, and the soups by task.

  Returns:
    The scores; None where the method has no zero-shot of its own.
  """
  how = methods.get_method(method).zero_shot
  if how is None:
    return None
  if how == 'soup':
    model, params, batches, found = adapter_soup.serve_soups(
      model, params, _chooser(soups), batches
    )
    if folder is not None and jax.process_index() == 0:
      run_files.write_json(epath.Path(folder) / SOUPS_FILE, found)
  adapter = 'average' if how == 'average' else 'task'
  return evaluation.evaluate_generation(
    model,
    params,
    batches,
    vocabulary,
    settings=dataclasses.replace(settings, adapter=adapter),
    folder=folder,
  )


def adapt(
  model: RoutedT5,
  params: Mapping[str, Any],
  method: str | Method,
  cells: Sequence[Cell],
  vocabulary: Vocabulary,
  *,
  settings: AdaptationSettings,
  evaluate: EvaluationSettings,
  soups: SoupChooser | None = None,
  folder: epath.PathLike | None = None,
  progress: Progress | None = None,
) -> list[Adapted]:
  """Adapts to every cell's task and evaluates on its test set.

  Args:
    model: as it was pre-trained.
    params: the pre-trained parameters; left as they are.
    method: says what each cell starts from and what trains.
    cells: what `few_shot.build_cells` made.
    vocabulary: turns token ids into text.
    settings: how to train.
    evaluate: how to write and score texts.
    soups: chooses what a method that starts from soups averages for a cell
      (`adapter_soup.build_chooser`).
    folder: gets a folder a cell, `TASK/seedN`, with scores, predictions and
      what `settings.keep` says.
    progress: is told of every group of cells.

  Returns:
    One result a cell, in their order.

  Raises:
    UserError: the loss of a cell is not finite, or asks for answer choices
      that its shots do not have; or its test set has none to rank.
  """
  processes.check_alone('Few-shot adaptation')
  method = methods.get_method(method)
  check_choices(cells, settings.loss)
  _check_tests(cells, evaluate)
  found: list[Adapted] = []
  for group in split_groups(cells, settings.side_by_side):
    results = _adapt_group(
      model, params, method, group, vocabulary, settings, evaluate, soups
    )
    found += results[: len(cells) - len(found)]
    if progress is not None:
      progress.update(len(found))
  if folder is not None and jax.process_index() == 0:
    for result in found:
      write_adapted(folder, result, method, keep=settings.keep)
  return found


def split_groups(cells: Sequence[Cell], width: int) -> list[list[Cell]]:
  """Cuts cells into groups of one size, so that one program serves them all.

  The last group is filled up with its last cell, whose copies are dropped.
  """
  if not cells:
    return []
  n_groups = -(-len(cells) // width)
  size = -(-len(cells) // n_groups)
  groups = [list(cells[i : i + size]) for i in range(0, len(cells), size)]
  groups[-1] += [groups[-1][-1]] * (size - len(groups[-1]))
  return groups


def _adapt_group(
  model: RoutedT5,
  params: Mapping[str, Any],
  method: Method,
  cells: Sequence[Cell],
  vocabulary: Vocabulary,
  settings: AdaptationSettings,
  evaluate: EvaluationSettings,
  soups: SoupChooser | None,
) -> list[Adapted]:
  keys = [_split_key(cell) for cell in cells]
  chosen = [_choose_soup(method, cell, soups) for cell in cells]
  started = [
    adaptation_start(
      model, params, method, key=start, rows=settings.rows, shares=shares
    )
    for (start, _), (_, shares) in zip(keys, chosen, strict=True)
  ]
  model = started[0][0]
  trained = train_cells(
    model,
    [start for _, start in started],
    [cell.batches for cell in cells],
    [key for _, key in keys],
    trains=method.adapt_trains,
    optimizer=settings.optimizer,
    loss=settings.loss,
  )
  _check_finite(cells, trained.finite)
  predictions = _predict(model, trained, cells, vocabulary, evaluate)
  stacked = jax.tree.map(np.asarray, trained.stacked)
  own = [
    jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(len(cells))
  ]
  scored = [
    scores.score_predictions(of_cell, metrics=evaluate.metrics)
    for of_cell in predictions
  ]
  return [
    Adapted(
      task=cell.task,
      seed=cell.seed,
      scores=scored[i][0],
      predictions=tuple(of_cell),
      values=scored[i][1],
      losses=trained.losses[i],
      held_back_loss=_held_back_loss(model, trained, cell, i),
      trained=own[i],
      moved=movement.measure_movement(started[i][1], own[i], model.adapters),
      soup=chosen[i][0],
      loss_parts={name: of[i] for name, of in trained.loss_parts.items()},
    )
    for i, (cell, of_cell) in enumerate(zip(cells, predictions, strict=True))
  ]


def _choose_soup(
  method: Method, cell: Cell, soups: SoupChooser | None
) -> tuple[Soup | None, np.ndarray | None]:
  """Returns a cell's soup and the training tasks' shares, if it has one."""
  if method.adapt_from != 'soup':
    return None, None
  chooser = _chooser(soups)
  inputs = adapter_soup.inputs_by_task(cell.shots)[cell.task]
  soup = chooser.choose(cell.task, inputs)
  return soup, chooser.shares(soup)


def _chooser(soups: SoupChooser | None) -> SoupChooser:
  if soups is None:
    raise ValueError('Soups need what chooses them: adapter_soup.build_chooser')
  return soups


def _split_key(cell: Cell) -> tuple[jax.Array, jax.Array]:
  """Returns the cell's keys of its start and of its training."""
  name = zlib.crc32(cell.task.encode()) & 0x7FFFFFFF
  key = jax.random.fold_in(jax.random.key(cell.seed), name)
  start, training = jax.random.split(key)
  return start, training


def _check_tests(cells: Sequence[Cell], evaluate: EvaluationSettings) -> None:
  """Says before training that a test set has no choices to rank."""
  for cell in cells:
    for batch in cell.test if evaluate.ranks else ():
      ranking.check_choices(batch)


def check_choices(cells: Sequence[Cell], loss: LossSettings) -> None:
  """Refuses a loss on answer choices that the shots of a cell do not have."""
  for cell in cells:
    if loss.on_choices is not None and 'choice_tokens' not in cell.batches:
      raise UserError(
        f'The shots of {cell.name} have no answer choices, or not all of them,'
        ' which the loss asks for: set LossSettings.choice_loss and'
        ' LossSettings.unlikelihood to 0, or choose tasks with choices.'
      )


def _check_finite(cells: Sequence[Cell], finite: np.ndarray):
  for cell, of_cell in zip(cells, finite, strict=True):
    if not of_cell.all():
      raise UserError(
        f'The loss or a gradient of {cell.name} is not finite at step'
        f' {int(np.argmin(of_cell)) + 1}: a lower learning rate or clipping'
        ' are the usual remedies.'
      )


def _predict(
  model: RoutedT5,
  trained: Trained,
  cells: Sequence[Cell],
  vocabulary: Vocabulary,
  evaluate: EvaluationSettings,
) -> list[list[scores.Prediction]]:
  """Answers the cells' test sets, one batch of each cell at a time."""
  found: list[list[scores.Prediction]] = [[] for _ in cells]
  key = jax.random.key(evaluate.seed)
  for step in range(max(len(cell.test) for cell in cells)):
    batches = [cell.test[min(step, len(cell.test) - 1)] for cell in cells]
    if evaluate.ranks:
      answers = _rank(model, trained, batches, evaluate)
    else:
      step_key = jax.random.fold_in(key, step)
      answers = _write(model, trained, batches, vocabulary, evaluate, step_key)
    for cell, of_batch, of_cell in zip(cells, answers, found, strict=True):
      if step < len(cell.test):
        of_cell += of_batch
  return found


def _write(
  model: RoutedT5,
  trained: Trained,
  batches: Sequence[EvalBatch],
  vocabulary: Vocabulary,
  evaluate: EvaluationSettings,
  key: jax.Array,
) -> list[Iterable[scores.Prediction]]:
  """Decodes one batch of each cell."""
  assert evaluate.decoding is not None  # It was checked with the metrics.
  tokens = np.stack([b.arrays['encoder_input_tokens'] for b in batches])
  decoded = generate_cells(model, trained, tokens, evaluate.decoding, key=key)
  return [
    evaluation.to_predictions(batch, ids, vocabulary)
    for batch, ids in zip(batches, decoded, strict=True)
  ]


def _rank(
  model: RoutedT5,
  trained: Trained,
  batches: Sequence[EvalBatch],
  evaluate: EvaluationSettings,
) -> list[Iterable[scores.Prediction]]:
  """Ranks the answer choices of one batch of each cell."""
  widths = ranking.choice_widths(batches)
  log_probs, lengths = score_cells(
    model, trained, [ranking.with_choices(batch, widths) for batch in batches]
  )
  return [
    ranking.to_predictions(batch, sums, counts, evaluate.choices)
    for batch, sums, counts in zip(batches, log_probs, lengths, strict=True)
  ]


def _held_back_loss(
  model: RoutedT5, trained: Trained, cell: Cell, index: int
) -> float | None:
  if not cell.held_back:
    return None
  params = trained.params_of(index)
  return evaluation.evaluate_loss(model, params, cell.held_back)['loss']


def write_adapted(
  folder: epath.PathLike,
  result: Adapted,
  method: str | Method,
  *,
  keep: Literal['nothing', 'trained'] = 'nothing',
) -> None:
  """Writes one cell's scores, predictions and, if kept, what it trained.

  Args:
    folder: gets the folder `TASK/seedN`.
    result: of the cell.
    method: that adapted.
    keep: 'trained' writes `trained.safetensors`, small beside a backbone.
  """
  method = methods.get_method(method)
  task = file_names.as_file_name(result.task)
  folder = epath.Path(folder) / task / f'seed{result.seed}'
  scores.write_scores(folder, result.scores, result.predictions, result.values)
  run_files.write_json(
    folder / ADAPTED_FILE,
    {
      'task': result.task,
      'seed': result.seed,
      'method': method.name,
      'trains': method.adapt_trains,
      'losses': result.losses,
      'held_back_loss': result.held_back_loss,
      'moved': result.moved,
      'soup': result.soup,
      'loss_parts': result.loss_parts,
    },
  )
  if keep == 'trained':
    arrays = {
      path: np.ascontiguousarray(leaf)
      for path, leaf in leaves_by_path(result.trained).items()
    }
    data = safetensors.save(arrays, metadata={'method': method.name})
    (folder / TRAINED_FILE).write_bytes(data)
