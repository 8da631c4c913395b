"""How much memory a process of its own needs to read a backbone."""

import subprocess
import sys

import jax
import numpy as np

from mhr_jax.convert import hf_t5
from mhr_jax.model import RoutedT5
from mhr_jax.t5 import config as config_lib

_PROGRAM = """
import re, sys
from mhr_jax.convert import hf_t5

library, tiny, source, target = sys.argv[1:]
if library:
  __import__(library)
hf_t5.read_backbone(tiny)  # what JAX needs once

def read_memory(name):
  with open('/proc/self/status') as file:
    return int(re.search(name + r':\\s+(\\d+) kB', file.read())[1]) * 1024

start = read_memory('VmRSS')
config, backbone = hf_t5.read_backbone(source, allow_pickle=bool(library))
print(read_memory('VmHWM') - start)
hf_t5.write_backbone(target, config, backbone)
print(read_memory('VmHWM') - start)
"""


def write_large(folder, **options):
  """Writes a backbone of 280 MB, two thirds of it in two arrays."""
  config = config_lib.t5_config(
    't5_1_1_base', vocab_size=30_000, num_encoder_layers=2, num_decoder_layers=2
  )
  backbone = jax.tree.map(
    lambda leaf: np.full(leaf.shape, 0.5, np.float32),
    RoutedT5(config).abstract_params()['backbone'],
  )
  hf_t5.write_backbone(folder, config, backbone, **options)


def measure(tiny, source, target, *, library=''):
  """Returns the peaks of reading, and of reading and then writing, in bytes.

  Args:
    tiny: a backbone that is read before measuring starts.
    source: the backbone to read.
    target: where to write it.
    library: what else is imported before; pickles are read then.
  """
  command = [sys.executable, '-c', _PROGRAM, library, tiny, source, target]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  read, written = map(int, done.stdout.split())
  return read, written
