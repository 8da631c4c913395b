"""Real processes of `mhr-jax`, one or several that train as one.

A module of its own, so that each process is this file: it says at its end
what it imported on the way.
"""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys

from mhr_jax import adaptation, cli, processes
from mhr_jax.errors import UserError

DATA_PREPARED = 'seqio was imported'
ADAPT_ALONE = 'adapt alone'

# Four small tasks of the generated skills suite, prepared where they are not.
_TASKS = """
from __gin__ import dynamic_registration
from mhr_jax import task_data
from mhr_jax.tasks import skills_suite
skills/task_data.TaskModule.options = {'settings': @skills_suite.SuiteSettings()}
skills_suite.SuiteSettings:
  n_train_tasks = 4
  n_heldout_tasks = 1
  train_examples = 24
  operation_examples = 1
  validation_examples = 5
  few_shot_examples = 1
  test_examples = 1
"""
_TRAINING = """
from __gin__ import dynamic_registration
from mhr_jax import adapters
from mhr_jax import jobs
from mhr_jax import trainer
from mhr_jax.t5 import config
BACKBONE_FROM = None
BATCH_SIZE = 16
STEPS = 12
config.t5_config.vocab_size = 128
config.t5_config.num_encoder_layers = 1
config.t5_config.num_decoder_layers = 1
adapters.AdapterConfig.targets = ('encoder/attention/query', 'decoder/mlp/wo')
trainer.TrainSettings.log_every = 1
trainer.TrainSettings.save_every = 4
trainer.TrainSettings.eval_every = 5
jobs.HeldBackSettings.batch_size = 8
"""
_FILES = {
  'train': (
    'models/t5_1_1_tiny.gin',
    'methods/mhr.gin',
    'runs/multi_task.gin',
    'presets/skills.gin',
  ),
  'evaluate': ('runs/evaluate.gin', 'presets/skills.gin'),
}


def start(
  folder, command, run_dir, *bindings, processes=1, devices=1
) -> list[subprocess.Popen]:
  """Starts a command on the suite, in so many processes of so many devices.

  Args:
    folder: gets data, gin files and compiled programs; shared by all runs.
    command: 'train' or 'evaluate'.
    run_dir: the run.
    *bindings: more of gin's, such as 'STEPS = 3'.
    processes: how many; one of them joins nobody.
    devices: of each.
  """
  files = [folder / 'tasks.gin']
  files[0].write_text(_TASKS)
  if command == 'train':
    files.append(folder / 'training.gin')
    files[1].write_text(_TRAINING)
  bindings = (
    f"DATA_DIR = '{folder}/data'",
    f"RUN_DIR = '{run_dir}'",
    *bindings,
  )
  names = [binding.split(' = ', 1) for binding in bindings]
  flags = [f'--gin_file={file}' for file in (*_FILES[command], *files)]
  flags += [f'--gin.{name}={value}' for name, value in names]
  return launch(folder, [command, *flags], processes, devices)


def launch(folder, arguments, processes, devices) -> list[subprocess.Popen]:
  """Starts processes that know of each other where they are several."""
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'JAX_NUM_CPU_DEVICES': str(devices),
    'JAX_COMPILATION_CACHE_DIR': str(folder / 'compiled'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }
  with socket.socket() as s:
    s.bind(('localhost', 0))
    address = f'localhost:{s.getsockname()[1]}'
  return [
    subprocess.Popen(
      [sys.executable, str(pathlib.Path(__file__)), *arguments]
      + (
        [f'--distributed={address},{processes},{i}', '--heartbeat_seconds=20']
        if processes > 1
        else []
      ),
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for i in range(processes)
  ]


def finish(started) -> tuple[list[int], list[str]]:
  """Waits; returns exit codes and what each process printed."""
  try:
    printed = [process.communicate(timeout=240)[0] for process in started]
  finally:
    for process in started:
      with contextlib.suppress(ProcessLookupError):
        process.kill()
  return [process.returncode for process in started], printed


def _adapt_alone(distributed: str) -> None:
  """Joins the others and asks for what only one process can do."""
  processes.join(distributed.partition('=')[2])
  try:
    adaptation.adapt(*[None] * 5, settings=None, evaluate=None)
  except UserError as error:
    print(error)


if __name__ == '__main__':
  if sys.argv[1] == ADAPT_ALONE:
    sys.exit(_adapt_alone(sys.argv[2]))
  code = cli.main(sys.argv[1:])
  if 'seqio' in sys.modules:
    print(DATA_PREPARED)
  sys.exit(code)
