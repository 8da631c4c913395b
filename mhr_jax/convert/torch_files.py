"""Pickled state dicts of torch, read as NumPy arrays.

A pickle is a program. It is run only where a person said so, and then by
torch's restricted unpickler, which makes tensors and plain containers alone.
"""

from collections.abc import Mapping
from typing import Any

from etils import epath
import jax.numpy as jnp
import numpy as np

from mhr_jax.errors import UserError

_STATE_DICT = 'state_dict'  # where training frameworks put it
_REASON_SHOWN = 160


def read_state_dict(
  path: epath.PathLike, *, allow_pickle: bool = False
) -> dict[str, np.ndarray]:
  """Returns the tensors of a file that `torch.save` wrote, by name.

  The arrays share the tensors' memory, so that dropping one frees it.

  Args:
    path: a state dict (`pytorch_model.bin`, `adapter_model.bin`, `*.pt`), or
      a checkpoint that holds one under 'state_dict'.
    allow_pickle: the file is trusted enough to be unpickled.

  Raises:
    UserError: unpickling was not allowed, torch is absent, there is no such
      file, or it holds something else than named tensors.
  """
  path = epath.Path(path)
  if not allow_pickle:
    raise UserError(
      f'{path} is a pickle, which is a program, so it is not opened unasked. If'
      ' you trust where it comes from, ask for it with allow_pickle=True'
      ' (--allow_pickle on the command line); its tensors alone are read then.'
    )
  tensors = _load(path)
  if isinstance(tensors, Mapping) and isinstance(
    tensors.get(_STATE_DICT), Mapping
  ):
    tensors = tensors[_STATE_DICT]
  if not isinstance(tensors, Mapping):
    raise UserError(
      f'{path} holds no state dict, but a {type(tensors).__name__}.'
    )
  return {
    str(name): _to_numpy(tensor, f'{path}, {name}')
    for name, tensor in tensors.items()
  }


def _load(path: epath.Path) -> Any:
  try:
    import torch
  except ImportError:
    raise UserError(
      f"{path} is torch's, which is not installed: pip install"
      " 'mhr_jax[interop]', or convert the file to safetensors where torch is."
    ) from None
  try:
    with path.open('rb') as file:
      return torch.load(file, map_location='cpu', weights_only=True)
  except (FileNotFoundError, IsADirectoryError):
    raise UserError(f'There is no file {path}.') from None
  except Exception as e:  # of many kinds: pickle's, zip's, torch's own
    reason = ' '.join(str(e).split())[:_REASON_SHOWN]
    raise UserError(
      f"{path} is not a file of tensors alone, as torch's weights-only reader"
      f' wants it: {type(e).__name__}: {reason}'
    ) from e


def _to_numpy(tensor: Any, where: str) -> np.ndarray:
  import torch

  if not isinstance(tensor, torch.Tensor):
    raise UserError(
      f'{where} is a {type(tensor).__name__}, not a tensor: only state dicts'
      ' are read.'
    )
  tensor = tensor.detach()
  if tensor.dtype == torch.bfloat16:  # which NumPy does not know
    return tensor.view(torch.int16).numpy().view(jnp.bfloat16)
  try:
    return tensor.numpy()
  except (TypeError, RuntimeError) as e:
    raise UserError(f'{where} cannot be read as an array: {e}') from e


class PickledFiles:
  """The tensors of a checkpoint's pickles, one file in memory at a time.

  A tensor is freed once it was read.

  Attributes:
    shapes: by name, file after file.
  """

  def __init__(self, files: list[epath.Path], *, allow_pickle: bool = False):
    """Looks into every file.

    Raises:
      UserError: see `read_state_dict`; or two files hold the same name.
    """
    self._allow_pickle = allow_pickle
    self._tensors: dict[str, np.ndarray] = {}
    self._file_of: dict[str, epath.Path] = {}
    self.shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
      self._open(file)
      for name, tensor in self._tensors.items():
        if name in self._file_of:
          other = self._file_of[name].name
          raise UserError(f'{file} holds {name}, and so does {other}.')
        self._file_of[name] = file
        self.shapes[name] = tensor.shape

  def read_into(self, name: str, out: np.ndarray) -> None:
    """Copies a tensor into `out`, of its shape and any type and strides."""
    out[...] = self._find(name)
    del self._tensors[name]

  def is_copy(self, name: str, of: str) -> bool:
    """Whether two tensors are the same; the first is then forgotten."""
    a, b = self._find(name), self._find(of)
    same = a.dtype == b.dtype and np.array_equal(a, b)
    if same:
      self._tensors.pop(name, None)
    return same

  def _find(self, name: str) -> np.ndarray:
    if name not in self._tensors:
      self._open(self._file_of[name])
    return self._tensors[name]

  def _open(self, file: epath.Path) -> None:
    self._tensors = {}  # before the next file comes
    self._tensors = read_state_dict(file, allow_pickle=self._allow_pickle)
