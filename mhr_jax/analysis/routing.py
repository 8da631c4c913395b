"""What the routing learnt: mixing weights by task, usage, entropy, likeness.

Works on parameters alone, for every router scope and mixing form. Weights are
those of evaluation (no noise), [layer, task, split, skill] by the path of the
adapted linear.
"""

from collections.abc import Mapping
from typing import Any

from etils import epath
import jax.numpy as jnp
from jaxtyping import Float, Int
import numpy as np

from mhr_jax import adapters, evaluation, npz_files, routing
from mhr_jax.errors import UserError
from mhr_jax.routing import entropy as entropy
from mhr_jax.task_table import TaskTable

Weights = Mapping[str, Float[np.ndarray, 'layer task split skill']]

ROUTING_FILE = 'routing.npz'
_TASKS = 'tasks'


def task_mixing_weights(
  params: Mapping[str, Any], config: adapters.AdapterConfig
) -> dict[str, Float[np.ndarray, 'layer task split skill']]:
  """Returns every task's mixing weights, by path of the adapted linear.

  Args:
    params: with 'adapters' and, where routing is learned, 'routers'.
    config: of the adapters.

  Raises:
    UserError: there are no adapters.
  """
  if 'adapters' not in params:
    raise UserError('These parameters have no adapters, so no routing.')
  weights = routing.compute_mixing_weights(
    params.get('routers', {}),
    adapters.linears_of(params['adapters']),
    jnp.arange(config.n_tasks),
    config,
  )
  weights = evaluation.as_whole(weights, params)
  shape = (config.n_tasks, config.n_splits, config.n_skills)
  return {
    path: np.broadcast_to(np.asarray(w), (w.shape[0], *shape))
    for path, w in weights.items()
  }


def usage(
  weights: Float[np.ndarray, '... task split skill'],
) -> Float[np.ndarray, '... split skill']:
  """Returns each skill's share of the weight, the mean over the tasks."""
  return _shares(weights).mean(axis=-3)


def _shares(weights):
  """Sizes that sum to 1: not every form's weights do, and some have signs."""
  sizes = np.abs(weights)
  total = sizes.sum(axis=-1, keepdims=True)
  return sizes / np.where(total > 0, total, 1.0)


def task_similarity(weights: Weights) -> Float[np.ndarray, 'task task']:
  """Returns how alike tasks are routed: the correlation of their weights.

  The cosine of two tasks' weights over all linears, layers, splits and
  skills, after the mean over the tasks is taken off: plain cosines of weights
  that are all positive lie close to 1 whatever was learnt. A task that equals
  the mean has likeness 0 with every other one.
  """
  rows = np.concatenate(
    [_by_task(w) for w in weights.values()], axis=1, dtype=np.float64
  )
  rows -= rows.mean(axis=0)
  norms = np.linalg.norm(rows, axis=1)
  cosines = rows @ rows.T / np.maximum(np.outer(norms, norms), 1e-12)
  np.fill_diagonal(cosines, 1.0)
  return cosines


def _by_task(weights):
  return np.moveaxis(weights, 1, 0).reshape(weights.shape[1], -1)


def cluster_tasks(
  similarity: Float[np.ndarray, 'task task'],
) -> Float[np.ndarray, 'join four'] | None:
  """Returns SciPy's tree of the tasks: average linkage of 1 − similarity.

  None for fewer than three tasks, where there is nothing to order.
  """
  from scipy.cluster import hierarchy
  from scipy.spatial import distance

  if len(similarity) < 3:
    return None
  gap = np.clip(1.0 - similarity, 0.0, None)
  np.fill_diagonal(gap, 0.0)
  gap = (gap + gap.T) / 2
  return hierarchy.linkage(distance.squareform(gap), method='average')


def order_tasks(
  similarity: Float[np.ndarray, 'task task'],
) -> Int[np.ndarray, 'task']:
  """Returns an order of the tasks in which neighbours are alike.

  The leaves of `cluster_tasks`.
  """
  from scipy.cluster import hierarchy

  tree = cluster_tasks(similarity)
  if tree is None:
    return np.arange(len(similarity))
  return hierarchy.leaves_list(tree)


def shares_of_use(
  weights: Weights,
) -> dict[str, dict[str, Float[np.ndarray, 'router skill']]]:
  """Returns {stack: {sublayer: each router's use of its skills}}.

  A router is one of a linear, a layer and a split, also where linears share
  it; its skills are its own, so nothing is averaged over routers.
  """
  found: dict[str, dict[str, list[np.ndarray]]] = {}
  # The encoder's first.
  for path, w in sorted(weights.items(), reverse=True):
    stack, _, rest = path.partition('/')
    shares = usage(w).reshape(-1, w.shape[-1])
    sublayer = rest.partition('/')[0] or stack
    found.setdefault(stack, {}).setdefault(sublayer, []).append(shares)
  return {
    stack: {name: np.concatenate(parts) for name, parts in of.items()}
    for stack, of in found.items()
  }


def save_routing(
  folder: epath.PathLike, weights: Weights, tasks: TaskTable
) -> None:
  """Writes `routing.npz`: the weights by path, and the tasks' names.

  Raises:
    UserError: the weights are not of that many tasks.
  """
  for path, w in weights.items():
    if w.shape[1] != len(tasks):
      raise UserError(
        f'The weights of {path} are of {w.shape[1]} tasks, the task table has'
        f' {len(tasks)}.'
      )
  arrays = {path: np.asarray(w, np.float32) for path, w in weights.items()}
  arrays[_TASKS] = np.array(tasks.to_json())
  npz_files.write_arrays(epath.Path(folder) / ROUTING_FILE, arrays)


def load_routing(
  folder: epath.PathLike,
) -> tuple[dict[str, np.ndarray], TaskTable] | None:
  """Reads what `save_routing` wrote; None where there is nothing."""
  path = epath.Path(folder) / ROUTING_FILE
  if not path.exists():
    return None
  arrays = npz_files.read_arrays(path, 'mixing weights')
  try:
    return arrays, TaskTable.from_json(str(arrays.pop(_TASKS)))
  except (KeyError, ValueError) as error:
    raise UserError(f'{path} names no tasks: {error!r}.') from error
