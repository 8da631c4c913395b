"""Devices to compile for that need not be there.

Compilers for TPUs (libtpu) and NVIDIA GPUs (jax's CUDA plugin) compile without
the chip. Without them as many virtual CPU devices stand in: what lies on a
device and what devices send is then right up to dtypes, since a CPU computes
bfloat16 in float32; the memory that a step needs beside that is not.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import importlib.util
import os
from typing import Any

import jax

from mhr_jax import plan_gpus
from mhr_jax.errors import UserError
from mhr_jax.plan_chips import Topology

_CPU_NOTE = (
  'Compiled for {n} virtual CPU devices{why}: sizes of parameters, optimizer'
  ' state and batch are those of a {kind}. Temporaries are what a CPU would'
  " take, not the chip's, and bfloat16 travels as float32, so bytes sent are"
  ' too high.'
)


@dataclasses.dataclass(frozen=True)
class Target:
  """What a plan compiles for.

  Attributes:
    topology: what was asked for.
    devices: compile-only devices, or virtual CPU devices in their place.
    is_exact: whether they are the chips that were asked for.
    note: what the plan cannot tell; '' where it tells everything.
  """

  topology: Topology
  devices: Sequence[jax.Device]
  is_exact: bool
  note: str = ''

  @property
  def compiler_options(self) -> dict[str, Any] | None:
    """What `jax.stages.Lowered.compile` is given."""
    return None if self.is_exact else dict(_CPU_OPTIONS)


def open_target(topology: Topology) -> Target:
  """Returns devices of a topology; must come before jax is used.

  Raises:
    UserError: there is no such slice, or jax has started with other devices.
  """
  platform = topology.chip.platform
  package, remedy, devices = _OPTIONAL.get(platform, ('', '', None))
  if devices and _is_installed(package):
    jax.config.update('jax_platforms', 'cpu')
    return Target(topology, devices(topology), is_exact=True)
  why = f', since {package} is not installed ({remedy})' if devices else ''
  kind = 'device' if platform == 'cpu' else topology.kind
  note = _CPU_NOTE.format(n=topology.size, why=why, kind=kind)
  return Target(topology, _cpu_devices(topology.size), False, note)


def _is_installed(name: str) -> bool:
  with contextlib.suppress(ModuleNotFoundError):
    return importlib.util.find_spec(name) is not None
  return False


# So that libtpu neither asks a metadata server about chips nor warns of none;
# and several plans may run at once.
_NO_TPU_HERE = {
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-1',
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_WORKER_ID': '0',
}


def _tpu_devices(topology: Topology) -> Sequence[jax.Device]:
  from jax.experimental import topologies

  for name, value in _NO_TPU_HERE.items():
    os.environ.setdefault(name, value)
  options = {}
  if topology.kind in ('v4', 'v5p'):  # Two cores a chip, used as one device.
    options['chip_config_name'] = 'megacore'
  try:
    found = topologies.get_topology_desc(
      platform='tpu', topology_name=str(topology), **options
    )
  except (RuntimeError, ValueError) as error:
    reason = str(error).splitlines()[0]
    raise UserError(
      f'--topology={topology}: libtpu knows no such slice ({reason}).'
    ) from error
  return found.devices


# What compiles for a platform: a module, how it is installed, its devices.
_OPTIONAL: dict[str, tuple[str, str, Callable[[Topology], Any]]] = {
  'tpu': ('libtpu', "pip install 'mhr_jax[tpu]'", _tpu_devices),
  'gpu': (
    'jax_plugins.xla_cuda12',
    "pip install 'mhr_jax[cuda12]'",
    plan_gpus.gpu_devices,
  ),
}


def _cpu_devices(n: int) -> Sequence[jax.Device]:
  with contextlib.suppress(RuntimeError):  # It has started already.
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', n)
  devices = jax.devices('cpu')
  if len(devices) < n:
    raise UserError(
      f'jax has started with {len(devices)} CPU devices and the plan needs {n}:'
      ' plan in a process of its own (`mhr-jax plan`).'
    )
  return devices[:n]


# Machine code that nobody runs need not be good.
_CPU_OPTIONS = {
  'xla_backend_optimization_level': 0,
  'xla_llvm_disable_expensive_passes': True,
}


@contextlib.contextmanager
def quick_compilation() -> Iterator[None]:
  """Compiles with fewer optimisations: XXL in minutes, not in a quarter hour.

  XLA's level O1. Programs are not kept: they are of no use to a run.
  """
  options = {
    'jax_optimization_level': 'O1',
    'jax_enable_compilation_cache': False,
  }
  before = {name: getattr(jax.config, name) for name in options}
  for name, value in options.items():
    jax.config.update(name, value)
  try:
    yield
  finally:
    for name, value in before.items():
      jax.config.update(name, value)
