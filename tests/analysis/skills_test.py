"""Likeness of skills against their products written out."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from mhr_jax.analysis import skills


def _cosine(x, y):
  x, y = x.ravel(), y.ravel()
  return x @ y / np.sqrt((x @ x) * (y @ y))


def test_cosines_are_those_of_the_products():
  rng = np.random.default_rng(0)
  a = rng.normal(size=(2, 2, 3, 4, 2)).astype(np.float32)
  b = rng.normal(size=(2, 2, 3, 2, 5)).astype(np.float32)
  params = {'adapters': {'encoder': {'mlp': {'wi': {'a': a, 'b': b}}}}}
  found = skills.skill_similarity(params)['encoder/mlp/wi']
  assert found.shape == (2, 2, 3, 3)
  for layer, split, k, m in itertools.product(*map(range, found.shape)):
    products = (
      a[layer, split, i].astype(np.float64) @ b[layer, split, i] for i in (k, m)
    )
    assert found[layer, split, k, m] == pytest.approx(
      _cosine(*products), abs=1e-5
    )
  off = found[~np.eye(3, dtype=bool)[None, None].repeat(2, 0).repeat(2, 1)]
  mean = skills.mean_cosine(found).mean()
  assert mean == pytest.approx(off.mean(), abs=1e-6)


def test_a_skill_that_adds_nothing_is_like_none_but_itself():
  inventory = {
    'a': jnp.ones((1, 1, 2, 3, 1)),
    'b': jnp.array([0.0, 1.0])[None, None, :, None, None] * jnp.ones(2),
  }
  found = skills.skill_similarity({'adapters': {'x': inventory}})['x']
  np.testing.assert_array_equal(found[0, 0], np.eye(2))


def test_ia3_is_compared_by_what_its_scales_change(tmp_path):
  scale = 1 + np.array([[1.0, 0], [1, 1], [-1, 0]], np.float32)
  params = {'adapters': {'x': {'scale': jnp.asarray(scale)[None, None]}}}
  found = skills.skill_similarity(params)
  half = 0.5**0.5
  expected = [[1, half, -1], [half, 1, -half], [-1, -half, 1]]
  np.testing.assert_allclose(found['x'][0, 0], expected, atol=1e-6)
  skills.save_skills(tmp_path, found)
  np.testing.assert_array_equal(skills.load_skills(tmp_path)['x'], found['x'])
  assert skills.load_skills(tmp_path / 'missing') is None
