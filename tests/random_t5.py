"""Small T5s of random shape and weights, in transformers and in ours."""

import math

import numpy as np

from mhr_jax.t5 import config as config_lib
import transformers_weights


def draw_config(family, seed, *, n_splits=1):
  """Returns a T5 in which sizes that often agree differ.

  Args:
    family: 't5_1_1' or 't5_1_0'.
    seed: of the draw.
    n_splits: divides the features of all linears.
  """
  rng = np.random.default_rng(seed)
  heads, head_dim = (int(n) for n in rng.integers(2, 7, 2))
  head_dim *= n_splits // math.gcd(heads * head_dim, n_splits)
  shallow = int(rng.integers(1, 3))
  depths = [shallow, shallow + int(rng.integers(1, 3))]
  rng.shuffle(depths)
  return config_lib.t5_config(
    f'{family}_tiny',
    vocab_size=int(rng.integers(40, 60)),
    emb_dim=heads * head_dim + n_splits * int(rng.integers(1, 9)),
    num_heads=heads,
    head_dim=head_dim,
    mlp_dim=int(rng.integers(20, 50)) // n_splits * n_splits,
    num_encoder_layers=depths[0],
    num_decoder_layers=depths[1],
    relative_attention_num_buckets=int(rng.choice([4, 6, 10, 16])),
    relative_attention_max_distance=int(rng.integers(9, 25)),
  )


def build(config, seed):
  """Returns transformers' model of `config`, in eval mode, and our weights."""
  import transformers

  gated = len(config.mlp_activations) == 2
  model = transformers.T5ForConditionalGeneration(
    transformers.T5Config(
      vocab_size=config.vocab_size,
      d_model=config.emb_dim,
      d_kv=config.head_dim,
      d_ff=config.mlp_dim,
      num_layers=config.num_encoder_layers,
      num_decoder_layers=config.num_decoder_layers,
      num_heads=config.num_heads,
      relative_attention_num_buckets=config.relative_attention_num_buckets,
      relative_attention_max_distance=config.relative_attention_max_distance,
      feed_forward_proj='gated-gelu' if gated else 'relu',
      tie_word_embeddings=config.logits_via_embedding,
      decoder_start_token_id=config.decoder_start_token_id,
      dropout_rate=config.dropout_rate,
    )
  ).eval()
  draw_weights(model, seed, tied=config.logits_via_embedding)
  tensors = {k: v.numpy().copy() for k, v in model.state_dict().items()}
  return model, transformers_weights.to_backbone(tensors, config)


def draw_weights(model, seed, *, tied):
  """Gives a T5 of transformers random weights, one table of tokens or two."""
  import torch

  if not tied:
    # transformers 5 ties whatever its config says, until weights are loaded.
    shape = model.lm_head.weight.shape
    model.lm_head.weight = torch.nn.Parameter(torch.zeros(shape))
  rng = np.random.default_rng(seed)
  for name, weight in model.named_parameters():
    weight.data = torch.tensor(_draw(rng, name, weight.shape))


def _draw(rng, name, shape):
  """Draws a weight such that it matters: no norm is 1, no output tiny."""
  draw = rng.normal(size=shape)
  if len(shape) == 1:
    draw = 1 + 0.2 * draw
  elif name.endswith('.q.weight'):
    draw = draw / shape[1]
  elif name == 'shared.weight':
    draw = 0.4 * draw  # small, lest a tied T5 repeats its last token for ever
  elif 'relative_attention' not in name:
    draw = draw * shape[1] ** -0.5
  if name in ('shared.weight', 'lm_head.weight'):
    draw[1] *= 3  # so that sequences end
  return draw.astype(np.float32)


def draw_batch(config, seed, *, rows=5, inputs=30, length=7, shortest=1):
  """Returns a batch with padding in both of its sequences.

  Args:
    config: the backbone.
    seed: of the draw.
    rows: examples.
    inputs: tokens of the longest input.
    length: tokens of the longest target.
    shortest: tokens that every input and target has at least.
  """
  rng = np.random.default_rng(seed)
  batch = {}
  for name, width in (('inputs', inputs), ('targets', length)):
    tokens = rng.integers(2, config.vocab_size, (rows, width))
    sizes = rng.integers(shortest, width + 1, rows)
    sizes[0] = width
    batch[name] = np.where(np.arange(width) < sizes[:, None], tokens, 0)
  targets = batch['targets']
  start = np.full((rows, 1), config.decoder_start_token_id)
  return {
    'encoder_input_tokens': batch['inputs'].astype(np.int32),
    'decoder_input_tokens': np.hstack([start, targets[:, :-1]]).astype(
      np.int32
    ),
    'decoder_target_tokens': targets.astype(np.int32),
    'decoder_loss_weights': (targets != 0).astype(np.float32),
  }


def as_their_inputs(batch):
  """Returns the arguments of their model that say the same as `batch`."""
  import torch

  inputs = torch.tensor(batch['encoder_input_tokens'], dtype=torch.long)
  targets = torch.tensor(batch['decoder_target_tokens'], dtype=torch.long)
  return {
    'input_ids': inputs,
    'attention_mask': (inputs != 0).long(),
    'labels': torch.where(targets != 0, targets, -100),
  }
