"""Greedy decoding of an exported model, with JAX, NumPy and flatbuffers alone.

  python run.py request.json

A request is {"input_ids": [[…], …], "max_new_tokens": 20, "tasks": ["…", …]}:
every row's token ids and its task, one of the manifest's `tasks`; no tasks
where that list is empty. Prints every row's new tokens as JSON, padded after
the end. The manifest says what all programs take and return.
"""

from itertools import zip_longest
import json
import pathlib
import sys

import jax
from jax.export import deserialize
import numpy as np


def generate(folder, input_ids, max_new_tokens, tasks=()):
  about = json.loads((folder / 'manifest.json').read_text())
  files = [folder / f'{name}.stablehlo' for name in ('encode', 'decode_step')]
  encode, step = (jax.jit(deserialize(f.read_bytes()).call) for f in files)
  stored, dtypes = np.load(folder / 'weights.npz'), about['weights']
  weights = {k: jax.device_put(stored[k].view(t)) for k, t in dtypes.items()}
  pad, eos = about['pad_id'], about['eos_id']
  ids = np.array([*zip_longest(*input_ids, fillvalue=pad)], 'int32').T
  numbers = [about['tasks'].index(task) for task in tasks]
  given = [np.array(numbers, 'int32')] if about['tasks'] else []
  tokens = np.full((len(ids), max_new_tokens), pad, 'int32')
  memory, cache = encode(weights, ids, ids != pad, tokens, *given)
  token = np.full(len(ids), about['decoder_start_token_id'], 'int32')
  live = np.any(ids != pad, axis=1)
  for i in range(max_new_tokens):
    logits, cache = step(weights, memory, cache, token, np.int32(i))
    token = np.where(live, np.argmax(logits, axis=1), pad).astype('int32')
    tokens[:, i], live = token, live & (token != eos)
    if not live.any():
      break
  return tokens


if __name__ == '__main__':
  request = json.loads(pathlib.Path(sys.argv[1]).read_text())
  folder = pathlib.Path(__file__).parent
  print(json.dumps(generate(folder, **request).tolist()))
