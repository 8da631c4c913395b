"""The matrix products of a training step over a frozen T5, listed and timed.

Forward, input gradient, and the gradients of the adapters: what no
implementation can leave out, and so the least time that a step can take at
the speed of this machine's products. Elementwise work, norms, softmax, the
mixing weights themselves and the optimizer are not in it.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import math
import time
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import setting as setting_lib
from benchmarks.setting import Setting
from benchmarks.works import Works
from mhr_jax.adapters import AdapterConfig
from mhr_jax.t5.config import T5Config, list_linears

ALONE = 'matrix products alone'


@dataclasses.dataclass(frozen=True)
class Product:
  """A matrix product that a step takes `count` times.

  Attributes:
    part: of the step: 'kernels', 'logits', 'attention', 'adapters', 'mixing'.
    spec: as einsum spells it.
    sizes: of each letter of the spec.
    count: how many times, each time of other arrays.
  """

  part: str
  spec: str
  sizes: tuple[tuple[str, int], ...]
  count: int

  @property
  def flops(self) -> int:
    """Floating-point operations, all times together."""
    return 2 * self.count * math.prod(size for _, size in self.sizes)

  def shapes(self) -> list[tuple[int, ...]]:
    """Returns the shapes of the operands."""
    sizes = dict(self.sizes)
    operands = self.spec.partition('->')[0].split(',')
    return [tuple(sizes[letter] for letter in names) for names in operands]


def _product(part: str, spec: str, count: int, **sizes: int) -> Product:
  return Product(part, spec, tuple(sizes.items()), count)


def list_products(
  config: T5Config, added: AdapterConfig | None, sizes: Setting
) -> list[Product]:
  """Returns the products of one step, equal ones together.

  Args:
    config: the frozen backbone.
    added: low-rank adapters; None counts forward and input gradient alone.
      One that depends on the task is a pair a row and is mixed; another one is
      a plain matrix.
    sizes: of the batch.
  """
  found: dict[Product, int] = {}
  listed = list(_backbone_products(config, sizes))
  if added is not None:
    listed.extend(_adapter_products(config, added, sizes))
  for product in listed:
    one = dataclasses.replace(product, count=1)
    found[one] = found.get(one, 0) + product.count
  return [dataclasses.replace(k, count=count) for k, count in found.items()]


def count_flops(products: list[Product]) -> dict[str, int]:
  """Returns the floating-point operations of each part."""
  parts: dict[str, int] = {}
  for product in products:
    parts[product.part] = parts.get(product.part, 0) + product.flops
  return parts


def _tokens(path: str, sizes: Setting) -> int:
  """Returns how many tokens of a row a linear sees."""
  reads_inputs = path.startswith('encoder/') or path.endswith(
    ('encoder_decoder_attention/key', 'encoder_decoder_attention/value')
  )
  return sizes.input_length if reads_inputs else sizes.target_length


def _backbone_products(config: T5Config, sizes: Setting) -> Iterator[Product]:
  for path, linear in list_linears(config).items():
    rows = sizes.batch_size * _tokens(path, sizes)
    yield from _frozen(
      'kernels', linear.layers, rows, linear.in_features, linear.out_features
    )
  rows = sizes.batch_size * sizes.target_length
  yield from _frozen('logits', 1, rows, config.emb_dim, config.vocab_size)
  ins, outs = sizes.input_length, sizes.target_length
  for layers, queries, keys in (
    (config.num_encoder_layers, ins, ins),
    (config.num_decoder_layers, outs, outs),
    (config.num_decoder_layers, outs, ins),
  ):
    for spec in (
      'bhqd,bhkd->bhqk',  # logits; and the gradient of the weights
      'bhqd,bhkd->bhqk',
      'bhqk,bhkd->bhqd',  # mixed values; and the gradient of queries
      'bhqk,bhkd->bhqd',
      'bhqk,bhqd->bhkd',  # gradients of keys and of values
      'bhqk,bhqd->bhkd',
    ):
      yield _product(
        'attention',
        spec,
        layers,
        b=sizes.batch_size,
        h=config.num_heads,
        q=queries,
        k=keys,
        d=config.head_dim,
      )


def _frozen(
  part: str, layers: int, rows: int, ins: int, outs: int
) -> Iterator[Product]:
  """Yields a kernel's product forward, and the gradient of its input."""
  shape = {'m': rows, 'i': ins, 'o': outs}
  yield _product(part, 'mi,io->mo', layers, **shape)
  yield _product(part, 'mo,io->mi', layers, **shape)


def _adapter_products(
  config: T5Config, added: AdapterConfig, sizes: Setting
) -> Iterator[Product]:
  one_a_row = added.has_routers or added.mixing == 'private'
  for path, linear in list_linears(config).items():
    length, rows = _tokens(path, sizes), sizes.batch_size
    if not one_a_row:
      length, rows = length * rows, 1
    shape = {'b': rows, 'm': length, 'r': added.rank}
    for spec, features in (
      ('bmi,bir->bmr', {'i': linear.in_features}),  # x·a
      ('bmr,bir->bmi', {'i': linear.in_features}),  # its input gradient
      ('bmi,bmr->bir', {'i': linear.in_features}),  # gradient of a
      ('bmr,bro->bmo', {'o': linear.out_features}),  # (x·a)·b
      ('bmo,bro->bmr', {'o': linear.out_features}),  # gradient of x·a
      ('bmr,bmo->bro', {'o': linear.out_features}),  # gradient of b
    ):
      yield _product('adapters', spec, linear.layers, **shape, **features)
    if one_a_row:
      for features in (linear.in_features, linear.out_features):
        yield from _mixing(added, linear.layers, rows, features)


def _mixing(
  added: AdapterConfig, layers: int, rows: int, features: int
) -> Iterator[Product]:
  """Yields the mixing of an inventory's a or b, and its two gradients."""
  shape = {
    's': added.n_splits,
    'b': rows,
    'k': added.n_skills,
    'f': features // added.n_splits * added.rank,
  }
  for spec in ('sbk,skf->sbf', 'sbf,skf->sbk', 'sbk,sbf->skf'):
    yield _product('mixing', spec, layers, **shape)


def build(setting: Mapping[str, Any], method: str) -> Works:
  """Builds the work of all products of a step, each of arrays of its own.

  Equal products are dispatched together, once for all layers, so that what is
  timed are products and not calls.

  Args:
    setting: of `Setting.as_json`.
    method: whose adapters.
  """
  sizes = setting_lib.from_json(setting)
  config = sizes.backbone
  listed = list_products(config, sizes.adapters(method), sizes)
  groups: dict[str, list[Any]] = {}
  for product in listed:
    groups.setdefault(product.part, []).append(_prepare(product, config.dtype))

  def run() -> dict[str, float]:
    seconds = {}
    for part, prepared in groups.items():
      start = time.perf_counter()
      for compute, operands in prepared:
        jax.block_until_ready(compute(operands))
      seconds[part] = time.perf_counter() - start
    return seconds

  return Works({ALONE: run}, {'flops': count_flops(listed)})


def _prepare(product: Product, dtype: str) -> tuple[Any, Any]:
  """Returns a compiled function, and a list of operands for it."""

  def compute(operands):
    return [
      jnp.einsum(product.spec, x, y, preferred_element_type=dtype)
      for x, y in operands
    ]

  keys = iter(jax.random.split(jax.random.key(0), 2))
  left, right = (
    jax.random.normal(next(keys), shape, dtype) for shape in product.shapes()
  )
  operands = [(left + 0.0, right + 0.0) for _ in range(product.count)]
  return jax.jit(compute), operands
