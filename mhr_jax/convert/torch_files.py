"""Pickled state dicts of torch, read as NumPy arrays.

A pickle is a program. It is run only where a person said so, and then by
torch's restricted unpickler, which makes tensors and plain containers alone.
"""

from collections.abc import Mapping
from typing import Any
import zipfile

from etils import epath
import jax.numpy as jnp
import numpy as np

from mhr_jax import run_files
from mhr_jax.errors import UserError

_STATE_DICT = 'state_dict'  # where training frameworks put it
_HYPER_PARAMETERS = 'hyper_parameters'
_REASON_SHOWN = 160
_MAPPED_BYTES = 2**24


def read_state_dict(
  path: epath.PathLike, *, allow_pickle: bool = False, mapped: bool = False
) -> dict[str, np.ndarray]:
  """Returns the tensors of a file that `torch.save` wrote, by name.

  The arrays share the tensors' memory, so that dropping one frees it.

  Args:
    path: a state dict (`pytorch_model.bin`, `adapter_model.bin`, `*.pt`), or
      a checkpoint that holds one under 'state_dict'.
    allow_pickle: the file is trusted enough to be unpickled.
    mapped: leave the tensors in the file until they are touched, if it is
      one that `can_map` says yes to.

  Raises:
    UserError: unpickling was not allowed, torch is absent, there is no such
      file, or it holds something else than named tensors.
  """
  path = epath.Path(path)
  _check_allowed(path, allow_pickle)
  tensors = _load(path, mapped=mapped)
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


def read_hyper_parameters(
  path: epath.PathLike, *, allow_pickle: bool = False
) -> dict[str, Any]:
  """Returns the settings that a checkpoint of Lightning holds; {} without.

  Args:
    path: the checkpoint.
    allow_pickle: the file is trusted enough to be unpickled.

  Raises:
    UserError: see `read_state_dict`.
  """
  path = epath.Path(path)
  _check_allowed(path, allow_pickle)
  checkpoint = _load(path, mapped=can_map(path))
  settings = None
  if isinstance(checkpoint, Mapping):
    settings = checkpoint.get(_HYPER_PARAMETERS)
  return dict(settings) if isinstance(settings, Mapping) else {}


def _check_allowed(path: epath.Path, allow_pickle: bool) -> None:
  if not allow_pickle:
    raise UserError(
      f'{path} is a pickle, which is a program, so it is not opened unasked. If'
      ' you trust where it comes from, ask for it with allow_pickle=True'
      ' (--allow_pickle on the command line); its tensors alone are read then.'
    )


def can_map(path: epath.Path) -> bool:
  """Whether tensors can stay in a file: since torch 1.6 it is a zip file."""
  return not run_files.is_remote(path) and zipfile.is_zipfile(path)


def _load(path: epath.Path, *, mapped: bool) -> Any:
  try:
    import torch
  except ImportError:
    raise UserError(
      f"{path} is torch's, which is not installed: pip install"
      " 'mhr_jax[interop]', or convert the file to safetensors where torch is."
    ) from None
  try:
    if mapped:
      return torch.load(
        str(path), map_location='cpu', weights_only=True, mmap=True
      )
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
  """The tensors of a checkpoint's pickles, little of which is in memory.

  A file is mapped, and mapped again once a few megabytes of it were touched:
  till then they count as memory. A file of torch before 1.6 must be read
  whole; then a tensor is freed once it was read.

  Attributes:
    shapes: by name, file after file.
  """

  def __init__(self, files: list[epath.Path], *, allow_pickle: bool = False):
    """Looks into every file.

    Raises:
      UserError: see `read_state_dict`; or two files hold the same name.
    """
    self._allow_pickle = allow_pickle
    self._tensors: dict[str, np.ndarray] = {}  # of the file that is open
    self._mapped = False
    self._touched = 0
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
    out = np.atleast_1d(out)
    step = max(1, _MAPPED_BYTES * len(out) // max(out.nbytes, 1))
    for start in range(0, len(out), step):
      rows = out[start : start + step]
      rows[...] = np.atleast_1d(self._find(name))[start : start + step]
      self._release(rows.nbytes)
    if not self._mapped:
      del self._tensors[name]

  def is_copy(self, name: str, of: str) -> bool:
    """Whether two tensors are the same; in memory, the first is then gone."""
    a, b = self._find(name), self._find(of)
    same = a.dtype == b.dtype and np.array_equal(a, b)
    if same and not self._mapped:
      self._tensors.pop(name, None)
    self._release(a.nbytes + b.nbytes)
    return same

  def _find(self, name: str) -> np.ndarray:
    if name not in self._tensors:
      self._open(self._file_of[name])
    return self._tensors[name]

  def _open(self, file: epath.Path) -> None:
    self._tensors = {}  # before the next file comes
    self._touched = 0
    self._mapped = can_map(file)
    self._tensors = read_state_dict(
      file, allow_pickle=self._allow_pickle, mapped=self._mapped
    )

  def _release(self, touched: int) -> None:
    """Closes a mapped file when enough of it counts as memory."""
    self._touched += touched
    if self._mapped and self._touched > _MAPPED_BYTES:
      self._tensors = {}
