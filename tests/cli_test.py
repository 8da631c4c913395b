"""Short messages and exit codes; T5X's spelling of gin's flags."""

import io
import subprocess
import sys

import gin
import pytest

from mhr_jax import cli


@pytest.fixture(autouse=True)
def _clean_gin():
  yield
  gin.clear_config()


@pytest.mark.parametrize(
  'argv, message',
  [
    ([], 'arguments are required: COMMAND'),
    (['trian'], "invalid choice: 'trian'"),
    (['train'], 'Which gin file?'),
    (['train', '--gin.STEPS'], '--gin.STEPS: a binding is --gin.NAME=value.'),
    (['train', '--gin_file=runs/multi_tsk.gin'], 'runs/multi_task.gin'),
    (['train', '--distributed=a:1,2'], 'it is ADDRESS:PORT,COUNT,INDEX'),
    (['show', 'runs/multi_task.gin'], 'Add `--gin_file=configs/m'),
    (['show', 'methods/full.gin'], 'binds no parameter of a command'),
    (
      ['show', 'runs/evaluate.gin', '--gin.evaluate.splt="a"'],
      "Did you mean 'split'",
    ),
    (['predict', '/nowhere'], '/nowhere is not a run folder'),
    (['report', '/nowhere'], 'There is no folder /nowhere'),
    (['tasks', '--data_dir=/nowhere'], 'Nothing is prepared in /nowhere'),
    (['prepare'], 'Which tasks?'),
    (['tasks', '--module=no_such_module'], "no module 'no_such_module'"),
  ],
)
def test_a_mistake_ends_with_code_2_and_a_short_message(
  argv, message, capsys, monkeypatch
):
  monkeypatch.setattr('sys.stdin', io.StringIO('a text\n'))
  assert cli.main(argv) == 2
  printed = capsys.readouterr()
  assert message in printed.err
  assert len(printed.err.splitlines()) <= 5
  assert printed.out == ''


def test_show_prints_each_value_with_its_origin(capsys):
  argv = [
    'show',
    'runs/evaluate.gin',
    '--gin.RUN_DIR="runs/a"',
    '--gin.LIMIT=7',
  ]
  assert cli.main(argv) == 0
  lines = capsys.readouterr().out.splitlines()
  assert "commands.evaluate.run_dir = 'runs/a'  # command line" in lines
  assert 'commands.evaluate.limit = 7  # command line' in lines
  assert 'commands.evaluate.batch_size = 64  # default' in lines
  place = [line for line in lines if line.startswith('commands.evaluate.split')]
  assert place[0].startswith(
    "commands.evaluate.split = 'validation'  # configs/runs/evaluate.gin:"
  )


def test_bindings_are_taken_out_in_order():
  argv = ['train', '--gin.A="x y"', '--dry_run', '--gin.f.b=[1, 2]']
  assert cli.split_bindings(argv) == (
    ['train', '--dry_run'],
    ['A = "x y"', 'f.b = [1, 2]'],
  )


def test_tasks_lists_and_shows_what_is_prepared(tmp_path, write_task, capsys):
  written = write_task(tmp_path, 'a_task', train=3)['train'][0]
  assert cli.main(['tasks', f'--data_dir={tmp_path}']) == 0
  assert capsys.readouterr().out.splitlines()[1] == '  a_task'
  argv = ['tasks', f'--data_dir={tmp_path}', '--show=a_task', '--n=1']
  assert cli.main(argv) == 0
  printed = capsys.readouterr().out
  assert repr(written.inputs_pretokenized) in printed
  assert f'[{" ".join(map(str, written.inputs))}]' in printed


def test_help_is_short_fast_and_ends_with_three_commands():
  code = (
    'import sys\nfrom mhr_jax import cli\n'
    'try:\n  cli.main(["--help"])\nexcept SystemExit as e:\n'
    '  assert e.code == 0\nassert "jax" not in sys.modules'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  lines = done.stdout.splitlines()
  assert len(lines) < 30
  end = lines[lines.index('three commands to begin with:') :]
  assert sum(line.startswith('  mhr-jax ') for line in end) == 3


def test_python_m_train_is_the_command_train():
  done = subprocess.run(
    [sys.executable, '-m', 'mhr_jax.train', '--gin_file=runs/nothing.gin'],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2
  assert done.stderr.startswith("mhr-jax: There is no gin file 'runs/nothing")
