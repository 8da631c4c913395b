"""Super-NaturalInstructions from a folder in the official repository's form.

    <folder>/tasks/<task>.json               Definition, Positive Examples,
                                             Instances, Categories, …
    <folder>/splits/default/train_tasks.txt  one task's name a line
    <folder>/splits/default/test_tasks.txt

(github.com/allenai/natural-instructions.) One JSON file is one task; all
references of an instance are kept. The prompt is that of the paper's code:

    Task definition: <definition>.
     Positive Example 1 -
    Input: <input>.
     Output: <output>.

    Now complete the following example -
    Input: <input>.
    Output:

with a full stop only where the text does not end in punctuation, and without
the literal `</s>` that the paper's code puts behind every positive example.

Splits of a training task:
  train        what is not held back, in file order
  validation   held back, the same instances on every machine: those with the
               smallest sha256 of `validation <id>`
Splits of a test task:
  few_shot       the last instances of the file, to draw few-shot examples from
  test           the first 100 instances that are not in `few_shot`
  official_test  the first 100 instances, as the official evaluation has them
In the official files, which have more than 100 instances, the last two are the
same; in a file of just 100, `official_test` includes the few-shot pool: it is
for zero-shot comparison with published numbers only.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import hashlib
import json
import re
import string
from typing import Any, Literal

from etils import epath

from mhr_jax import metrics
from mhr_jax import vocabulary as vocabulary_lib
from mhr_jax.data import registry, sources
from mhr_jax.errors import UserError, nearest
from mhr_jax.vocabulary import Vocabulary

Role = Literal['train', 'test']

_SPLITS: Mapping[Role, tuple[str, ...]] = {
  'train': ('train', 'validation'),
  'test': ('few_shot', 'test', 'official_test'),
}
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
    if self.definition not in ('first', 'none'):
      raise UserError(
        f"definition is 'first' or 'none', not {self.definition!r}."
      )
    if self.positive_examples < 0:
      raise UserError('positive_examples cannot be negative.')


@dataclasses.dataclass(frozen=True)
class SplitSettings:
  """Which instances of a file are in which split.

  Attributes:
    validation_instances: held back of each training task; of small ones, a
      fifth of their instances at most.
    max_train_instances: of each training task, the first of what remains;
      all of them by default.
    few_shot_pool: taken from the end of each test task.
    test_instances: of each test task, from its beginning.
  """

  validation_instances: int = 20
  max_train_instances: int | None = None
  few_shot_pool: int = 32
  test_instances: int = 100


def register(
  folder: epath.PathLike,
  *,
  vocabulary: Vocabulary | epath.PathLike,
  extra_ids: int = 100,
  name: str = 'ni',
  definition: Literal['first', 'none'] = 'first',
  positive_examples: int = 0,
  max_input_tokens: int | None = None,
  splits: SplitSettings | None = None,
) -> dict[str, tuple[str, ...]]:
  """Registers the tasks of a folder and the mixtures `<name>_{train,test}`.

  No task file is read until its task is prepared.

  Args:
    folder: the official repository's root, or a part of it in its form.
    vocabulary: an object, the path of a SentencePiece model, or 'bytes'.
    extra_ids: sentinels, where `vocabulary` is not an object.
    name: the prefix of all names: task1146_country_capital becomes
      `ni_task1146_country_capital`.
    definition: see `PromptSettings`.
    positive_examples: see `PromptSettings`.
    max_input_tokens: see `PromptSettings`.
    splits: sizes of the splits; the defaults if not given.

  Returns:
    The tasks of each mixture by the mixture's name.

  Raises:
    UserError: the folder has not the official form, or its lists name a task
      that it lacks.
  """
  folder = _absolute(folder)
  vocabulary = vocabulary_lib.load_vocabulary(vocabulary, extra_ids=extra_ids)
  prompt = PromptSettings(definition, positive_examples, max_input_tokens)
  splits = splits or SplitSettings()
  mixtures = {}
  for role, names in _SPLITS.items():
    tasks = []
    for path in _list_tasks(folder, role):
      load = functools.partial(
        load_examples,
        path,
        role,
        prompt=prompt,
        splits=splits,
        vocabulary=vocabulary,
      )
      task = _task_name(name, path)
      source = sources.ExampleSource(load, splits=names, files=[path])
      registry.add_task(task, source, vocabulary, module=__name__)
      tasks.append(task)
    if tasks:
      mixtures[f'{name}_{role}'] = tuple(tasks)
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
) -> sources.TaskExamples:
  """Returns the examples of one task file by split, and its category."""
  task = read_task_file(path)
  chosen = choose_splits(task['Instances'], role, splits, origin=path)
  examples = {
    split: [
      sources.TextExample(
        instance['id'],
        make_prompt(task, instance['input'], prompt, vocabulary),
        _references(instance),
      )
      for instance in instances
    ]
    for split, instances in chosen.items()
  }
  categories = task.get('Categories') or [None]
  return sources.TaskExamples(examples, category=categories[0])


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
    for path in _list_tasks(_absolute(folder), role):
      chosen = choose_splits(
        read_task_file(path)['Instances'],
        role,
        splits or SplitSettings(),
        origin=path,
      )
      for phase, split in splits_of.items():
        values = metrics.rouge_l(
          [one['input'] for one in chosen[split]],
          [_references(one) for one in chosen[split]],
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


def choose_splits(
  instances: Sequence[Mapping[str, Any]],
  role: Role,
  settings: SplitSettings,
  *,
  origin: epath.PathLike,
) -> dict[str, list[Mapping[str, Any]]]:
  """Returns the instances of each split of a task.

  Raises:
    UserError: a test task has too few instances for its few-shot pool.
  """
  if role == 'train':
    held_back = min(settings.validation_instances, len(instances) // 5)
    ranked = sorted(instances, key=lambda one: _rank(one['id']))
    chosen = {one['id'] for one in ranked[:held_back]}
    train = [one for one in instances if one['id'] not in chosen]
    return {
      'train': train[: settings.max_train_instances],
      'validation': [one for one in instances if one['id'] in chosen],
    }
  rest = len(instances) - settings.few_shot_pool
  if rest <= 0:
    raise UserError(
      f'{origin} has {len(instances)} instances: a few-shot pool of'
      f' {settings.few_shot_pool} leaves none to test on.'
    )
  return {
    'few_shot': list(instances[rest:]),
    'test': list(instances[: min(rest, settings.test_instances)]),
    'official_test': list(instances[: settings.test_instances]),
  }


def read_task_file(path: epath.PathLike) -> dict[str, Any]:
  """Reads and checks one task file.

  Raises:
    UserError: it is not JSON, or lacks what a task needs; the message names
      the file and the line.
  """
  path = epath.Path(path)
  text = path.read_text()
  try:
    task = json.loads(text)
  except json.JSONDecodeError as e:
    raise UserError(f'{path}:{e.lineno}: not JSON: {e.msg}.') from None
  if not isinstance(task, dict):
    raise UserError(f'{path}:1: a task file is a JSON object.')
  for key in ('Definition', 'Instances'):
    if not task.get(key):
      raise UserError(
        f'{path}:1: there is no {key!r}, or it is empty.{nearest(key, task)}'
      )
  for number, instance in enumerate(task['Instances']):
    problem = _problem(instance)
    if problem:
      line = _line_of_instance(text, instance, number)
      raise UserError(f'{path}:{line}: instance {number} {problem}.')
  ids = [instance['id'] for instance in task['Instances']]
  if len(set(ids)) < len(ids):
    twice = next(one for i, one in enumerate(ids) if one in ids[:i])
    raise UserError(f'{path}: two instances have the id {twice!r}.')
  return task


def _problem(instance: Any) -> str | None:
  """Says what an instance lacks."""
  if not isinstance(instance, dict):
    return 'is not a JSON object'
  for key in ('id', 'input', 'output'):
    if key not in instance:
      return f'has no {key!r}'
  if not _references(instance):
    return 'has no reference: its output is empty'
  if not all(isinstance(one, str) for one in _references(instance)):
    return 'has an output that is not text'
  return None


def _line_of_instance(text: str, instance: Any, number: int) -> int:
  """The line of an instance: by its id, or by counting from `Instances`."""
  at = text.find('"Instances"')
  if isinstance(instance, dict) and 'id' in instance:
    at = text.find(json.dumps(instance['id'], ensure_ascii=False), at)
  else:
    decoder, at = json.JSONDecoder(), _next_value(text, text.index('[', at) + 1)
    for _ in range(number):
      at = _next_value(text, decoder.raw_decode(text, at)[1])
  return text.count('\n', 0, at) + 1


def _next_value(text: str, at: int) -> int:
  return len(text) - len(text[at:].lstrip(' \t\r\n,'))


def _list_tasks(folder: epath.Path, role: Role) -> list[epath.Path]:
  """Returns the files of the tasks that a list names, in its order."""
  path = folder / 'splits' / 'default' / f'{role}_tasks.txt'
  if not path.exists():
    raise UserError(
      f'There is no {path}: a folder in the official form has tasks/*.json and'
      ' splits/default/{train,test}_tasks.txt.'
    )
  there = {each.stem: each for each in (folder / 'tasks').glob('*.json')}
  found = []
  for line, name in enumerate(path.read_text().splitlines(), 1):
    name = name.strip()
    if name and name not in there:
      raise UserError(
        f'{path}:{line}: there is no task file tasks/{name}.json.'
        f'{nearest(name, there)}'
      )
    if name:
      found.append(there[name])
  return found


def _absolute(folder: epath.PathLike) -> epath.Path:
  folder = epath.Path(folder).expanduser()
  return folder if '://' in str(folder) else folder.resolve()


def _references(instance: Mapping[str, Any]) -> tuple[str, ...]:
  output = instance['output']
  return (output,) if isinstance(output, str) else tuple(output)


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


def _rank(instance_id: str) -> str:
  return hashlib.sha256(f'validation {instance_id}'.encode()).hexdigest()
