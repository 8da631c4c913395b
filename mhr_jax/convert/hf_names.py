"""transformers' names of T5's parameters, beside ours.

Ours are the paths of `t5.config.list_linears` with a layer's number; theirs
are module names, which PEFT and the authors' code use too:
'encoder/attention/query' of layer 3 is
'encoder.block.3.layer.0.SelfAttention.q'.
"""

from collections.abc import Iterator
import functools
import re
from typing import NamedTuple

from mhr_jax.t5.config import T5Config, list_linears
from mhr_jax.t5.parameters import STACKS

_ATTENTION = {'query': 'q', 'key': 'k', 'value': 'v', 'out': 'o'}
_SUBLAYERS = {
  'encoder/attention': 'layer.0.SelfAttention',
  'encoder/mlp': 'layer.1.DenseReluDense',
  'decoder/self_attention': 'layer.0.SelfAttention',
  'decoder/encoder_decoder_attention': 'layer.1.EncDecAttention',
  'decoder/mlp': 'layer.2.DenseReluDense',
}
_NORMS = {
  'encoder': ('pre_attention_layer_norm', 'pre_mlp_layer_norm'),
  'decoder': (
    'pre_self_attention_layer_norm',
    'pre_cross_attention_layer_norm',
    'pre_mlp_layer_norm',
  ),
}
_POSITIONS = 'block.0.layer.0.SelfAttention.relative_attention_bias.weight'
_MODULE = re.compile(
  r'(?P<stack>encoder|decoder)\.block\.(?P<layer>\d+)\.'
  r'(?P<sublayer>layer\.\d\.\w+)\.(?P<name>\w+)'
)


class LinearInLayer(NamedTuple):
  """One linear of one layer.

  Attributes:
    path: such as 'decoder/mlp/wi_0'.
    layer: counted from 0 within its stack.
  """

  path: str
  layer: int


class Leaf(NamedTuple):
  """A parameter of the backbone, under both names.

  Attributes:
    path: in the unrolled layout, such as
      'encoder/layers_0/attention/query/kernel'.
    name: theirs, such as 'encoder.block.0.layer.0.SelfAttention.q.weight'.
    transposed: whether theirs has the axes the other way round.
  """

  path: str
  name: str
  transposed: bool


def module_name(path: str, layer: int) -> str:
  """Returns transformers' name of a layer's linear.

  >>> module_name('decoder/encoder_decoder_attention/out', 2)
  'decoder.block.2.layer.1.EncDecAttention.o'
  """
  sublayer, _, name = path.rpartition('/')
  stack = path.partition('/')[0]
  theirs = _ATTENTION.get(name, name)
  return f'{stack}.block.{layer}.{_SUBLAYERS[sublayer]}.{theirs}'


@functools.cache
def _ours() -> tuple[dict[tuple[str, str], str], dict[str, str]]:
  sublayers = {
    (path.partition('/')[0], theirs): path
    for path, theirs in _SUBLAYERS.items()
  }
  return sublayers, {theirs: ours for ours, theirs in _ATTENTION.items()}


def find_linear(name: str) -> LinearInLayer | None:
  """Returns the linear of a module name; None where it is not one's.

  >>> find_linear('encoder.block.3.layer.0.SelfAttention.q')
  LinearInLayer(path='encoder/attention/query', layer=3)
  >>> find_linear('lm_head') is None
  True
  """
  found = _MODULE.fullmatch(name)
  if found is None:
    return None
  sublayers, attention = _ours()
  sublayer = sublayers.get((found['stack'], found['sublayer']))
  if sublayer is None:
    return None
  linear = attention.get(found['name'], found['name'])
  return LinearInLayer(f'{sublayer}/{linear}', int(found['layer']))


def list_leaves(config: T5Config) -> Iterator[Leaf]:
  """Yields every parameter of a backbone under both names, layer by layer.

  Args:
    config: the backbone; its parameters are named as in the unrolled layout,
      whatever `scan_layers` says.
  """
  yield Leaf('token_embedder/embedding', 'shared.weight', False)
  for stack in STACKS:
    yield Leaf(
      f'{stack}/relpos_bias/rel_embedding', f'{stack}.{_POSITIONS}', True
    )
    for layer in range(config.num_layers(stack)):
      yield from _list_layer(config, stack, layer)
    yield Leaf(
      f'{stack}/{stack}_norm/scale', f'{stack}.final_layer_norm.weight', False
    )
  if not config.logits_via_embedding:
    yield Leaf('decoder/logits_dense/kernel', 'lm_head.weight', True)


def _list_layer(config: T5Config, stack: str, layer: int) -> Iterator[Leaf]:
  for path in list_linears(config):
    of_stack, _, rest = path.partition('/')
    if of_stack == stack:
      name = f'{module_name(path, layer)}.weight'
      yield Leaf(f'{stack}/layers_{layer}/{rest}/kernel', name, True)
  for i, norm in enumerate(_NORMS[stack]):
    name = f'{stack}.block.{layer}.layer.{i}.layer_norm.weight'
    yield Leaf(f'{stack}/layers_{layer}/{norm}/scale', name, False)
