"""Every gin file is short, explains itself, parses and builds."""

import pathlib
import re
import shlex

import gin
import jax
import pytest

from mhr_jax import cli, configurables, configuration, methods
from mhr_jax.adapters import AdapterConfig
from mhr_jax.jobs import RoutedT5
from mhr_jax.routing import MixingForm
from mhr_jax.t5.config import t5_config
from mhr_jax.task_data import TaskData

_CONFIGS = pathlib.Path(__file__).resolve().parents[1] / 'configs'
_FILES = sorted(str(p.relative_to(_CONFIGS)) for p in _CONFIGS.rglob('*.gin'))
# What T5X's launcher reads; parsed in tests/t5x.
_OURS = [name for name in _FILES if not name.startswith('t5x/')]
_TINY = ['models/t5_1_1_tiny.gin']
_MULTI_TASK = ['runs/multi_task.gin', 'presets/skills.gin']


@pytest.fixture(autouse=True)
def _clean_gin():
  yield
  gin.clear_config()


def _command(name: str) -> tuple[str, list[str], list[str]]:
  """Returns the command of a file's header: its name, files and bindings."""
  lines = (_CONFIGS / name).read_text().splitlines()
  start = next(i for i, line in enumerate(lines) if 'Command:' in line)
  text = lines[start].partition('Command:')[2]
  while text.endswith('\\'):
    start += 1
    text = text[:-1] + lines[start].removeprefix('#')
  argv, bindings = cli.split_bindings(shlex.split(text))
  files = [a.partition('=')[2] for a in argv if a.startswith('--gin_file=')]
  return argv[1], files, bindings


def _parse(files, bindings=()):
  return configuration.parse(
    files,
    bindings,
    configurables=configurables.all_configurables(),
    limits=configurables.safe_limits(),
  )


@pytest.mark.parametrize('name', _FILES)
def test_a_file_is_short_and_says_how_it_is_used(name):
  lines = (_CONFIGS / name).read_text().splitlines()
  assert len(lines) <= 60
  assert max(map(len, lines)) <= 80
  header = '\n'.join(line for line in lines[:20] if line.startswith('#'))
  assert re.search(
    r'^# Command: +(mhr-jax \w+|python -m mhr_jax.t5x) ', header, re.M
  )
  assert lines[0].startswith('# ')


@pytest.mark.parametrize('name', _FILES)
def test_includes_have_two_levels_at_most(name):
  def depth(file):
    if not (_CONFIGS / file).exists():  # T5X's
      return 0
    text = (_CONFIGS / file).read_text()
    found = re.findall(r"^include '(.*)'", text, re.M)
    return 1 + max(map(depth, found), default=-1)

  assert depth(name) <= 2


@pytest.mark.parametrize('name', _OURS)
def test_the_command_of_the_header_resolves(name):
  command, files, bindings = _command(name)
  parsed = _parse(files, bindings)
  assert any(file.endswith(name) for file in parsed.files)
  roots = {root.__name__: root for root in configurables.roots()}
  root = (roots | {'prepare': TaskData})[command]
  # A model or a method alone leaves open what the run is about.
  part = name.startswith(('models/', 'methods/'))
  resolved = parsed.resolve(
    root,
    given=configurables.roots().get(root, ()),
    missing='show' if part else 'raise',
  )
  assert len(resolved.settings) > (2 if command == 'prepare' else 15)


@pytest.mark.parametrize('name', [f for f in _FILES if 'models/' in f])
def test_a_model_is_the_published_one(name):
  size = pathlib.Path(name).stem
  parsed = _parse([name])
  built = parsed.call(t5_config)
  published = t5_config(size)
  counts = [
    RoutedT5(config).count_parameters()['backbone']
    for config in (built, published)
  ]
  assert counts[0] == counts[1]
  if size == 't5_1_1_xl':
    assert counts[0] == 2_849_757_184


@pytest.mark.parametrize(
  ('name', 'form'),
  [
    ('mhr', MixingForm()),
    ('mhr_shared_skill', MixingForm(shared_skill=True)),
    ('mhr_straight_through', MixingForm(mixing='straight_through')),
  ],
)
def test_a_form_of_mhr_is_what_its_file_says(name, form):
  parsed = _parse([f'methods/{name}.gin'])
  config = parsed.call(AdapterConfig, n_tasks=3)
  config = methods.adapter_config('mhr', config)
  assert (config.mixing_form, config.n_splits) == (form, 8)


def test_every_method_has_a_file():
  found = {
    re.search(r"^METHOD = '(\w+)'", (_CONFIGS / name).read_text(), re.M)[1]
    for name in _FILES
    if name.startswith('methods/')
  }
  assert found == set(methods.METHODS)


def _dry_run(files, data_dir, *bindings):
  argv = [f'--gin_file={file}' for file in files]
  argv += [f'--gin.{binding}' for binding in bindings]
  return cli.main(
    [
      'train',
      *argv,
      '--gin.RUN_DIR="run"',
      '--gin.TASKS="a_task"',
      '--gin.TASK_MODULES=()',
      f'--gin.DATA_DIR="{data_dir}"',
      '--gin.BATCH_SIZE=8',
      '--gin.INPUT_LENGTH=16',
      '--gin.TARGET_LENGTH=8',
      '--dry_run',
    ]
  )


@pytest.mark.slow
@pytest.mark.parametrize('method', ('mhr',))
def test_a_method_builds_and_compiles(
  method, tmp_path, write_task, capsys, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  write_task(tmp_path, 'a_task', train=20, validation=5)
  files = [*_TINY, f'methods/{method}.gin', *_MULTI_TASK]
  assert _dry_run(files, tmp_path, 'BACKBONE_FROM=None') == 0
  printed = capsys.readouterr().out
  assert printed.startswith(f'{method}: ')
  assert 'memory ' in printed
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
@pytest.mark.parametrize(
  'method', ('full', 'lora', 'lora_big', 'poly', 'private', 'random')
)
def test_the_other_methods_build_too(method, tmp_path, write_task, monkeypatch):
  monkeypatch.chdir(tmp_path)
  write_task(tmp_path, 'a_task', train=20, validation=5)
  files = [*_TINY, f'methods/{method}.gin', *_MULTI_TASK]
  assert _dry_run(files, tmp_path, 'BACKBONE_FROM=None') == 0


@pytest.mark.slow
def test_a_backbone_is_pretrained_by_span_corruption(
  tmp_path, write_task, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  write_task(tmp_path, 'a_task', lengths=(10, 20))
  files = [*_TINY, 'runs/pretrain_backbone.gin']
  assert _dry_run(files, tmp_path) == 0
  assert capsys.readouterr().out.startswith('full: ')


@pytest.mark.slow
def test_xl_builds_without_allocating(
  tmp_path, write_task, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  write_task(tmp_path, 'a_task', train=20, validation=5)
  files = ['models/t5_1_1_xl.gin', 'methods/mhr.gin', *_MULTI_TASK]
  assert _dry_run(files, tmp_path, 'BACKBONE_FROM=None') == 0
  assert 'backbone/encoder' in capsys.readouterr().out
  assert not [a for a in jax.live_arrays() if a.size > 10**8]
