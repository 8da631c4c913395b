"""What the devices of a compiled program say to each other, read from its text.

XLA prints a program as computations that call each other. A collective in the
body of a loop happens as often as the loop turns, which the loop says
(`known_trip_count`) or, on TPUs, only its condition. `cost_analysis` counts
such a body once.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import functools
import math
import re

import numpy as np

KINDS = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
)

_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) .*\{$')
_COLLECTIVE = re.compile(
  rf' = (\(.*?\)|\S+) ({"|".join(KINDS)})(-start)?\(', re.ASCII
)
_CALLED = re.compile(
  r'(?:calls|body|condition|to_apply|called_computations|'
  r'branch_computations)=(?:\{([^}]*)\}|(%?[\w.\-]+))'
)
_TRIPS = re.compile(r'known_trip_count[^\d]*(\d+)')
_CONDITION = re.compile(r'condition=%?([\w.\-]+)')
_BOUND = re.compile(r' = s(?:32|64)\[\]\S* constant\((\d+)\)')
_ARRAY = re.compile(r'([a-z]+\d*\w*)\[([\d,]*)\]')
_NAMED_GROUPS = re.compile(
  r'replica_groups=mesh\[(?P<mesh>[^\]]*)\]'
  r'(?:, device_ids=\(\[(?P<tiles>[\d,]+)\](?:T\((?P<order>[\d,]+)\))?\))?'
  r' \{(?P<axes>[^}]*)\}'
)
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_BITS = re.compile(r'(\d+)')


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective operation of a program.

  Attributes:
    kind: one of `KINDS`.
    arrays: (dtype, shape) of what each device gets.
    times: how often it runs in one run of the program.
    groups: device numbers [group, member] that take part together; empty
      where the text has them in a form that is not read.
    source: where in the model it comes from, as far as XLA knows.
  """

  kind: str
  arrays: tuple[tuple[str, tuple[int, ...]], ...]
  times: int
  groups: np.ndarray = dataclasses.field(compare=False)
  source: str = ''

  @property
  def group_size(self) -> int:
    """How many devices take part together."""
    return self.groups.shape[-1] if self.groups.size else 2

  @property
  def result_bytes(self) -> float:
    """Bytes of what each device gets, once."""
    return sum(
      math.prod(shape) * _item_bytes(dtype) for dtype, shape in self.arrays
    )

  @property
  def sent_bytes(self) -> float:
    """Bytes that each device sends in one run of the program, on a ring.

    Of n devices: a gather and an exchange send (n - 1)/n of the result, a
    reduction twice that, a scatter n - 1 times its (small) result.
    """
    n = self.group_size
    share = {
      'all-reduce': 2 * (n - 1) / n,
      'reduce-scatter': n - 1,
      'collective-permute': 1,
    }.get(self.kind, (n - 1) / n)
    return self.times * share * self.result_bytes

  def crosses(self, node_size: int) -> bool:
    """Whether a group has devices of several nodes of so many devices."""
    nodes = self.groups // node_size
    return bool(self.groups.size and (nodes != nodes[:, :1]).any())


def _item_bytes(dtype: str) -> float:
  if dtype == 'pred':
    return 1
  bits = _BITS.search(dtype)
  return int(bits.group(1)) / 8 if bits else 0  # A token has no bytes.


def list_collectives(text: str) -> list[Collective]:
  """Returns the collectives of a compiled program, with their counts.

  Args:
    text: `compiled.as_text()`.
  """
  computations = dict(_computations(text))
  entry = next(name for name, is_entry in computations if is_entry)
  bodies = {name: lines for (name, _), lines in computations.items()}
  found = []
  for name, times in _count_calls(entry, bodies).items():
    for line in bodies[name]:
      match = _COLLECTIVE.search(line)
      if match:
        found.append(_read(line, match, times, inside=name))
  return found


def _computations(
  text: str,
) -> Iterator[tuple[tuple[str, bool], list[str]]]:
  """Yields (name, whether it is the entry) and the lines of each computation."""
  lines = iter(text.splitlines())
  for line in lines:
    match = _COMPUTATION.match(line)
    if match and ' = ' not in line.partition('(')[0]:
      body = []
      for inner in lines:
        if inner.startswith('}'):
          break
        body.append(inner)
      yield (match.group(2), bool(match.group(1))), body


def _count_calls(entry: str, bodies: Mapping[str, list[str]]) -> dict[str, int]:
  """Returns how often each computation runs; loops inside loops multiply."""

  @functools.cache
  def calls(name: str) -> tuple[tuple[str, int], ...]:
    return tuple(_calls(bodies[name], bodies))

  counts: dict[str, int] = {}

  def visit(name: str, times: int) -> None:
    counts[name] = counts.get(name, 0) + times
    for callee, each in calls(name):
      visit(callee, times * each)

  visit(entry, 1)
  return counts


def _calls(
  lines: list[str], bodies: Mapping[str, list[str]]
) -> Iterator[tuple[str, int]]:
  for line in lines:
    trips = _count_trips(line, bodies) if ' while(' in line else 1
    for match in _CALLED.finditer(line):
      for name in (match.group(1) or match.group(2)).split(', '):
        name = name.removeprefix('%')
        if name in bodies and _has_calls(bodies[name]):
          yield name, trips


def _count_trips(line: str, bodies: Mapping[str, list[str]]) -> int:
  """Returns the turns of a loop; 1 where neither it nor its condition says."""
  known = _TRIPS.search(line)
  if known:
    return int(known.group(1))
  condition = _CONDITION.search(line)
  lines = bodies.get(condition.group(1), []) if condition else []
  # Scans count from 0, and compare with the one number there is.
  bounds = [int(n) for each in lines for n in _BOUND.findall(each)]
  below = any('direction=LT' in each or ' fusion(' in each for each in lines)
  return bounds[0] if len(bounds) == 1 and below else 1


def _has_calls(lines: list[str]) -> bool:
  """Whether a computation matters: most only say how to add two numbers."""
  return len(lines) > 4 or any(_CALLED.search(line) for line in lines)


def _read(
  line: str, match: re.Match[str], times: int, *, inside: str
) -> Collective:
  result, kind, start = match.groups()
  arrays = [
    (dtype, tuple(int(n) for n in shape.split(',') if n))
    for dtype, shape in _ARRAY.findall(result)
  ]
  if start and kind != 'all-reduce':
    # What is sent comes first, what is got second, perhaps counters third.
    half = 1 if kind == 'collective-permute' else len(arrays) // 2
    arrays = arrays[half : 2 * half]
  if kind == 'all-reduce' and 'reduce-scatter' in inside.replace(
    'all-reduce-scatter', 'reduce-scatter'
  ):
    kind = 'reduce-scatter'  # As TPUs have it: a reduction, then a slice.
    groups = _groups(line)
    n = groups.shape[-1] if groups.size else 2
    arrays = [(dtype, (*shape[:-1], shape[-1] // n)) for dtype, shape in arrays]
  name = _OP_NAME.search(line)
  return Collective(
    kind, tuple(arrays), times, _groups(line), name.group(1) if name else ''
  )


def _groups(line: str) -> np.ndarray:
  """Reads which devices take part together: [group, member]."""
  pairs = re.search(r'source_target_pairs=\{(\{[\d,{} ]*\})\}', line)
  listed = pairs or re.search(r'replica_groups=\{(\{[\d,{} ]*\})\}', line)
  if listed:
    rows = re.findall(r'\{([\d, ]+)\}', listed.group(1))
    return np.array([[int(n) for n in row.split(',')] for row in rows])
  iota = re.search(
    r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', line
  )
  if iota:
    shape, tiles, order = (_numbers(part) for part in iota.groups(default=''))
    devices = np.arange(math.prod(tiles)).reshape(tiles)
    return (devices.transpose(order) if order else devices).reshape(shape)
  named = _NAMED_GROUPS.search(line)
  return _mesh_groups(**named.groupdict()) if named else np.zeros((0, 0), int)


def _mesh_groups(
  mesh: str, axes: str, tiles: str | None, order: str | None
) -> np.ndarray:
  """Reads groups such as mesh['x'=4,'y'=2] {'y'}; no parts of axes.

  Args:
    mesh: sizes by name.
    axes: names of those along which devices take part together.
    tiles: a shape of the device numbers, in their order; or None.
    order: how its axes are turned before they fill the mesh.
  """
  sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", mesh)}
  names = re.findall(r"'([^']+)'", axes)
  if ':' in axes or not names:
    return np.zeros((0, 0), int)
  devices = np.arange(math.prod(sizes.values()))
  if tiles:
    devices = devices.reshape(_numbers(tiles)).transpose(_numbers(order or '0'))
  devices = devices.reshape(*sizes.values())
  places = [list(sizes).index(name) for name in names]
  moved = np.moveaxis(devices, places, range(-len(places), 0))
  return moved.reshape(-1, math.prod(sizes[name] for name in names))


def _numbers(text: str) -> tuple[int, ...]:
  return tuple(int(n) for n in text.split(',') if n)
