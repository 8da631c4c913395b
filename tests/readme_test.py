"""The README's Python runs, as it stands there."""

import pathlib
import textwrap

from flax import linen as nn
import jax
from jax import numpy as jnp
import numpy as np
import optax

_README = pathlib.Path(__file__).resolve().parents[1] / 'README.md'


class Classifier(nn.Module):
  """Somebody's model."""

  @nn.compact
  def __call__(self, x):
    x = x + nn.MultiHeadDotProductAttention(2, name='attention')(x)
    return nn.Dense(3, name='logits')(x.mean(axis=1))


def section(title: str) -> str:
  """Returns the indented code of a section."""
  text = _README.read_text().partition(f'\n## {title}\n')[2]
  text = text.partition('\n## ')[0]
  lines = [line for line in text.splitlines() if line[:4] in ('', '    ')]
  return textwrap.dedent('\n'.join(lines))


def test_any_flax_model(capsys):
  """Three tasks with three answers for the same inputs."""
  model = Classifier()
  examples = np.random.default_rng(0).normal(size=(10, 4, 8))
  inputs = np.tile(examples.astype(np.float32), (3, 1, 1))
  task_ids = labels = np.repeat(np.arange(3), 10)
  params = model.init(jax.random.key(1), inputs)['params']
  scope = {
    'jax': jax,
    'optax': optax,
    'model': model,
    'params': params,
    'inputs': inputs,
    'optimizer': optax.adam(0.1),
    'cross_entropy': optax.softmax_cross_entropy_with_integer_labels,
  }
  exec(section('Any Flax model'), scope)
  assert capsys.readouterr().out.startswith(
    'Routing 2 of 5 linears: attention/query, attention/value ('
  )
  added, state = scope['added'], scope['state']
  for _ in range(60):
    added, state = scope['step'](added, state, inputs, labels, task_ids)

  def accuracy(task_ids):
    variables = {'params': params, **added}
    logits = scope['routed'].apply(variables, inputs, task_ids=task_ids)
    return float((jnp.argmax(logits, -1) == labels).mean())

  assert accuracy(task_ids) == 1
  assert accuracy((task_ids + 1) % 3) < 0.2
