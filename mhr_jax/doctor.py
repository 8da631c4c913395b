"""What this environment can do: packages, their versions, the devices."""

from collections.abc import Iterator
import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
from typing import Literal

State = Literal['ok', 'missing', 'wrong']


@dataclasses.dataclass(frozen=True)
class Finding:
  """One line of the report.

  Attributes:
    name: what was looked at.
    state: 'ok', 'missing' (something optional is absent) or 'wrong'.
    detail: a version, a place, or what is the matter.
    remedy: a command that mends it; '' where nothing is to be done.
  """

  name: str
  state: State
  detail: str
  remedy: str = ''


# What each group of packages is for, in the order of the report.
_GROUPS: tuple[tuple[str, tuple[str, ...], str], ...] = (
  (
    'training, decoding',
    ('jax', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'array_record'),
    'pip install mhr_jax',
  ),
  (
    'registering and preparing tasks',
    ('seqio', 'tensorflow', 'tensorflow-text'),
    "pip install 'mhr_jax[data]'",
  ),
  (
    'comparing with PyTorch',
    ('torch', 'transformers', 'peft'),
    "pip install 'mhr_jax[interop]'",
  ),
  (
    'writing to Weights & Biases',
    ('wandb',),
    "pip install 'mhr_jax[wandb]'",
  ),
  (
    'running T5X',
    ('fiddle', 'cached-property'),
    "pip install 'mhr_jax[data,t5x]'",
  ),
)


def examine() -> Iterator[Finding]:
  """Yields findings, the devices last: they take seconds to answer."""
  yield Finding('Python', 'ok', platform.python_version())
  for purpose, packages, remedy in _GROUPS:
    versions = {name: _version(name) for name in packages}
    absent = [name for name, version in versions.items() if version is None]
    found = ', '.join(f'{k} {v}' for k, v in versions.items() if v)
    if absent:
      missing = f'without {", ".join(absent)}'
      detail = f'{found}; {missing}' if found else missing
      yield Finding(purpose, 'missing', detail, remedy)
    else:
      yield Finding(purpose, 'ok', found)
  yield _find_t5x()
  yield _find_devices()


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def _find_t5x() -> Finding:
  remedy = (
    'git clone https://github.com/google-research/t5x && pip install'
    ' --no-deps -e t5x (or T5X_DIR=<the checkout>)'
  )
  folder = os.environ.get('T5X_DIR')
  if folder:
    if os.path.isfile(os.path.join(folder, 't5x', 'main.py')):
      return Finding('T5X', 'ok', f'$T5X_DIR: {folder}')
    return Finding(
      'T5X', 'wrong', f'$T5X_DIR is {folder}, without t5x/main.py', remedy
    )
  spec = importlib.util.find_spec('t5x')
  if spec is None:
    return Finding('T5X', 'missing', 'not installed', remedy)
  return Finding('T5X', 'ok', str(spec.origin))


def _find_devices() -> Finding:
  try:
    import jax

    devices = jax.devices()
  except (ImportError, RuntimeError) as error:
    reason = str(error).splitlines()[0]
    return Finding('devices', 'wrong', reason, 'JAX_PLATFORMS=cpu to go on')
  kinds = {device.device_kind for device in devices}
  count = len(devices)
  return Finding(
    'devices', 'ok', f'{count} × {devices[0].platform} ({", ".join(kinds)})'
  )


def to_text(findings: Iterator[Finding]) -> Iterator[str]:
  """Yields a line a finding, and one more for each remedy."""
  marks = {'ok': 'ok     ', 'missing': 'missing', 'wrong': 'wrong  '}
  for finding in findings:
    yield f'{marks[finding.state]}  {finding.name}: {finding.detail}'
    if finding.remedy:
      yield f'{"":9}{finding.remedy}'
