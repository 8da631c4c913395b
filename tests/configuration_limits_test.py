"""Under `--safe_config` a hostile gin file ends before anything of it runs."""

import pathlib
import sys

import gin
import pytest

from mhr_jax import cli, configurables

_HEAD = 'from __gin__ import dynamic_registration\n'
_RUN = '--gin_file=runs/evaluate.gin'


@pytest.fixture(autouse=True)
def _clean_gin():
  saved = gin.config._REGISTRY.copy(), dict(gin.config._INVERSE_REGISTRY)
  yield
  gin.clear_config()
  gin.config._REGISTRY, inverse = saved[0], saved[1]
  gin.config._INVERSE_REGISTRY.clear()
  gin.config._INVERSE_REGISTRY.update(inverse)


@pytest.fixture
def hostile(tmp_path, monkeypatch):
  """The working directory, with a module that leaves a trace when imported."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  text = f'import pathlib\npathlib.Path({str(tmp_path / "trace")!r}).touch()\n'
  for name in ('stranger', 'mhr_jax_stranger'):
    (tmp_path / f'{name}.py').write_text(text)
    monkeypatch.delitem(sys.modules, name, raising=False)
  return tmp_path


def _show(folder: pathlib.Path, text: str, *flags: str) -> int:
  (folder / 'x.gin').write_text(_HEAD + text)
  return cli.main(['show', _RUN, '--gin_file=x.gin', *flags])


# What a file says from its line 2 on; the line that is named; what is named.
_HOSTILE = {
  'import': ('import stranger\n', 2, 'stranger may not be imported'),
  'alias': ('import stranger as gin_\n', 2, 'stranger may not be'),
  'a name like ours': (
    'import mhr_jax_stranger\n',
    2,
    'mhr_jax_stranger may not be imported',
  ),
  'the program': ('import __main__ as m\n', 2, '__main__ may not be imported'),
  'a call': ('import os\nRUN_DIR = @os.getcwd()\n', 2, 'os may not be'),
  'a module of ours as a way to others': (
    'from mhr_jax import cli\nRUN_DIR = @cli.os.getcwd()\n',
    3,
    '.getcwd is neither a setting nor a command',
  ),
  'in a container': (
    'from mhr_jax import cli\nRUN_DIR = {"a": [@cli.os.getcwd()]}\n',
    3,
    '.getcwd is neither a setting nor a command',
  ),
  'as a macro': (
    'from mhr_jax import cli\nX = @cli.os.getcwd\nRUN_DIR = %X\n',
    3,
    '.getcwd is neither a setting nor a command',
  ),
  'a binding': (
    'from mhr_jax import cli\ncli.os.system.command = "touch trace"\n',
    3,
    '.system is neither a setting nor a command',
  ),
  'a block': (
    'from mhr_jax import run_files\n\nrun_files.write_text:\n  text = "x"\n',
    4,
    'mhr_jax.run_files.write_text is neither a setting nor a command',
  ),
  'a task module': (
    'from mhr_jax import task_data\ntask_data.TaskModule.name = "stranger"\n',
    3,
    'stranger may not be imported',
  ),
  'a task module in a scope, as a macro that is set later': (
    'from mhr_jax import task_data\na/task_data.TaskModule.name = %N\n'
    'N = "mhr_jax.tasks.skills"\nN = "stranger"\n',
    3,
    'stranger may not be imported',
  ),
}


@pytest.mark.parametrize('case', _HOSTILE)
def test_what_is_not_ours_is_refused_with_its_line(case, hostile, capsys):
  text, line, message = _HOSTILE[case]
  assert _show(hostile, text, '--safe_config') == 2
  printed = capsys.readouterr().err
  assert f'x.gin:{line}: --safe_config: ' in printed
  assert message in printed
  assert not (hostile / 'trace').exists()


def test_an_included_file_is_held_to_the_same(hostile, capsys):
  (hostile / 'y.gin').write_text('import stranger\n')
  assert _show(hostile, "include 'y.gin'\n", '--safe_config') == 2
  assert 'y.gin:1: --safe_config: stranger' in capsys.readouterr().err
  assert not (hostile / 'trace').exists()


def test_a_binding_on_the_command_line_is_held_to_the_same(hostile, capsys):
  flag = '--gin.TaskModule.name="stranger"'
  assert _show(hostile, '', '--safe_config', flag) == 2
  assert 'command line: --safe_config: stranger' in capsys.readouterr().err


def test_without_the_flag_a_gin_file_may_import_anything(hostile, capsys):
  text = 'import stranger\nRUN_DIR = "a"\n'
  assert _show(hostile, text) == 0
  assert (hostile / 'trace').exists()


def test_our_own_settings_and_task_modules_are_allowed(hostile, capsys):
  text = (
    'from mhr_jax import task_data\nRUN_DIR = "a"\nTASKS = "t"\n'
    'TASK_MODULES = [@task_data.TaskModule()]\n'
    'task_data.TaskModule.name = "mhr_jax.tasks.skills"\n'
  )
  assert _show(hostile, text, '--safe_config') == 0
  assert "'mhr_jax.tasks.skills'" in capsys.readouterr().out


def test_names_given_as_text_are_those_of_something():
  names = configurables.safe_limits().names
  listed = {
    configurables.full_name(each) for each in configurables.all_configurables()
  }
  (extra,) = names - listed
  module, _, name = extra.rpartition('.')
  source = pathlib.Path(__file__).resolve().parents[1] / (
    module.removeprefix('mhr_jax.').replace('.', '/') + '.py'
  )
  assert f'\ndef {name}(' in source.read_text()
