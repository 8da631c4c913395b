"""The command lines of the benchmarks."""

import argparse
from collections.abc import Callable, Sequence
import dataclasses
import os
import sys

from benchmarks.setting import Setting
from mhr_jax.errors import UserError


def parser(
  doc: str | None, *, rounds: int, times: int
) -> argparse.ArgumentParser:
  """Returns a parser of what the comparisons share.

  Args:
    doc: the benchmark's, for --help.
    rounds: by default.
    times: runs of a work in a round, by default.
  """
  made = argparse.ArgumentParser(
    description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  made.add_argument('--json', metavar='FILE', help='write the results there')
  made.add_argument('--rounds', type=positive, default=rounds)
  made.add_argument(
    '--times', type=positive, default=times, help='runs of a work in a round'
  )
  made.add_argument(
    '--seconds',
    type=float,
    default=90.0,
    help='of rounds, after which none but the first two is begun',
  )
  return made


def add_setting(made: argparse.ArgumentParser, **defaults: object) -> None:
  """Adds a flag for each field of `Setting`.

  Args:
    made: the parser.
    **defaults: in place of those of `Setting`.
  """
  for field in dataclasses.fields(Setting):
    default = defaults.get(field.name, field.default)
    kind = positive if isinstance(default, int) else str
    made.add_argument(f'--{field.name}', type=kind, default=default)


def read_setting(flags: argparse.Namespace) -> Setting:
  """Returns the setting that the flags of `add_setting` name."""
  names = [field.name for field in dataclasses.fields(Setting)]
  return Setting(**{name: getattr(flags, name) for name in names})


def positive(text: str) -> int:
  """Returns a whole number of at least 1."""
  value = int(text)
  if value < 1:
    raise argparse.ArgumentTypeError(f'{value} is below 1')
  return value


def run(
  main: Callable[[Sequence[str] | None], None], *, platform: str | None = 'cpu'
) -> None:
  """Runs a benchmark; mistakes are told in a sentence.

  Args:
    main: takes a command line.
    platform: of jax, where the environment names none; None leaves it open.
  """
  if platform is not None:
    os.environ.setdefault('JAX_PLATFORMS', platform)
  try:
    main(None)
  except UserError as error:
    sys.exit(f'error: {error}')
