"""What the routers do while they train: a few numbers, on the devices.

References: Ponti et al. 2023 (arXiv:2202.13914), equations 8 to 10
(discreteness, sparsity, usage); mttl's `monitors.py` at c66b20d6.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, PyTree
import numpy as np

from mhr_jax import routing
from mhr_jax.setting_checks import check_fields
from mhr_jax.tree_paths import leaves_by_path

PART = 'routing'


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoutingStatisticsSettings:
  """When the routing is measured while training.

  Attributes:
    every: steps between measurements, one more at the end; 0 for none.
  """

  every: int = 100

  def __post_init__(self):
    check_fields(self)


def make_routing_statistics(
  form: routing.MixingForm,
) -> Callable[[int, Mapping[str, PyTree]], dict[str, float]]:
  """Returns what the trainer calls: (step, params) -> numbers by name.

  Names are `routing/entropy`, `routing/entropy/encoder` and so on; see
  `measure_routing`.
  """

  def measure(step: int, params: Mapping[str, PyTree]) -> dict[str, float]:
    del step
    found = measure_routing(params['routers'], form)
    return {f'{PART}/{name}': value for name, value in found.items()}

  return measure


def measure_routing(
  routers: PyTree, form: routing.MixingForm
) -> dict[str, float]:
  """Returns statistics of the routing, over all routers and by stack.

  Args:
    routers: their logits by path.
    form: of the mixing weights, which are those of evaluation.

  Returns:
    Means over routers and layers, each under its name and under
    `NAME/encoder`, `NAME/decoder` where routers are of a stack:

    entropy: of a task's weights over the skills, over its maximum: 1 is
      indifference, 0 is one skill.
    evenness: entropy of the use of all splits' skills, summed over the tasks,
      over its maximum: 1 is all alike, 0 is one skill for everything. Of
      mixings with gates, the use is their sum.
    discreteness: mean Bernoulli entropy of the gates over ln 2: 1 is
      undecided, 0 is on or off. For mixings with gates only; without the gate
      of a shared skill, which nothing decides, and before rounding.
    active: share of the gates that are at least 1/2, the shared skill's too;
      likewise.
  """
  leaves = leaves_by_path(routers)
  measured = jax.device_get(_compiled(form)(leaves))
  groups: dict[str, list[tuple[int, Mapping[str, Any]]]] = {}
  for path, logits in leaves.items():
    layers = logits.shape[0] if logits.ndim == 4 else 1
    stack = path.partition('/')[0]
    for group in ('', f'/{stack}') if stack != 'model' else ('',):
      groups.setdefault(group, []).append((layers, measured[path]))
  return {
    f'{name}{group}': float(
      np.average([of[name] for _, of in found], weights=[n for n, _ in found])
    )
    for group, found in groups.items()
    for name in found[0][1]
  }


@functools.lru_cache(maxsize=8)
def _compiled(form: routing.MixingForm):
  return jax.jit(
    lambda leaves: {path: _statistics(x, form) for path, x in leaves.items()}
  )


def _statistics(
  logits: Float[Array, '*layer task split skill'], form: routing.MixingForm
) -> dict[str, Float[Array, '']]:
  weights = routing.mixing_weights(logits, form)
  used = jnp.abs(weights)
  found = {}
  if form.mixing in routing.GATED_MIXINGS:
    used = routing.gates(logits, form)
    own = logits[..., :-1] if form.shared_skill else logits
    either = jax.nn.sigmoid(jnp.stack([own, -own], axis=-1))
    found['discreteness'] = routing.entropy(either).mean()
    found['active'] = (used >= 0.5).mean()
  columns = used.sum(axis=-3)
  found['evenness'] = routing.entropy(
    columns.reshape(*columns.shape[:-2], -1)
  ).mean()
  return {'entropy': routing.entropy(weights).mean(), **found}
