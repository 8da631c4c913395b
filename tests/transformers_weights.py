"""The weights of transformers' T5 in our layout."""

from flax import traverse_util
import numpy as np

from mhr_jax.t5 import config as config_lib

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


def module_name(linear, layer):
  """Returns their name of one layer's linear, e.g. 'encoder/mlp/wo'."""
  sublayer, name = linear.rsplit('/', 1)
  stack = sublayer.split('/')[0]
  theirs = _ATTENTION.get(name, name)
  return f'{stack}.block.{layer}.{_SUBLAYERS[sublayer]}.{theirs}'


def to_backbone(tensors, config):
  """Returns {their name: array} as scanned parameters of `config`."""
  flat = {'token_embedder/embedding': tensors['shared.weight']}
  for path, linear in config_lib.list_linears(config).items():
    stack, rest = path.split('/', 1)
    names = [module_name(path, i) for i in range(linear.layers)]
    kernels = [tensors[f'{name}.weight'].T for name in names]
    flat[f'{stack}/layers/{rest}/kernel'] = np.stack(kernels)
  for stack, norms in _NORMS.items():
    for i, norm in enumerate(norms):
      flat[f'{stack}/layers/{norm}/scale'] = np.stack(
        [
          tensors[f'{stack}.block.{layer}.layer.{i}.layer_norm.weight']
          for layer in range(config.num_layers(stack))
        ]
      )
    final = tensors[f'{stack}.final_layer_norm.weight']
    flat[f'{stack}/{stack}_norm/scale'] = final
    table = tensors[f'{stack}.{_POSITIONS}'].T
    flat[f'{stack}/relpos_bias/rel_embedding'] = table
  if not config.logits_via_embedding:
    flat['decoder/logits_dense/kernel'] = tensors['lm_head.weight'].T
  return traverse_util.unflatten_dict(flat, sep='/')
