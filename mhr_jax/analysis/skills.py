"""How alike the skills of an inventory have become, from parameters alone."""

from collections.abc import Mapping
from typing import Any

from etils import epath
import jax
from jax import numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from mhr_jax import adapters, evaluation, inventories, npz_files

SKILLS_FILE = 'skills.npz'

Similarities = dict[str, Float[np.ndarray, 'layer split skill skill']]


def skill_similarity(params: Mapping[str, Any]) -> Similarities:
  """Returns the cosines between the skills of each inventory, by linear.

  Between what two skills add to the linear on the features of a split: the
  products a b of low-rank pairs, which unlike a and b do not depend on how a
  product is shared out between the two; scale − 1 of (IA)³. A skill that adds
  nothing has cosine 0 with the others.

  Args:
    params: with 'adapters'.
  """

  @jax.jit
  def measure(tree):
    return {
      path: jax.lax.map(_cosines, inventory)
      for path, inventory in adapters.list_inventories(tree).items()
    }

  found = evaluation.as_whole(measure(params['adapters']), params)
  return {path: np.asarray(cosines) for path, cosines in found.items()}


def _cosines(
  inventory: Mapping[str, Float[Array, 'split skill *features']],
) -> Float[Array, 'split skill skill']:
  """Returns the cosines of one layer's skills."""
  with jax.default_matmul_precision('highest'):
    if inventories.SCALE in inventory:
      added = inventory[inventories.SCALE] - 1
      inner = jnp.einsum('skx,smx->skm', added, added)
    else:
      # tr((a_k b_k)ᵀ a_m b_m) from rank × rank products alone.
      a, b = inventory['a'], inventory['b']
      left = jnp.einsum('skxr,smxq->skmrq', a, a)
      right = jnp.einsum('skro,smqo->skmrq', b, b)
      inner = (left * right).sum(axis=(-2, -1))
  square = jnp.diagonal(inner, axis1=-2, axis2=-1)
  norms = jnp.sqrt(jnp.maximum(square, 0))
  product = norms[..., :, None] * norms[..., None, :]
  cosines = inner / jnp.where(product > 0, product, 1)
  return jnp.where(jnp.eye(cosines.shape[-1], dtype=bool), 1.0, cosines)


def mean_cosine(
  cosines: Float[np.ndarray, '... skill skill'],
) -> Float[np.ndarray, '...']:
  """Returns the mean over pairs of different skills."""
  n = cosines.shape[-1]
  trace = np.trace(cosines, axis1=-2, axis2=-1)
  return (cosines.sum(axis=(-2, -1)) - trace) / (n * (n - 1))


def save_skills(folder: epath.PathLike, found: Similarities) -> None:
  """Writes `skills.npz`."""
  arrays = {path: cosines.astype(np.float32) for path, cosines in found.items()}
  npz_files.write_arrays(epath.Path(folder) / SKILLS_FILE, arrays)


def load_skills(folder: epath.PathLike) -> Similarities | None:
  """Reads what `save_skills` wrote; None where there is nothing."""
  path = epath.Path(folder) / SKILLS_FILE
  if not path.exists():
    return None
  return npz_files.read_arrays(path, 'cosines between skills')
