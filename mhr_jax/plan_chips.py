"""Accelerators that a plan knows, and topologies by name.

    v5e:16x16  v6e:8x8  v4:4x4x8  v5p:4x4x4    TPU slices, chips along each axis
    h100:64  h200:8  a100:16                   GPUs, eight a node
    cpu:256                                    virtual devices; no speed known

Figures are the makers': dense bfloat16 arithmetic, memory, its bandwidth, and
what one chip can send to its neighbours, in one direction. Sources:
docs.cloud.google.com/tpu/docs (v4, v5e, v5p, v6e: "peak compute per chip",
"HBM capacity and bandwidth", "interchip interconnect BW"), NVIDIA's data
sheets of A100 80 GB SXM, H100 SXM and H200 SXM, whose NVLink figures are both
directions together. Between nodes of GPUs one 400 Gb/s network card a GPU is
assumed (200 for A100), as in NVIDIA's DGX systems.
"""

import dataclasses
import math

from mhr_jax.errors import UserError, nearest

_TERA, _GIGA, _GIB = 10**12, 10**9, 2**30
_GPUS_A_NODE = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """One accelerator.

  Attributes:
    platform: 'tpu', 'gpu' or 'cpu'.
    flops: bfloat16 operations a second; 0 where it is not known.
    memory: bytes; 0 where it is not known.
    memory_rate: bytes a second from and to that memory.
    link_rate: bytes a second that it sends to chips it is wired to.
    network_rate: likewise to chips of other nodes; as `link_rate` where a
      slice is one network.
    axes: of a slice's shape.
  """

  platform: str
  flops: float = 0
  memory: int = 0
  memory_rate: float = 0
  link_rate: float = 0
  network_rate: float = 0
  axes: int = 1


def _tpu(tera: float, gib: int, memory: float, link: float, axes: int) -> Chip:
  return Chip(
    platform='tpu',
    flops=tera * _TERA,
    memory=gib * _GIB,
    memory_rate=memory * _GIGA,
    link_rate=link * _GIGA,
    network_rate=link * _GIGA,
    axes=axes,
  )


def _gpu(
  tera: float, gigabytes: int, memory: float, link: float, network: float
) -> Chip:
  return Chip(
    platform='gpu',
    flops=tera * _TERA,
    memory=gigabytes * _GIGA,
    memory_rate=memory * _GIGA,
    link_rate=link * _GIGA,
    network_rate=network * _GIGA,
  )


CHIPS: dict[str, Chip] = {
  'v4': _tpu(275, 32, 1228, 300, 3),
  'v5e': _tpu(197, 16, 819, 200, 2),
  'v5p': _tpu(459, 95, 2765, 600, 3),
  'v6e': _tpu(918, 32, 1640, 400, 2),
  'a100': _gpu(312, 80, 2039, 300, 25),
  'h100': _gpu(989, 80, 3350, 450, 50),
  'h200': _gpu(989, 141, 4800, 450, 50),
  'cpu': Chip(platform='cpu'),
}


@dataclasses.dataclass(frozen=True)
class Topology:
  """So many chips of a kind, wired in a shape.

  Attributes:
    kind: a name in `CHIPS`.
    shape: chips along each axis of a slice; one number for GPUs and CPUs.
  """

  kind: str
  shape: tuple[int, ...]

  @property
  def chip(self) -> Chip:
    """What one of them is."""
    return CHIPS[self.kind]

  @property
  def size(self) -> int:
    """How many there are."""
    return math.prod(self.shape)

  @property
  def node_size(self) -> int:
    """How many are wired to each other without the network between nodes."""
    if self.chip.platform == 'gpu':
      return min(self.size, _GPUS_A_NODE)
    return self.size

  def __str__(self) -> str:
    return f'{self.kind}:{"x".join(map(str, self.shape))}'


def parse_topology(text: str) -> Topology:
  """Reads a topology such as 'v5e:16x16'.

  Raises:
    UserError: there is no such chip, or the shape has other axes than it.
  """
  kind, _, shape = text.strip().partition(':')
  if kind not in CHIPS:
    raise UserError(
      f'--topology={text}: there is no chip {kind!r}.{nearest(kind, CHIPS)}'
    )
  sizes = shape.split('x')
  axes = CHIPS[kind].axes
  if not all(size.isdecimal() and int(size) > 0 for size in sizes) or (
    len(sizes) != axes
  ):
    example = 'x'.join(['4'] * axes) if axes > 1 else '64'
    raise UserError(
      f'--topology={text}: a topology of {kind} is {kind}:{example}, say.'
    )
  return Topology(kind, tuple(map(int, sizes)))
