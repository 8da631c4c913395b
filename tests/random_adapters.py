"""Adapters of random numbers for small T5s, with routing far from uniform."""

from flax import traverse_util
import jax
import numpy as np

from mhr_jax import methods
from mhr_jax.adapter_folder import AdapterBundle
from mhr_jax.adapters import AdapterConfig
from mhr_jax.t5 import config as config_lib
from mhr_jax.task_table import TaskTable

BACKBONE = config_lib.t5_config(
  't5_1_1_tiny',
  vocab_size=50,
  emb_dim=20,
  num_heads=3,
  head_dim=4,
  mlp_dim=28,
  num_encoder_layers=2,
  num_decoder_layers=3,
)
BACKBONE_1_0 = config_lib.t5_config(
  't5_1_0_tiny',
  vocab_size=50,
  emb_dim=20,
  num_heads=3,
  head_dim=4,
  mlp_dim=28,
  num_encoder_layers=3,
  num_decoder_layers=2,
)
ATTENTION = ('encoder/attention/.*', 'decoder/.*attention/(query|value)')


def draw_bundle(seed=0, *, backbone=BACKBONE, names=True, **settings):
  """Returns adapters with `settings`: random numbers that matter."""
  settings = {'n_tasks': 5, 'n_skills': 3, 'n_splits': 4, 'rank': 2} | settings
  config = AdapterConfig(**settings)
  shapes = jax.eval_shape(
    lambda key: methods.init_added(
      key, config, config_lib.list_linears(backbone)
    ),
    jax.random.key(0),
  )
  rng = np.random.default_rng(seed)
  flat = {
    path: (
      _middle(path) + rng.normal(size=leaf.shape) * _spread(path, leaf, config)
    ).astype(np.float32)
    for path, leaf in traverse_util.flatten_dict(shapes, sep='/').items()
  }
  params = traverse_util.unflatten_dict(flat, sep='/')
  table = TaskTable(tuple(f'task {i}' for i in range(config.n_tasks)))
  return AdapterBundle(config, params, table if names else None, backbone)


def _middle(path):
  return 1.0 if path.endswith('/scale') else 0.0


def _spread(path, leaf, config):
  """Returns a standard deviation by which adapters are a fifth of a kernel."""
  if path.endswith('/a'):
    return (leaf.shape[-2] * config.n_splits) ** -0.5
  if path.endswith('/b'):
    return 0.2 / config.scale / config.rank**0.5
  if path.endswith('/scale'):
    return 0.5
  return 2.0
