"""Shell completion of `mhr-jax`: a script to source, made from its parser."""

import argparse
from collections.abc import Iterator
import importlib.resources
from typing import Any

import shtab

SHELLS = tuple(shtab.SUPPORTED_SHELLS)

_FUNCTION = '_mhr_jax_gin_files'
# Files in folders, too, and the names of the package's own configurations.
_BASH = """\
{function}() {{
  compgen -W "{names}" -- "$1"
  compgen -f -X '!*.gin' -- "$1"
  compgen -d -S / -- "$1"
}}
"""
_ZSH = """\
{function}() {{
  local -a names=({names})
  compadd -a names
  _files -g '*.gin'
}}
"""


def write_script(parser: argparse.ArgumentParser, shell: str) -> str:
  """Returns the completion script of a shell.

  Args:
    parser: of the whole program, with its commands.
    shell: of `SHELLS`.
  """
  for action in _actions(parser):
    if action.metavar in ('FILE', 'FILE.gin', 'STUDY.gin'):
      _complete(action, shtab.FILE)
    if action.dest in ('gin_file', 'files'):
      _complete(action, dict.fromkeys(('bash', 'zsh'), _FUNCTION))
    elif action.metavar in ('RUN', 'SOURCE', 'TARGET'):
      _complete(action, shtab.DIRECTORY)
  names = ' '.join(_packaged_names())
  # By shell; shtab's own annotation names a text alone.
  preamble: Any = {
    'bash': _BASH.format(function=_FUNCTION, names=names),
    'zsh': _ZSH.format(function=_FUNCTION, names=names),
  }
  return shtab.complete(parser, shell=shell, preamble=preamble)


def _complete(action: argparse.Action, how: Any) -> None:
  # What shtab reads; argparse knows nothing of it.
  setattr(action, 'complete', how)  # noqa: B010


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
  """Yields the arguments of a parser and of its commands."""
  for action in parser._actions:
    yield action
    if isinstance(action, argparse._SubParsersAction):
      for command in action.choices.values():
        yield from _actions(command)


def _packaged_names() -> list[str]:
  """Returns the package's gin files, as `--gin_file` takes them."""
  root = importlib.resources.files('mhr_jax.configs')
  return sorted(
    f'{folder.name}/{file.name}'
    for folder in root.iterdir()
    if folder.is_dir()
    for file in folder.iterdir()
    if file.name.endswith('.gin')
  )
