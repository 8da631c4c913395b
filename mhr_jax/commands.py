"""What one does with a trained run: evaluate it, adapt it, let it predict.

Plain functions over a run folder; gin configures them (`configs/runs/`), and
`mhr-jax evaluate`, `align`, `adapt` and `predict` call them.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import statistics
from typing import Any, Literal

from etils import epath

from mhr_jax import (
  adaptation,
  adapter_soup,
  api,
  dry_run_commands,
  evaluation,
  few_shot,
  file_names,
  methods,
  partitioning,
  processes,
  run_files,
  run_folder,
  task_choice,
)
from mhr_jax.adaptation import AdaptationSettings, Adapted
from mhr_jax.aggregation import over_seeds_and_tasks
from mhr_jax.analysis import gradients
from mhr_jax.data import ordered, records
from mhr_jax.errors import UserError
from mhr_jax.evaluation import EvaluationSettings
from mhr_jax.few_shot import FewShotSettings
from mhr_jax.progress import Progress
from mhr_jax.scores import ACCURACY, BASELINES, Scores
from mhr_jax.setting_checks import check_count
from mhr_jax.t5.decoding import DecodingSettings
from mhr_jax.task_data import TaskData
from mhr_jax.task_table import TaskTable

FEW_SHOT_FOLDER = 'few_shot'


def evaluate(
  run_dir: str,
  *,
  data: TaskData,
  evaluation_settings: EvaluationSettings,
  split: str,
  input_length: int,
  target_length: int,
  batch_size: int = 64,
  limit: int | None = None,
  step: int | None = None,
  folder: str | None = None,
  mode: Literal['evaluate', 'dry_run'] = 'evaluate',
) -> Scores | None:
  """Predicts an answer for every instance of some tasks and scores it.

  Args:
    run_dir: the run.
    data: the tasks. With `evaluation_settings.adapter='average'` they may be
      any; otherwise the run must have been trained on them.
    evaluation_settings: whether to write texts or to rank answer choices, and
      how, and which adapter serves a task.
    split: of every task.
    input_length: tokens of the inputs, EOS included; longer ones are cut.
    target_length: tokens of the first reference, likewise.
    batch_size: rows of a batch.
    limit: the first so many instances of each task; None for all.
    step: of which checkpoint; the last one by default.
    folder: where `scores.json` and `predictions.jsonl` go; by default
      `RUN/evaluations/TASKS_SPLIT`.
    mode: 'dry_run' prints what would be scored, and reads no parameters.

  Returns:
    The scores; None after a dry run.

  Raises:
    UserError: the run, a task or a split is not there, or the run's routing
      does not know a task.
  """
  check_count('batch_size', batch_size)
  check_count('limit', limit)
  _check_sizes(input_length, target_length, step)
  run = _load(run_dir, step, 'shapes' if mode == 'dry_run' else 'values')
  found = data.resolve()
  sources = _open_sources(data, found, run, split)
  by_task = evaluation_settings.adapter == 'task' and _routes(run)
  batches = ordered.eval_batches(
    sources,
    batch_size=batch_size,
    input_length=input_length,
    target_length=target_length,
    task_table=_known_tasks(run, found, run_dir) if by_task else None,
    limit=limit,
  )
  vocabulary = _vocabulary(run, run_dir)
  where = epath.Path(folder or _evaluation_folder(run_dir, found.name, split))
  total = sum(min(limit or len(each), len(each)) for each in sources)
  if mode == 'dry_run':
    print(
      dry_run_commands.describe_evaluation(
        run,
        evaluation_settings,
        tasks=found.tasks,
        instances=f'{total:,} of split {split!r}',
        batches=-(-total // batch_size),
        batch=(batch_size, input_length, target_length),
        folder=where,
      )
    )
    return None
  with Progress(total, label='evaluate', enabled=processes.is_first()) as bar:
    return evaluation.evaluate_generation(
      run.model,
      run.params,
      batches,
      vocabulary,
      settings=evaluation_settings,
      folder=where,
      progress=bar,
    )


def align(
  run_dir: str,
  *,
  data: TaskData,
  alignment: gradients.AlignmentSettings,
  input_length: int,
  target_length: int,
  step: int | None = None,
) -> dict[str, float]:
  """Measures how far the gradients of a trained run's tasks agree.

  Args:
    run_dir: the run; gets `alignment.json`, which `mhr-jax report` draws.
    data: the tasks, those that the run was trained on.
    alignment: how many of them, on what, with respect to what.
    input_length: tokens of the inputs, EOS included; longer ones are cut.
    target_length: tokens of the first reference, likewise.
    step: of which checkpoint; the last one by default.

  Returns:
    Numbers by name, see `gradients.measure_alignment`.

  Raises:
    UserError: the run, a task or a split is not there, or the run's routing
      does not know a task.
  """
  _check_sizes(input_length, target_length, step)
  run = _load(run_dir, step)
  found = data.resolve()
  table = TaskTable(found.tasks)
  if _routes(run):
    table = _known_tasks(run, found, run_dir)
  names = gradients.choose_tasks(found.tasks, alignment.tasks, alignment.seed)
  chosen = dataclasses.replace(found, tasks=names)
  tasks = gradients.build_task_batches(
    _open_sources(data, chosen, run, alignment.split),
    table,
    alignment,
    input_length=input_length,
    target_length=target_length,
  )
  measure = gradients.make_alignment(run.model, tasks, alignment.wrt)
  numbers = measure(run.step, run.params)
  gradients.save_alignment(run_dir, run.step, numbers)
  return numbers


def alignment_table(numbers: Mapping[str, float]) -> str:
  """Returns the numbers of `align` as text, a line each."""
  width = max(map(len, numbers))
  return '\n'.join(
    f'{name:{width}}  {value:8.4f}' for name, value in numbers.items()
  )


def adapt(
  run_dir: str,
  *,
  method: str,
  data: TaskData,
  few_shot_settings: FewShotSettings,
  adaptation_settings: AdaptationSettings,
  evaluation_settings: EvaluationSettings,
  train_split: str = 'train',
  test_split: str = 'test',
  test_tasks: str = few_shot.TASK,
  step: int | None = None,
  folder: str | None = None,
  mode: Literal['adapt', 'dry_run'] = 'adapt',
) -> list[Adapted] | None:
  """Adapts a run to new tasks from a few examples of each, and evaluates.

  Args:
    run_dir: the pre-trained run.
    method: what adapts; of those that share the run's pre-training.
    data: the new tasks.
    few_shot_settings: how many examples, how many seeds, how long.
    adaptation_settings: how to train.
    evaluation_settings: how to predict answers and score them.
    train_split: to draw the examples from; with '{seed}' in it, a split a
      seed.
    test_split: to evaluate on.
    test_tasks: the task or mixture to evaluate on, '{task}' being the task that
      is adapted to: '{task}_templates' are a data set's templates.
    step: of which checkpoint; the last one by default.
    folder: for scores and `results.json`; by default `RUN/few_shot/METHOD`.
    mode: 'dry_run' prints what would be adapted, and reads no parameters.

  Returns:
    What became of every cell; None after a dry run.

  Raises:
    UserError: something is not there, or the method does not fit the run.
  """
  processes.check_alone('Few-shot adaptation')
  row = methods.get_method(method)
  run_folder.check_pretraining(run_dir, row)
  run = _load(run_dir, step, 'shapes' if mode == 'dry_run' else 'values')
  splits = train_split, test_split
  tasks = _open_few_shot(data, run, splits, test_tasks, few_shot_settings.seeds)
  vocabulary = _vocabulary(run, run_dir)
  where = epath.Path(folder or _few_shot_folder(run_dir, row.name))
  settings = few_shot_settings, adaptation_settings, evaluation_settings
  if mode == 'dry_run':
    describe = dry_run_commands.describe_adaptation
    print(describe(run, row, tasks, *settings, splits=splits, folder=where))
    return None
  soups = adapter_soup.build_chooser(
    row,
    adaptation_settings.soup,
    run,
    run_dir=run_dir,
    data_dir=data.data_dir,
    input_length=few_shot_settings.input_length,
  )
  cells = few_shot.build_cells(tasks, few_shot_settings)
  with Progress(len(cells), label='adapt') as progress:
    results = adaptation.adapt(
      run.model,
      run.params,
      row,
      cells,
      vocabulary,
      settings=adaptation_settings,
      evaluate=evaluation_settings,
      soups=soups,
      folder=where,
      progress=progress,
    )
  summary = summarise(results, evaluation_settings.metrics)
  run_files.write_json(where / run_files.RESULTS_FILE, summary)
  return results


def _open_few_shot(
  data: TaskData,
  run: run_folder.Run,
  splits: tuple[str, str],
  test_tasks: str,
  seeds: Sequence[int],
) -> list[few_shot.FewShotTask]:
  """Opens the tasks to adapt to, prepared with the run's vocabulary."""
  tasks = data.resolve().tasks
  return few_shot.open_few_shot_tasks(
    data.data_dir,
    tasks,
    train_split=splits[0],
    test_split=splits[1],
    test_tasks=resolve_tests(data, tasks, test_tasks),
    seeds=seeds,
    vocabulary_fingerprint=_fingerprint(run),
  )


def resolve_tests(
  data: TaskData, tasks: Sequence[str], pattern: str
) -> dict[str, tuple[str, ...]] | None:
  """Returns what each task is evaluated on, prepared; None for itself.

  Args:
    data: the tasks that are adapted to.
    tasks: their names.
    pattern: see `adapt`.
  """
  if pattern == few_shot.TASK:
    return None
  return {
    task: dataclasses.replace(data, tasks=pattern.replace(few_shot.TASK, task))
    .resolve()
    .tasks
    for task in tasks
  }


def summarise(
  results: Sequence[Adapted], metrics: Sequence[str]
) -> dict[str, dict[str, Any]]:
  """Returns, by metric, mean and spread over seeds and each task's mean."""
  summary = {}
  for metric in metrics:
    scores: dict[int, dict[str, float]] = {}
    for result in results:
      of_seed = scores.setdefault(result.seed, {})
      of_seed[result.task] = result.scores.overall[metric]
    found = over_seeds_and_tasks(scores)
    summary[metric] = {
      'mean': found.overall.mean,
      'values': list(found.overall.values),
      'tasks': {task: each.mean for task, each in found.tasks.items()},
    }
  return summary


def predict(
  path: str,
  texts: Iterable[str],
  *,
  adapter: str | None = None,
  task: str | None = None,
  decoding: DecodingSettings,
  input_length: int | None = None,
  step: int | None = None,
) -> list[str]:
  """Returns what a model writes for each text.

  Args:
    path: a run, or a backbone; see `api.load`.
    texts: the inputs; taken after the model is read.
    adapter: to put on the backbone.
    task: whose adapter to use: a name or an id of the tasks, or 'average'; not
      needed where the model does not route.
    decoding: how texts are written.
    input_length: where to cut; as long as the longest text by default.
    step: of which checkpoint of a run; the last one by default.

  Raises:
    UserError: the model routes and the task is not one of its tasks.
  """
  model = api.load(path, adapter, step=step, mesh=partitioning.make_mesh())
  return model.generate(
    list(texts),
    task_choice.parse_task(task, model.tasks),
    input_length=input_length,
    **dataclasses.asdict(decoding),
  )


def score_table(scores: Scores) -> str:
  """Returns the scores by task, then over all, as text.

  Of ranked answer choices also how each category's tasks differ.
  """
  metrics = [name for name in scores.overall if name != 'instances']
  width = max(map(len, [*scores.tasks, 'mean over tasks']))
  lines = [f'{"":{width}}  ' + '  '.join(f'{name:>11}' for name in metrics)]
  rows = {
    **scores.tasks,
    'mean over tasks': scores.mean_over_tasks,
    'all instances': scores.overall,
  }
  for name, values in rows.items():
    cells = '  '.join(f'{values[metric]:11.2f}' for metric in metrics)
    lines.append(f'{name:{width}}  {cells}')
  if ACCURACY in scores.metrics and scores.category_spread:
    lines += ['', *_spread_lines(scores)]
  return '\n'.join(lines)


def _spread_lines(scores: Scores) -> list[str]:
  """Returns the accuracy of each category over its tasks, as lines."""
  title = 'accuracy over the tasks of'
  width = max(map(len, [*scores.category_spread, title]))
  lines = [
    f'{title:{width}}   tasks     mean   median    quartiles apart    chance'
  ]
  for category, spread in scores.category_spread.items():
    found, chance = spread[ACCURACY], scores.categories[category]['chance']
    lines.append(
      f'{category:{width}}  {found.tasks:6}  {found.mean:7.2f}'
      f'  {found.median:7.2f}  {found.interquartile_range:17.2f}'
      f'  {chance:8.2f}'
    )
  return lines


def adaptation_table(results: Sequence[Adapted]) -> str:
  """Returns each task's mean over seeds and its values, then soups, as text.

  A task that is tested on several, as a data set on its templates, is followed
  by a line for each of them.
  """
  lines = []
  for metric in results[0].scores.metrics:
    lines.append(f'{metric}, mean over seeds (by seed)')
    for task in dict.fromkeys(result.task for result in results):
      found = [r.scores for r in results if r.task == task]
      lines.append(_score_line(task, metric, [s.overall for s in found]))
      tested = list(found[0].tasks)
      lines += [
        '  ' + _score_line(name, metric, [s.tasks[name] for s in found])
        for name in (tested if len(tested) > 1 else ())
      ]
  soups = [each for each in results if each.soup is not None]
  if soups:
    lines.append('nearest training tasks, averaged to start from (similarity)')
  lines += [f'  {each.task}, seed {each.seed}: {each.soup}' for each in soups]
  return '\n'.join(lines)


def _score_line(
  name: str, metric: str, of_seeds: Sequence[Mapping[str, float]]
) -> str:
  values = [numbers[metric] for numbers in of_seeds]
  shown = ', '.join(f'{value:.1f}' for value in values)
  line = f'  {statistics.mean(values):6.2f}  {name}  ({shown})'
  if metric == ACCURACY:
    line += ''.join(f', {each} {of_seeds[0][each]:.1f}' for each in BASELINES)
  return line


def _load(
  run_dir: str,
  step: int | None,
  what: Literal['values', 'shapes'] = 'values',
) -> run_folder.Run:
  read = run_folder.load_run if what == 'values' else run_folder.open_run
  return read(run_dir, step, mesh=partitioning.make_mesh())


def _check_sizes(
  input_length: int, target_length: int, step: int | None
) -> None:
  """Refuses lengths that hold no token beside EOS, and negative steps."""
  check_count('input_length', input_length, least=2)
  check_count('target_length', target_length, least=2)
  check_count('step', step, least=0)


def _routes(run: run_folder.Run) -> bool:
  """Whether the run's adapters depend on the task."""
  adapters = run.model.adapters
  return adapters is not None and adapters.mixing != 'uniform'


def _vocabulary(run: run_folder.Run, run_dir: str):
  if run.vocabulary is None:
    raise UserError(f'{run_dir} has no vocabulary: it was saved without one.')
  return run.vocabulary


def _open_sources(
  data: TaskData, found: records.Mixture, run: run_folder.Run, split: str
) -> list[records.TaskSource]:
  tasks = records.open_tasks(
    data.data_dir, found.tasks, vocabulary_fingerprint=_fingerprint(run)
  )
  return [task.source(split) for task in tasks]


def _fingerprint(run: run_folder.Run) -> str | None:
  """Returns that of the run's vocabulary, which its tasks must share."""
  return run.vocabulary.fingerprint if run.vocabulary else None


def _known_tasks(
  run: run_folder.Run, found: records.Mixture, run_dir: str
) -> TaskTable:
  table = run.task_table
  if table is None:
    raise UserError(f'{run_dir} has no table of tasks.')
  unknown = [name for name in found.tasks if name not in table.names]
  if unknown:
    raise UserError(
      f'{run_dir} was not trained on {unknown[0]!r}'
      f' ({len(unknown)} of {len(found.tasks)} tasks are new to it): evaluate'
      " with adapter='average' (runs/zero_shot.gin), or adapt to them first"
      ' (runs/few_shot.gin).'
    )
  return table


def _evaluation_folder(run_dir: str, tasks: str, split: str) -> epath.Path:
  name = file_names.as_file_name(f'{tasks}_{split.partition("[")[0]}')
  return epath.Path(run_dir) / run_files.EVALUATIONS_FOLDER / name


def _few_shot_folder(run_dir: str, method: str) -> epath.Path:
  return epath.Path(run_dir) / FEW_SHOT_FOLDER / method
