"""Models of Flax's own parts, and variables for them with adapters."""

import functools

from flax import linen as nn
import jax
from jax import numpy as jnp
import numpy as np

from mhr_jax import route
from mhr_jax.adapters import AdapterConfig

CONFIG = AdapterConfig(
  n_tasks=3,
  n_skills=4,
  n_splits=2,
  rank=2,
  alpha=4.0,
  targets=('.*/(query|value|out)', '.*/up'),
)
TASKS = np.array([2, 0, 2, 1])
WIDTH = 8
ADDED = ('adapters', 'routers')


class Block(nn.Module):
  """Flax's attention, and an mlp of two linears."""

  causal: bool = True

  @nn.compact
  def __call__(self, x, _=None):
    mask = nn.make_causal_mask(x[..., 0]) if self.causal else None
    attention = nn.MultiHeadDotProductAttention(2, name='attention')
    x = x + attention(nn.LayerNorm()(x), mask=mask)
    hidden = nn.Dense(2 * WIDTH, name='up')(nn.LayerNorm()(x))
    return x + nn.Dense(WIDTH, name='down')(nn.gelu(hidden)), None


class Decoder(nn.Module):
  """A decoder-only language model; its layers in a row or scanned."""

  stacked_on: int | None = None
  remat: bool = False

  def embed(self, ids):
    return jax.nn.one_hot(ids, WIDTH)

  @nn.compact
  def __call__(self, ids):
    x = nn.Embed(11, WIDTH)(ids)
    block = nn.remat(Block, prevent_cse=False) if self.remat else Block
    if self.stacked_on is None:
      for i in range(3):
        x, _ = block(name=f'layer_{i}')(x)
    else:
      layers = nn.scan(
        block,
        variable_axes={'params': self.stacked_on},
        split_rngs={'params': True},
        length=3,
      )
      x, _ = layers(name='layer')(x, None)
    return nn.Dense(11, name='logits')(x)


class VisionTransformer(nn.Module):
  """Patches, a batch norm, blocks and a head, made in `setup`."""

  def setup(self):
    self.patches = nn.Conv(WIDTH, (2, 2), (2, 2))
    self.norm = nn.BatchNorm()
    self.blocks = [Block(causal=False) for _ in range(2)]
    self.head = nn.Dense(5)

  def first_block(self, images, train=False):
    x = self.norm(self.patches(images), use_running_average=not train)
    return self.blocks[0](x.reshape(len(images), -1, WIDTH))[0]

  def __call__(self, images, train=False):
    x, _ = self.blocks[1](self.first_block(images, train))
    return self.head(x.mean(1))


IDS = np.random.default_rng(0).integers(0, 11, (4, 6))
IMAGES = np.random.default_rng(0).normal(size=(4, 4, 4, 3)).astype(np.float32)
MODELS = {
  'decoder': (Decoder(), IDS),
  'decoder, scanned': (Decoder(stacked_on=0, remat=True), IDS),
  'vision': (VisionTransformer(), IMAGES),
}


def fill(shapes):
  """Returns arrays without zeros, cheaper than what `init` draws."""
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda x: jnp.array(rng.normal(size=x.shape) * 0.5, x.dtype), shapes
  )


def random_variables(routed, x):
  """Returns variables in which nothing is zero, and no variance negative."""
  variables = fill(jax.eval_shape(lambda: routed.init(jax.random.key(0), x)))
  stats = variables.get('batch_stats', {})
  return {**variables, 'batch_stats': jax.tree.map(abs, stats)}


def own_part(variables):
  """Returns the variables of the model itself."""
  return {k: tree for k, tree in variables.items() if k not in ADDED}


@functools.cache
def routed_model(name):
  """Returns the routed model, its variables, its jitted apply, an input."""
  model, x = MODELS[name]
  routed = route(model, CONFIG)
  return routed, random_variables(routed, x), jax.jit(routed.apply), x
