"""Completion in a real shell; each command's help ends with what runs."""

import argparse
import shlex
import shutil
import subprocess

import gin
import pytest

from mhr_jax import cli, command_examples, configurables, configuration
from mhr_jax.task_data import TaskData

_BASH = shutil.which('bash')


@pytest.fixture(autouse=True)
def _clean_gin():
  yield
  gin.clear_config()


def _commands() -> dict[str, argparse.ArgumentParser]:
  (found,) = (
    action.choices
    for action in cli.build_parser()._actions
    if isinstance(action, argparse._SubParsersAction)
  )
  return dict(found)


def test_every_command_has_three_examples():
  assert set(command_examples.EXAMPLES) == set(_commands())
  for name, command in _commands().items():
    lines = command.format_help().splitlines()
    end = lines[lines.index('three commands to paste:') + 1 :]
    assert len(end) == 3
    assert any(line.startswith(f'  mhr-jax {name}') for line in end)


def _parse(files, bindings):
  return configuration.parse(
    files, bindings, configurables=configurables.all_configurables()
  )


@pytest.mark.parametrize('name', sorted(command_examples.EXAMPLES))
def test_examples_parse_and_resolve(name):
  for line in command_examples.EXAMPLES[name]:
    argv = shlex.split(line.partition(' > ')[0])
    rest, bindings = cli.split_bindings(argv)
    options = cli.build_parser().parse_args(rest)
    files = [*getattr(options, 'files', []), *getattr(options, 'gin_file', [])]
    if files and name == 'prepare':
      assert _parse(['runs/tasks.gin', *files], bindings).call(TaskData).names
    elif files:
      missing = 'show' if name == 'show' else 'raise'
      parsed = _parse(files, bindings)
      for root in parsed.bound(configurables.roots()):
        given = configurables.roots()[root]
        parsed.resolve(root, given=given, missing=missing)


def _complete(script: str, *words: str) -> list[str]:
  """Returns what bash would offer for the last word."""
  typed = ' '.join(map(shlex.quote, words))
  code = (
    f'{script}\nCOMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}\n'
    '_shtab_mhr_jax\nprintf "%s\\n" "${COMPREPLY[@]}"'
  )
  done = subprocess.run(
    [str(_BASH), '--norc', '-c', code], capture_output=True, text=True
  )
  assert done.stderr == ''
  return done.stdout.split()


@pytest.mark.skipif(_BASH is None, reason='no bash')
def test_bash_completes_commands_flags_and_gin_files(capsys):
  assert cli.main(['completion', 'bash']) == 0
  script = capsys.readouterr().out
  assert set(_complete(script, 'mhr-jax', 're')) == {'report'}
  assert '--with_optimizer' in _complete(script, 'mhr-jax', 'export', '--wi')
  for words in (['train', '--gin_file'], ['study']):
    found = _complete(script, 'mhr-jax', *words, 'presets/quick')
    assert found == ['presets/quickstart.gin']


def test_zsh_has_a_script_too(capsys):
  assert cli.main(['completion', 'zsh']) == 0
  assert capsys.readouterr().out.startswith('#compdef mhr-jax')
