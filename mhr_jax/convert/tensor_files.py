"""Files of named arrays in the safetensors format, read and written whole.

For adapters, which are small; a backbone is read array by array elsewhere.
"""

from collections.abc import Mapping
import tempfile
from typing import Any

from etils import epath
import numpy as np
import safetensors
import safetensors.numpy

from mhr_jax import run_files
from mhr_jax.errors import UserError

# transformers and PEFT read a file's arrays only where it says whose they are.
_METADATA = {'format': 'pt'}


def read_tensors(path: epath.PathLike) -> dict[str, np.ndarray]:
  """Returns the arrays of a safetensors file by name.

  Args:
    path: of the file, on a disk or in a bucket.

  Raises:
    UserError: there is no such file, or it is not whole.
  """
  path = epath.Path(path)
  if not path.exists():
    raise UserError(f'There is no file {path}.')
  try:
    if not run_files.is_remote(path):
      return safetensors.numpy.load_file(path)
    with tempfile.NamedTemporaryFile() as copy:
      copy.write(path.read_bytes())
      copy.flush()
      return safetensors.numpy.load_file(copy.name)
  except safetensors.SafetensorError as error:
    raise UserError(
      f'{path} is not a whole safetensors file: {error}. It was cut short or'
      ' altered: copy or write it again.'
    ) from error


def write_tensors(path: epath.PathLike, tensors: Mapping[str, Any]) -> None:
  """Writes arrays to a safetensors file, so that no reader sees half of it.

  Args:
    path: of the file; its folder must exist.
    tensors: NumPy or JAX arrays by name.
  """
  path = epath.Path(path)
  # The format's writer takes memory as it lies, whatever the strides are.
  arrays = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
  if run_files.is_remote(path):
    path.write_bytes(safetensors.numpy.save(arrays, metadata=_METADATA))
    return
  temporary = path.parent / f'.{path.name}.tmp'
  safetensors.numpy.save_file(arrays, temporary, metadata=_METADATA)
  temporary.replace(path)
