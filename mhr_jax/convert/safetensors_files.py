"""Tensors in safetensors files, a megabyte in memory at a time.

The format (https://huggingface.co/docs/safetensors): eight bytes with the
header's length, the header (JSON: type, shape and byte range of every tensor),
and the tensors' bytes. Ranges of bytes are read into arrays that exist. A
mapped file would need no reading, but what was touched of it counts as memory
of the process until the file is closed.
"""

from collections.abc import Callable, Iterator, Mapping
import json
import math
from typing import IO, Any, NamedTuple

from etils import epath
import jax.numpy as jnp
import numpy as np

from mhr_jax import file_names, json_text, run_files
from mhr_jax.errors import UserError

WHOLE_FILE = 'model.safetensors'
MAX_SHARD_BYTES = 5 * 10**9

_CHUNK_BYTES = 2**20  # so that what is transposed stays in the cache
_MAX_HEADER = 10**8
_MAX_AXES = 32
_MAX_SIZE = 2**48
_DTYPES = {
  'F64': np.dtype(np.float64),
  'F32': np.dtype(np.float32),
  'F16': np.dtype(np.float16),
  'BF16': np.dtype(jnp.bfloat16),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class Stored(NamedTuple):
  """Where one tensor lies.

  Attributes:
    file: the safetensors file.
    offset: of the tensor's first byte in the file.
    dtype: as stored.
    shape: as stored.
  """

  file: epath.Path
  offset: int
  dtype: np.dtype
  shape: tuple[int, ...]


class Lazy(NamedTuple):
  """A tensor to write.

  Attributes:
    shape: of what `read` returns.
    read: returns the array, when its turn comes.
  """

  shape: tuple[int, ...]
  read: Callable[[], np.ndarray]


def list_tensors(path: epath.PathLike) -> dict[str, Stored]:
  """Returns where the tensors of one file lie, by name, in the file's order.

  Raises:
    UserError: there is no such file, it is no safetensors file, it is cut
      short, or a tensor has a type that is not read.
  """
  path = epath.Path(path)
  try:
    size = path.stat().length
    with path.open('rb') as file:
      header, start = _read_header(file, path, size)
  except (FileNotFoundError, IsADirectoryError):
    raise UserError(f'There is no file {path}.') from None
  header.pop('__metadata__', None)
  try:
    found = {k: _locate(path, start, k, v) for k, v in header.items()}
  except UserError:
    raise
  except (KeyError, TypeError, ValueError) as e:
    raise UserError(f'{path} is no safetensors file: bad header.') from e
  for name, tensor in found.items():
    end = tensor.offset + _num_bytes(tensor.shape, tensor.dtype)
    if end > size:
      raise UserError(
        f'{path} is cut short: {name} ends at byte {end}, the file at {size}.'
        ' Copy or download it again.'
      )
  return dict(sorted(found.items(), key=lambda item: item[1].offset))


def _read_header(
  file: IO[bytes], path: epath.Path, size: int
) -> tuple[dict[str, Any], int]:
  length = int.from_bytes(file.read(8), 'little')
  if size < 8 or length > min(size - 8, _MAX_HEADER):
    raise UserError(
      f'{path} is no safetensors file, or is cut short: {size} bytes, with a'
      f' header of {length}.'
    )
  try:
    header = json_text.parse(file.read(length))
  except ValueError as e:
    raise UserError(f'{path} is no safetensors file: {e}') from e
  if not isinstance(header, dict):
    raise UserError(f'{path} is no safetensors file: bad header.')
  return header, 8 + length


def _locate(
  path: epath.Path, start: int, name: str, facts: Mapping[str, Any]
) -> Stored:
  first, last = facts['data_offsets']
  shape = tuple(facts['shape'])
  if not all(type(n) is int and n >= 0 for n in (first, last, *shape)):
    raise UserError(f'{path} is no safetensors file: {name} has {facts}.')
  # An empty tensor may have any sizes beside its 0.
  if len(shape) > _MAX_AXES or math.prod(n or 1 for n in shape) > _MAX_SIZE:
    raise UserError(f'{path}: {name} has the shape {shape}, which is not read.')
  if facts['dtype'] not in _DTYPES:
    raise UserError(
      f'{path}: {name} has the type {facts["dtype"]}, which is not read; those'
      f' that are: {", ".join(_DTYPES)}.'
    )
  dtype = _DTYPES[facts['dtype']]
  if last - first != _num_bytes(shape, dtype):
    raise UserError(
      f'{path} is no safetensors file: {name} {shape} has {last - first} bytes.'
    )
  return Stored(path, start + first, dtype, shape)


def _num_bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
  return math.prod(shape) * dtype.itemsize


def find_files(folder: epath.PathLike, whole: str) -> list[epath.Path]:
  """Returns the file `whole` of a folder, or the shards of its index.

  Args:
    folder: such as `save_pretrained` writes.
    whole: such as `WHOLE_FILE`; its index is then
      'model.safetensors.index.json'.

  Returns:
    The files, in the order of the index; [] where there is neither.

  Raises:
    UserError: the index cannot be read, or names a file that is absent or
      lies elsewhere.
  """
  folder = epath.Path(folder)
  if (folder / whole).exists():
    return [folder / whole]
  index = folder / f'{whole}.index.json'
  if not index.exists():
    return []
  files = run_files.read_json(index).get('weight_map')
  if not isinstance(files, dict) or not files:
    raise UserError(f'{index} has no weight_map of names to files.')
  found = [
    file_names.path_inside(folder, name, where=str(index))
    for name in dict.fromkeys(map(str, files.values()))
  ]
  for path in found:
    if not path.exists():
      raise UserError(f'{path}, which {index.name} names, is absent.')
  return found


class SafetensorsFiles:
  """The tensors of a checkpoint's files.

  Attributes:
    shapes: by name, file after file.
  """

  def __init__(self, files: list[epath.Path]):
    """Reads the headers.

    Raises:
      UserError: see `list_tensors`; or two files hold the same name.
    """
    self._stored: dict[str, Stored] = {}
    for file in files:
      for name, tensor in list_tensors(file).items():
        if name in self._stored:
          other = self._stored[name].file.name
          raise UserError(f'{file} holds {name}, and so does {other}.')
        self._stored[name] = tensor
    self.shapes = {name: t.shape for name, t in self._stored.items()}

  def read_into(self, name: str, out: np.ndarray) -> None:
    """Copies a tensor into `out`, of its shape and any type and strides."""
    flat = out if out.ndim else out[None]
    row = 0
    for rows in _read_rows(self._stored[name]):
      flat[row : row + len(rows)] = rows
      row += len(rows)

  def is_copy(self, name: str, of: str) -> bool:
    """Whether two tensors are the same, bit for bit."""
    a, b = self._stored[name], self._stored[of]
    if (a.dtype, a.shape) != (b.dtype, b.shape):
      return False
    return all(
      x.tobytes() == y.tobytes()
      for x, y in zip(_read_rows(a), _read_rows(b), strict=True)
    )


def _read_rows(tensor: Stored) -> Iterator[np.ndarray]:
  """Yields a tensor in runs of its first axis; a scalar has one row."""
  count, *rest = tensor.shape or (1,)
  row_bytes = _num_bytes(tuple(rest), tensor.dtype)
  step = max(1, _CHUNK_BYTES // max(row_bytes, 1))
  with tensor.file.open('rb') as file:
    file.seek(tensor.offset)
    for start in range(0, count, step):
      rows = min(step, count - start)
      data = file.read(rows * row_bytes)
      yield np.frombuffer(data, tensor.dtype).reshape(rows, *rest)


def write_files(
  folder: epath.PathLike,
  tensors: Mapping[str, Lazy],
  *,
  dtype: str = 'float32',
  max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
  """Writes tensors as one file, or as shards with their index.

  Args:
    folder: where `model.safetensors`, or its shards, are to lie.
    tensors: by name; each is read when its turn comes.
    dtype: to store: 'float32', 'bfloat16' or 'float16'.
    max_shard_bytes: a file with more tensors than one is not larger.
  """
  folder, to = epath.Path(folder), np.dtype(dtype)
  shards: list[dict[str, Lazy]] = [{}]
  filled = 0
  for name, tensor in tensors.items():
    size = _num_bytes(tensor.shape, to)
    if shards[-1] and filled + size > max_shard_bytes:
      shards.append({})
      filled = 0
    shards[-1][name] = tensor
    filled += size
  if len(shards) == 1:
    _write_file(folder / WHOLE_FILE, shards[0], to)
    return
  stem, suffix = WHOLE_FILE.split('.')
  files = {}
  for i, shard in enumerate(shards, 1):
    file = f'{stem}-{i:05}-of-{len(shards):05}.{suffix}'
    _write_file(folder / file, shard, to)
    files |= dict.fromkeys(shard, file)
  total = sum(_num_bytes(t.shape, to) for t in tensors.values())
  index = {'metadata': {'total_size': total}, 'weight_map': files}
  path = folder / f'{WHOLE_FILE}.index.json'
  path.write_text(json.dumps(index, indent=2) + '\n')


def _write_file(
  path: epath.Path, tensors: Mapping[str, Lazy], dtype: np.dtype
) -> None:
  header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
  end = 0
  for name, tensor in tensors.items():
    start, end = end, end + _num_bytes(tensor.shape, dtype)
    header[name] = {
      'dtype': _NAMES[dtype],
      'shape': list(tensor.shape),
      'data_offsets': [start, end],
    }
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)  # tensors start at a multiple of 8
  with path.open('wb') as file:
    file.write(len(text).to_bytes(8, 'little') + text)
    for tensor in tensors.values():
      for rows in _rows_of(tensor.read(), dtype):
        file.write(rows.tobytes())


def _rows_of(array: np.ndarray, dtype: np.dtype) -> Iterator[np.ndarray]:
  array = array if array.ndim else array[None]
  row_bytes = _num_bytes(array.shape[1:], dtype)
  step = max(1, _CHUNK_BYTES // max(row_bytes, 1))
  for start in range(0, len(array), step):
    yield array[start : start + step].astype(dtype)
