"""Token ids of many examples in a few flat arrays.

Between the records on disk (`records`) and the padded batch (`batching`): a
batch is gathered out of such a table by index arithmetic, with no loop over
its rows.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
from typing import Any

from jaxtyping import Int32, Int64
import numpy as np


@dataclasses.dataclass(frozen=True)
class Spans:
  """Pieces of one flat array: piece i is flat[starts[i]:][:lengths[i]].

  Attributes:
    flat: token ids.
    starts: where each piece starts.
    lengths: how long each piece is.
  """

  flat: Int32[np.ndarray, 'token']
  starts: Int64[np.ndarray, 'n']
  lengths: Int64[np.ndarray, 'n']

  @classmethod
  def from_arrays(cls, arrays: Sequence[Sequence[int]]) -> 'Spans':
    """Lays the arrays one behind the other."""
    lengths = np.array([len(array) for array in arrays], np.int64)
    parts = [np.asarray(array, np.int32) for array in arrays]
    flat = np.concatenate(parts) if parts else np.zeros(0, np.int32)
    return cls(flat, np.cumsum(lengths) - lengths, lengths)

  def __len__(self) -> int:
    return len(self.lengths)

  def __getitem__(self, i: int) -> Int32[np.ndarray, 'n']:
    return self.flat[self.starts[i] : self.starts[i] + self.lengths[i]]

  def clip(self, length: int) -> 'Spans':
    """Returns the pieces cut to at most `length` tokens."""
    return dataclasses.replace(self, lengths=np.minimum(self.lengths, length))

  def indices(self) -> Int64[np.ndarray, 'token']:
    """Returns where in `flat` each token of each piece stands, in order."""
    ends = np.cumsum(self.lengths)
    total = int(ends[-1]) if len(ends) else 0
    shift = self.starts - (ends - self.lengths)
    return np.arange(total) + np.repeat(shift, self.lengths)


def join_spans(first: Spans, second: Spans) -> Spans:
  """Returns each piece of `first` with that of `second` behind it."""
  lengths = first.lengths + second.lengths
  starts = np.cumsum(lengths) - lengths
  flat = np.empty(int(lengths.sum()), np.int32)
  for spans, where in ((first, starts), (second, starts + first.lengths)):
    places = dataclasses.replace(spans, starts=where).indices()
    flat[places] = spans.flat[spans.indices()]
  return Spans(flat, starts, lengths)


@dataclasses.dataclass(frozen=True)
class TokenTable:
  """The inputs and all references of a number of examples.

  Attributes:
    inputs: all examples' input ids, one behind the other.
    input_starts: where each example's inputs start, and the end.
    targets: all references' ids.
    target_starts: where each reference starts, and the end.
    references: the number of each example's first reference, and the end;
      every example has at least one, maybe empty, reference.
  """

  inputs: Int32[np.ndarray, 'input_token']
  input_starts: Int64[np.ndarray, 'n+1']
  targets: Int32[np.ndarray, 'target_token']
  target_starts: Int64[np.ndarray, 'n_references+1']
  references: Int64[np.ndarray, 'n+1']

  def __len__(self) -> int:
    return len(self.references) - 1

  @property
  def nbytes(self) -> int:
    """Bytes held."""
    return sum(
      getattr(self, field.name).nbytes for field in dataclasses.fields(self)
    )

  @classmethod
  def from_examples(cls, examples: Iterable[Mapping[str, Any]]) -> 'TokenTable':
    """Collects examples as the prepared data hold them.

    Args:
      examples: each with `inputs`, `targets` (all references, one behind the
        other) and `target_lengths`, sequences of integers.
    """
    inputs, targets, lengths = [], [], []
    for example in examples:
      inputs.append(example['inputs'])
      targets.append(example['targets'])
      lengths.append(
        example['target_lengths'] if len(example['target_lengths']) else (0,)
      )
    counts = [len(each) for each in lengths]
    return cls(
      inputs=_join(inputs, np.int32),
      input_starts=_bounds([len(each) for each in inputs]),
      targets=_join(targets, np.int32),
      target_starts=_bounds(_join(lengths, np.int64)),
      references=_bounds(counts),
    )

  @classmethod
  def concatenate(cls, tables: Sequence['TokenTable']) -> 'TokenTable':
    """Puts tables one behind the other."""
    return cls(
      inputs=_join([table.inputs for table in tables], np.int32),
      input_starts=_join_bounds([table.input_starts for table in tables]),
      targets=_join([table.targets for table in tables], np.int32),
      target_starts=_join_bounds([table.target_starts for table in tables]),
      references=_join_bounds([table.references for table in tables]),
    )

  def take(self, rows: Int64[np.ndarray, 'm']) -> 'TokenTable':
    """Returns a table of the given examples alone, in the given order."""
    inputs = self.input_spans(rows)
    counts = self.n_references(rows)
    references = Spans(
      np.diff(self.target_starts), self.references[rows], counts
    ).indices()
    targets = Spans(
      self.targets,
      self.target_starts[references],
      np.diff(self.target_starts)[references],
    )
    return TokenTable(
      inputs=self.inputs[inputs.indices()],
      input_starts=_bounds(inputs.lengths),
      targets=self.targets[targets.indices()],
      target_starts=_bounds(targets.lengths),
      references=_bounds(counts),
    )

  def input_spans(self, rows: Int64[np.ndarray, 'm']) -> Spans:
    """Returns the inputs of the given examples."""
    starts = self.input_starts[rows]
    return Spans(self.inputs, starts, self.input_starts[rows + 1] - starts)

  def n_references(
    self, rows: Int64[np.ndarray, 'm']
  ) -> Int64[np.ndarray, 'm']:
    """Returns how many references the given examples have."""
    return self.references[rows + 1] - self.references[rows]

  def target_spans(
    self, rows: Int64[np.ndarray, 'm'], choices: Int64[np.ndarray, 'm']
  ) -> Spans:
    """Returns one reference of each example: its `choices`-th."""
    references = self.references[rows] + choices
    starts = self.target_starts[references]
    return Spans(
      self.targets, starts, self.target_starts[references + 1] - starts
    )


@dataclasses.dataclass(frozen=True)
class Lengths:
  """How many tokens the examples have, before EOS and trimming.

  Attributes:
    inputs: of the inputs.
    first: of the first reference.
    longest: of the longest reference.
  """

  inputs: Int32[np.ndarray, 'n']
  first: Int32[np.ndarray, 'n']
  longest: Int32[np.ndarray, 'n']

  def __len__(self) -> int:
    return len(self.inputs)

  def slice(self, start: int, stop: int) -> 'Lengths':
    """Returns the measures of some examples that follow each other."""
    return Lengths(
      self.inputs[start:stop], self.first[start:stop], self.longest[start:stop]
    )

  @classmethod
  def of(cls, table: TokenTable) -> 'Lengths':
    """Measures the examples of a table."""
    targets = np.diff(table.target_starts)
    firsts = table.references[:-1]
    longest = np.maximum.reduceat(targets, firsts) if len(table) else targets
    return cls(
      inputs=np.diff(table.input_starts).astype(np.int32),
      first=targets[firsts].astype(np.int32),
      longest=longest.astype(np.int32),
    )

  @classmethod
  def concatenate(cls, parts: Sequence['Lengths']) -> 'Lengths':
    """Puts measures one behind the other."""
    return cls(
      *(
        _join([getattr(part, field.name) for part in parts], np.int32)
        for field in dataclasses.fields(cls)
      )
    )


def _join(parts, dtype) -> np.ndarray:
  parts = [np.asarray(part, dtype) for part in parts]
  return np.concatenate(parts) if parts else np.zeros(0, dtype)


def _bounds(lengths) -> Int64[np.ndarray, 'n+1']:
  return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _join_bounds(bounds) -> Int64[np.ndarray, 'n+1']:
  return _bounds(_join([np.diff(each) for each in bounds], np.int64))
