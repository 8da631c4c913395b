"""A checkout of T5X to run against, and a way to launch it as a user would.

T5X_DIR=<checkout of google-research/t5x> make test-t5x
"""

import os
import pathlib
import subprocess
import sys
import time

import pytest

_MODULE = """
from mhr_jax.data import registry, sources
from mhr_jax.vocabulary import ByteVocabulary

WORDS = ('cat', 'dog', 'owl', 'emu', 'bee', 'ant', 'fox', 'hen')
RULES = {
  'copy': lambda word: word,
  'reverse': lambda word: word[::-1],
  'upper': lambda word: word.upper(),
}


def load(rule):
  examples = [
    sources.TextExample(f'{i}', f'{a}{b}', (RULES[rule](a + b),))
    for i, (a, b) in enumerate((a, b) for a in WORDS for b in WORDS)
  ]
  splits = {'train': examples, 'validation': examples[:4], 'test': examples[:4]}
  return sources.TaskExamples(splits)


def register():
  import functools

  for rule in RULES:
    registry.add_task(
      f'words_{rule}',
      sources.ExampleSource(
        functools.partial(load, rule), splits=('train', 'validation', 'test')
      ),
      ByteVocabulary(extra_ids=100),
      module=__name__,
    )
  registry.add_mixture(
    'words', [f'words_{rule}' for rule in RULES], module=__name__
  )
"""
_BACKBONE = """
from __gin__ import dynamic_registration
from mhr_jax.t5 import config
BACKBONE = @config.T5Config()
config.T5Config:
  vocab_size = 384
  emb_dim = 24
  num_heads = 3
  head_dim = 8
  mlp_dim = 48
  num_encoder_layers = 3
  num_decoder_layers = 2
"""
_FLAGS = (
  '--gin_file=tiny.gin',
  '--gin.MIXTURE="words"',
  '--gin.TASK_MODULES=("t5x_words",)',
  '--gin.INPUT_LENGTH=10',
  '--gin.TARGET_LENGTH=8',
)
_TRAINING = (
  '--gin_file=t5x/train.gin',
  '--gin.DROPOUT_RATE=0.0',
  '--gin.RANDOM_SEED=0',
  '--gin.BATCH_SIZE=8',
  '--gin.EVAL_PERIOD=100000',
  '--gin.SaveCheckpointConfig.period=5',
)


@pytest.fixture(scope='session')
def t5x_dir() -> pathlib.Path:
  """The checkout that $T5X_DIR names."""
  folder = os.environ.get('T5X_DIR')
  if not folder:
    pytest.skip('needs $T5X_DIR, a checkout of google-research/t5x')
  return pathlib.Path(folder).resolve()


def _methods(method: str) -> tuple[str, ...]:
  """Returns the gin files of a method: -z and -mu add to their own."""
  whole = method.partition('_')[0]
  return (method,) if whole == method else (whole, method)


class Launcher:
  """Starts `python -m mhr_jax.t5x` on three small tasks of words."""

  def __init__(
    self, folder: pathlib.Path, t5x_dir: pathlib.Path, compiled: pathlib.Path
  ):
    (folder / 't5x_words.py').write_text(_MODULE)
    (folder / 'tiny.gin').write_text(_BACKBONE)
    self.folder = folder
    self.environment = {
      **os.environ,
      'T5X_DIR': str(t5x_dir),
      'PYTHONPATH': str(folder),
      'JAX_PLATFORMS': 'cpu',
      'JAX_COMPILATION_CACHE_DIR': str(compiled),
    }

  def start(self, mode: str, method: str, *flags: str, devices: int = 1):
    """Returns the running process; its output goes to `self.folder/log`."""
    environment = {
      **self.environment,
      'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
    }
    more = _TRAINING if mode == 'train' else (f'--gin_file=t5x/{mode}.gin',)
    splits = () if method.startswith('poly') else ('n_splits=4',)
    command = [
      sys.executable,
      '-m',
      'mhr_jax.t5x',
      f'--run_mode={mode}',
      f'--gin_search_paths={self.folder}',
      _FLAGS[0],
      *(f'--gin_file=methods/{name}.gin' for name in _methods(method)),
      *more,
      *_FLAGS[1:],
      *(f'--gin.AdapterConfig.{each}' for each in splits),
      *flags,
    ]
    log = open(self.folder / 'log', 'w')  # noqa: SIM115 the process has it
    return subprocess.Popen(
      command, env=environment, stdout=log, stderr=log, cwd=self.folder
    )

  def run(self, mode: str, method: str, *flags: str, devices: int = 1) -> str:
    """Runs to the end, which must be a good one; returns the output."""
    process = self.start(mode, method, *flags, devices=devices)
    code = process.wait(timeout=500)
    text = (self.folder / 'log').read_text()
    assert code == 0, text[-3000:]
    return text

  def train_and_kill(self, method: str, wait_for: pathlib.Path, *flags: str):
    """Kills a training as soon as a checkpoint is committed."""
    process = self.start('train', method, *flags)
    deadline = time.monotonic() + 400
    while not (wait_for / 'commit_success.txt').exists():
      assert process.poll() is None, (self.folder / 'log').read_text()[-3000:]
      assert time.monotonic() < deadline
      time.sleep(0.05)
    process.kill()
    process.wait()


@pytest.fixture(scope='session')
def compiled(tmp_path_factory) -> pathlib.Path:
  """Where compiled programs are kept from test to test."""
  return tmp_path_factory.mktemp('compiled')


@pytest.fixture
def launcher(tmp_path, t5x_dir, compiled) -> Launcher:
  """A launcher in a folder of its own."""
  return Launcher(tmp_path, t5x_dir, compiled)


@pytest.fixture(scope='session')
def pretrained(tmp_path_factory, t5x_dir, compiled, shared_dir):
  """A checkpoint of T5X's: mhr after five steps from a plain T5."""
  folder = tmp_path_factory.mktemp('pretrained')
  start = shared_dir / 'fixtures' / 't5x_ocdbt_tiny' / 'unrolled'
  Launcher(folder, t5x_dir, compiled).run(
    'train',
    'mhr',
    f'--gin.MODEL_DIR="{folder / "run"}"',
    f'--gin.INITIAL_CHECKPOINT_PATH="{start / "checkpoint_3"}"',
    '--gin.TRAIN_STEPS=8',
  )
  return folder / 'run' / 'checkpoint_8'
