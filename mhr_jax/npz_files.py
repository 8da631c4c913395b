"""NumPy's .npz files: written whole, and read without trust in their headers.

An array's header says its shape, and NumPy makes room for that before it
reads. Here the header is compared with the bytes that there are.
"""

from collections.abc import Mapping
import io
import math
import zipfile
import zlib

from etils import epath
import numpy as np

from mhr_jax import run_files
from mhr_jax.errors import UserError

_SUFFIX = '.npy'


def write_arrays(
  path: epath.PathLike, arrays: Mapping[str, np.ndarray]
) -> None:
  """Writes arrays by name, compressed; a reader never sees half of them.

  Raises:
    UserError: the file cannot be written.
  """
  buffer = io.BytesIO()
  np.savez_compressed(buffer, allow_pickle=False, **arrays)
  run_files.write_bytes(path, buffer.getvalue())


def read_arrays(path: epath.PathLike, what: str) -> dict[str, np.ndarray]:
  """Returns the arrays of a file by name.

  Args:
    path: of the file.
    what: it should hold, for the message, such as 'vectors by task'.

  Raises:
    UserError: there is no such file, it is no .npz or is damaged, or it holds
      Python objects, which are never unpickled.
  """
  path = epath.Path(path)
  try:
    data = path.read_bytes()
  except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
    raise UserError(f'There is no file {path}.') from None
  try:
    with zipfile.ZipFile(io.BytesIO(data)) as entries:
      return {
        entry.filename.removesuffix(_SUFFIX): _read_entry(entries, entry)
        for entry in entries.infolist()
      }
  except (
    EOFError,
    MemoryError,
    NotImplementedError,  # an unknown way of compressing
    RuntimeError,  # an encrypted entry
    SyntaxError,  # a header is a Python literal
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
  ) as error:
    reason = str(error).partition('\n')[0]
    raise UserError(f'{path} is no .npz of {what}: {reason}.') from error


def _read_entry(entries: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
  with entries.open(entry) as file:
    version = np.lib.format.read_magic(file)
    read_header = (
      np.lib.format.read_array_header_1_0
      if version == (1, 0)
      else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read_header(file)
    if math.prod(shape) * dtype.itemsize > entry.file_size:
      raise ValueError(f'{entry.filename} is cut short')
  with entries.open(entry) as file:
    return np.lib.format.read_array(file, allow_pickle=False)
