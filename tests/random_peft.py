"""Random PEFT adapters on small T5s, and the same numbers in our layout."""

from flax import traverse_util
import numpy as np

from mhr_jax.adapters import AdapterConfig, select_linears
from mhr_jax.convert import hf_names
from mhr_jax.t5 import config as config_lib
import random_t5

METHODS = ('poly', 'mhr', 'lora')

_PREFIX = 'base_model.model.'
_POLY = {
  'adapters': {'a': 'poly_lora_A.default', 'b': 'poly_lora_B.default'},
  'routers': {'routing_logits': 'poly_router.default.module_logits'},
}
_LORA = {
  'adapters': {'a': 'lora_A.default.weight', 'b': 'lora_B.default.weight'}
}


def draw(method, seed, *, smooth=False):
  """Returns a T5 and adapters for some of its linears, of random sizes.

  Args:
    method: 'poly' has one split, 'mhr' several; 'lora' has one skill and an
      alpha that is not its rank.
    seed: of the draw.
    smooth: always T5 1.1, whose gelu has a gradient everywhere; else T5 1.0,
      with relu, as often.
  """
  seed = (seed, METHODS.index(method))
  rng = np.random.default_rng(seed)
  n_splits = int(rng.integers(2, 5)) if method == 'mhr' else 1
  families = ['t5_1_1', 't5_1_0']
  family = families[0 if smooth else rng.integers(2)]
  config = random_t5.draw_config(family, seed, n_splits=n_splits)
  names = sorted({p.split('/')[-1] for p in config_lib.list_linears(config)})
  chosen = rng.choice(names, rng.integers(1, 3), replace=False)
  targets = f'.*/({"|".join(sorted(chosen))})'
  rank = int(rng.integers(1, 5))
  if method == 'lora':
    alpha = rank + int(rng.integers(1, 4))
    return config, AdapterConfig(
      1, 1, rank=rank, alpha=alpha, targets=targets, mixing='uniform'
    )
  return config, AdapterConfig(
    n_tasks=int(rng.integers(4, 9)),
    n_skills=int(rng.integers(2, 6)),
    n_splits=n_splits,
    rank=rank,
    targets=targets,
  )


def wrap(config, added, seed):
  """Returns PEFT's model with random adapters, and our parameters.

  Args:
    config: the backbone.
    added: uniform mixing makes a LoRA, all else is a Poly.
    seed: of all weights.

  Returns:
    The model in eval mode; all our parameters, by label.
  """
  import peft
  import torch

  base, backbone = random_t5.build(config, seed)
  model = peft.get_peft_model(base, _settings(config, added)).eval()
  rng = np.random.default_rng((seed, 1))
  for parameter in model.parameters():
    if parameter.requires_grad:
      values = 0.3 * rng.normal(size=parameter.shape)
      parameter.data = torch.tensor(values, dtype=torch.float32)
  return model, {'backbone': backbone} | read_added(model, config, added)


def is_lora(added):
  """Whether PEFT's name for these adapters is LoRA."""
  return added.mixing == 'uniform'


def _settings(config, added):
  import peft

  linears = select_linears(added, config_lib.list_linears(config))
  modules = {hf_names.module_name(path, 0).split('.')[-1] for path in linears}
  common = {
    'task_type': 'SEQ_2_SEQ_LM',
    'r': added.rank,
    'target_modules': sorted(modules),
  }
  if is_lora(added):
    return peft.LoraConfig(lora_alpha=added.alpha, **common)
  return peft.PolyConfig(
    n_tasks=added.n_tasks,
    n_skills=added.n_skills,
    n_splits=added.n_splits,
    **common,
  )


def read_added(model, config, added):
  """Returns the adapters, and routers if any, of PEFT's model as ours."""
  tensors = {
    name: parameter.detach().numpy()
    for name, parameter in model.named_parameters()
    if parameter.requires_grad
  }
  return by_our_names(tensors, config, added)


def by_our_names(tensors, config, added):
  """Returns {PEFT's name: array} as our trees by label, with none left over.

  Args:
    tensors: of all adapters and routers: parameters, or gradients.
    config: the backbone.
    added: the adapters.
  """
  linears = select_linears(added, config_lib.list_linears(config))
  params, used = {}, 0
  for label, leaves in (_LORA if is_lora(added) else _POLY).items():
    flat = {}
    for path, linear in linears.items():
      names = [hf_names.module_name(path, i) for i in range(linear.layers)]
      for ours, theirs in leaves.items():
        layers = [tensors[f'{_PREFIX}{name}.{theirs}'] for name in names]
        flat[f'{path}/{ours}'] = np.stack([_to_ours(added, x) for x in layers])
        used += len(layers)
    params[label] = traverse_util.unflatten_dict(flat, sep='/')
  assert used == len(tensors)
  return params


def _to_ours(added, tensor):
  if tensor.ndim == 4:
    return tensor
  if is_lora(added):
    return tensor.T[None, None]
  return tensor.reshape(-1, added.n_splits, added.n_skills)


def draw_batch(config, added, seed, *, rows=6):
  """Returns a mixed batch with padding, and gaps between counted targets."""
  batch = random_t5.draw_batch(
    config, seed, rows=rows, inputs=12, length=7, shortest=3
  )
  rng = np.random.default_rng((seed, 2))
  counts = rng.random(batch['decoder_loss_weights'].shape) < 0.8
  counts[:, 1:3] = True
  task_ids = rng.integers(0, added.n_tasks, rows)
  return batch | {
    'decoder_loss_weights': batch['decoder_loss_weights'] * counts,
    'task_ids': task_ids.astype(np.int32),
  }


def as_their_inputs(added, batch):
  """Returns the arguments of PEFT's model that say the same as `batch`.

  A target that does not count is read all the same: their model is told what
  the decoder reads, and does not make it from the labels.
  """
  import torch

  def ids(name):
    return torch.tensor(batch[name], dtype=torch.long)

  counts = torch.tensor(batch['decoder_loss_weights']) > 0
  inputs = random_t5.as_their_inputs(batch) | {
    'decoder_input_ids': ids('decoder_input_tokens'),
    'labels': ids('decoder_target_tokens').masked_fill(~counts, -100),
  }
  return inputs if is_lora(added) else inputs | {'task_ids': ids('task_ids')}
