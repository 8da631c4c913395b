"""What a low-rank pair adds, and its gradients, against one example at a time."""

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from mhr_jax.t5 import layers

_LENGTH, _IN, _RANK, _OUT = 5, 7, 3, 4


def _added_by_rows(x, a, b):
  """The same in NumPy's terms: each row by its own pair."""
  rows = len(x) // len(a)
  pairs = [(a[i // rows], b[i // rows]) for i in range(len(x))]
  return jnp.stack(
    [(row @ a) @ b for row, (a, b) in zip(x, pairs, strict=True)]
  )


@pytest.mark.parametrize(('rows', 'batch'), [(6, 6), (6, 3), (6, 1), (1, 1)])
def test_low_rank_pairs_and_their_gradients(rows, batch):
  draw = np.random.default_rng(rows + batch).normal
  with jax.enable_x64(True):
    x, a, b, d_y = map(
      jnp.asarray,
      (
        draw(size=(rows, _LENGTH, _IN)),
        draw(size=(batch, _IN, _RANK)),
        draw(size=(batch, _RANK, _OUT)),
        draw(size=(rows, _LENGTH, _OUT)),
      ),
    )
    found, found_vjp = jax.vjp(layers.apply_adapter, x, a, b)
    expected, expected_vjp = jax.vjp(_added_by_rows, x, a, b)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    for one, other in zip(found_vjp(d_y), expected_vjp(d_y), strict=True):
      np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-13)
