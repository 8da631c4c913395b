"""A tiny routed T5 over bytes and tasks on words, for tests that decode."""

import dataclasses

import jax
import numpy as np

from mhr_jax import few_shot
from mhr_jax.adapters import AdapterConfig
from mhr_jax.data.ordered import ExampleSource, eval_batches
from mhr_jax.model import RoutedT5
from mhr_jax.t5.config import T5Config
from mhr_jax.task_table import TaskTable
from mhr_jax.vocabulary import ByteVocabulary

VOCABULARY = ByteVocabulary()
TASKS = TaskTable(('copy', 'first', 'upper'))
WIDTHS = {'input_length': 8, 'target_length': 8}
_SOLVE = {'copy': str, 'first': lambda text: text[0], 'upper': str.upper}

CONFIG = T5Config(
  vocab_size=VOCABULARY.vocab_size,
  emb_dim=16,
  num_heads=2,
  head_dim=8,
  mlp_dim=16,
  num_encoder_layers=1,
  num_decoder_layers=1,
  relative_attention_num_buckets=4,
  relative_attention_max_distance=8,
)
ADAPTERS = AdapterConfig(
  n_tasks=len(TASKS),
  n_skills=3,
  n_splits=2,
  rank=2,
  alpha=2.0,
  # A few linears of each kind: every one costs compilation.
  targets=('encoder/attention/query', 'encoder/mlp/wo', 'decoder/mlp/wi_0'),
)


def make_model(**changes) -> RoutedT5:
  """Returns the model; `changes` are fields of its AdapterConfig."""
  return RoutedT5(CONFIG, dataclasses.replace(ADAPTERS, **changes))


def make_params(model: RoutedT5, seed: int = 0):
  """Draws parameters as after training: no zeros, routing far from even.

  With numpy: compiling `init` takes longer than any test.
  """
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    names = [entry.key for entry in path]
    if names[-1] == 'scale':
      return np.ones(leaf.shape, np.float32)
    size = {'backbone': 0.2, 'adapters': 0.3, 'routers': 2.0}[names[0]]
    return rng.normal(0, size, leaf.shape).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, model.abstract_params())


def make_source(task: str, n: int, *, seed: int = 0) -> ExampleSource:
  """Returns `n` examples of a task; the second reference is 'no'."""
  rng = np.random.default_rng((seed, n, len(task)))
  examples = []
  for i in range(n):
    text = ''.join(rng.choice(list('abc'), rng.integers(2, 5)))
    references = (_SOLVE[task](text), 'no')
    encoded = [VOCABULARY.encode(reference) for reference in references]
    examples.append(
      {
        'inputs': np.array(VOCABULARY.encode(text), np.int32),
        'targets': np.array(sum(encoded, []), np.int32),
        'target_lengths': np.array([len(e) for e in encoded], np.int32),
        'inputs_pretokenized': text,
        'targets_pretokenized': references,
        'example_id': f'{task}-{i}',
      }
    )
  category = None if task == 'upper' else 'plain'
  return ExampleSource(task, examples, category=category)


def make_choices(
  task: str, n: int, *, seed: int = 0, forms: int = 1, most: int = 4
) -> ExampleSource:
  """Returns `n` examples of 2 to `most` answer choices, each in some forms.

  Choices have one letter or two: few lengths, so that loops compile little.
  """
  rng = np.random.default_rng((seed, n, len(task), 7))
  examples = []
  for i in range(n):
    choices = rng.choice(['a', 'bc', 'd', 'ef', 'g', 'hi'], 4, replace=False)
    choices = tuple(choices[: rng.integers(2, most + 1)].tolist())
    label = int(rng.integers(len(choices)))
    for form in range(forms):
      # The first form has the choices as they are, the others turned round.
      shown = choices if form == 0 else choices[::-1]
      right = label if form == 0 else len(choices) - 1 - label
      text = f'{i}{"xyz"[form]}{task[0]}'
      ids = [VOCABULARY.encode(choice) for choice in shown]
      examples.append(
        {
          'inputs': np.array(VOCABULARY.encode(text), np.int32),
          'targets': np.array(ids[right], np.int32),
          'target_lengths': np.array([len(ids[right])], np.int32),
          'inputs_pretokenized': text,
          'targets_pretokenized': (shown[right],),
          'example_id': f'{i}/{form}',
          'choices': np.array(sum(ids, []), np.int32),
          'choice_lengths': np.array([len(each) for each in ids], np.int32),
          'choices_pretokenized': shown,
          'label': right,
        }
      )
  return ExampleSource(task, examples, category=f'all of {task}')


def make_batches(*, n: int = 5, batch_size: int = 4):
  """Returns evaluation batches of all tasks, the last one partly filled."""
  sources = [make_source(task, n) for task in TASKS.names]
  return list(
    eval_batches(sources, batch_size=batch_size, task_table=TASKS, **WIDTHS)
  )


def make_cells(*, seeds=(0, 1), **changes):
  """Returns few-shot cells of all tasks with test sets of unequal size."""
  tasks = [
    few_shot.FewShotTask(
      make_source(task, 20), make_source(task, 5 + i, seed=1)
    )
    for i, task in enumerate(TASKS.names)
  ]
  settings = {
    'shots': 6,
    'steps': 4,
    'batch_size': 4,
    'test_batch_size': 4,
    **WIDTHS,
    **changes,
  }
  return few_shot.build_cells(
    tasks, few_shot.FewShotSettings(seeds=tuple(seeds), **settings)
  )
