"""From a command to its first training step: the first start and the next.

    python -m benchmarks.startup --json startup.json

runs `mhr-jax train` on prepared data as real processes: once with an empty
cache of compiled programs, then again. The first step is there when its line
in `metrics.jsonl` is; then the process is ended.
"""

from collections.abc import Sequence
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks import machine, options, results, summaries
from benchmarks.prepared import write_tasks
from mhr_jax.errors import UserError

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_GOAL_SECONDS = 10.0
_LONGEST_SECONDS = 300.0
_POLL_SECONDS = 0.01
_COMPILE = '/jax/core/compile/'
# What jax calls the parts, in the order in which they come.
_PARTS = {
  'trace': _COMPILE + 'jaxpr_trace_duration',
  'lower': _COMPILE + 'jaxpr_to_mlir_module_duration',
  'compile or load': _COMPILE + 'backend_compile_duration',
}


def time_start(
  folder: pathlib.Path, data_dir: pathlib.Path, names: list[str], model: str
) -> dict[str, float]:
  """Starts one training; returns the seconds to its first step, by part.

  Args:
    folder: of this start alone; `folder.parent` has the compiled programs.
    data_dir: of prepared data.
    names: the tasks.
    model: a file of `models/`, without its ending.

  Raises:
    UserError: there was no first step.
  """
  folder.mkdir()
  marks, run_dir = folder / 'marks.jsonl', folder / 'run'
  command = [
    *(sys.executable, '-m', 'benchmarks.startup_marks', str(marks), 'train'),
    f'--gin_file=models/{model}.gin',
    '--gin_file=methods/mhr.gin',
    '--gin_file=runs/multi_task.gin',
    f'--gin.TASKS={names!r}',
    f'--gin.DATA_DIR={str(data_dir)!r}',
    f'--gin.RUN_DIR={str(run_dir)!r}',
    '--gin.BACKBONE_FROM=None',
    '--gin.TrainSettings.log_every=1',
    '--gin.train.heldback=None',
    '--gin.INPUT_LENGTH=128',
    '--gin.TARGET_LENGTH=32',
  ]
  cache = {'JAX_COMPILATION_CACHE_DIR': str(folder.parent / 'compiled')}
  started = time.time()
  with (folder / 'output.txt').open('w+') as output:
    process = subprocess.Popen(
      command,
      cwd=_ROOT,
      env={**os.environ, **cache},
      stdout=output,
      stderr=subprocess.STDOUT,
    )
    try:
      stepped = _wait_for_step(process, run_dir / 'metrics.jsonl')
    finally:
      process.kill()
      process.wait()
    if stepped is None:
      output.seek(0)
      raise UserError(f'No first step:\n{output.read()[-2000:]}')
  return _take_apart(marks, started, stepped)


def _wait_for_step(process: Any, metrics: pathlib.Path) -> float | None:
  """Returns when the first line was there, or None if there never was one."""
  limit = time.time() + _LONGEST_SECONDS
  while time.time() < limit:
    if metrics.exists() and metrics.read_text().endswith('\n'):
      return json.loads(metrics.read_text().splitlines()[0])['time']
    if process.poll() is not None:
      return None
    time.sleep(_POLL_SECONDS)
  return None


def _take_apart(
  marks: pathlib.Path, started: float, stepped: float
) -> dict[str, float]:
  """Returns the seconds of each part, up to the first step."""
  lines = [json.loads(line) for line in marks.read_text().splitlines()]
  lines = [line for line in lines if line['end'] <= stepped]

  def total(name: str) -> float:
    return sum(line['seconds'] for line in lines if line['name'] == name)

  parts = {
    'interpreter': lines[0]['end'] - started,
    'imports': total('imports'),
    **{part: total(event) for part, event in _PARTS.items()},
  }
  whole = stepped - started
  rest = whole - sum(parts.values())
  programs = sum(line['name'] == _PARTS['compile or load'] for line in lines)
  return parts | {'all else': rest, 'whole': whole, 'programs': programs}


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the benchmark."""
  made = options.parser(__doc__, rounds=3, times=1)
  made.add_argument('--model', default='t5_1_1_tiny')
  made.add_argument('--tasks', type=options.positive, default=46)
  flags = made.parse_args(argv)
  where = machine.describe()
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    names = write_tasks(
      folder / 'data', flags.tasks, 64, input_length=128, target_length=32
    )
    until = time.monotonic() + flags.seconds
    starts: list[dict[str, float]] = []
    while len(starts) <= flags.rounds:
      start = folder / f'start_{len(starts)}'
      starts.append(time_start(start, folder / 'data', names, flags.model))
      if len(starts) > 1 and time.monotonic() > until:
        break
  first, later = starts[0], starts[1:]
  medians = {
    part: summaries.summarise([start[part] for start in later]).median
    for part in first
  }
  rows = [
    (part, *(_shown(part, x) for x in (first[part], medians[part])))
    for part in first
  ]
  title = f'{flags.model}: a start to its first step'
  results.print_table(title, ('part', 'first', 'next, median'), rows)
  met = medians['whole'] <= _GOAL_SECONDS
  print(
    f'goal: next start ≤ {_GOAL_SECONDS:.0f} s: {"met" if met else "missed"}'
  )
  results.write_json(
    flags.json,
    {
      'benchmark': 'startup',
      'machine': where,
      'flags': vars(flags),
      'first': first,
      'next': later,
      'goal_seconds': _GOAL_SECONDS,
      'met': met,
    },
  )


def _shown(part: str, value: float) -> str:
  return f'{value:.0f}' if part == 'programs' else results.seconds(value)


if __name__ == '__main__':
  options.run(main)
