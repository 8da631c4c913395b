"""Files of named arrays in the safetensors format, read and written whole.

For adapters, which are small. A backbone's files are read and written array
by array, by `safetensors_files`.
"""

from collections.abc import Mapping
from typing import Any

from etils import epath
import numpy as np
import safetensors.numpy

from mhr_jax import run_files
from mhr_jax.convert import safetensors_files

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
  found = {
    name: np.empty(stored.shape, stored.dtype)
    for name, stored in safetensors_files.list_tensors(path).items()
  }
  file = safetensors_files.SafetensorsFiles([path])
  for name, array in found.items():
    file.read_into(name, array)
  return found


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
  temporary.unlink(missing_ok=True)  # A link there would be followed.
  safetensors.numpy.save_file(arrays, temporary, metadata=_METADATA)
  temporary.replace(path)
