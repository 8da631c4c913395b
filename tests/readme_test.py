"""What README and docs/flax.md show runs, as it stands there."""

import json
import pathlib
import re
import shlex
import textwrap

from flax import linen as nn
import jax
from jax import numpy as jnp
import numpy as np
import optax
import pytest

import mhr_jax
from mhr_jax import cli
from mhr_jax.convert import hf_t5
from mhr_jax.convert import peft as peft_format
from mhr_jax.model import RoutedT5
from mhr_jax.t5.config import t5_config
from mhr_jax.tasks import skills_suite
import random_adapters

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_README = _ROOT / 'README.md'
_BACKBONE = 't5-v1_1-small'


class Classifier(nn.Module):
  """Somebody's model."""

  @nn.compact
  def __call__(self, x):
    x = x + nn.MultiHeadDotProductAttention(2, name='attention')(x)
    return nn.Dense(3, name='logits')(x.mean(axis=1))


def blocks(page: pathlib.Path, title: str = '') -> list[str]:
  """Returns the indented blocks of a page, or of a section of it."""
  text = page.read_text()
  if title:
    text = text.partition(f'\n## {title}\n')[2].partition('\n## ')[0]
  found = re.findall(r'(?:^ {4}.*\n|^\n(?= {4}))+', text, re.M)
  return [textwrap.dedent(block).strip('\n') for block in found]


def _commands(block: str) -> list[list[str]]:
  """Returns the commands of a block, over a tiny T5."""
  text = block.replace('\\\n', ' ').replace('t5_1_1_small', 't5_1_1_tiny')
  return [shlex.split(line)[1:] for line in text.splitlines()]


@pytest.fixture
def backbone(tmp_path, monkeypatch):
  """A working directory with a folder of transformers: a tiny T5."""
  monkeypatch.chdir(tmp_path)
  config = t5_config('t5_1_1_tiny')
  model = RoutedT5(config)
  params = model.init(jax.random.key(0))
  vocabulary = skills_suite.make_vocabulary()
  hf_t5.write_backbone(_BACKBONE, config, params['backbone'])
  model_file = tmp_path / _BACKBONE / 'spiece.model'
  model_file.write_bytes(vocabulary.model)
  return tmp_path


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
  (block,) = blocks(_ROOT / 'docs' / 'flax.md')
  exec(block, scope)
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


def _write_task(folder, **splits: int):
  folder.mkdir(parents=True)
  for split, n in splits.items():
    lines = [
      json.dumps({'inputs': f'abc {i}', 'targets': 'good'}) for i in range(n)
    ]
    (folder / f'{split}.jsonl').write_text('\n'.join(lines))


@pytest.mark.nightly
def test_your_own_tasks(backbone, capsys):
  """From JSON lines to an adapter of a new task, by the README's commands."""
  found = blocks(_README, 'Your own tasks')
  shown, train, program, adapt = found
  first = re.search(r'^(\S+) +(\{.*\})$', shown, re.M)
  assert first is not None and json.loads(first[2])['targets'] == 'good'
  for name in re.findall(r'^my_data/(\w+)/train', shown, re.M):
    _write_task(backbone / 'my_data' / name, train=40, validation=4)
  _write_task(backbone / 'new_data' / 'joke', few_shot=32, test=4)
  (argv,) = _commands(train)
  small = ['--gin.INPUT_LENGTH=16', '--gin.TARGET_LENGTH=8', '--gin.STEPS=2']
  argv += [*small, '--gin.BATCH_SIZE=8']
  assert cli.main(argv) == 0
  assert 'mine_sentiment' in capsys.readouterr().out
  assert not (backbone / 'runs').exists()
  argv.remove('--dry_run')
  assert cli.main(argv) == 0
  exec(program, {})
  (argv,) = _commands(adapt)
  assert cli.main([*argv, *small, '--gin.SEEDS=(0,)']) == 0
  assert 'new_joke' in capsys.readouterr().out


@pytest.mark.nightly
def test_adapters_from_peft(backbone):
  config = t5_config('t5_1_1_tiny')
  bundle = random_adapters.draw_bundle(backbone=config, names=False)
  peft_format.write_poly('my_peft_adapter', bundle)
  (program,) = blocks(_README, 'Adapters from PEFT, and back')
  exec(program, {})
  again = mhr_jax.load(_BACKBONE, adapter='a_lora')
  whole = mhr_jax.load(_BACKBONE, adapter='native_adapter')
  assert again.generate('a text') == whole.generate('a text', task=0)
