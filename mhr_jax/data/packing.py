"""Which examples of a task share a row."""

from collections.abc import Iterable
import dataclasses

from jaxtyping import Int64
import numpy as np

_OPEN_ROWS = 32


@dataclasses.dataclass(frozen=True)
class PackedRows:
  """A task's examples dealt out to rows; each stands in exactly one.

  Attributes:
    members: indices of examples, row by row.
    starts: where each row starts in `members`, and the end.
  """

  members: Int64[np.ndarray, 'example']
  starts: Int64[np.ndarray, 'row+1']

  def __len__(self) -> int:
    return len(self.starts) - 1


def pack_rows(
  order: Iterable[int],
  input_sizes: Int64[np.ndarray, 'example'],
  target_sizes: Int64[np.ndarray, 'example'],
  *,
  input_length: int,
  target_length: int,
) -> PackedRows:
  """Deals examples out to rows, each into the first open row with room.

  Args:
    order: the order in which the examples are dealt out.
    input_sizes: tokens of the inputs, EOS included, at most `input_length`.
    target_sizes: likewise.
    input_length: room of a row.
    target_length: room of a row.
  """
  rows: list[list[int]] = []
  open_rows: list[list[int]] = []  # [input room, target room, row]
  inputs, targets = input_sizes.tolist(), target_sizes.tolist()
  for example in order:
    need_in, need_out = inputs[example], targets[example]
    for place in open_rows:
      if need_in <= place[0] and need_out <= place[1]:
        break
    else:
      place = [input_length, target_length, len(rows)]
      rows.append([])
      open_rows.append(place)
      if len(open_rows) > _OPEN_ROWS:
        open_rows.remove(min(open_rows[:-1], key=lambda row: row[:2]))
    place[0] -= need_in
    place[1] -= need_out
    rows[place[2]].append(int(example))
  sizes = np.array([len(row) for row in rows], np.int64)
  members = np.array([i for row in rows for i in row], np.int64)
  return PackedRows(members, np.concatenate([[0], np.cumsum(sizes)]))
