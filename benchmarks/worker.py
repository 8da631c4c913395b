"""One side of a comparison: a process that works only when it is told to.

    python -m benchmarks.worker MODULE:FUNCTION ARGUMENTS WARM_UP

calls the function with the arguments (JSON), runs each of its works a few
times, and then answers one JSON line on standard output to each on standard
input: {"run": name, "times": n}. Between two lines it is blocked.
"""

import importlib
import json
import os
import sys
import time
from typing import Any, TextIO

from benchmarks import memory
from benchmarks.works import Run, Works
from mhr_jax.errors import UserError


def _build(target: str, arguments: str) -> Works:
  module, _, function = target.partition(':')
  return getattr(importlib.import_module(module), function)(
    **json.loads(arguments)
  )


def _time(run: Run) -> tuple[float, dict[str, float]]:
  start = time.perf_counter()
  parts = run()
  return time.perf_counter() - start, dict(parts or {})


def _answer(works: Works, command: dict[str, Any]) -> dict[str, Any]:
  """Runs one work so many times and returns what was measured."""
  run = works.runs[command['run']]
  memory.reset_peak()
  done = [_time(run) for _ in range(command['times'])]
  return {
    'seconds': [seconds for seconds, _ in done],
    'parts': [parts for _, parts in done],
    'bytes': memory.resident_bytes(),
  }


def _warm_up(works: Works, times: int) -> dict[str, float]:
  """Returns the seconds of each work's first run: compilation is in it."""
  first = {name: _time(run)[0] for name, run in works.runs.items()}
  memory.give_back()
  for run in works.runs.values():
    for _ in range(times - 1):
      run()
  return first


def _take_stdout() -> TextIO:
  """Returns standard output, and leaves libraries' prints to stderr."""
  mine = os.fdopen(os.dup(1), 'w', buffering=1)
  os.dup2(2, 1)
  return mine


def main(target: str, arguments: str, warm_up: str) -> None:
  """Builds, warms up, and answers until standard input ends."""
  out = _take_stdout()

  def reply(message: dict[str, Any]) -> None:
    out.write(json.dumps(message) + '\n')

  start = time.perf_counter()
  try:
    works = _build(target, arguments)
  except UserError as error:
    reply({'error': str(error)})
    return
  built = time.perf_counter() - start
  first = _warm_up(works, int(warm_up))
  reply(
    {
      'facts': dict(works.facts),
      'build_seconds': built,
      'first_seconds': first,
    }
  )
  for line in sys.stdin:
    reply(_answer(works, json.loads(line)))


if __name__ == '__main__':
  main(*sys.argv[1:])
