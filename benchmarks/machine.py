"""Where a benchmark ran: what its numbers depend on."""

import datetime
from importlib import metadata
import os
import pathlib
import platform
from typing import Any

_PACKAGES = (
  'mhr-jax',
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'numpy',
  'torch',
  'transformers',
  'peft',
)
_VARIABLES = (
  'JAX_PLATFORMS',
  'OMP_NUM_THREADS',
  'OMP_WAIT_POLICY',
  'XLA_FLAGS',
)


def describe() -> dict[str, Any]:
  """Returns date, processor, memory, versions and settings, for JSON."""
  return {
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'platform': platform.platform(),
    'processor': _processor(),
    'cores': len(os.sched_getaffinity(0)),
    'memory_bytes': os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'),
    'load_before': os.getloadavg()[0],
    'versions': {'python': platform.python_version(), **_versions()},
    'environment': {k: os.environ[k] for k in _VARIABLES if k in os.environ},
  }


def _processor() -> str:
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    return platform.processor()
  names = [line for line in lines if line.startswith('model name')]
  return names[0].partition(':')[2].strip() if names else platform.machine()


def _versions() -> dict[str, str]:
  found = {}
  for name in _PACKAGES:
    try:
      found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
      continue
  return found
