"""An optimizer's state away from training: which one, of what, leaf by leaf.

Run folders and T5X's checkpoints call its leaves the same: place in the chain,
field, parameter, as in `1/mu/adapters/encoder/mlp/wo/a`. Only where the
backbone trains do the two layouts of its layers name them differently.
"""

from collections.abc import Mapping
import dataclasses
import functools
import re
from typing import Any

from etils import epath
import jax
import numpy as np

from mhr_jax import checkpoints, optim, run_files, run_folder, tree_check
from mhr_jax.errors import UserError, blaming
from mhr_jax.model import RoutedT5
from mhr_jax.optim import OptimizerSettings
from mhr_jax.tree_paths import leaves_by_path

FORMAT_VERSION = 1

_LAYER = re.compile(r'layers_(\d+)')
_STACKED = 'layers'


@dataclasses.dataclass(frozen=True)
class OptimizerDescription:
  """Which optimizer, and what it moves.

  Attributes:
    settings: of the optimizer.
    trains: labels of the subtrees that it moves.
  """

  settings: OptimizerSettings
  trains: tuple[str, ...]

  def abstract_state(self, model: RoutedT5) -> Any:
    """Returns the shapes of the optimizer's state for a model.

    Raises:
      UserError: the model has no subtree of a label that trains.
    """
    return _abstract_state(self, model)


@functools.lru_cache(maxsize=8)  # a large model's takes seconds to trace
def _abstract_state(description: OptimizerDescription, model: RoutedT5) -> Any:
  params = model.abstract_params()
  missing = [label for label in description.trains if label not in params]
  if missing:
    raise UserError(
      f'The optimizer trains {missing[0]}, and the model has none: it has'
      f' {", ".join(params)}.'
    )
  float32 = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, np.float32),
    {label: params[label] for label in description.trains},
  )
  rule = optim.make_optimizer(description.settings, total_steps=1)
  return jax.eval_shape(rule.init, float32)


@dataclasses.dataclass(frozen=True)
class OptimizerState:
  """What an optimizer has gathered; `make_state` makes one.

  Attributes:
    description: which optimizer.
    model: whose parameters it moves; its layout is that of the arrays.
    arrays: every leaf of the state by path.
  """

  description: OptimizerDescription
  model: RoutedT5
  arrays: Mapping[str, np.ndarray]

  @property
  def updates(self) -> int:
    """How many updates it made; schedules are computed from it."""
    chain: Any = optim.make_optimizer(
      self.description.settings, total_steps=1
    ).init({})
    return int(self.arrays[f'{len(chain) - 1}/count'])

  @property
  def tree(self) -> Any:
    """The state as the optimizer itself has it."""
    structure = jax.tree.structure(self.description.abstract_state(self.model))
    return jax.tree.unflatten(structure, list(self.arrays.values()))

  def in_layout(self, model: RoutedT5) -> 'OptimizerState':
    """Returns the state for the same model with scanned or unrolled layers."""
    if model == self.model:
      return self
    shapes = leaves_by_path(self.description.abstract_state(model))
    arrays = {
      name: _lay_out(self.arrays, name, wanted.shape)
      for name, wanted in shapes.items()
    }
    return make_state(self.description, model, arrays, where='The state')


def make_state(
  description: OptimizerDescription,
  model: RoutedT5,
  arrays: Mapping[str, Any],
  *,
  where: str,
) -> OptimizerState:
  """Returns a state that is whole.

  Args:
    description: which optimizer.
    model: whose parameters it moves.
    arrays: every leaf of the state by path.
    where: where they lie, for the message.

  Raises:
    UserError: a leaf is missing, extra or of another shape.
  """
  shapes = leaves_by_path(description.abstract_state(model))
  tree_check.check_tree(dict(arrays), shapes, where=where)
  ordered = {
    name: np.asarray(arrays[name], wanted.dtype)
    for name, wanted in shapes.items()
  }
  return OptimizerState(description, model, ordered)


def _lay_out(
  arrays: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]
) -> np.ndarray:
  """Returns a leaf, of arrays that may have the other layout of layers.

  Adafactor's moments have an axis of length 1 for a single layer, the others
  none.
  """
  if name in arrays:
    return arrays[name]
  layer = _LAYER.search(name)
  if layer:
    whole = arrays[name.replace(layer[0], _STACKED)]
    return whole[int(layer[1])].reshape(shape)
  head, tail = name.split(f'/{_STACKED}/')
  parts = (arrays[f'{head}/layers_{i}/{tail}'] for i in range(shape[0]))
  return np.stack([part.reshape(shape[1:]) for part in parts])


def read_from_run(
  run_dir: epath.PathLike, step: int, model: RoutedT5
) -> OptimizerState | None:
  """Returns the optimizer's state of a run's step; None where it has none.

  Args:
    run_dir: the run folder.
    step: a committed step.
    model: the run's.

  Raises:
    UserError: the state is not that of the optimizer which the step names.
  """
  facts = checkpoints.read_metadata(run_dir, step)
  if 'optimizer' not in facts:
    return None
  where = f'{run_dir}, step {step}'
  with blaming(where, 'a checkpoint of a run'):
    trains = facts['settings']['trains']
  description = _from_json(facts['optimizer'], trains, where=where)
  state = checkpoints.read_optimizer(
    run_dir, step, description.abstract_state(model)
  )
  return make_state(description, model, leaves_by_path(state), where=where)


def write_description(
  path: epath.Path, description: OptimizerDescription
) -> None:
  """Writes which optimizer it is as JSON."""
  values = {'format_version': FORMAT_VERSION, **dataclasses.asdict(description)}
  if jax.process_index() == 0:
    run_files.write_json(path, values)


def read_description(path: epath.Path) -> OptimizerDescription | None:
  """Returns what `write_description` wrote; None where there is no file.

  Raises:
    UserError: the file is of a newer format or lacks a key.
  """
  if not path.exists():
    return None
  values = run_files.read_json(path)
  run_files.check_format(values, FORMAT_VERSION, where=str(path))
  missing = {'settings', 'trains'} - set(values)
  if missing:
    raise UserError(f'{path} lacks {", ".join(sorted(missing))}.')
  return _from_json(values['settings'], values['trains'], where=str(path))


def _from_json(
  settings: Mapping[str, Any], trains: Any, *, where: str
) -> OptimizerDescription:
  with blaming(where, 'a description of an optimizer'):
    found = run_folder.settings_from_json(
      OptimizerSettings, settings, where=where
    )
    return OptimizerDescription(found, tuple(trains))
