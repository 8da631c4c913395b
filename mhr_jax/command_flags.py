"""Flags of commands, without what the commands import."""

import argparse
from typing import Any

_SETTINGS = {
  'n_tasks': 'in pre-training; default: 1',
  'rank': 'of a low-rank adapter; default: 1',
  'n_skills': 'adapters of an inventory; default: 8',
  'n_splits': 'of multi-head routing; default: 8',
}


def add_dry_run_flag(command: argparse.ArgumentParser) -> None:
  """Adds that of the commands which can say what they would do."""
  command.add_argument(
    '--dry_run', action='store_true', help='say what would happen, and stop'
  )


def add_methods_flags(command: argparse.ArgumentParser) -> None:
  """Adds those of `mhr-jax methods`."""
  command.add_argument(
    '--model',
    action='append',
    default=[],
    metavar='NAME',
    help='such as t5_1_1_xl; repeatable; default: Large, XL and XXL',
  )
  for name, text in _SETTINGS.items():
    command.add_argument(f'--{name}', type=int, help=text)
  command.add_argument(
    '--targets',
    action='append',
    metavar='REGEX',
    help='linears to adapt; repeatable; default: all',
  )
  command.add_argument(
    '--format', choices=('table', 'markdown', 'json'), default='table'
  )


def add_plan_flags(command: argparse.ArgumentParser) -> None:
  """Adds those of `mhr-jax plan`."""
  command.add_argument(
    '--topology',
    required=True,
    metavar='CHIP:SHAPE',
    help='such as v5e:16x16, v4:4x4x8, v5p:4x4x4, h100:64, cpu:256',
  )
  command.add_argument(
    '--mesh',
    type=_mesh,
    action='append',
    default=[],
    metavar='DATAxMODEL',
    help='to try; repeatable; default: the two smallest that have room',
  )
  command.add_argument(
    '--batch',
    type=int,
    action='append',
    default=[],
    metavar='ROWS',
    help="of the global batch; repeatable; default: the configuration's",
  )
  command.add_argument(
    '--mix_in',
    action='append',
    default=[],
    choices=('front', 'layer'),
    help='where to mix adapters; repeatable; default: both',
  )
  command.add_argument(
    '--n_tasks',
    type=int,
    default=64,
    help='how many tasks there are, since no data is read; default: 64',
  )
  command.add_argument(
    '--backbone_dtype',
    choices=('float32', 'bfloat16'),
    default='float32',
    help='of the frozen backbone where it is stored; default: float32',
  )
  command.add_argument(
    '--shapes_only',
    action='store_true',
    help='what lies on a device and arithmetic alone; compiles nothing',
  )
  command.add_argument('--json', metavar='FILE', help='write the plan there')


def _mesh(text: str) -> tuple[int, int]:
  """Reads 'DATAxMODEL'."""
  data, _, model = text.partition('x')
  if not (data.isdecimal() and model.isdecimal()):
    raise argparse.ArgumentTypeError(f'{text} is not DATAxMODEL, such as 16x4')
  return int(data), int(model)


def given_settings(options: argparse.Namespace) -> dict[str, Any]:
  """Returns the fields of `AdapterConfig` that flags of ours say."""
  names = (*_SETTINGS, 'targets')
  given = {name: getattr(options, name) for name in names}
  said = {name: value for name, value in given.items() if value is not None}
  return {'n_tasks': 1} | said
