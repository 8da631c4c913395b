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


def add_process_flags(command: argparse.ArgumentParser) -> None:
  """Adds those of the commands that several processes can share."""
  command.add_argument(
    '--distributed',
    nargs='?',
    const='',
    metavar='ADDRESS:PORT,COUNT,INDEX',
    help='one of several processes; TPU pods and Slurm need no more than that',
  )
  command.add_argument(
    '--heartbeat_seconds',
    type=int,
    default=100,
    metavar='N',
    help='end when another process has not been heard of so long; default: 100',
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


def given_settings(options: argparse.Namespace) -> dict[str, Any]:
  """Returns the fields of `AdapterConfig` that flags of ours say."""
  names = (*_SETTINGS, 'targets')
  given = {name: getattr(options, name) for name in names}
  said = {name: value for name, value in given.items() if value is not None}
  return {'n_tasks': 1} | said
