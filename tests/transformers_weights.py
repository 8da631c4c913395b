"""The weights of a transformers T5 in memory, in our layout."""

import collections
import re

from flax import traverse_util
import numpy as np

from mhr_jax.convert import hf_names


def to_backbone(tensors, config):
  """Returns {their name: array} as scanned parameters, of the same types."""
  layers = collections.defaultdict(list)
  for leaf in hf_names.list_leaves(config):  # layer after layer
    tensor = tensors[leaf.name]
    path = re.sub(r'/layers_\d+/', '/layers/', leaf.path)
    layers[path].append(tensor.T if leaf.transposed else tensor)
  flat = {
    path: np.stack(found) if '/layers/' in path else found[0]
    for path, found in layers.items()
  }
  return traverse_util.unflatten_dict(flat, sep='/')
