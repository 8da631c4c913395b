"""The list of a step's products, against closed forms and real gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import products
from benchmarks.setting import Setting
from mhr_jax.t5.config import list_linears


def tokens_of(path, sizes):
  """The tokens a linear sees, by the data flow of an encoder-decoder."""
  stack, sublayer, name = path.split('/')
  reads_encoder = stack == 'encoder' or (
    sublayer == 'encoder_decoder_attention' and name in ('key', 'value')
  )
  length = sizes.input_length if reads_encoder else sizes.target_length
  return sizes.batch_size * length


def closed_form(sizes):
  """FLOPs of a step by part: 4 a frozen weight and token, 6 an adapter's."""
  config = sizes.backbone
  linears = list_linears(config)
  ins, outs = sizes.input_length, sizes.target_length
  pairs = config.num_encoder_layers * ins * ins
  pairs += config.num_decoder_layers * (outs * outs + outs * ins)
  ends = {
    k: x.layers * (x.in_features + x.out_features) for k, x in linears.items()
  }
  pair = {k: size * sizes.rank for k, size in ends.items()}
  return {
    'kernels': sum(
      4 * x.layers * x.in_features * x.out_features * tokens_of(k, sizes)
      for k, x in linears.items()
    ),
    'logits': 4
    * config.emb_dim
    * config.vocab_size
    * sizes.batch_size
    * sizes.target_length,
    # Two products forward and two gradients of each.
    'attention': 2 * 6 * sizes.batch_size * pairs * config.joined_kv,
    'adapters': sum(6 * n * tokens_of(k, sizes) for k, n in pair.items()),
    # Each mixed number is a product over the skills, thrice.
    'mixing': 6 * sizes.batch_size * sizes.n_skills * sum(pair.values()),
  }


@pytest.mark.parametrize(
  'sizes', [Setting(), Setting(rank=1), Setting(model='t5_1_1_xl', n_splits=64)]
)
def test_flops_are_those_of_the_closed_form(sizes):
  listed = products.list_products(sizes.backbone, sizes.adapters('mhr'), sizes)
  assert products.count_flops(listed) == closed_form(sizes)


def test_the_step_of_the_goals_is_147_gflop():
  sizes = Setting()
  listed = products.list_products(sizes.backbone, sizes.adapters('mhr'), sizes)
  total = sum(products.count_flops(listed).values())
  assert round(total / 1e9) == 147


def test_one_adapter_for_all_rows_is_neither_batched_nor_mixed():
  sizes = Setting()
  lora, mhr, bare = (
    products.count_flops(products.list_products(sizes.backbone, added, sizes))
    for added in (sizes.adapters('lora'), sizes.adapters('mhr'), None)
  )
  assert lora == {k: v for k, v in mhr.items() if k != 'mixing'}
  assert bare == {k: v for k, v in lora.items() if k != 'adapters'}


def test_products_of_a_linear_are_its_value_and_its_gradients():
  """The specs, taken for real, are what JAX's own derivative gives."""
  rng = np.random.default_rng(0)

  def draw(*shape):
    return jnp.array(rng.normal(size=shape), jnp.float32)

  x, w, a, b, dy = (
    draw(6, 5),
    draw(5, 4),
    draw(1, 5, 2),
    draw(1, 2, 4),
    draw(6, 4),
  )

  def apply(x, a, b):
    return x @ w + (x @ a[0]) @ b[0]

  expected_y, pull = jax.vjp(apply, x, a, b)
  xa = jnp.einsum('bmi,bir->bmr', x[None], a)
  y = jnp.einsum('mi,io->mo', x, w) + jnp.einsum('bmr,bro->bmo', xa, b)[0]
  dxa = jnp.einsum('bmo,bro->bmr', dy[None], b)
  dx = jnp.einsum('mo,io->mi', dy, w)
  dx += jnp.einsum('bmr,bir->bmi', dxa, a)[0]
  da = jnp.einsum('bmi,bmr->bir', x[None], dxa)
  db = jnp.einsum('bmr,bmo->bro', xa, dy[None])
  np.testing.assert_allclose(y, expected_y, rtol=1e-5)
  for found, expected in zip((dx, da, db), pull(dy), strict=True):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
  sizes = Setting(model='t5_1_1_tiny', batch_size=1, rank=2)
  listed = products.list_products(sizes.backbone, sizes.adapters('lora'), sizes)
  specs = {x.spec for x in listed if x.part in ('kernels', 'adapters')}
  assert specs == {
    'mi,io->mo',
    'mo,io->mi',
    'bmi,bir->bmr',
    'bmr,bir->bmi',
    'bmi,bmr->bir',
    'bmr,bro->bmo',
    'bmo,bro->bmr',
    'bmr,bmo->bro',
  }
