"""Other libraries' adapter tensors, one a module, as our stacked arrays.

Theirs have a tensor for each linear of each layer, ours an array a kind of
linear, stacked over layers: so all layers of a stack are adapted, or none.
"""

from collections.abc import Iterable, Mapping
import dataclasses
from typing import NamedTuple

import numpy as np

from mhr_jax.convert import hf_names
from mhr_jax.errors import UserError
from mhr_jax.t5.config import Linear, T5Config, list_linears

_NAMES_SHOWN = 4


class Named(NamedTuple):
  """A tensor with the name that it has in its file."""

  name: str
  array: np.ndarray


@dataclasses.dataclass(frozen=True)
class LinearTensors:
  """Tensors by the linear that they belong to.

  Attributes:
    where: their file, for messages.
    linears: those that have tensors, by path, in the network's order.
    rest: names of the tensors that belong to none.
  """

  where: str
  linears: dict[str, Linear]
  rest: tuple[str, ...]
  _found: dict[tuple[str, str], dict[int, Named]]

  def by_layer(self, path: str, kind: str) -> dict[int, Named]:
    """Returns one kind of tensor of a linear, of the layers that have it."""
    return self._found.get((path, kind), {})

  def layers(self, path: str, kind: str) -> list[Named]:
    """Returns one kind of tensor of a linear, layer after layer.

    Raises:
      UserError: some layers have it and others have not.
    """
    found, count = self.by_layer(path, kind), self.linears[path].layers
    missing = sorted(set(range(count)) - set(found))
    if missing:
      has = f'in layers {sorted(found)} alone' if found else 'in no layer'
      raise UserError(
        f'{self.where}: {path} has its {kind} {has}, and the backbone has'
        f' {count}. Inventories here are stacked over layers: a linear is'
        ' adapted in every layer of its stack or in none, so this adapter has'
        ' no equivalent.'
      )
    return [found[layer] for layer in range(count)]

  def stack(self, path: str, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns one kind of tensor of a linear as float32 [layer, *shape].

    Raises:
      UserError: a layer lacks it, or has it in another shape.
    """
    tensors = self.layers(path, kind)
    for tensor in tensors:
      self.check_shape(tensor, shape)
    return np.stack([np.asarray(array, np.float32) for _, array in tensors])

  def check_shape(self, tensor: Named, shape: tuple[int, ...]) -> None:
    """Refuses a tensor of another shape, naming both."""
    name, array = tensor
    if array.shape != shape:
      raise UserError(
        f'{self.where}: {name} has the shape {array.shape}; {shape} is what the'
        ' settings and the backbone ask for.'
      )


def sort_tensors(
  tensors: Mapping[str, np.ndarray],
  kinds: Mapping[str, str],
  backbone: T5Config,
  *,
  prefix: str = '',
  where: str,
) -> LinearTensors:
  """Sorts tensors by linear, kind and layer.

  Args:
    tensors: by name, `<prefix><module of transformers' T5>.<suffix>`.
    kinds: by suffix, such as {'lora_A.weight': 'a'}.
    backbone: whose linears they must be.
    prefix: of every name.
    where: their file, for messages.

  Raises:
    UserError: none belongs to a linear, or one to a linear or layer that the
      backbone lacks.
  """
  found: dict[tuple[str, str], dict[int, Named]] = {}
  rest, linears = [], list_linears(backbone)
  for name, array in tensors.items():
    linear, kind = _find(name, kinds, prefix)
    if linear is None:
      rest.append(name)
      continue
    _check_linear(linear, name, linears, where)
    layers = found.setdefault((linear.path, kind), {})
    layers[linear.layer] = Named(name, array)
  adapted = {path for path, _ in found}
  if not adapted:
    raise UserError(
      f"{where} holds no adapters of a T5's linears. It has"
      f' {list_some(rest) if rest else "no tensors"}.'
    )
  chosen = {path: x for path, x in linears.items() if path in adapted}
  return LinearTensors(where, chosen, tuple(rest), found)


def _find(name, kinds, prefix):
  """Returns the linear in its layer and the kind of a tensor's name."""
  inner = name.removeprefix(prefix)
  suffix = next((s for s in kinds if inner.endswith(f'.{s}')), None)
  if suffix is None or not name.startswith(prefix):
    return None, ''
  module = inner.removesuffix(f'.{suffix}')
  return hf_names.find_linear(module), kinds[suffix]


def _check_linear(linear, name, linears, where):
  path, layer = linear
  if path in linears and layer < linears[path].layers:
    return
  has = (
    f'{linears[path].layers} layers' if path in linears else 'no such linear'
  )
  raise UserError(
    f'{where}: {name} is of {path} in layer {layer}; the backbone has {has}.'
    ' Use the backbone that it was trained on.'
  )


def list_some(names: Iterable[str]) -> str:
  """Returns the first few of many names, for a message."""
  names = sorted(names)
  more = len(names) - _NAMES_SHOWN
  shown = ', '.join(names[:_NAMES_SHOWN])
  return f'{shown} and {more} more' if more > 0 else shown


def choose_targets(paths: Iterable[str], backbone: T5Config) -> tuple[str, ...]:
  """Returns `AdapterConfig.targets` that match just these linears."""
  chosen, linears = set(paths), list_linears(backbone)
  if chosen == set(linears):
    return ('.*',)
  return tuple(path for path in linears if path in chosen)
