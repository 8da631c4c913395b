"""One way to run a training step, compiled ahead of time on shapes alone."""

from collections.abc import Mapping
import dataclasses
import functools
import math
import re
import time
from typing import Any, Literal

import jax
import jax.numpy as jnp

from mhr_jax import methods, optim, partitioning
from mhr_jax.adapters import AdapterConfig
from mhr_jax.data.mixture_settings import MixtureSettings
from mhr_jax.errors import UserError
from mhr_jax.methods import Method
from mhr_jax.model import RoutedT5
from mhr_jax.optim import OptimizerSettings
from mhr_jax.plan_collectives import Collective, list_collectives
from mhr_jax.plan_devices import Target, quick_compilation
from mhr_jax.t5.config import T5Config
from mhr_jax.train_settings import TrainSettings
from mhr_jax.train_state import TrainState, make_train_step, plan_state

_TOO_LARGE = 'RESOURCE_EXHAUSTED'
_USED = re.compile(r'[Uu]sed ([\d.]+)([MGT]) of')
_UNITS = {'M': 2**20, 'G': 2**30, 'T': 2**40}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
  """What is trained, whatever the devices.

  Attributes:
    method: a row of the table of methods.
    backbone: the T5.
    adapters: in pre-training; None for the bare backbone.
    mixture: of it the batch's size and lengths.
    settings: of training.
    optimizer: how parameters move.
  """

  method: Method
  backbone: T5Config
  adapters: AdapterConfig | None
  mixture: MixtureSettings
  settings: TrainSettings
  optimizer: OptimizerSettings

  @property
  def trains(self) -> tuple[str, ...]:
    """Labels of what trains."""
    return methods.trained_labels(self.method, 'pretrain')

  @functools.cached_property
  def params(self) -> dict[str, Any]:
    """The shapes of all parameters, as a run holds them."""
    return RoutedT5(self.backbone, self.adapters).abstract_params()


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A way to run it.

  Attributes:
    data: devices along `data`.
    model: devices along `model`.
    batch: rows of the global batch.
    mix_in: where adapters are mixed.
  """

  data: int
  model: int
  batch: int
  mix_in: Literal['front', 'layer']

  def __str__(self) -> str:
    return (
      f'data={self.data} model={self.model} batch={self.batch} {self.mix_in}'
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """What the compiler says of a candidate, of each device.

  Attributes:
    arguments: bytes by kind: 'backbone', 'adapters', 'routers', 'optimizer',
      'batch'.
    temporaries: bytes that the step needs beside them; None where it does not
      fit and the compiler said no number.
    refused: whether the compiler found that it does not fit.
    is_compiled: whether a compiler was asked at all.
    collectives: what devices send, in one step.
    notes: what is not split.
    seconds: to compile.
  """

  arguments: Mapping[str, int]
  temporaries: int | None
  refused: bool = False
  is_compiled: bool = True
  collectives: tuple[Collective, ...] = ()
  notes: tuple[str, ...] = ()
  seconds: float = 0.0

  @property
  def total(self) -> int | None:
    """Bytes at the peak of a step."""
    if self.temporaries is None:
      return None
    return sum(self.arguments.values()) + self.temporaries


def compile_candidate(
  setup: Setup, candidate: Candidate, target: Target
) -> Program:
  """Compiles the trainer's own step for a candidate.

  Raises:
    UserError: the settings do not fit each other or the mesh.
  """
  start = time.monotonic()
  state, places, notes = plan_candidate(setup, candidate, target)
  mesh = places.step.mesh
  batch = abstract_batch(setup, candidate.batch, mesh)
  arguments = count_arguments(state, batch)
  step = _make_step(setup, candidate, places)
  key = jax.eval_shape(lambda: jax.random.key(0))
  with quick_compilation():
    lowered = step.lower(state, batch, key)
    try:
      compiled = lowered.compile(target.compiler_options)
    except jax.errors.JaxRuntimeError as error:
      if _TOO_LARGE not in str(error):
        raise
      return Program(
        arguments=arguments,
        temporaries=_read_excess(str(error), sum(arguments.values())),
        refused=True,
        notes=notes,
        seconds=time.monotonic() - start,
      )
  return Program(
    arguments=arguments,
    temporaries=_temporaries(compiled, sum(arguments.values())),
    collectives=tuple(list_collectives(compiled.as_text())),
    notes=notes,
    seconds=time.monotonic() - start,
  )


def lay_out_candidate(
  setup: Setup, candidate: Candidate, target: Target
) -> Program:
  """Says what lies on a device, without compiling anything.

  Raises:
    UserError: the settings do not fit each other or the mesh.
  """
  state, places, notes = plan_candidate(setup, candidate, target)
  batch = abstract_batch(setup, candidate.batch, places.step.mesh)
  return Program(
    arguments=count_arguments(state, batch),
    temporaries=None,
    is_compiled=False,
    notes=notes,
  )


def plan_candidate(
  setup: Setup, candidate: Candidate, target: Target
) -> tuple[TrainState, TrainState, tuple[str, ...]]:
  """Returns the state's shapes, its shardings and notes: `plan_state`'s."""
  model = _model(setup, candidate)
  mesh = partitioning.make_mesh(
    candidate.data, candidate.model, devices=target.devices
  )
  return plan_state(
    setup.params,
    optim.make_optimizer(setup.optimizer, setup.settings.steps),
    setup.trains,
    mesh=mesh,
    logical_axes=model.logical_axes(),
  )


def _model(setup: Setup, candidate: Candidate) -> RoutedT5:
  return RoutedT5(setup.backbone, setup.adapters, candidate.mix_in)


def _make_step(setup: Setup, candidate: Candidate, places: TrainState) -> Any:
  settings = setup.settings
  return make_train_step(
    _model(setup, candidate),
    optim.make_optimizer(setup.optimizer, settings.steps),
    accumulation=settings.accumulation,
    label_smoothing=settings.label_smoothing,
    z_loss=settings.z_loss,
    normalisation=settings.loss_normalisation,
    places=places,
  )


def abstract_batch(
  setup: Setup, rows: int, mesh: partitioning.Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the shapes of a batch, as `data.batching` lays it out.

  Raises:
    UserError: the rows do not divide by the devices along `data`.
  """
  data = mesh.shape[partitioning.DATA_AXIS]
  if rows % data:
    raise UserError(
      f'A batch of {rows} rows does not divide by data={data}: choose another'
      ' --batch or --mesh.'
    )
  inputs, targets = setup.mixture.input_length, setup.mixture.target_length
  widths: dict[str, tuple[int, ...]] = {
    'encoder_input_tokens': (inputs,),
    'decoder_input_tokens': (targets,),
    'decoder_target_tokens': (targets,),
    'decoder_loss_weights': (targets,),
    'task_ids': (),
  }
  if setup.mixture.packing == 'within_task':
    widths['encoder_segment_ids'] = (inputs,)
    widths['decoder_segment_ids'] = (targets,)
  where = partitioning.batch_sharding(mesh)
  return {
    name: jax.ShapeDtypeStruct(
      (rows, *width),
      jnp.float32 if name == 'decoder_loss_weights' else jnp.int32,
      sharding=where,
    )
    for name, width in widths.items()
  }


def count_arguments(
  state: TrainState, batch: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, int]:
  """Returns the bytes a device of a state and a batch, by kind."""
  kinds = {**state.frozen, **state.trainable}
  kinds = {label: kinds[label] for label in sorted(kinds, key=_kind_order)}
  kinds |= {'optimizer': state.opt_state, 'batch': batch}
  return {
    kind: sum(map(_bytes_a_device, jax.tree.leaves(tree)))
    for kind, tree in kinds.items()
  }


def _kind_order(label: str) -> int:
  return ('backbone', 'adapters', 'routers').index(label)


def _bytes_a_device(x: jax.ShapeDtypeStruct) -> int:
  shape = x.sharding.shard_shape(x.shape) if x.sharding else x.shape
  return math.prod(shape) * x.dtype.itemsize


def _temporaries(compiled: jax.stages.Compiled, arguments: int) -> int:
  """Returns the bytes beside the arguments, padding of theirs among them."""
  memory: Any = compiled.memory_analysis()
  out = memory.output_size_in_bytes - memory.alias_size_in_bytes
  padding = max(memory.argument_size_in_bytes - arguments, 0)
  return memory.temp_size_in_bytes + out + padding


def _read_excess(message: str, arguments: int) -> int | None:
  """Reads from 'Used 20.5G of 15.7G hbm' what is beside the arguments."""
  match = _USED.search(message)
  if match is None:
    return None
  used = float(match.group(1)) * _UNITS[match.group(2)]
  return max(int(used) - arguments, 0)
