"""Short messages and exit codes; T5X's spelling of gin's flags."""

import dataclasses
import io
import subprocess
import sys

import gin
import pytest

import mhr_jax
from mhr_jax import backbones, cli, conversion
from mhr_jax.api import Model
from mhr_jax.loading import LoadedModel
import toy_models
import toy_text


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
    (['predict', '/nowhere'], 'There is nothing at /nowhere'),
    (['convert', '/nowhere', '/new', '--format=hf'], 'nothing at /nowhere'),
    (['convert', '/nowhere', '/new'], 'are required: --format'),
    (['export', '/', '/new', '--format=hf'], '/ is of no format that is read'),
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


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """A native backbone, and adapters for it."""
  root = tmp_path_factory.mktemp('cli')
  model = toy_text.make_model()
  params = toy_text.make_params(model)
  backbones.save_backbone(
    root / 'b',
    params['backbone'],
    toy_text.CONFIG,
    vocabulary=toy_text.VOCABULARY,
  )
  Model(LoadedModel(model, params, toy_text.TASKS)).save(root / 'a')
  return root


def test_convert_says_what_it_does_step_by_step(folders, tmp_path, capsys):
  backbone, adapter, new = folders / 'b', folders / 'a', tmp_path / 'new'
  argv = ['convert', backbone, new, f'--adapter={adapter}', '--format=hf']
  assert cli.main([*map(str, argv), '--task=1', '--dtype=bfloat16']) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[:2] == [
    f'reading {backbone}: a native backbone folder',
    f'reading {adapter}: a native adapter',
  ]
  assert lines[2] == (
    '  parameters: 13,024 in backbone, 576 in adapters, 54 in routers; 3 tasks;'
    ' ByteVocabulary(extra_ids=0)'
  )
  whole = mhr_jax.load(backbone, adapter=adapter)
  assert lines[3] == f'  logits: {whole.logits_checksum("first")}'
  assert lines[4] == f'writing {new}: hf'
  assert lines[5].endswith('the adapter of first fused into it')
  assert lines[6].startswith('  fusing changed the logits by ')
  kernel = mhr_jax.load(new).loaded.params['backbone']['token_embedder']
  assert (kernel['embedding'] == kernel['embedding'].astype('bfloat16')).all()
  assert (new / 'tokenizer_config.json').exists()


def test_adapters_are_converted_without_their_backbone(
  folders, tmp_path, capsys
):
  adapter, names = folders / 'a', tmp_path / 'names.txt'
  argv = ['convert', adapter, tmp_path / 'p', '--format=peft-poly']
  assert cli.main([*map(str, argv)]) == 0
  assert 'logits' not in capsys.readouterr().out
  (tmp_path / 'p' / 'tasks.json').unlink()
  names.write_text('x\ny\nz\n')
  argv = ['convert', folders / 'b', tmp_path / 'n', '--format=native']
  argv += [f'--adapter={tmp_path / "p"}', f'--tasks={names}']
  assert cli.main([*map(str, argv)]) == 0
  assert mhr_jax.load(folders / 'b', tmp_path / 'n').tasks == ('x', 'y', 'z')


@pytest.mark.parametrize(
  'argv, message',
  [
    (['a', 'new', '--format=hf'], 'convert BACKBONE'),
    (['a', 'new', '--format=native', '--adapter=a'], 'no backbone to put'),
    (
      ['b', 'new', '--format=peft-lora', '--adapter=a'],
      'Which task? The model kn',
    ),
    (['b', 'new', '--format=peft-lora'], 'there are none to write'),
    (['b', 'a', '--format=native'], 'holds a native adapter already'),
    (['b', 'new', '--format=tf'], "There is no format 'tf'"),
    (['b', 'new', '--format=hf', '--dtype=float16'], 'float16'),
    (['b', 'new', '--format=hf', '--tasks=none.txt'], 'none.txt: No such file'),
    (['a', 'a', '--format=native', '--task=copy'], 'nothing is overwritten'),
    (['a', 'new', '--format=native', '--dtype=bfloat16'], 'leave dtype out'),
    (
      ['b', 'new', '--format=peft-poly', '--adapter=a', '--dtype=bfloat16'],
      'peft-poly holds adapters alone',
    ),
    (['b', 'new', '--format=hf', '--base_model=b'], 'no place for base_model'),
    (['b', 'new', '--format=hf', '--task=copy'], 'no adapters, so no tasks'),
    (['b', 'new', '--format=hf', '--step=3'], 'read as a native backbone'),
    (['b', 'b/frozen.json/new', '--format=hf'], 'Not a directory'),
  ],
)
def test_conversions_that_cannot_be_are_said_in_short(
  folders, argv, message, capsys, monkeypatch
):
  monkeypatch.chdir(folders)
  assert cli.main(['convert', *argv]) == 2
  printed = capsys.readouterr().err
  assert message in printed and len(printed.splitlines()) <= 5
  assert not (folders / 'new').exists()


def test_what_a_conversion_cannot_be_is_said_before_arrays_are_read(
  folders, tmp_path, capsys, monkeypatch
):
  toy_models.write_run(tmp_path / 'run', toy_models.make_model())
  (tmp_path / 't5x' / 'checkpoint_9' / 'state').mkdir(parents=True)
  (tmp_path / 't5x' / 'checkpoint_9' / 'state' / '_METADATA').write_text('{}')
  monkeypatch.setattr(conversion.api, 'load', None)
  monkeypatch.chdir(tmp_path)
  for argv, message in (
    (['convert', folders / 'b', 'new', '--format=hf'], 'Which task?'),
    (['export', 'run', 'new', '--format=hf'], 'Which task?'),
    (['export', 'run', 'new', '--format=peft-lora', '--task=x'], "task 'x'"),
    (['export', 'run', 'new', '--format=run', '--dtype=float32'], 'dtype out'),
    (['export', 'run', 't5x', '--format=t5x', '--task=0'], 'checkpoint_9'),
    (['export', 'run', 'run', '--format=native'], 'a run folder already'),
  ):
    if argv[0] == 'convert':
      argv.append(f'--adapter={folders / "a"}')
    assert cli.main([*map(str, argv)]) == 2
    assert message in capsys.readouterr().err


def test_a_backbone_stored_in_bfloat16_is_computed_in_as_before(
  folders, tmp_path, capsys
):
  argv = ['convert', folders / 'b', tmp_path / 'new', '--format=native']
  assert cli.main([*map(str, argv), '--dtype=bfloat16']) == 0
  assert 'logits' in capsys.readouterr().out
  stored = dataclasses.replace(toy_text.CONFIG, storage='bfloat16')
  assert backbones.read_config(tmp_path / 'new') == stored
  kernels, small = (
    mhr_jax.load(x).loaded.params['backbone']['token_embedder']['embedding']
    for x in (folders / 'b', tmp_path / 'new')
  )
  assert (kernels.astype('bfloat16') == small).all() and (
    kernels != small
  ).any()


def test_export_takes_a_step_and_names(tmp_path, capsys):
  toy_models.write_run(tmp_path / 'run', toy_models.make_model())
  argv = ['export', tmp_path / 'run', tmp_path / 'new', '--format=t5x']
  argv += ['--task=0', '--vocabulary=bytes']
  assert cli.main([*map(str, argv), '--step=7']) == 0
  assert '; step 7' in capsys.readouterr().out
  assert (tmp_path / 'new' / 'checkpoint_7').exists()
  argv[2] = tmp_path / 'other'
  for step in ('8', '0'):
    assert cli.main([*map(str, argv), f'--step={step}']) == 2
    assert f'does not have step {step}' in capsys.readouterr().err


def test_export_is_for_runs(folders, tmp_path, capsys):
  toy_models.write_run(tmp_path / 'run', toy_models.make_model())
  argv = ['export', str(tmp_path / 'run'), str(tmp_path / 'new')]
  assert cli.main([*argv, '--format=peft-lora', '--task=copy']) == 0
  printed = capsys.readouterr().out
  assert 'a run folder' in printed and '; step 7' in printed
  assert (tmp_path / 'new' / 'adapter_config.json').exists()
  argv = ['export', str(folders / 'b'), str(folders / 'new'), '--format=t5x']
  assert cli.main(argv) == 2
  assert f'mhr-jax convert {folders / "b"}' in capsys.readouterr().err


def test_files_that_cannot_be_read_are_said_in_one_line(
  folders, tmp_path, capsys
):
  (tmp_path / 'latin1').write_bytes('é'.encode('latin-1'))
  (tmp_path / 'plain').write_text('')
  for path, message in (
    (tmp_path / 'latin1', 'is no text in UTF-8'),
    (tmp_path, 'Is a directory'),
    (tmp_path / 'plain' / 'x', 'Not a directory'),
  ):
    assert cli.main(['predict', str(folders / 'b'), f'--input={path}']) == 2
    printed = capsys.readouterr().err
    assert message in printed and len(printed.splitlines()) == 1


def test_predict_takes_a_backbone_with_an_adapter(folders, capsys, monkeypatch):
  monkeypatch.setattr('sys.stdin', io.StringIO('abc\nb\n'))
  argv = ['predict', str(folders / 'b'), f'--adapter={folders / "a"}']
  assert cli.main([*argv, '--task=upper', '--max_new_tokens=6']) == 0
  expected = mhr_jax.load(folders / 'b', folders / 'a').generate(
    ['abc', 'b'], 'upper', max_new_tokens=6
  )
  assert capsys.readouterr().out.splitlines() == expected


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
  assert len(lines) < 36
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
