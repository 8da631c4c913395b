"""Backbones from and to folders of transformers: T5 1.0, 1.1, mT5, byT5, Flan.

A folder holds `config.json` and the weights: `model.safetensors`, or shards of
it with an index; or pickles (`pytorch_model.bin`), read only when asked for.
No torch is needed but for those.

Every parameter is read straight into its place, a megabyte at a time, so
that reading needs hardly more memory than the backbone itself.
"""

from collections.abc import Mapping
import functools
import re
from typing import Any, Protocol

from etils import epath
from flax import traverse_util
import jax
import numpy as np

from mhr_jax import checkpoints, run_files, tree_check
from mhr_jax.convert import (
  hf_config,
  hf_names,
  safetensors_files,
  torch_files,
)
from mhr_jax.convert.hf_vocabulary import read_vocabulary, write_vocabulary
from mhr_jax.errors import UserError, nearest
from mhr_jax.model import RoutedT5
from mhr_jax.t5 import config as config_lib
from mhr_jax.t5.config import T5Config
from mhr_jax.tree_paths import leaves_by_path
from mhr_jax.vocabulary import Vocabulary

__all__ = [
  'CONFIG_FILE',
  'read_backbone',
  'read_config',
  'read_vocabulary',
  'write_backbone',
  'write_vocabulary',
]

CONFIG_FILE = 'config.json'
GENERATION_FILE = 'generation_config.json'
PICKLE_FILE = 'pytorch_model.bin'

_EMBEDDING = 'shared.weight'
_LM_HEAD = 'lm_head.weight'
# The embedding, which files may hold under several names, or under another.
_COPIES = ('encoder.embed_tokens.weight', 'decoder.embed_tokens.weight')
# Stored by early versions; no version of T5 reads it.
_UNUSED = (
  'decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight',
)
_LAYER = re.compile(r'/layers_(\d+)/')
_DTYPES = ('float32', 'bfloat16')


class _Tensors(Protocol):
  """Stored tensors by name, in the order in which reading them is cheapest."""

  shapes: dict[str, tuple[int, ...]]

  def read_into(self, name: str, out: np.ndarray) -> None:
    """Copies a tensor into `out`, of its shape and any type and strides."""
    ...

  def is_copy(self, name: str, of: str) -> bool:
    """Whether two tensors are the same, bit for bit."""
    ...


def read_config(folder: epath.PathLike) -> T5Config:
  """Returns the backbone of a transformers folder.

  Args:
    folder: holds `config.json`, perhaps `generation_config.json`.

  Raises:
    UserError: there is none, or it says something that has no equivalent here.
  """
  return _read_settings(checkpoints.absolute(folder))[0]


def _read_settings(folder: epath.Path) -> tuple[T5Config, bool]:
  """Returns the config, and whether the output layer may be the embedding."""
  path, generation = folder / CONFIG_FILE, folder / GENERATION_FILE
  if not path.exists():
    raise UserError(f'{path} is absent, so this is no folder of transformers.')
  values = run_files.read_json(path)
  config = hf_config.from_json(
    values,
    run_files.read_json(generation) if generation.exists() else {},
    where=str(folder),
  )
  return config, hf_config.is_tied(values)


def read_backbone(
  folder: epath.PathLike,
  *,
  allow_pickle: bool = False,
  dtype: str = 'float32',
) -> tuple[T5Config, dict[str, Any]]:
  """Returns the backbone of a transformers folder, in scanned layout.

  Names that early or tied checkpoints hold more than once are accepted where
  they are equal. An output layer that is tied without T5 1.0's scaling of the
  decoder's output (mT5 as transformers 5 makes it) becomes one of its own,
  which is the same function.

  Args:
    folder: with `config.json`, and `model.safetensors` or its shards.
    allow_pickle: read `pytorch_model.bin` where there is no safetensors file.
    dtype: of the arrays returned, see `T5Config`; files may hold float32,
      float16 or bfloat16.

  Returns:
    The config and its parameters, NumPy arrays.

  Raises:
    UserError: a file is absent or broken, a setting has no equivalent, or a
      leaf is missing, extra or of another shape.
  """
  folder = checkpoints.absolute(folder)
  config_lib.check_dtype(dtype)
  config, tied = _read_settings(folder)
  tensors = _open_tensors(folder, allow_pickle=allow_pickle)
  shapes = _parameter_shapes(config)
  leaves = list(hf_names.list_leaves(config))
  wanted = {
    leaf.name: jax.ShapeDtypeStruct(_stored_shape(shapes, leaf), np.float32)
    for leaf in leaves
  }
  names = _account(tensors, wanted, tied=tied, where=str(folder))
  # Memory is taken once files and config agree: either may promise anything.
  arrays = {path: np.empty(leaf.shape, dtype) for path, leaf in shapes.items()}
  targets = {leaf.name: _as_stored(arrays, leaf) for leaf in leaves}
  for source in tensors.shapes:
    if source in names:
      tensors.read_into(source, targets[names[source]])
  if _LM_HEAD in targets and _LM_HEAD not in tensors.shapes:
    targets[_LM_HEAD][...] = targets[_EMBEDDING]
  return config, traverse_util.unflatten_dict(arrays, sep='/')


def _check_dtype(dtype: str) -> None:
  if dtype not in _DTYPES:
    raise UserError(
      f'A backbone has no dtype {dtype!r}.{nearest(dtype, _DTYPES)}'
    )


def _open_tensors(folder: epath.Path, *, allow_pickle: bool) -> _Tensors:
  files = safetensors_files.find_files(folder, safetensors_files.WHOLE_FILE)
  if files:
    return safetensors_files.SafetensorsFiles(files)
  files = safetensors_files.find_files(folder, PICKLE_FILE)
  if files:
    return torch_files.PickledFiles(files, allow_pickle=allow_pickle)
  raise UserError(
    f'{folder} has a {CONFIG_FILE} but no weights: neither'
    f' {safetensors_files.WHOLE_FILE} nor {PICKLE_FILE}, nor an index of their'
    ' shards.'
  )


def _parameter_shapes(config: T5Config) -> dict[str, Any]:
  return leaves_by_path(RoutedT5(config).abstract_params()['backbone'])


def _as_stored(arrays: Mapping[str, Any], leaf: hf_names.Leaf) -> np.ndarray:
  """Returns a parameter with transformers' axes; a view, of NumPy arrays.

  Args:
    arrays: parameters by path, scanned or unrolled.
    leaf: which one.
  """
  path, layer = _find(arrays, leaf)
  array = np.asarray(arrays[path] if layer is None else arrays[path][layer])
  return array.T if leaf.transposed else array


def _stored_shape(
  arrays: Mapping[str, Any], leaf: hf_names.Leaf
) -> tuple[int, ...]:
  path, layer = _find(arrays, leaf)
  shape = tuple(arrays[path].shape)
  if layer is not None:
    shape = shape[1:]
  return shape[::-1] if leaf.transposed else shape


def _find(
  arrays: Mapping[str, Any], leaf: hf_names.Leaf
) -> tuple[str, int | None]:
  """Returns a leaf's path, and where layers are stacked there, its layer."""
  if leaf.path in arrays:
    return leaf.path, None
  layer = int(_LAYER.findall(leaf.path)[0])
  return _LAYER.sub('/layers/', leaf.path), layer


def _account(
  tensors: _Tensors,
  targets: Mapping[str, jax.ShapeDtypeStruct],
  *,
  tied: bool,
  where: str,
) -> dict[str, str]:
  """Returns {name in the files: name of the leaf it is}; all are accounted for.

  Raises:
    UserError: a name is missing, extra, of another shape, or has two values.
  """
  copies = [_EMBEDDING, *_COPIES]
  if _LM_HEAD not in targets:
    copies.append(_LM_HEAD)
  held = [name for name in copies if name in tensors.shapes]
  for name in held[1:]:
    if not tensors.is_copy(name, of=held[0]):
      raise UserError(_two_values(name, held[0], where))
  names = {
    name: name
    for name in tensors.shapes
    if name not in _UNUSED and name not in held
  }
  if held:
    names[held[0]] = _EMBEDDING
  saved = {
    leaf: jax.ShapeDtypeStruct(tensors.shapes[name], np.float32)
    for name, leaf in names.items()
  }
  wanted = dict(targets)
  if tied and _LM_HEAD not in saved:
    wanted.pop(_LM_HEAD, None)
  tree_check.check_tree(saved, wanted, where=where)
  return names


def _two_values(name: str, embedding: str, where: str) -> str:
  if name != _LM_HEAD:
    return f'{where}: {name} is not equal to {embedding}; T5 has one embedding.'
  return (
    f'{where} has an output layer ({name}) that is not the embedding'
    f" ({embedding}), and its {CONFIG_FILE} scales the decoder's output as a"
    ' tied T5 1.0 does (scale_decoder_outputs, or tie_word_embeddings that is'
    ' not false). Here there is no such model. If it was trained without that'
    ' scaling, set "tie_word_embeddings": false and remove'
    ' "scale_decoder_outputs".'
  )


def write_backbone(
  folder: epath.PathLike,
  config: T5Config,
  backbone: Mapping[str, Any],
  *,
  dtype: str = 'float32',
  vocabulary: Vocabulary | None = None,
  max_shard_bytes: int = safetensors_files.MAX_SHARD_BYTES,
) -> None:
  """Writes a folder that transformers loads as a T5ForConditionalGeneration.

  It appears under its name when it is whole.

  Args:
    folder: must not exist, or be empty.
    config: the backbone.
    backbone: its parameters, scanned or unrolled as config says; arrays of
      NumPy or JAX.
    dtype: to store, 'float32' or 'bfloat16'.
    vocabulary: written beside it, see `write_vocabulary`.
    max_shard_bytes: weights beyond are spread over several files.

  Raises:
    UserError: there are files already, the parameters are not config's, or
      transformers has no such T5 or tokenizer.
  """
  folder = checkpoints.absolute(folder)
  _check_dtype(dtype)
  values = hf_config.to_json(config, dtype=dtype)
  arrays = leaves_by_path(backbone)
  tree_check.check_tree(
    arrays, _parameter_shapes(config), where='The backbone to write'
  )
  tensors = {}
  for leaf in hf_names.list_leaves(config):
    read = functools.partial(_as_stored, arrays, leaf)
    shape = _stored_shape(arrays, leaf)
    tensors[leaf.name] = safetensors_files.Lazy(shape, read)
  with run_files.new_folder(folder) as partial:
    safetensors_files.write_files(
      partial, tensors, dtype=dtype, max_shard_bytes=max_shard_bytes
    )
    run_files.write_json(
      partial / GENERATION_FILE, hf_config.generation_json(config)
    )
    if vocabulary is not None:
      write_vocabulary(partial, vocabulary)
    run_files.write_json(partial / CONFIG_FILE, values)
