"""A few numbers that tell whether two models compute the same.

A model's logits on fixed tokens, as three numbers: two of them to compare by
eye, between frameworks and machines, and one to compare in a script.
"""

import dataclasses
import hashlib

import jax
from jaxtyping import Float32, Int32
import numpy as np

from mhr_jax.compiled_model import CompiledModel
from mhr_jax.model import Params, RoutedT5
from mhr_jax.t5.config import T5Config
from mhr_jax.task_choice import TaskRows, routes

_ROWS, _INPUTS, _TARGETS = 4, 16, 8
_INPUT_PRIME, _TARGET_PRIME = 7919, 104729
_SPECIAL_IDS = 3


@dataclasses.dataclass(frozen=True)
class LogitsChecksum:
  """Logits in short.

  The same function gives the same numbers to about 1e-4 relative on any
  machine, and the same tokens but where two logits are that close.

  Attributes:
    mean: of all logits.
    largest: absolute value.
    tokens: 8 hex digits of the most likely token at every position: of the
      sha256 of their ids as little-endian int32.
  """

  mean: float
  largest: float
  tokens: str

  def __str__(self) -> str:
    return (
      f'mean {self.mean:.5g}, largest {self.largest:.5g}, tokens {self.tokens}'
    )


def probe_tokens(
  config: T5Config,
) -> tuple[Int32[np.ndarray, 'row inputs'], Int32[np.ndarray, 'row length']]:
  """Returns the fixed tokens: input ids [4, 16], decoder input ids [4, 8].

  The token of row r and position p, both counted from 1, is
  `3 + (7919 r p) mod (vocabulary - 3)`; for the decoder with 104729 in place
  of 7919, and the decoder's start token at its first position.
  """
  inputs = _tokens(_INPUT_PRIME, _INPUTS, config.vocab_size)
  targets = _tokens(_TARGET_PRIME, _TARGETS, config.vocab_size)
  targets[:, 0] = config.decoder_start_token_id
  return inputs, targets


def _tokens(prime: int, length: int, vocab_size: int) -> np.ndarray:
  rows, positions = np.arange(1, _ROWS + 1), np.arange(1, length + 1)
  mixed = prime * rows[:, None] * positions
  return (_SPECIAL_IDS + mixed % (vocab_size - _SPECIAL_IDS)).astype(np.int32)


def logits_checksum(
  model: RoutedT5, params: Params, tasks: TaskRows = None
) -> LogitsChecksum:
  """Returns the checksum of a model's logits, computed in float32.

  Args:
    model: the model, whatever it computes in.
    params: its parameters.
    tasks: of the 4 rows; by default row r has task r modulo their number.
  """
  config = dataclasses.replace(model.config, dtype='float32')
  model = dataclasses.replace(model, config=config)
  inputs, targets = probe_tokens(config)
  if tasks is None and model.adapters is not None and routes(model):
    tasks = np.arange(_ROWS, dtype=np.int32) % model.adapters.n_tasks
  batch = {
    'encoder_input_tokens': inputs,
    'decoder_input_tokens': targets,
    'encoder_mask': np.ones_like(inputs, bool),
  }
  with jax.default_matmul_precision('highest'):
    logits = CompiledModel(model, params).logits(batch, tasks)
  return summarise(logits)


def summarise(
  logits: Float32[np.ndarray, 'row length vocab'],
) -> LogitsChecksum:
  """Returns the checksum of logits on `probe_tokens`, wherever they are from."""
  best = logits.argmax(axis=-1).astype('<i4')
  return LogitsChecksum(
    mean=float(logits.astype(np.float64).mean()),
    largest=float(np.abs(logits).max()),
    tokens=hashlib.sha256(best.tobytes()).hexdigest()[:8],
  )
