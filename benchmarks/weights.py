"""Weights for both sides of a comparison, as files that both can read.

A random T5 in transformers' form, and random adapters in PEFT's: every `b` is
drawn too, and routing logits are wide, so that a loss which agrees says that
backbone, adapters and routing do.
"""

import pathlib
from typing import Any

import jax
import numpy as np

from benchmarks.setting import Setting
from mhr_jax.adapter_folder import AdapterBundle
from mhr_jax.adapters import AdapterConfig
from mhr_jax.convert import hf_t5, peft
from mhr_jax.model import Params, RoutedT5
from mhr_jax.t5 import parameters

BACKBONE, MHR, LORA = 'backbone', 'mhr', 'lora'
_B_SCALE = 0.2


def write_weights(
  folder: pathlib.Path, setting: Setting, *, seed: int = 0
) -> None:
  """Writes folder/backbone, folder/mhr and folder/lora.

  Args:
    folder: exists; holds none of them.
    setting: of the backbone and the adapters.
    seed: of all numbers.
  """
  config = setting.backbone
  params = jax.device_get(RoutedT5(config).init(jax.random.key(seed)))
  hf_t5.write_backbone(folder / BACKBONE, config, params['backbone'])
  rng = np.random.default_rng(seed)
  for method, write in ((MHR, peft.write_poly), (LORA, peft.write_lora)):
    added = setting.adapters(method)
    drawn = jax.device_get(
      RoutedT5(config, added).init_added(jax.random.key(seed))
    )
    drawn = jax.tree_util.tree_map_with_path(
      lambda path, x: _draw_added(rng, path[-1].key, x), drawn
    )
    write(folder / method, AdapterBundle(added, drawn, None, config))


def _draw_added(rng: np.random.Generator, leaf: str, x: Any) -> np.ndarray:
  """Returns a leaf as it is, or one that is drawn wider than at the start."""
  widths = {'b': _B_SCALE, 'routing_logits': 1.0}
  if leaf not in widths:
    return x
  return (widths[leaf] * rng.standard_normal(x.shape)).astype(np.float32)


def read_weights(
  folder: pathlib.Path, setting: Setting, method: str | None
) -> tuple[AdapterConfig | None, Params]:
  """Returns the adapters' config and all parameters of a method, as ours.

  Args:
    folder: of `write_weights`.
    setting: as it was written.
    method: 'mhr', 'lora', or None for the backbone alone.
  """
  _, backbone = hf_t5.read_backbone(folder / BACKBONE)  # scanned
  if not setting.backbone.scan_layers:
    backbone = parameters.unstack_layers(backbone, setting.backbone)
  if method is None:
    return None, {'backbone': backbone}
  bundle = peft.read_adapter(folder / method, setting.backbone)
  return bundle.config, {'backbone': backbone, **bundle.params}
