"""Tasks of your own, from a folder of JSON lines.

    <folder>/<task>/<split>.jsonl      one example a line

    {"inputs": "what the model reads", "targets": "what it shall write"}

`targets` may be a list: all of them are right, and training draws one. With
`choices`, a list of texts, and `label`, the index of the right one, an example
has answers to rank, and needs no `targets`. `id` names an example; by default
its line does. Splits have the names of the files; `train`, `validation`, `test`
and `few_shot` are what the presets ask for.

All tasks of the folder are the mixture `name`.
"""

from collections.abc import Iterator, Mapping
import functools
import re
from typing import Any

from etils import epath

from mhr_jax import vocabulary as vocabulary_lib
from mhr_jax.data import registry, sources
from mhr_jax.errors import UserError
from mhr_jax.tasks import t0_raw

_SUFFIX = '.jsonl'
_KEYS = ('inputs', 'targets', 'choices', 'label', 'id')


def register(
  folder: epath.PathLike,
  *,
  vocabulary: vocabulary_lib.Vocabulary | epath.PathLike,
  name: str = 'mine',
) -> dict[str, tuple[str, ...]]:
  """Registers the folder's tasks `<name>_<task>`, and the mixture of them.

  Args:
    folder: has a folder a task.
    vocabulary: of inputs and targets: the path of a SentencePiece model, or
      'bytes'.
    name: of the mixture, and the prefix of the tasks.

  Returns:
    The mixture's tasks by its name.

  Raises:
    UserError: the folder holds no task, or a name is taken.
  """
  folder = epath.Path(folder)
  if not folder.is_dir():
    raise UserError(f'There is no folder {folder}.')
  vocabulary = vocabulary_lib.load_vocabulary(vocabulary)
  tasks = []
  for task in sorted(folder.iterdir(), key=lambda path: path.name):
    files = _split_files(task)
    if not files:
      continue
    tasks.append(re.sub(r'\W', '_', f'{name}_{task.name}'))
    if tasks.count(tasks[-1]) > 1:
      raise UserError(f'{task}: another folder is task {tasks[-1]!r} already.')
    source = sources.ExampleSource(
      functools.partial(load_examples, task),
      splits=tuple(files),
      files=tuple(files.values()),
    )
    registry.add_task(tasks[-1], source, vocabulary, module=__name__)
  if not tasks:
    raise UserError(
      f'{folder} holds no task: {folder}/<task>/train{_SUFFIX} is one.'
    )
  registry.add_mixture(name, tasks, module=__name__)
  return {name: tuple(tasks)}


def load_examples(folder: epath.PathLike) -> sources.TaskExamples:
  """Reads one task's examples.

  Raises:
    UserError: a line is no example; the message has its number.
  """
  files = _split_files(epath.Path(folder))
  return sources.TaskExamples(
    {split: list(_read(split, path)) for split, path in files.items()}
  )


def _split_files(folder: epath.Path) -> dict[str, epath.Path]:
  if not folder.is_dir():
    return {}
  files = sorted(folder.iterdir(), key=lambda path: path.name)
  return {
    path.name.removesuffix(_SUFFIX): path
    for path in files
    if path.name.endswith(_SUFFIX)
  }


def _read(split: str, path: epath.Path) -> Iterator[sources.TextExample]:
  first_line: dict[str, str] = {}
  for record in t0_raw.read_json_lines(path):
    number = record.origin.rpartition(':')[2]
    example = _to_example(record.fields, record.origin, f'{split}-{number}')
    if example.example_id in first_line:
      raise UserError(
        f'{record.origin}: the id {example.example_id!r} is that of line'
        f' {first_line[example.example_id]} too.'
      )
    first_line[example.example_id] = number
    yield example


def _to_example(
  fields: Mapping[str, Any], origin: str, name: Any
) -> sources.TextExample:
  unknown = [key for key in fields if key not in _KEYS]
  if unknown:
    raise UserError(
      f'{origin}: an example has no {unknown[0]!r}; it has {", ".join(_KEYS)}.'
    )
  inputs, name = fields.get('inputs'), fields.get('id', name)
  if not isinstance(inputs, str):
    raise UserError(f"{origin}: 'inputs' is a text, not {inputs!r}.")
  if not isinstance(name, (str, int)):
    raise UserError(f"{origin}: 'id' is a text or a number, not {name!r}.")
  choices, label = _choices(fields, origin)
  right = [] if label is None else [choices[label]]
  targets = _texts(fields, 'targets', origin) or right
  if not targets:
    raise UserError(f"{origin}: 'targets' is missing or empty.")
  if right and targets[0] != right[0]:
    raise UserError(
      f'{origin}: the first of targets, {targets[0]!r}, is not the choice of the'
      f' label, {right[0]!r}. Leave targets out.'
    )
  return sources.TextExample(str(name), inputs, targets, choices, label)


def _choices(
  fields: Mapping[str, Any], origin: str
) -> tuple[list[str], int | None]:
  """Returns the answers to rank and the index of the right one, if any."""
  choices, label = _texts(fields, 'choices', origin), fields.get('label')
  if not choices:
    if label is not None:
      raise UserError(f"{origin}: 'label' is of choices, and there are none.")
    return [], None
  if len(choices) < 2:
    raise UserError(f"{origin}: 'choices' are at least two.")
  if type(label) is not int or not 0 <= label < len(choices):
    raise UserError(
      f"{origin}: 'label' is the index of the right one of {len(choices)}"
      f' choices, from 0, not {label!r}.'
    )
  return choices, label


def _texts(fields: Mapping[str, Any], key: str, origin: str) -> list[str]:
  """Returns a text, or a list of texts, as a list."""
  value = fields.get(key, [])
  texts = [value] if isinstance(value, str) else value
  if not isinstance(texts, list) or not all(
    isinstance(text, str) and text for text in texts
  ):
    raise UserError(
      f'{origin}: {key!r} is a text or a list of them, none empty, not'
      f' {value!r}.'
    )
  return texts
