"""Super-NaturalInstructions from a folder in the official repository's form.

(github.com/allenai/natural-instructions; `ni_files` says what a folder has.)
One JSON file is one task; all references of an instance are kept. The prompt
is that of the paper's code:

    Task definition: <definition>.
     Positive Example 1 -
    Input: <input>.
     Output: <output>.

    Now complete the following example -
    Input: <input>.
    Output:

with a full stop only where the text does not end in punctuation, and without
the literal `</s>` that the paper's code puts behind every positive example.

Which instances are in which split is in `ni_splits`: our choice, or that of
the paper's code. Where the folder has `eval/test_references.jsonl`, test tasks
are compared with it when they are prepared. `ni_scores` scores predictions as
the official evaluation does.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import re
import string
from typing import Any, Literal, get_args

from etils import epath

from mhr_jax import metrics
from mhr_jax import vocabulary as vocabulary_lib
from mhr_jax.data import registry, sources
from mhr_jax.setting_checks import check_fields
from mhr_jax.tasks import ni_files, ni_scores, ni_splits
from mhr_jax.tasks.ni_files import Role, Track
from mhr_jax.tasks.ni_splits import SplitSettings
from mhr_jax.vocabulary import Vocabulary

_TAIL = '\nOutput:'


@dataclasses.dataclass(frozen=True)
class PromptSettings:
  """How an instance becomes an input.

  Attributes:
    definition: put the task's (first) definition in front, or not.
    positive_examples: how many worked examples stand before the instance, at
      most; a file may have fewer.
    max_input_tokens: the length to fit, end of sequence included: positive
      examples that do not fit are left out, then the instance is cut, and the
      closing `Output:` stays. Without it, inputs are as long as they are.
  """

  definition: Literal['first', 'none'] = 'first'
  positive_examples: int = 0
  max_input_tokens: int | None = None

  def __post_init__(self):
    check_fields(self, least={'max_input_tokens': 1})


def register(
  folder: epath.PathLike,
  *,
  vocabulary: Vocabulary | epath.PathLike,
  extra_ids: int = 100,
  name: str = 'ni',
  track: Track = 'default',
  definition: Literal['first', 'none'] = 'first',
  positive_examples: int = 0,
  max_input_tokens: int | None = None,
  splits: SplitSettings | Mapping[str, Any] | None = None,
) -> dict[str, tuple[str, ...]]:
  """Registers the tasks of a folder and mixtures of them.

  `<name>_train` and `<name>_test` are those of the lists, `<name>_few_shot` the
  test tasks with enough instances to adapt to. By `order='file'` no task file
  is read until its task is prepared.

  Args:
    folder: the official repository's root, or a part of it in its form.
    vocabulary: an object, the path of a SentencePiece model, or 'bytes'.
    extra_ids: sentinels, where `vocabulary` is not an object.
    name: the prefix of all names: task1146_country_capital becomes
      `ni_task1146_country_capital`.
    track: whose lists: 'default' is English, 'xlingual' is not; register each
      under a name of its own.
    definition: see `PromptSettings`.
    positive_examples: see `PromptSettings`.
    max_input_tokens: see `PromptSettings`.
    splits: which instances are in which split, or options of
      `SplitSettings`; its defaults if not given.

  Returns:
    The tasks of each mixture by the mixture's name.

  Raises:
    UserError: the folder has not the official form, or its lists name a task
      that it lacks.
  """
  folder = ni_files.absolute(folder)
  vocabulary = vocabulary_lib.load_vocabulary(vocabulary, extra_ids=extra_ids)
  prompt = PromptSettings(definition, positive_examples, max_input_tokens)
  splits = SplitSettings.of(splits)
  mixtures = {}
  for role in get_args(Role):
    tasks = []
    for path in ni_files.list_tasks(folder, role, track):
      load = functools.partial(
        load_examples,
        path,
        role,
        track=track,
        prompt=prompt,
        splits=splits,
        vocabulary=vocabulary,
      )
      task = _task_name(name, path)
      source = sources.ExampleSource(
        load, splits=splits.names(role), files=[path]
      )
      registry.add_task(task, source, vocabulary, module=__name__)
      tasks.append(task)
    if tasks:
      mixtures[f'{name}_{role}'] = tuple(tasks)
  few_shot = ni_splits.list_few_shot_tasks(folder, splits, track)
  if few_shot:
    tasks = tuple(_task_name(name, path) for path in few_shot)
    mixtures[f'{name}_few_shot'] = tasks
  for mixture, tasks in mixtures.items():
    registry.add_mixture(mixture, tasks, module=__name__)
  return mixtures


def _task_name(name: str, path: epath.Path) -> str:
  return re.sub(r'\W', '_', f'{name}_{path.stem}')


def load_examples(
  path: epath.Path,
  role: Role,
  *,
  prompt: PromptSettings,
  splits: SplitSettings,
  vocabulary: Vocabulary,
  track: Track = 'default',
) -> sources.TaskExamples:
  """Returns the examples of one task file by split, category and metric.

  The metric is the one that the task's category is reported by; a task in
  other languages than English has none where that is ROUGE-L, whose tokens
  are English ones here.

  Raises:
    UserError: the file is malformed, has too few instances, or differs from
      the folder's file of references.
  """
  task = ni_files.read_task_file(path)
  if role == 'test':
    ni_files.check_references(path.parent.parent, path, task)
  chosen = ni_splits.choose_splits(
    task['Instances'], role, splits, path=path, track=track
  )
  examples = {
    split: [
      sources.TextExample(
        instance['id'],
        make_prompt(task, instance['input'], prompt, vocabulary),
        ni_files.references_of(instance),
      )
      for instance in instances
    ]
    for split, instances in chosen.items()
  }
  category = ni_files.category_of(task)
  metric = ni_scores.category_metric(category)
  english = ni_files.track_of(task) == 'default'
  return sources.TaskExamples(
    examples,
    category=category,
    metric=metric if english or metric == 'exact_match' else None,
  )


def score_copies(
  folder: epath.PathLike,
  *,
  names: Mapping[str, str],
  splits: SplitSettings | None = None,
) -> dict[str, dict[str, float]]:
  """Scores the copy of an instance's own input as its answer: a baseline.

  Args:
    folder: as for `register`.
    names: by phase of a study, the `name` its tasks were registered with.
    splits: as for `register`.

  Returns:
    ROUGE-L × 100 by phase and task: 'multi_task' is the split validation,
    'zero_shot' official_test, 'few_shot' test.
  """
  phases: Mapping[Role, Mapping[str, str]] = {
    'train': {'multi_task': 'validation'},
    'test': {'zero_shot': 'official_test', 'few_shot': 'test'},
  }
  scores: dict[str, dict[str, float]] = {}
  for role, splits_of in phases.items():
    for path in ni_files.list_tasks(ni_files.absolute(folder), role):
      chosen = ni_splits.choose_splits(
        ni_files.read_task_file(path)['Instances'],
        role,
        splits or SplitSettings(),
        path=path,
      )
      for phase, split in splits_of.items():
        values = metrics.rouge_l(
          [one['input'] for one in chosen[split]],
          [ni_files.references_of(one) for one in chosen[split]],
        )
        of_phase = scores.setdefault(phase, {})
        of_phase[_task_name(names[phase], path)] = float(values.mean())
  return scores


def make_prompt(
  task: Mapping[str, Any],
  text: str,
  settings: PromptSettings,
  vocabulary: Vocabulary,
) -> str:
  """Returns the input of one instance.

  Args:
    task: a task file's contents.
    text: the instance's own input.
    settings: the form of the prompt.
    vocabulary: counts the tokens where the prompt has to fit a length.
  """
  definition = ''
  if settings.definition == 'first':
    definition = f'Task definition: {_stopped(_first(task["Definition"]))}\n'
  instance = (
    f'Now complete the following example -\nInput: {_stopped(text)}{_TAIL}'
  )

  def fits(prompt: str) -> bool:
    limit = settings.max_input_tokens
    return limit is None or len(vocabulary.encode(prompt)) < limit

  worked = ''
  positive = task.get('Positive Examples', [])[: settings.positive_examples]
  for i, example in enumerate(positive, 1):
    more = (
      f'{worked} Positive Example {i} -\n'
      f'Input: {_stopped(example["input"])}\n'
      f' Output: {_stopped(_first(example["output"]))}\n\n'
    )
    if not fits(definition + more + instance):
      break
    worked = more
  prompt = definition + worked + instance
  return prompt if fits(prompt) else _cut(prompt, fits)


def _first(value: str | Sequence[str]) -> str:
  return value if isinstance(value, str) else value[0]


def _stopped(text: str) -> str:
  """Ends a text with a full stop where it has no punctuation there."""
  text = text.strip()
  return text if text and text[-1] in string.punctuation else f'{text}.'


def _cut(prompt: str, fits: Any) -> str:
  """Returns the longest beginning that fits with the closing words."""
  low, high = 0, len(prompt) - len(_TAIL)
  while low < high:
    middle = (low + high + 1) // 2
    if fits(prompt[:middle] + _TAIL):
      low = middle
    else:
      high = middle - 1
  return prompt[:low] + _TAIL
