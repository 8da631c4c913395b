"""Tests of reading and writing safetensors by ranges, against the library."""

import json

from etils import epath
import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as library

from mhr_jax.convert import safetensors_files
from mhr_jax.errors import UserError


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
  """Tensors of the tests take several reads, the last of which is shorter."""
  monkeypatch.setattr(safetensors_files, '_CHUNK_BYTES', 100)


def draw():
  rng = np.random.default_rng(0)
  return {
    'matrix': rng.normal(size=(13, 11)).astype(np.float32),
    'wide': rng.normal(size=(2, 300)).astype(np.float64),
    'half': rng.normal(size=(4, 3, 5)).astype(np.float16),
    'brain': rng.normal(size=(40, 2)).astype(ml_dtypes.bfloat16),
    'vector': rng.normal(size=(57,)).astype(np.float32),
    'scalar': np.array(1.5, np.float32),
    'empty': np.zeros((0, 3), np.float32),
  }


def open_file(path):
  return safetensors_files.SafetensorsFiles([epath.Path(path)])


def lazy(tensors):
  return {
    name: safetensors_files.Lazy(x.shape, lambda x=x: x)
    for name, x in tensors.items()
  }


def read_folder(folder):
  files = safetensors_files.find_files(folder, 'model.safetensors')
  return {k: v for file in files for k, v in library.load_file(file).items()}


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float64'])
def test_tensors_are_read_into_arrays_of_any_type_and_strides(tmp_path, dtype):
  tensors = draw()
  library.save_file(tensors, tmp_path / 'x.safetensors')
  files = open_file(tmp_path / 'x.safetensors')
  assert files.shapes == {k: v.shape for k, v in tensors.items()}
  for name, expected in tensors.items():
    place = np.zeros((3, *expected.shape[::-1]), dtype)
    files.read_into(name, place[1].T if expected.ndim else place[1, ...])
    np.testing.assert_array_equal(place[1].T, expected.astype(dtype))
    assert not place[0].any() and not place[2].any()


def test_a_copy_is_equal_to_the_last_bit(tmp_path):
  x = draw()['matrix']
  other = x.copy()
  other[-1, -1] = np.nextafter(other[-1, -1], 9)
  tensors = {'x': x, 'same': x.copy(), 'other': other, 'flat': x.ravel()}
  library.save_file(tensors, tmp_path / 'x.safetensors')
  files = open_file(tmp_path / 'x.safetensors')
  assert files.is_copy('same', of='x')
  assert not files.is_copy('other', of='x')
  assert not files.is_copy('flat', of='x')


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_the_library_reads_what_is_written(tmp_path, dtype):
  tensors = draw()
  safetensors_files.write_files(tmp_path, lazy(tensors), dtype=dtype)
  assert [p.name for p in tmp_path.iterdir()] == ['model.safetensors']
  content = (tmp_path / 'model.safetensors').read_bytes()
  assert int.from_bytes(content[:8], 'little') % 8 == 0  # aligned
  found = read_folder(tmp_path)
  assert found.keys() == tensors.keys()
  for name, expected in tensors.items():
    np.testing.assert_array_equal(found[name], expected.astype(dtype))


def test_shards_are_no_larger_than_asked_and_the_index_names_all(tmp_path):
  tensors = {k: v.astype(np.float32) for k, v in draw().items()}
  safetensors_files.write_files(tmp_path, lazy(tensors), max_shard_bytes=1000)
  shards = sorted(tmp_path.glob('*.safetensors'))
  assert [shard.name for shard in shards] == [
    f'model-0000{i}-of-0000{len(shards)}.safetensors'
    for i in range(1, len(shards) + 1)
  ]
  index = json.loads((tmp_path / 'model.safetensors.index.json').read_text())
  held = {
    name: shard.name for shard in shards for name in library.load_file(shard)
  }
  assert index['weight_map'] == held
  assert index['metadata']['total_size'] == sum(
    x.nbytes for x in tensors.values()
  )
  for shard in shards:  # 'wide' alone is larger
    parts = library.load_file(shard)
    assert len(parts) == 1 or sum(x.nbytes for x in parts.values()) <= 1000
  found = open_folder(tmp_path)
  for name, expected in tensors.items():
    place = np.empty(expected.shape, np.float32)
    found.read_into(name, place)
    np.testing.assert_array_equal(place, expected)


def open_folder(folder):
  return safetensors_files.SafetensorsFiles(
    safetensors_files.find_files(folder, 'model.safetensors')
  )


def test_a_file_cut_short_is_refused_before_anything_is_read(tmp_path):
  path = tmp_path / 'x.safetensors'
  library.save_file({'x': np.ones(100, np.float32)}, path)
  whole = path.read_bytes()
  path.write_bytes(whole[:-1])
  with pytest.raises(UserError, match=r'x\.safetensors is cut short: x ends'):
    open_file(path)
  path.write_bytes(whole[:20])
  with pytest.raises(UserError, match=r'x\.safetensors .* is cut short'):
    open_file(path)


@pytest.mark.parametrize(
  'content',
  [
    b'',
    b'PK\x03\x04 a zip file, for instance',
    (2).to_bytes(8, 'little') + b'[]',
    (2).to_bytes(8, 'little') + b'{]',
    (9).to_bytes(8, 'little') + b'{"x": {}}',
  ],
)
def test_other_files_are_refused(tmp_path, content):
  path = tmp_path / 'x.safetensors'
  path.write_bytes(content)
  with pytest.raises(UserError, match=r'x\.safetensors is no safetensors file'):
    open_file(path)


def test_a_type_that_is_not_read_is_named(tmp_path):
  path = tmp_path / 'x.safetensors'
  library.save_file({'weight': np.ones(3, np.int8)}, path)
  with pytest.raises(UserError, match='weight has the type I8'):
    open_file(path)


def test_a_shard_that_is_absent_is_named(tmp_path):
  tensors = lazy({k: np.ones(9, np.float32) for k in 'ab'})
  safetensors_files.write_files(tmp_path, tensors, max_shard_bytes=40)
  (tmp_path / 'model-00002-of-00002.safetensors').unlink()
  with pytest.raises(UserError, match='model-00002-of-00002.* is absent'):
    open_folder(tmp_path)


def test_a_name_in_two_shards_is_refused(tmp_path):
  for name in ('1', '2'):
    library.save_file({'x': np.ones(2, np.float32)}, tmp_path / name)
  with pytest.raises(UserError, match='2 holds x, and so does 1'):
    safetensors_files.SafetensorsFiles(
      [epath.Path(tmp_path / '1'), epath.Path(tmp_path / '2')]
    )
