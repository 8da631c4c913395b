"""Kills a training at random moments, again and again, until it has ended.

    PYTHONPATH=tests python -m faults.random_kills FOLDER --kills=100

What happened is kept in FOLDER, so the same command goes on where it stopped,
`--at_once=25` at most so many kills further. After the last one it prints a
summary. Each training that ends is compared with one that was left alone.
"""

import argparse
import collections
from collections.abc import Callable, Sequence
import contextlib
import json
import logging
import pathlib
import random
import re
import shutil
import signal
import statistics
import time
from typing import Any

from faults.harness import (
  Bench,
  Started,
  assert_same_run,
  last_logged,
)
from mhr_jax import checkpoints, run_files

PHASES = ('start-up', 'compile', 'step', 'save', 'evaluation', 'end')

# Where the main thread is: the first phase that has one of these words.
_PLACES = {
  'end': ('in _save_routing', 'in finalize'),
  'save': ('in save', 'in _finish'),
  'evaluation': ('in measure',),
  'compile': ('compiler.py', 'pxla.py', 'partial_eval.py', 'in lower'),
}
_BEGUN = ('Starting at step', 'Resuming at step')
# Shares of the kills in a start's parts: until it says where it goes on, until
# its first step is done (most of it compiles), and the seconds after that.
_PARTS = {'start-up': 0.25, 'first step': 0.15, 'training': 0.6}
_SECONDS_OF_TRAINING = 3.0
_IS_SIGTERM = 0.2


def make_bench(folder: pathlib.Path, steps: int) -> Bench:
  """Returns a bench with a training that nothing happens to."""
  bench = Bench(folder, steps)
  if not (folder / 'whole.done').exists():
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    ended = bench.set_up().run(folder / 'whole')
    assert ended.code == 0, ended.text
    (folder / 'whole.done').touch()
  return bench


class Kills:
  """Kills that have been, and the next ones."""

  def __init__(self, bench: Bench, seed: int):
    """Reads what has been.

    Args:
      bench: with a training that nothing happened to, `whole`.
      seed: of moments and signals.
    """
    self._bench, self._seed = bench, seed
    self._path = bench.root / 'kills.jsonl'
    self.events: list[dict[str, Any]] = []
    if self._path.exists():
      lines = self._path.read_text().splitlines()
      self.events = [json.loads(line) for line in lines]
    self._lasted = {'start-up': 5.0, 'first step': 2.0}

  @property
  def save_every(self) -> int:
    """Steps between checkpoints."""
    return self._bench.save_every

  @property
  def kills(self) -> list[dict[str, Any]]:
    """The kills, without the runs that ended."""
    return [event for event in self.events if event['kind'] == 'kill']

  @property
  def runs(self) -> list[dict[str, Any]]:
    """The runs that ended, each compared."""
    return [event for event in self.events if event['kind'] == 'run']

  def kill_until(self, kills: int) -> None:
    """Trains and kills until there have been so many kills."""
    while len(self.kills) < kills:
      self._start(rng=random.Random(f'{self._seed} {len(self.events)}'))

  def finish(self) -> None:
    """Lets the run that has been killed last come to its end."""
    if self.events and self.events[-1]['kind'] == 'kill':
      self._start(rng=None)

  def _start(self, rng: random.Random | None) -> None:
    """One start of the training, and its end, of itself or by a signal."""
    run_dir = self._bench.root / f'run_{len(self.runs)}'
    before = checkpoints.committed_steps(run_dir)
    last = last_logged(run_dir)
    started = self._bench.start(run_dir)
    killed = rng is not None and self._kill(started, rng, run_dir)
    if not killed:
      ended = started.end()
      assert ended.code == 0, ended.text
      assert_same_run(run_dir, self._bench.root / 'whole')
      self._add(kind='run', run=run_dir.name)
    self._check_start(started.text, before, last, killed)

  def _kill(
    self, started: Started, rng: random.Random, run_dir: pathlib.Path
  ) -> bool:
    """Ends a training at a random moment; whether it was still running."""
    advanced = _is_written(run_dir / run_files.METRICS_FILE)
    self._wait(started, rng, run_dir)
    if started.process.poll() is not None:
      return False
    sent = signal.SIGTERM if rng.random() < _IS_SIGTERM else signal.SIGKILL
    phase = _phase(started, run_dir)
    started.process.send_signal(sent)
    code = started.end().code
    if code == 0:  # It was at its end already.
      return False
    assert code in (-sent, 128 + sent), f'exit code {code}: {started.text}'
    logged, saved = last_logged(run_dir), checkpoints.committed_steps(run_dir)
    if code == 128 + signal.SIGTERM:
      assert saved[-1] == logged, 'SIGTERM saves what was done'
    committed = saved[-1] if saved else 0
    self._add(
      kind='kill',
      signal=sent.name,
      phase=phase,
      logged=logged,
      committed=committed,
      # Who is killed before a first step has lost what was lost before.
      lost=logged - committed if advanced() else 0,
      run=run_dir.name,
    )
    return True

  def _wait(
    self, started: Started, rng: random.Random, run_dir: pathlib.Path
  ) -> None:
    """Waits for a random moment, or the end."""
    part = rng.choices(list(_PARTS), list(_PARTS.values()))[0]
    for name, arrived in (
      ('start-up', lambda: any(word in started.text for word in _BEGUN)),
      ('first step', _is_written(run_dir / run_files.METRICS_FILE)),
    ):
      if part == name:
        time.sleep(rng.uniform(0, self._lasted[name]))
        return
      begun = time.monotonic()
      if not started.wait_for(arrived):
        return
      self._lasted[name] = time.monotonic() - begun
    time.sleep(rng.uniform(0, _SECONDS_OF_TRAINING))

  def _check_start(
    self, text: str, before: Sequence[int], last: int, killed: bool
  ) -> None:
    """Compares where a start went on with what was committed before it."""
    found = re.search(r'(?:Starting|Resuming) at step (\d+)', text)
    assert found or killed, text
    if found:
      step = int(found.group(1))
      assert step == (before[-1] if before else 0), text
      assert step <= last

  def _add(self, **event: Any) -> None:
    self.events.append(event)
    with self._path.open('a') as file:
      file.write(json.dumps(event) + '\n')


def _is_written(path: pathlib.Path) -> Callable[[], bool]:
  """Returns whether a file has been written since now."""

  def state():
    with contextlib.suppress(FileNotFoundError):
      found = path.stat()
      return found.st_ino, found.st_size
    return None

  before = state()
  return lambda: state() != before


def _phase(started: Started, run_dir: pathlib.Path) -> str:
  """Returns what a training is at: where its main thread is, what it saves."""
  if not any(word in started.text for word in _BEGUN):
    return 'start-up'
  place = started.place()
  being_saved = '*orbax-checkpoint-tmp*'
  if any((run_dir / checkpoints.CHECKPOINTS_FOLDER).glob(being_saved)):
    return 'save'
  for phase, words in _PLACES.items():
    if any(word in place for word in words):
      return phase
  return 'step'


def summary(events: Kills, seconds: float) -> str:
  """Returns what happened, for people."""
  kills, runs = events.kills, events.runs
  signals = collections.Counter(kill['signal'] for kill in kills)
  phases = collections.Counter(kill['phase'] for kill in kills)
  lost = [kill['lost'] for kill in kills]
  joined = ', '.join(f'{n} {name}' for name, n in sorted(signals.items()))
  hit = ', '.join(f'{name} {phases[name]}' for name in PHASES)
  return '\n'.join(
    (
      f'kills       {len(kills)}: {joined}',
      f'hit         {hit}',
      f'restarts    {len(kills)}, of {len(runs)} runs',
      f'steps lost  {sum(lost)} in all, {statistics.mean(lost):.1f} a kill, at'
      f' most {max(lost)}; a checkpoint every {events.save_every} steps',
      f'ended       {len(runs)} runs, each equal to the uninterrupted one bit'
      ' for bit: parameters, optimizer state, metrics',
      f'time        {seconds / 60:.1f} minutes for this part',
    )
  )


def main(argv: Sequence[str] | None = None) -> None:
  """Runs what the flags say."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('folder', type=pathlib.Path)
  parser.add_argument('--kills', type=int, default=100)
  parser.add_argument('--at_once', type=int, default=10**9)
  parser.add_argument('--steps', type=int, default=1000)
  parser.add_argument('--seed', type=int, default=0)
  options = parser.parse_args(argv)
  logging.getLogger('absl').setLevel(logging.ERROR)
  begun = time.monotonic()
  kills = Kills(make_bench(options.folder, options.steps), options.seed)
  done = min(options.kills, len(kills.kills) + options.at_once)
  kills.kill_until(done)
  if done == options.kills:
    kills.finish()
    print(summary(kills, time.monotonic() - begun))
  else:
    print(f'{done} of {options.kills} kills')


if __name__ == '__main__':
  main()
