"""NVIDIA GPUs described for XLA's compiler, which can do without one.

The figures are the makers': NVIDIA's architecture white papers (A100, H100)
and the CUDA C++ Programming Guide's table of compute capabilities. Kernels are
not tuned on the chip, so their times are not known, but memory and collectives
are.
"""

from collections.abc import Sequence
import os

import jax

from mhr_jax.errors import UserError
from mhr_jax.plan_chips import Topology

# Streaming multiprocessors, clock in GHz, L2 in MiB, shared memory of a
# multiprocessor and (opt-in) of a block in KiB, compute capability.
_FACTS = {
  'a100': (108, 1.41, 40, 164, 163, (8, 0)),
  'h100': (132, 1.98, 50, 228, 227, (9, 0)),
  'h200': (132, 1.98, 50, 228, 227, (9, 0)),
}


def gpu_devices(topology: Topology) -> Sequence[jax.Device]:
  """Returns compile-only devices of a cluster of nodes.

  Raises:
    UserError: the compiler does not take the description, or the GPUs are not
      a whole number of nodes.
  """
  from jax.experimental import topologies

  nodes, left = divmod(topology.size, topology.node_size)
  if left:
    raise UserError(
      f'--topology={topology}: a node has {topology.node_size} GPUs, so choose'
      ' a multiple of that.'
    )
  # Where ptxas is not installed, XLA must not look for it to tune kernels.
  os.environ.setdefault('XLA_FLAGS', '--xla_gpu_autotune_level=0')
  try:
    found = topologies.get_topology_desc(
      platform='cuda',
      topology_name=topology.kind,
      target_config=describe_gpu(topology),
      topology=f'1x{nodes}x{topology.node_size}',
    )
  except (RuntimeError, ValueError) as error:
    reason = str(error).splitlines()[0]
    raise UserError(
      f'--topology={topology}: the CUDA plugin refuses it ({reason}).'
    ) from error
  return found.devices


def describe_gpu(topology: Topology) -> str:
  """Returns a chip as XLA's text form of `GpuTargetConfigProto`."""
  cores, clock, cache, shared, block, capability = _FACTS[topology.kind]
  chip = topology.chip
  return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: {48 * 2**10}
  shared_memory_per_core: {shared * 2**10}
  shared_memory_per_block_optin: {block * 2**10}
  threads_per_core_limit: 2048
  core_count: {cores}
  fpus_per_core: {64 if capability == (8, 0) else 128}
  block_dim_limit_x: {2**31 - 1}
  block_dim_limit_y: {2**16 - 1}
  block_dim_limit_z: {2**16 - 1}
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  memory_bandwidth: {int(chip.memory_rate)}
  l2_cache_size: {cache * 2**20}
  clock_rate_ghz: {clock}
  device_memory_size: {chip.memory}
  cuda_compute_capability {{ major: {capability[0]} minor: {capability[1]} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  device_address_bits: 64
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{topology.kind}"
"""
