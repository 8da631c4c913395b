"""transformers' `config.json` of a T5, as our config and back.

What decides the function is carried over, or refused by name where it has no
equivalent. What is theirs alone (`use_cache`, `initializer_factor`,
`task_specific_params`, …) is passed over. Read against transformers 5.23.
"""

from collections.abc import Mapping
from typing import Any

from mhr_jax import run_files
from mhr_jax.errors import UserError
from mhr_jax.t5.config import T5Config

_SIZES = {
  'vocab_size': 'vocab_size',
  'd_model': 'emb_dim',
  'num_heads': 'num_heads',
  'd_kv': 'head_dim',
  'd_ff': 'mlp_dim',
  'num_layers': 'num_encoder_layers',
}
# With what transformers takes where a config, an early one, says nothing.
_OPTIONS: dict[str, tuple[str, float]] = {
  'relative_attention_num_buckets': ('relative_attention_num_buckets', 32),
  'relative_attention_max_distance': ('relative_attention_max_distance', 128),
  'dropout_rate': ('dropout_rate', 0.1),
  'layer_norm_epsilon': ('layer_norm_epsilon', 1e-6),
}
_IDS = {
  'pad_token_id': 'pad_id',
  'eos_token_id': 'eos_id',
  'decoder_start_token_id': 'decoder_start_token_id',
}
_FEED_FORWARD = {'t5': 'relu', 'mt5': 'gated-gelu'}
# Theirs to ours. 'gelu' is their exact form, which we have not; 'gated-gelu'
# alone means the tanh form, by a rule that they keep for T5 1.1.
_ACTIVATIONS = {
  'gelu_new': 'gelu',
  'gelu_pytorch_tanh': 'gelu',
  'relu': 'relu',
  'silu': 'silu',
  'swish': 'silu',
  'linear': 'linear',
}
_TANH_GELU = 'gelu_new'


def from_json(
  values: Mapping[str, Any], generation: Mapping[str, Any], *, where: str
) -> T5Config:
  """Returns the backbone that a `config.json` describes.

  Args:
    values: of `config.json`.
    generation: of `generation_config.json`; {} where there is none.
    where: the folder, for errors.

  Raises:
    UserError: a setting is absent, not possible, or has no equivalent here.
  """
  kind = _get(values, 'model_type', str, where, 't5')
  _check_kind(kind, values, where)
  fields: dict[str, Any] = {
    ours: _get(values, theirs, int, where) for theirs, ours in _SIZES.items()
  }
  for theirs, (ours, default) in _OPTIONS.items():
    fields[ours] = _get(values, theirs, type(default), where, default)
  depth = values.get('num_decoder_layers')
  fields['num_decoder_layers'] = fields['num_encoder_layers']
  if depth is not None:
    fields['num_decoder_layers'] = _get(
      values, 'num_decoder_layers', int, where
    )
  fields |= {
    **_read_ids(values, generation, where),
    'mlp_activations': _read_activations(kind, values, where),
    'logits_via_embedding': _is_scaled(kind, values),
  }
  try:
    return T5Config(**fields)
  except UserError as e:
    raise UserError(f'{where}/config.json: {e}') from None


def is_tied(values: Mapping[str, Any]) -> bool:
  """Whether a config lets the output layer be the embedding."""
  return values.get('tie_word_embeddings') is not False


def _check_kind(kind: str, values: Mapping[str, Any], where: str) -> None:
  if kind == 'umt5':
    raise UserError(
      f'{where}/config.json has the model_type umt5, which is not read: what'
      ' its logits are depends on the version of transformers (5 scales the'
      " decoder's output by d_model ** -0.5, 4 does not)."
    )
  if kind not in _FEED_FORWARD:
    raise UserError(
      f'{where}/config.json has the model_type {kind!r}; read are those of T5:'
      f' {", ".join(_FEED_FORWARD)}.'
    )
  if values.get('is_encoder_decoder') is False:
    raise UserError(
      f'{where}/config.json has is_encoder_decoder false: a T5 with its decoder'
      ' is needed.'
    )
  if values.get('quantization_config'):
    raise UserError(
      f'{where}/config.json has a quantization_config, and quantised weights'
      ' are not read. Save the model without quantisation.'
    )


def _get(
  values: Mapping[str, Any],
  name: str,
  kind: type,
  where: str,
  default: Any = None,
) -> Any:
  """Returns a setting of a kind; None as its default: there must be one."""
  if default is not None and name not in values:
    return default
  if default is None and values.get(name) is None:
    raise UserError(f'{where}/config.json has no {name}.')
  return run_files.check_kind(
    values[name], kind, where=f'{where}/config.json: {name}'
  )


def _is_scaled(kind: str, values: Mapping[str, Any]) -> bool:
  """Whether the decoder's output is scaled by d_model ** -0.5, as in T5 1.0.

  transformers 5 says so in `scale_decoder_outputs`, which it takes from
  `tie_word_embeddings` of configs that were written before.
  """
  if kind != 't5':
    return False
  return bool(values.get('scale_decoder_outputs', is_tied(values)))


def _read_activations(
  kind: str, values: Mapping[str, Any], where: str
) -> tuple[str, ...]:
  named = _get(values, 'feed_forward_proj', str, where, _FEED_FORWARD[kind])
  *gate, activation = named.split('-')
  if gate not in ([], ['gated']):
    raise UserError(
      f'{where}/config.json has feed_forward_proj {named!r}, which is neither'
      " an activation nor 'gated-' with one."
    )
  if named == 'gated-gelu':
    activation = _TANH_GELU
  # Where these are given they win over feed_forward_proj, in theirs too.
  activation = _get(values, 'dense_act_fn', str, where, activation)
  gated = _get(values, 'is_gated_act', bool, where, bool(gate))
  if activation not in _ACTIVATIONS:
    exact = (
      " 'gelu' is the exact form, of which only the tanh form is known here."
    )
    raise UserError(
      f'{where}/config.json asks for the activation {activation!r}'
      f' (feed_forward_proj {named!r}), which has no equivalent here; known:'
      f' {", ".join(_ACTIVATIONS)}.{exact if activation == "gelu" else ""}'
    )
  ours = _ACTIVATIONS[activation]
  return (ours, 'linear') if gated else (ours,)


def _read_ids(
  values: Mapping[str, Any], generation: Mapping[str, Any], where: str
) -> dict[str, Any]:
  found: dict[str, Any] = {}
  for theirs, ours in _IDS.items():
    said = {
      file: _one_id(source[theirs], f'{where}/{file}, {theirs}')
      for file, source in (
        ('config.json', values),
        ('generation_config.json', generation),
      )
      if source.get(theirs) is not None
    }
    if len(set(said.values())) > 1:
      raise UserError(
        f'{where}: {theirs} is {said["config.json"]} in config.json and'
        f' {said["generation_config.json"]} in generation_config.json; make'
        ' them agree.'
      )
    if said:
      found[ours] = next(iter(said.values()))
  found.setdefault('pad_id', 0)
  found.setdefault('decoder_start_token_id', found['pad_id'])
  return found


def _one_id(value: Any, where: str) -> int:
  ids = value if isinstance(value, list) else [value]
  if len(ids) != 1 or type(ids[0]) is not int:
    raise UserError(f'{where} is {value!r}; one token is needed.')
  return ids[0]


def to_json(config: T5Config, *, dtype: str) -> dict[str, Any]:
  """Returns the `config.json` of a backbone.

  A mT5 is written as a T5 with the same function.

  Args:
    config: the backbone.
    dtype: of the stored weights.

  Raises:
    UserError: transformers has no such T5; the message names the setting.
  """
  if config.relative_positions != 'stack':
    raise UserError(
      "transformers' T5 has one relative-position table a stack; this backbone"
      f' has relative_positions {config.relative_positions!r}.'
    )
  activation = _name_activation(config)
  gated = len(config.mlp_activations) == 2
  named = 'gelu' if gated and activation == _TANH_GELU else activation
  fields = {theirs: getattr(config, ours) for theirs, ours in _SIZES.items()}
  fields |= {
    theirs: getattr(config, ours) for theirs, (ours, _) in _OPTIONS.items()
  }
  return {
    'architectures': ['T5ForConditionalGeneration'],
    'model_type': 't5',
    'is_encoder_decoder': True,
    **fields,
    'num_decoder_layers': config.num_decoder_layers,
    'feed_forward_proj': f'gated-{named}' if gated else named,
    'dense_act_fn': activation,
    'is_gated_act': gated,
    'tie_word_embeddings': config.logits_via_embedding,
    **generation_json(config),
    'use_cache': True,
    'torch_dtype': dtype,
  }


def _name_activation(config: T5Config) -> str:
  theirs = {ours: name for name, ours in reversed(_ACTIVATIONS.items())}
  first, *rest = config.mlp_activations
  if rest not in ([], ['linear']):
    raise UserError(
      f'transformers has no T5 with mlp_activations {config.mlp_activations}:'
      " one activation alone, or times 'linear', is all it knows."
    )
  return theirs[first]


def generation_json(config: T5Config) -> dict[str, int]:
  """Returns the `generation_config.json` of a backbone."""
  return {theirs: getattr(config, ours) for theirs, ours in _IDS.items()}
