"""What few-shot adaptation moved: how far, in which layers, and the routing.

A few numbers a cell, measured where start and end are both at hand, so that
looking at them needs no parameters.
"""

from collections.abc import Mapping
from typing import Any

from jax import numpy as jnp
import numpy as np

from mhr_jax import routing
from mhr_jax.adapters import AdapterConfig
from mhr_jax.tree_paths import leaves_by_path, sublayer_of

Numbers = dict[str, dict[str, dict[str, float]]]

ROUTING = 'mixing_weights'


def measure_movement(
  start: Mapping[str, Any],
  trained: Mapping[str, Any],
  config: AdapterConfig | None,
) -> Numbers:
  """Returns how far each group of layers moved, by what it is made of.

  Args:
    start: the parameters before, by label; at least those that trained.
    trained: the parameters that trained, by label.
    config: of the adapters, if there are any.

  Returns:
    Of 'backbone' and 'adapters', by group of layers such as
    'encoder/attention': 'start', the norm before, and 'change', that of the
    difference. Where routers trained, 'mixing_weights' has by group the means
    over layers, linears and splits of 'change', half of the sum over the
    skills of what each weight moved by (1: all weight went elsewhere), and of
    the entropies 'entropy_start' and 'entropy_end', 1 at indifference.
  """
  found: Numbers = {}
  for label, tree in trained.items():
    if label == 'routers':
      assert config is not None
      found[ROUTING] = _weights_moved(start[label], tree, config.mixing_form)
    else:
      found[label] = _norms(start[label], tree)
  return found


def _norms(start: Any, trained: Any) -> dict[str, dict[str, float]]:
  before = leaves_by_path(start)
  squares: dict[str, np.ndarray] = {}
  for path, after in leaves_by_path(trained).items():
    old = np.asarray(before[path], np.float32)
    both = np.array([_square(old), _square(np.asarray(after) - old)])
    group = sublayer_of(path)
    squares[group] = squares.get(group, 0) + both
  return {
    group: {'start': float(norms[0]), 'change': float(norms[1])}
    for group, norms in ((g, np.sqrt(both)) for g, both in squares.items())
  }


def _square(x: np.ndarray) -> float:
  return float(np.sum(np.square(x), dtype=np.float64))


def _weights_moved(
  start: Any, trained: Any, form: routing.MixingForm
) -> dict[str, dict[str, float]]:
  before = leaves_by_path(start)
  rows: dict[str, list[np.ndarray]] = {}
  for path, after in leaves_by_path(trained).items():
    old, new = (
      routing.mixing_weights(jnp.asarray(x), form)
      for x in (before[path], after)
    )
    change = jnp.abs(new - old).sum(axis=-1) / 2
    measured = [change, routing.entropy(old), routing.entropy(new)]
    flat = np.stack([np.ravel(x) for x in measured])
    rows.setdefault(sublayer_of(path), []).append(flat)
  names = ('change', 'entropy_start', 'entropy_end')
  return {
    group: dict(
      zip(
        names, np.concatenate(parts, axis=1).mean(axis=1).tolist(), strict=True
      )
    )
    for group, parts in rows.items()
  }
