"""A small routed model and runs of it, for the trainer's tests.

A module of its own, so that another process can import it and be killed.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np

from mhr_jax import losses, optim, partitioning, routing, trainer
from mhr_jax.task_table import TaskTable

TASKS = TaskTable(('add', 'copy', 'reverse', 'sort'))
OPTIMIZER = optim.OptimizerSettings(
  learning_rates={'backbone': 1e-2, 'adapters': 1e-2, 'routers': 0.1}
)

_VOCAB, _EMBED, _HIDDEN, _SKILLS, _RANK = 16, 8, 32, 2, 2


class ToyModel:
  """Embed, one adapted layer with routed low-rank adapters, logits."""

  def init(self, seed: int = 0):
    rng = np.random.default_rng(seed)
    shapes = {
      'backbone': {
        'embed': (_VOCAB, _EMBED),
        'wi': (_EMBED, _HIDDEN),
        'out': (_HIDDEN, _VOCAB),
      },
      'adapters': {
        'wi': {
          'a': (1, 1, _SKILLS, _EMBED, _RANK),
          'b': (1, 1, _SKILLS, _RANK, _HIDDEN),
        }
      },
      'routers': {'wi': {'routing_logits': (1, len(TASKS), 1, _SKILLS)}},
    }
    return jax.tree.map(
      lambda shape: jnp.asarray(rng.normal(size=shape) * 0.3, jnp.float32),
      shapes,
      is_leaf=lambda x: isinstance(x, tuple),
    )

  def logical_axes(self):
    stacked = ('layers', 'split', 'skill')
    return {
      'backbone': {
        'embed': ('vocab', 'embed'),
        'wi': ('embed', 'mlp'),
        'out': ('mlp', 'vocab'),
      },
      'adapters': {
        'wi': {'a': (*stacked, 'embed', 'rank'), 'b': (*stacked, 'rank', 'mlp')}
      },
      'routers': {
        'wi': {'routing_logits': ('layers', 'task', 'split', 'skill')}
      },
    }

  def loss(
    self,
    params,
    batch,
    *,
    dropout_key=None,
    noise_key=None,
    example_index=None,
    uniform_share=None,
    label_smoothing=0.0,
    z_loss=0.0,
  ):
    del dropout_key
    backbone, adapter = params['backbone'], params['adapters']['wi']
    rows = params['routers']['wi']['routing_logits'][0, batch['task_ids'], 0]
    if noise_key is not None:
      # A key of each example, whose two words are its noise: quick to compile.
      keys = jax.vmap(lambda i: jax.random.fold_in(noise_key, i))(example_index)
      rows += jax.random.key_data(keys) / 2.0**31 - 1.0
    weights = jax.nn.softmax(rows)
    if uniform_share is not None:
      weights = routing.mix_in_uniform(weights, uniform_share)
    a = jnp.einsum('bk,kir->bir', weights, adapter['a'][0, 0])
    b = jnp.einsum('bk,kro->bro', weights, adapter['b'][0, 0])
    tokens = batch['decoder_input_tokens']
    read = backbone['embed'][batch['encoder_input_tokens']].mean(1)
    x = backbone['embed'][tokens] + read[:, None]
    h = x @ backbone['wi'] + jnp.einsum('bti,bir,bro->bto', x, a, b)
    logits = jnp.tanh(h) @ backbone['out']
    return losses.token_cross_entropy(
      logits,
      batch['decoder_target_tokens'],
      batch['decoder_loss_weights'],
      label_smoothing=label_smoothing,
      z_loss=z_loss,
    )


def batches(step: int, *, rows: int = 8):
  """The batch of a step: unequal numbers of tokens in its rows."""
  rng = np.random.default_rng((7, step))
  lengths = rng.integers(1, 6, size=rows)
  return {
    'encoder_input_tokens': rng.integers(1, _VOCAB, (rows, 4), np.int32),
    'decoder_input_tokens': rng.integers(1, _VOCAB, (rows, 5), np.int32),
    'decoder_target_tokens': rng.integers(1, _VOCAB, (rows, 5), np.int32),
    'decoder_loss_weights': (np.arange(5) < lengths[:, None]).astype(
      np.float32
    ),
    'task_ids': rng.integers(0, len(TASKS), rows).astype(np.int32),
  }


def run(run_dir, steps: int, *, slow: float = 0.0, on_log=None, **settings):
  """Trains the toy model; each batch takes `slow` seconds to come."""

  def slowly(step):
    time.sleep(slow)
    return batches(step)

  return trainer.fit(
    ToyModel(),
    ToyModel().init(),
    slowly if slow else batches,
    settings=trainer.TrainSettings(
      steps, **{'save_every': 4, 'log_every': 1} | settings
    ),
    optimizer=OPTIMIZER,
    run_dir=run_dir,
    mesh=partitioning.make_mesh(devices=jax.devices()[:1]),
    task_table=TASKS,
    on_log=on_log,
  )


def run_in_process(run_dir, steps, slow, started):
  """What a process of its own runs; `started` counts the steps done."""

  def on_log(step, metrics):
    del metrics
    started.value = step

  run(run_dir, steps, slow=slow, on_log=on_log)
