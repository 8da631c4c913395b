"""Greedy decoding of mixed tasks: ours beside PEFT's, and the bare backbone.

    python -m benchmarks.decode --json decode.json

Both sides read the same weights and inputs. All rows decode all tokens: on our
side the end of sequence is a token outside the vocabulary, on the other there
is none. Most tokens must be equal before anything is timed (with random
weights, rounding decides between tokens that are nearly as likely, and what
follows such a token differs).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import (
  beside_peers,
  machine,
  options,
  ours,
  results,
)
from benchmarks.goals import Goal, judge
from benchmarks.peers import peft_t5
from benchmarks.setting import Setting
from benchmarks.sides import Side
from mhr_jax.errors import UserError

_MHR, _BARE = 'MHR', 'bare backbone'
_PEFT, _HF = 'PEFT MHR', 'transformers'
_LEAST_EQUAL = 0.75


def make_sides(setting: Setting, folder: str, only: str) -> list[Side]:
  """Returns the sides of the comparison.

  Args:
    setting: of all.
    folder: of `weights.write_weights`.
    only: 'ours', 'peers' or 'all'.
  """
  common: dict[str, Any] = {
    'setting': setting.as_json(),
    'weights_folder': folder,
  }
  peers = 'benchmarks.peers.peft_t5:decode'
  found = {
    'ours': [
      Side(_MHR, 'benchmarks.ours:decode', common | {'method': 'mhr'}),
      Side(_BARE, 'benchmarks.ours:decode', common | {'method': None}),
    ],
    'peers': [
      Side(_PEFT, peers, common | {'method': 'mhr'}),
      Side(_HF, peers, common | {'method': None}),
    ],
  }
  return found['ours'] + found['peers'] if only == 'all' else found[only]


def list_goals() -> list[Goal]:
  """Returns the goals of decoding."""
  mhr, bare = (f'{x}: {ours.DECODE}' for x in (_MHR, _BARE))
  peft, hf = (f'{x}: {peft_t5.DECODE}' for x in (_PEFT, _HF))
  return [Goal(mhr, peft, 0.25), Goal(mhr, bare, 1.05), Goal(mhr, hf, None)]


def check_tokens(facts: dict[str, Any]) -> None:
  """Compares what sides of the same model decoded.

  Raises:
    UserError: a side ended early, or too many tokens differ.
  """
  for pair in ((_MHR, _PEFT), (_BARE, _HF)):
    tokens = [np.array(facts[name]['tokens']) for name in pair if name in facts]
    if len(tokens) < 2:
      continue
    if tokens[0].shape != tokens[1].shape:
      raise UserError(f'{pair[0]} and {pair[1]} decode not as many tokens.')
    equal = float((tokens[0] == tokens[1]).mean())
    facts[pair[0]]['equal_tokens'] = equal
    if equal < _LEAST_EQUAL:
      raise UserError(
        f'{pair[0]} and {pair[1]} agree on {equal:.0%} of the tokens only:'
        ' they do not compute the same.'
      )


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the benchmark."""
  flags = beside_peers.read_flags(__doc__, argv, default_rounds=8)
  setting, where = options.read_setting(flags), machine.describe()
  found = beside_peers.measure(flags, setting, make_sides, check_tokens)
  outcomes = judge(found, list_goals())
  count = f'{setting.batch_size} × {setting.target_length} tokens'
  results.print_works(found, f'{setting.model}, {count}')
  results.print_outcomes(outcomes)
  beside_peers.write_json('decode', flags, where, setting, found, outcomes)


if __name__ == '__main__':
  options.run(main)
