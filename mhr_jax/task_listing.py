"""Lists tasks and mixtures, and shows examples: raw, tokenised, decoded."""

import collections

from mhr_jax.data import records
from mhr_jax.errors import UserError
from mhr_jax.startup_lines import without_startup_lines
from mhr_jax.task_data import TaskData

_TOKENS_SHOWN = 24


def list_all(data: TaskData) -> str:
  """Returns the registered mixtures and tasks, and what is prepared.

  Where `data` names no module, what is prepared is all there is to list.

  Raises:
    UserError: there is nothing to list.
  """
  prepared = set(records.list_tasks(data.data_dir))
  if not data.modules:
    if not prepared:
      raise UserError(
        f'Nothing is prepared in {data.data_dir}. Name a module that registers'
        ' tasks: mhr-jax tasks --module=mhr_jax.tasks.skills'
      )
    return '\n'.join([f'prepared in {data.data_dir}:', *_indent(prepared)])
  registry = _registry(data)
  mixtures = registry.list_mixtures()
  lines = [f'{len(mixtures)} mixtures:']
  for name in mixtures:
    tasks = registry.resolve(name).tasks
    lines.append(f'  {name}  ({len(tasks)} tasks)')
  tasks = registry.list_tasks()
  lines.append(f'{len(tasks)} tasks (* is prepared in {data.data_dir}):')
  lines += [f'{"*" if name in prepared else " "} {name}' for name in tasks]
  return '\n'.join(lines)


def show_examples(
  data: TaskData, task: str, *, split: str = 'train', n: int = 3
) -> str:
  """Returns the first examples of a task as text and as token ids.

  Prepared data is read where there is any; else the task's source.

  Raises:
    UserError: there is no such task or split.
  """
  if data.modules:
    found = [
      {
        'example_id': each.example_id,
        'inputs_pretokenized': each.inputs_pretokenized,
        'targets_pretokenized': each.targets_pretokenized,
        'inputs': each.inputs,
        'targets': each.targets[0],
        'choices_pretokenized': each.choices_pretokenized,
      }
      for each in _registry(data).read_examples(task, split, n)
    ]
  else:
    source = records.open_task(data.data_dir, task).source(split)
    found = [source[i] for i in range(min(n, len(source)))]
  lines = []
  for example in found:
    references = collections.Counter(example['targets_pretokenized'])
    lines += [
      f'{task}, {split}, {example["example_id"]}',
      f'  inputs   {example["inputs_pretokenized"]!r}',
      f'           {_ids(example["inputs"])}',
      *(f'  target   {text!r}' for text in references),
      f'           {_ids(example["targets"])}',
      *(f'  choice   {text!r}' for text in example['choices_pretokenized']),
    ]
  return '\n'.join(lines)


def _registry(data: TaskData):
  for module in data.modules:
    module.register()
  # seqio and TensorFlow are needed here alone.
  with without_startup_lines():
    from mhr_jax.data import registry

  return registry


def _indent(names) -> list[str]:
  return [f'  {name}' for name in sorted(names)]


def _ids(tokens) -> str:
  ids = [int(token) for token in tokens]
  shown = ' '.join(map(str, ids[:_TOKENS_SHOWN]))
  more = ' …' if len(ids) > _TOKENS_SHOWN else ''
  return f'[{shown}{more}] ({len(ids)} tokens)'
