"""A run planned for a pod that is not there: `mhr-jax plan`.

The trainer's own step is compiled ahead of time for each way to run it that is
tried: a mesh, a global batch, a place to mix adapters. From the compiled
program come the memory a device and the collectives; arithmetic is counted
(`plan_flops`). Together with what a chip can do they bound the time of a step
from below.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import itertools
import math

from mhr_jax import methods, plan_flops
from mhr_jax.adapters import AdapterConfig
from mhr_jax.data.mixture_settings import MixtureSettings
from mhr_jax.errors import UserError
from mhr_jax.jobs import Adapters
from mhr_jax.model import MixIn
from mhr_jax.optim import OptimizerSettings
from mhr_jax.plan_devices import Target
from mhr_jax.plan_program import (
  Candidate,
  Program,
  Setup,
  abstract_batch,
  compile_candidate,
  count_arguments,
  lay_out_candidate,
  plan_candidate,
)
from mhr_jax.t5.config import T5Config
from mhr_jax.train_settings import TrainSettings

# The share of memory that arguments may take for a mesh to be tried unasked.
_ROOM = 0.8
_MODEL_SIZES = (1, 2, 4, 8, 16)
_MESHES = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
  """A candidate and what becomes of it.

  Attributes:
    candidate: the way to run it.
    program: what the compiler says.
    flops: of a step, over all devices.
    fits: whether a step fits a device; None where that is not known.
    compute_seconds: arithmetic at the chip's peak.
    memory_seconds: reading weights and state at its memory's.
    network_seconds: sending at its links'.
    tokens: of a step, inputs and targets.
  """

  candidate: Candidate
  program: Program
  flops: plan_flops.Flops
  fits: bool | None
  compute_seconds: float
  memory_seconds: float
  network_seconds: float
  tokens: int

  @property
  def step_seconds(self) -> float:
    """A step takes at least so long; 0 where no speed is known."""
    return max(self.compute_seconds, self.memory_seconds, self.network_seconds)

  @property
  def tokens_per_second(self) -> float:
    """At most so many; 0 where no speed is known."""
    return self.tokens / self.step_seconds if self.step_seconds else 0.0


def build_setup(
  backbone: T5Config,
  mixture: MixtureSettings,
  settings: TrainSettings,
  method: str = 'mhr',
  adapters: Adapters | None = None,
  optimizer: OptimizerSettings | None = None,
  mix_in: MixIn = 'auto',
  *,
  n_tasks: int,
) -> tuple[Setup, MixIn]:
  """Returns what is trained, of the arguments of `train.train` that say it.

  Args:
    backbone: the shape of the T5.
    mixture: how tasks become batches.
    settings: of training.
    method: a row of the table of methods.
    adapters: called with n_tasks.
    optimizer: how parameters move.
    mix_in: see `RoutedT5`.
    n_tasks: how many tasks there are: no data is read.

  Raises:
    UserError: settings do not fit each other.
  """
  row = methods.get_method(method)
  base = (adapters or AdapterConfig)(n_tasks=n_tasks)
  setup = Setup(
    method=row,
    backbone=backbone,
    adapters=methods.adapter_config(row, base),
    mixture=mixture,
    settings=settings,
    optimizer=optimizer or OptimizerSettings(),
  )
  return setup, mix_in


def choose_candidates(
  setup: Setup,
  target: Target,
  *,
  meshes: Sequence[tuple[int, int]] = (),
  batches: Sequence[int] = (),
  mix_in: Sequence[MixIn] = (),
) -> list[Candidate]:
  """Returns the ways to try.

  Args:
    setup: what is trained.
    target: the devices.
    meshes: (data, model); by default the two with the least devices along
      `model` whose parameters, optimizer state and batch leave room.
    batches: rows; by default those of the settings, raised to the next
      multiple of the devices along `data`.
    mix_in: places; by default both, or the front alone where one adapter
      serves all rows.
  """
  places = _mix_places(setup, mix_in)
  meshes = meshes or _choose_meshes(setup, target)
  found = []
  for (data, model), place in itertools.product(meshes, places):
    rows = batches or [_round_up(setup.mixture.batch_size, data)]
    found += [Candidate(data, model, each, place) for each in rows]
  return list(dict.fromkeys(found))


def _mix_places(setup: Setup, asked: Sequence[MixIn]) -> Sequence:
  named = [place for place in asked if place != 'auto']
  if named:
    return named
  if setup.adapters is None or plan_flops.shares_one_adapter(setup.adapters):
    return ['front']
  return ['layer', 'front']


def _round_up(rows: int, data: int) -> int:
  return math.ceil(rows / data) * data


def _choose_meshes(setup: Setup, target: Target) -> list[tuple[int, int]]:
  n = target.topology.size
  sizes = [
    model
    for model in _MODEL_SIZES
    if n % model == 0 and setup.backbone.num_heads % model == 0
  ]
  memory = target.topology.chip.memory
  roomy = []
  for model in sizes:
    if not memory or _argument_bytes(setup, target, model) <= _ROOM * memory:
      roomy.append((n // model, model))
    if len(roomy) == _MESHES:
      break
  return roomy or [(n // sizes[-1], sizes[-1])]


def _argument_bytes(setup: Setup, target: Target, model: int) -> int:
  data = target.topology.size // model
  rows = _round_up(setup.mixture.batch_size, data)
  candidate = Candidate(data, model, rows, 'front')
  state, places, _ = plan_candidate(setup, candidate, target)
  batch = abstract_batch(setup, rows, places.step.mesh)
  return sum(count_arguments(state, batch).values())


def try_candidates(
  setup: Setup,
  target: Target,
  candidates: Sequence[Candidate],
  on_progress: Callable[[str], None],
  *,
  shapes_only: bool = False,
) -> Iterator[Result]:
  """Compiles one candidate after the other.

  Args:
    setup: what is trained.
    target: the devices.
    candidates: the ways to try.
    on_progress: told in a line what is being compiled, and what came out.
    shapes_only: compile nothing.
  """
  if shapes_only:
    for each in candidates:
      yield weigh(setup, target, each, lay_out_candidate(setup, each, target))
    return
  for i, candidate in enumerate(candidates):
    head = f'plan {i + 1}/{len(candidates)}  {candidate}'
    on_progress(f'{head}  compiling')
    program = compile_candidate(setup, candidate, target)
    on_progress(f'{head}  {program.seconds:.0f} s')
    yield weigh(setup, target, candidate, program)


def weigh(
  setup: Setup, target: Target, candidate: Candidate, program: Program
) -> Result:
  """Returns what a compiled candidate means on the chips that are asked for."""
  chip, topology = target.topology.chip, target.topology
  mixture = setup.mixture
  shape = plan_flops.StepShape(
    rows=candidate.batch,
    input_length=mixture.input_length,
    target_length=mixture.target_length,
    trains=setup.trains,
    in_layer=candidate.mix_in == 'layer',
  )
  flops = plan_flops.count_flops(setup.backbone, setup.adapters, shape)
  network = sum(
    _ratio(
      each.sent_bytes,
      chip.network_rate if each.crosses(topology.node_size) else chip.link_rate,
    )
    for each in program.collectives
  )
  return Result(
    candidate=candidate,
    program=program,
    flops=flops,
    fits=_fits(target, program),
    compute_seconds=_ratio(flops.total, chip.flops * topology.size),
    memory_seconds=_ratio(_bytes_read(setup, program), chip.memory_rate),
    network_seconds=network,
    tokens=candidate.batch * (mixture.input_length + mixture.target_length),
  )


def _ratio(amount: float, rate: float) -> float:
  return amount / rate if rate else 0.0


def _fits(target: Target, program: Program) -> bool | None:
  memory = target.topology.chip.memory
  if program.refused:
    return False
  if not memory:
    return None
  if sum(program.arguments.values()) > memory:
    return False
  if not target.is_exact or program.total is None:
    return None
  return program.total <= memory


def _bytes_read(setup: Setup, program: Program) -> float:
  """Returns the bytes of weights and state that a step moves, at least.

  The backbone is read in each pass; what trains, with the optimizer's state,
  is read and written once. Activations are left out.
  """
  held = program.arguments
  passes = plan_flops.weight_passes(setup.backbone, setup.trains)
  moved = sum(held.get(label, 0) for label in setup.trains) + held['optimizer']
  return passes * held['backbone'] + 2 * moved


def choose_best(results: Sequence[Result]) -> Result | None:
  """Returns the fastest that fits, by its bound; None where none does.

  Where no speed is known, the one that takes the least memory.
  """
  possible = [each for each in results if each.fits is not False]
  if not possible:
    return None
  return max(
    possible,
    key=lambda each: (each.tokens_per_second, -(each.program.total or 0)),
  )


def check_meshes(
  meshes: Sequence[tuple[int, int]], target: Target
) -> Sequence[tuple[int, int]]:
  """Refuses meshes that have not as many devices as there are.

  Raises:
    UserError: names the first.
  """
  for data, model in meshes:
    if data * model != target.topology.size:
      raise UserError(
        f'--mesh={data}x{model} has {data * model} devices, --topology='
        f'{target.topology} {target.topology.size}.'
      )
  return meshes
