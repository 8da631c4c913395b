"""T5X imported into this process, with one tiny routed model to compare on."""

import importlib

import jax
import numpy as np

from mhr_jax import optim
from mhr_jax.adapters import AdapterConfig
from mhr_jax.convert import t5x_tree
from mhr_jax.model import RoutedT5
from mhr_jax.t5 import config as config_lib
from mhr_jax.t5x import installation

CONFIG = config_lib.t5_config(
  't5_1_1_tiny',
  vocab_size=64,
  emb_dim=16,
  num_heads=2,
  head_dim=8,
  mlp_dim=32,
  scan_layers=False,
)
N_TASKS = 5
ADAPTERS = {
  'mhr': AdapterConfig(N_TASKS, n_skills=3, n_splits=4, rank=2),
  'poly': AdapterConfig(N_TASKS, n_skills=3, rank=2),
}


def build(name: str) -> tuple[RoutedT5, dict]:
  """Returns a model, and parameters with adapters that are not zero."""
  model = RoutedT5(CONFIG, ADAPTERS[name])
  params = model.init(jax.random.key(0))
  leaves, structure = jax.tree.flatten(
    {label: params[label] for label in ('adapters', 'routers')}
  )
  rng = np.random.default_rng(1)
  drawn = [rng.normal(size=x.shape).astype(np.float32) * 0.3 for x in leaves]
  return model, {**params, **structure.unflatten(drawn)}


def draw_batch(seed: int, rows: int = 8, inputs: int = 9, targets: int = 6):
  """Returns a batch of mixed tasks with padding, as seqio hands it to T5X."""
  rng = np.random.default_rng(seed)

  def tokens(length):
    drawn = rng.integers(2, CONFIG.vocab_size, (rows, length))
    kept = np.arange(length) < rng.integers(2, length + 1, (rows, 1))
    return np.where(kept, drawn, 0).astype(np.int32)

  written = tokens(targets)
  shifted = np.pad(written[:, :-1], ((0, 0), (1, 0)))
  return {
    'encoder_input_tokens': tokens(inputs),
    'decoder_input_tokens': shifted,
    'decoder_target_tokens': written,
    'decoder_loss_weights': (written != 0).astype(np.int32),
    'task_ids': rng.integers(0, N_TASKS, (rows, 1)).astype(np.int32),
  }


class Theirs:
  """T5X's model, trainer and checkpoints, around a routed model.

  Attributes:
    model: T5X's.
  """

  def __init__(self, model: RoutedT5, settings: optim.OptimizerSettings, steps):
    """Makes them; the schedule of `settings` over `steps` is T5X's here."""
    installation.prepare_imports()
    self._import = importlib.import_module
    optimizer = self._import('mhr_jax.t5x.optimizer').RoutedOptimizer(settings)
    seqio = self._import('seqio')
    vocabulary = seqio.PassThroughVocabulary(model.config.vocab_size)
    routed = self._import('mhr_jax.t5x.model')
    self.model = routed.RoutedEncoderDecoderModel(
      model,
      vocabulary,
      vocabulary,
      optimizer,
      loss_normalizing_factor='NUM_REAL_TARGET_TOKENS',
    )
    layout = self._import('mhr_jax.t5x.partitioning')
    self._partitioner = layout.Partitioner(
      num_partitions=2, logical_axis_rules=layout.logical_axis_rules()
    )
    self._initializer = self._import('t5x.utils').TrainStateInitializer(
      optimizer_def=optimizer,
      init_fn=self.model.get_initial_variables,
      input_shapes={name: x.shape for name, x in draw_batch(0).items()},
      partitioner=self._partitioner,
    )
    schedule = optim.make_schedule(settings, steps)
    self._learning_rate = lambda step: (
      settings.learning_rates.adapters * schedule(step)
    )

  def fresh_state(self):
    """Returns T5X's state from scratch."""
    return self._initializer.from_scratch(jax.random.PRNGKey(0))

  def start(self, params):
    """Returns T5X's state at step 0 with our parameters."""
    state = self.fresh_state()
    tree = jax.tree.map(
      jax.device_put,
      self._import('flax.core').freeze(t5x_tree.to_t5x(params)),
      jax.tree.map(lambda x: x.sharding, state.params),
    )
    return state.replace_params(tree)

  def train(self, state, batches):
    """Returns T5X's loss at each batch, and its state after them."""
    running = self._import('t5x.trainer').Trainer(
      self.model,
      state,
      self._partitioner,
      eval_names=[],
      summary_dir=None,
      train_state_axes=self._initializer.train_state_axes,
      rng=jax.random.PRNGKey(0),
      learning_rate_fn=self._learning_rate,
      num_microbatches=None,
    )
    losses = []
    with running:
      for batch in batches:
        summary = running.train(iter([batch]), 1).result()
        losses.append(float(summary['loss'].value))
      return losses, running.train_state

  def checkpoints(self, folder):
    """Returns what T5X saves with and restores from."""
    folder.mkdir(exist_ok=True)
    module = self._import('t5x.checkpoints')
    return module.OrbaxCheckpointManagerInterface(
      str(folder), self.fresh_state(), self._partitioner
    )


def for_ours(batch):
  """Returns a batch of T5X's with `task_ids` as our trainer has them."""
  return {**batch, 'task_ids': batch['task_ids'][:, 0]}
