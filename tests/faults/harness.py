"""Real trainings in real processes, and what must be true of their folders.

A training is `mhr-jax train` on a tiny model and generated tasks. It is
started, broken in some way, started again, and compared with one that nothing
happened to.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np

from mhr_jax import checkpoints, reporting, run_files
from mhr_jax.data import record_format
from mhr_jax.tree_paths import leaves_by_path
from mhr_jax.vocabulary import ByteVocabulary

TASKS = ('one', 'two')
STEPS, SAVE_EVERY = 60, 10

# What the command line does, and at SIGUSR1 a note of where the main thread is.
# A thread waits for it: faulthandler, which writes from the signal's handler,
# crashed every second training.
_PROGRAM = """
import os, signal, sys, threading, traceback

def note_places():
  main = threading.main_thread().ident
  while True:
    signal.sigwait([signal.SIGUSR1])
    stack = traceback.extract_stack(sys._current_frames()[main])
    lines = [f'{x.filename}, line {x.lineno}, in {x.name}' for x in stack]
    note = '\\n'.join(['Place:', *reversed(lines), ''])
    os.write(int(os.environ['FAULTS_PLACES']), note.encode())

signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
threading.Thread(target=note_places, daemon=True).start()
from mhr_jax import cli
sys.exit(cli.main(sys.argv[1:]))
"""
_CONFIG = """
from __gin__ import dynamic_registration
from mhr_jax import adapters
from mhr_jax import jobs
from mhr_jax import trainer
from mhr_jax.t5 import config
include 'methods/mhr.gin'
include 'runs/multi_task.gin'
BACKBONE = @config.T5Config()
config.T5Config:
  vocab_size = 384
  emb_dim = 16
  num_heads = 2
  head_dim = 8
  mlp_dim = 16
  num_encoder_layers = 1
  num_decoder_layers = 1
BACKBONE_FROM = None
TASKS = 'both'
BATCH_SIZE = 4
INPUT_LENGTH = 8
TARGET_LENGTH = 6
adapters.AdapterConfig:
  n_skills = 2
  n_splits = 2
  rank = 1
  targets = ('encoder/attention/query', 'decoder/mlp/wo')
jobs.HeldBackSettings.limit = 2
jobs.HeldBackSettings.batch_size = 4
jobs.AlignmentSettings.every = 0
jobs.RoutingStatisticsSettings.every = 25
trainer.TrainSettings.log_every = 1
trainer.TrainSettings.eval_every = 15
"""
# They differ between any two runs.
_TIMES = ('time', 'seconds', 'per_second')


@dataclasses.dataclass(frozen=True)
class Ended:
  """A process after its end.

  Attributes:
    code: its exit code; minus the signal that ended it.
    text: what it wrote on both streams.
    seconds: how long it ran.
  """

  code: int
  text: str
  seconds: float


class Started:
  """A training that runs; what it writes goes to a file."""

  def __init__(self, command: Sequence[str], log: pathlib.Path, **options: Any):
    """Starts it.

    Args:
      command: the program and its arguments.
      log: the file for what it writes.
      **options: of `subprocess.Popen`.
    """
    self._log, self._started = log, time.monotonic()
    self._places = log.with_suffix('.places')
    with log.open('wb') as out, self._places.open('wb') as places:
      options['env'] = options['env'] | {'FAULTS_PLACES': str(places.fileno())}
      self.process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=subprocess.STDOUT,
        pass_fds=(places.fileno(),),
        **options,
      )

  @property
  def text(self) -> str:
    """What it has written so far."""
    return self._log.read_text(errors='replace')

  def place(self) -> str:
    """Returns where the main thread is, once it can say; innermost first."""
    self.process.send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + 0.2
    while not self._places.stat().st_size and time.monotonic() < deadline:
      time.sleep(0.001)
    return self._places.read_text().rpartition('Place:')[2]

  def wait_for(
    self, arrived: Callable[[], bool], *, timeout: float = 300.0
  ) -> bool:
    """Waits until something is true; whether it was before the end.

    Raises:
      TimeoutError: neither happened.
    """
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
      running = self.process.poll() is None
      if arrived():
        return True
      if not running:
        return False
      time.sleep(0.005)
    raise TimeoutError(f'Nothing in {timeout} s: {self.text}')

  def wait_for_words(self, words: str) -> bool:
    """Waits until it writes some words; whether it did before its end."""
    return self.wait_for(lambda: words in self.text)

  def end(self, *, timeout: float = 300.0) -> Ended:
    """Waits for its end; kills what does not come to one."""
    try:
      code = self.process.wait(timeout)
    except subprocess.TimeoutExpired:
      self.process.kill()
      self.process.wait()
      raise
    return Ended(code, self.text, time.monotonic() - self._started)


@dataclasses.dataclass(frozen=True)
class Bench:
  """A folder with prepared data, a configuration and compiled programs.

  Attributes:
    root: the folder.
    steps: of each training.
    save_every: steps between checkpoints.
  """

  root: pathlib.Path
  steps: int = STEPS
  save_every: int = SAVE_EVERY

  @property
  def data_dir(self) -> pathlib.Path:
    """The prepared data."""
    return self.root / 'data'

  def set_up(self) -> 'Bench':
    """Writes the data and the configuration."""
    write_data(self.data_dir)
    (self.root / 'tiny.gin').write_text(_CONFIG)
    return self

  def start(
    self,
    run_dir: pathlib.Path,
    *flags: str,
    bindings: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    **options: Any,
  ) -> Started:
    """Starts `mhr-jax train`.

    Args:
      run_dir: the run folder.
      *flags: further arguments.
      bindings: gin's, by name.
      environment: further variables.
      **options: of `subprocess.Popen`.
    """
    values = {
      'RUN_DIR': str(run_dir),
      'DATA_DIR': str(self.data_dir),
      'STEPS': self.steps,
      'TrainSettings.save_every': self.save_every,
    } | dict(bindings or {})
    command = [
      sys.executable,
      '-c',
      _PROGRAM,
      'train',
      f'--gin_file={self.root / "tiny.gin"}',
      *(f'--gin.{name}={value!r}' for name, value in values.items()),
      *flags,
    ]
    compiled = {
      'JAX_PLATFORMS': 'cpu',
      'JAX_COMPILATION_CACHE_DIR': str(self.root / 'compiled'),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }
    log = self.root / f'{run_dir.name}.{time.monotonic_ns()}.log'
    environment = {**os.environ, **compiled, **(environment or {})}
    return Started(command, log, env=environment, **options)

  def run(self, run_dir: pathlib.Path, *flags: str, **options: Any) -> Ended:
    """Runs `mhr-jax train` to its end (see `start`)."""
    return self.start(run_dir, *flags, **options).end()


def write_data(data_dir: pathlib.Path) -> None:
  """Writes two prepared tasks of random tokens, and their mixture."""
  for seed, task in enumerate(TASKS):
    folder = record_format.task_folder(data_dir, task)
    rng = np.random.default_rng(seed)
    counts = record_format.write_dataset(
      folder,
      task,
      {
        split: [_record(rng, f'{task}-{i}') for i in range(n)]
        for split, n in (('train', 24), ('validation', 4))
      },
    )
    manifest = {
      'format_version': record_format.FORMAT_VERSION,
      'task': task,
      'fingerprint': f'of {task}',
      'vocabulary': ByteVocabulary(extra_ids=100).spec(),
      'category': None,
      'splits': counts,
      'file_sizes': record_format.file_sizes(folder),
      'made_with': {},
    }
    run_files.write_json(
      folder / record_format.MANIFEST, run_files.seal(manifest)
    )
  content = {'tasks': list(TASKS), 'rates': [1.0, 1.0]}
  path = data_dir / record_format.MIXTURES / 'both.json'
  run_files.write_json(path, run_files.seal(content))


def _record(rng: np.random.Generator, name: str) -> record_format.Record:
  return record_format.Record(
    inputs=rng.integers(3, 250, rng.integers(2, 8)).tolist(),
    targets=[rng.integers(3, 250, 3).tolist()],
    inputs_pretokenized=name,
    targets_pretokenized=[name],
    example_id=name,
  )


def assert_explained(ended: Ended, *parts: str) -> None:
  """Asserts exit code 2 and a short message with these parts, no traceback."""
  assert ended.code == 2, ended.text
  assert 'Traceback' not in ended.text, ended.text
  message = ended.text.rpartition('mhr-jax: ')[2]
  assert len(message.splitlines()) <= 5, message
  for part in parts:
    assert part in message, f'{part!r} is not in: {message}'


def assert_same_run(run_dir: pathlib.Path, expected: pathlib.Path) -> None:
  """Asserts that two runs ended alike: all arrays and numbers, bit for bit."""
  steps = checkpoints.committed_steps(run_dir)
  assert steps[-1:] == checkpoints.committed_steps(expected)[-1:]
  found, wanted = read_arrays(run_dir), read_arrays(expected)
  assert found.keys() == wanted.keys()
  for path, array in wanted.items():
    np.testing.assert_array_equal(found[path], array, err_msg=path)
  assert read_numbers(run_dir) == read_numbers(expected)


def read_arrays(run_dir: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns what the last checkpoint holds, by path."""
  step = checkpoints.committed_steps(run_dir)[-1]
  found: dict[str, np.ndarray] = {}
  for item, read in (
    ('trainable', checkpoints.read_trainable),
    ('optimizer', checkpoints.read_optimizer),
  ):
    folder = run_dir / checkpoints.CHECKPOINTS_FOLDER / str(step) / item
    shapes = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
      checkpoints.saved_structure(folder),
    )
    for path, array in leaves_by_path(read(run_dir, step, shapes)).items():
      found[f'{item}/{path}'] = np.asarray(array)
  return found


def read_numbers(run_dir: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the lines of `metrics.jsonl`, but for what times say."""
  return [
    {
      name: value
      for name, value in line.items()
      if not any(word in name for word in _TIMES)
    }
    for line in reporting.read_metrics(run_dir)
  ]


def last_logged(run_dir: pathlib.Path) -> int:
  """Returns the last step that `metrics.jsonl` has numbers of; 0 for none."""
  return max((line['step'] for line in read_numbers(run_dir)), default=0)
