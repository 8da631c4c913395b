"""Where tasks lie in a space in which nearness means likeness.

A task's embedding is the mean over examples of the embeddings of their inputs;
targets are not looked at. Three spaces:

    backbone   the mean over tokens of the frozen backbone's encoder states,
               without adapters
    text       TF-IDF of hashed token ids and pairs of them; needs no model
    file       vectors that something else made, such as a sentence encoder:
               an .npz of one vector a task, by the task's name

References: Ni et al. 2022 (arXiv:2108.08877), who found the mean of a T5
encoder's states a good sentence embedding without training; Weinberger et al.
2009 (arXiv:0902.2206), hashing with signs.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import functools
from typing import Any, Literal, Protocol

from etils import epath
import jax
from jax import numpy as jnp
from jaxtyping import Float, Float32, Int32
import numpy as np

from mhr_jax import evaluation, npz_files
from mhr_jax.data import mixing
from mhr_jax.data.batching import PAD
from mhr_jax.errors import UserError, nearest
from mhr_jax.t5 import network
from mhr_jax.t5.config import T5Config

Space = Literal['backbone', 'text', 'file']

Tokens = Int32[np.ndarray, 'example length']
Vector = Float32[np.ndarray, 'feature']

BUCKETS = 8192
"""Features of the text space."""
_ROWS = 32  # Examples that the backbone encodes at once.
_WIDTH = 32  # Its shortest rows; longer ones double.
_FORMAT_VERSION = 1


class Embedder(Protocol):
  """A space: it gives any task's inputs a place."""

  def embed(self, task: str, tokens: Tokens) -> Vector:
    """Returns the mean embedding of a task's inputs.

    Args:
      task: its name.
      tokens: inputs of the task, padded with 0; how wide does not matter.
    """
    ...


class BackboneEmbedder:
  """The mean over tokens of the backbone's encoder states."""

  def __init__(self, config: T5Config, backbone: Mapping[str, Any]):
    """Takes a backbone.

    Args:
      config: its shape.
      backbone: its parameters, on a mesh or not.
    """
    self._backbone = backbone
    out = evaluation.replicated_like(backbone)
    self._encode = _compiled_encoding(config, out)

  def embed(self, task: str, tokens: Tokens) -> Vector:
    """See `Embedder`."""
    del task
    total = 0.0
    for start in range(0, len(tokens), _ROWS):
      rows = tokens[start : start + _ROWS]
      arrays = evaluation.place({'tokens': self._fill(rows)}, self._backbone)
      states = self._encode(self._backbone, arrays['tokens'])
      total = total + np.asarray(states)[: len(rows)].sum(0, dtype=np.float64)
    return np.asarray(total / len(tokens), np.float32)

  @staticmethod
  def _fill(rows: Tokens) -> Tokens:
    """Returns rows of few different shapes: one program each."""
    longest = int((rows != PAD).sum(axis=1).max())
    width = max(_WIDTH, 2 ** (longest - 1).bit_length())
    filled = np.full((_ROWS, width), PAD, np.int32)
    filled[: len(rows), : rows.shape[1]] = rows[:, :width]
    return filled


@functools.lru_cache(maxsize=8)
def _compiled_encoding(config: T5Config, out_sharding: Any):
  def encode(backbone, tokens):
    mask = tokens != PAD
    states: Any = network.T5(config).apply(
      {'params': backbone}, tokens, mask=mask, method='encode'
    )
    return mean_over_tokens(states, mask)

  return jax.jit(encode, out_shardings=out_sharding)


def mean_over_tokens(
  states: Float[jax.Array, 'row token feature'], mask: jax.Array
) -> Float32[jax.Array, 'row feature']:
  """Returns each row's mean state where the mask is True; 0 where nowhere."""
  weights = mask.astype(jnp.float32)
  total = jnp.einsum(
    'rtf,rt->rf',
    states.astype(jnp.float32),
    weights,
    precision=jax.lax.Precision.HIGHEST,
  )
  return total / jnp.maximum(weights.sum(axis=1, keepdims=True), 1.0)


class TextEmbedder:
  """TF-IDF of hashed token ids and pairs of neighbours.

  An example's vector has length 1. How rare a feature is was counted over the
  examples of the training tasks, each of them a document.
  """

  def __init__(self, idf: Float32[np.ndarray, 'feature']):
    """Takes the inverse document frequency of each feature."""
    self.idf = idf

  @classmethod
  def fit(cls, inputs: Iterable[Tokens]) -> 'TextEmbedder':
    """Counts in how many examples each feature occurs.

    Args:
      inputs: of the training tasks.
    """
    n_documents, frequency = 0, np.zeros(BUCKETS)
    for tokens in inputs:
      for row in tokens:
        buckets, _ = _hash_features(row)
        frequency[np.unique(buckets)] += 1
      n_documents += len(tokens)
    idf = np.log((1 + n_documents) / (1 + frequency)) + 1
    return cls(idf.astype(np.float32))

  def embed(self, task: str, tokens: Tokens) -> Vector:
    """See `Embedder`."""
    del task
    total = np.zeros(BUCKETS)
    for row in tokens:
      buckets, signs = _hash_features(row)
      vector = np.bincount(buckets, weights=signs, minlength=BUCKETS) * self.idf
      total += vector / max(float(np.linalg.norm(vector)), 1e-12)
    return (total / len(tokens)).astype(np.float32)


def _hash_features(row: Int32[np.ndarray, 'length']) -> tuple[Any, Any]:
  """Returns the bucket and the sign of every token and neighbouring pair."""
  ids = row[row != PAD].astype(np.int64)
  singles = mixing.hash_words(0, ids, 0)
  pairs = mixing.hash_words(1, ids[:-1], ids[1:])
  words = np.concatenate([singles, pairs])
  signs = np.where(words >> np.uint64(63), -1.0, 1.0)
  return (words % np.uint64(BUCKETS)).astype(np.int64), signs


class FileEmbedder:
  """Vectors that a file holds by the names of tasks."""

  def __init__(self, path: epath.PathLike):
    """Reads the file.

    Args:
      path: an .npz of vectors of one length, each named after its task.

    Raises:
      UserError: there is no such file, or it holds something else.
    """
    self._path = path
    self._vectors = _read_arrays(path)
    shapes = {name: array.shape for name, array in self._vectors.items()}
    if not shapes:
      raise UserError(f'{path} is empty: one vector a task is wanted.')
    first = next(iter(shapes))
    for name, shape in shapes.items():
      if len(shape) != 1 or shape != shapes[first]:
        raise UserError(
          f'{path}: {name!r} has the shape {shape}, {first!r}'
          f' {shapes[first]}; one vector a task is wanted, all of one length.'
        )

  def embed(self, task: str, tokens: Tokens) -> Vector:
    """See `Embedder`; the inputs are not looked at.

    Raises:
      UserError: the file has no vector of the task.
    """
    del tokens
    if task not in self._vectors:
      raise UserError(
        f'{self._path} has no vector of task {task!r}.'
        f'{nearest(task, self._vectors)} It needs one of every training task'
        ' and of every new one.'
      )
    return self._vectors[task].astype(np.float32)


def _read_arrays(path: epath.PathLike) -> dict[str, np.ndarray]:
  try:
    return npz_files.read_arrays(path, 'vectors by task')
  except UserError as error:
    raise UserError(
      f'{error} numpy.savez(path, **{{task: vector}}) writes one.'
    ) from error


@dataclasses.dataclass(frozen=True)
class TaskEmbeddings:
  """Where tasks lie.

  Attributes:
    tasks: their names.
    vectors: one a task.
    embedder: the space, for further tasks.
  """

  tasks: tuple[str, ...]
  vectors: Float32[np.ndarray, 'task feature']
  embedder: Embedder


def embed_tasks(
  embedder: Embedder, inputs: Mapping[str, Tokens]
) -> TaskEmbeddings:
  """Returns the embeddings of tasks in a space, from their inputs."""
  vectors = [embedder.embed(task, tokens) for task, tokens in inputs.items()]
  return TaskEmbeddings(tuple(inputs), np.stack(vectors), embedder)


def cosine_similarities(
  vector: Vector, others: Float32[np.ndarray, 'task feature']
) -> Float[np.ndarray, 'task']:
  """Returns the cosines of a vector with others; 0 where one of two is 0."""
  vector, others = vector.astype(np.float64), others.astype(np.float64)
  norms = np.linalg.norm(others, axis=1) * np.linalg.norm(vector)
  return (others @ vector) / np.where(norms > 0, norms, 1.0)


def save_embeddings(
  path: epath.PathLike, found: TaskEmbeddings, *, made_from: str
) -> None:
  """Writes embeddings of the training tasks, to be read again.

  Args:
    path: of the file.
    found: the embeddings, in a space other than 'file'.
    made_from: tells everything that decides them.
  """
  arrays = {'tasks': np.array(found.tasks), 'vectors': found.vectors}
  if isinstance(found.embedder, TextEmbedder):
    arrays['idf'] = found.embedder.idf
  npz_files.write_arrays(
    path, {'made_from': np.array(_stamp(made_from)), **arrays}
  )


def load_embeddings(
  path: epath.PathLike, embedder: Embedder | None, *, made_from: str
) -> TaskEmbeddings | None:
  """Returns what `save_embeddings` wrote.

  Args:
    path: of the file.
    embedder: the space; None for 'text', which the file tells.
    made_from: what is asked for.

  Returns:
    The embeddings; None where there are none, or they were made from
    something else.
  """
  path = epath.Path(path)
  if not path.exists():
    return None
  arrays = _read_arrays(path)
  if str(arrays.get('made_from')) != _stamp(made_from):
    return None
  embedder = embedder or TextEmbedder(arrays['idf'])
  return TaskEmbeddings(
    tuple(arrays['tasks'].tolist()), arrays['vectors'], embedder
  )


def _stamp(made_from: str) -> str:
  return f'{_FORMAT_VERSION} {made_from}'
