"""Arrays in .npz files: equal to NumPy's reading, and nothing is believed."""

import numpy as np
import pytest

from mhr_jax import npz_files
from mhr_jax.errors import UserError

_ARRAYS = {
  'a/b': np.arange(6, dtype=np.float32).reshape(2, 3),
  'fortran': np.asfortranarray(np.arange(6).reshape(3, 2)),
  'text': np.array('["x"]'),
  'empty': np.zeros((0, 4), np.float16),
}


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_arrays_are_those_that_numpy_reads(tmp_path, save):
  save(tmp_path / 'x.npz', **_ARRAYS)
  found = npz_files.read_arrays(tmp_path / 'x.npz', 'arrays')
  with np.load(tmp_path / 'x.npz') as expected:
    assert list(found) == list(expected)
    for name, array in found.items():
      np.testing.assert_array_equal(array, expected[name])
      assert array.dtype == expected[name].dtype


def test_what_is_none_is_said(tmp_path):
  path = tmp_path / 'x.npz'
  with pytest.raises(UserError, match='There is no file'):
    npz_files.read_arrays(path, 'arrays')
  path.write_bytes(b'PK')
  with pytest.raises(UserError, match=r'x\.npz is no \.npz of arrays: '):
    npz_files.read_arrays(path, 'arrays')
  np.savez(path, a=np.array([object()], dtype=object))
  with pytest.raises(UserError, match='allow_pickle=False'):
    npz_files.read_arrays(path, 'arrays')
  np.savez(path, **_ARRAYS)
  path.write_bytes(path.read_bytes()[:-200])
  with pytest.raises(UserError, match=r'is no \.npz'):
    npz_files.read_arrays(path, 'arrays')
