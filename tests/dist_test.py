"""What is built installs and works alone, on every Python that is there.

`make dist-test`: minutes for each Python, and it needs the package index. The
wheel is made from the sdist, which is made from the files that git knows.
"""

import email.parser
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_VERSIONS = tuple(f'3.{minor}' for minor in range(11, 16))
_NEWEST_JAX = 'jax>=0.11,<0.12'

pytestmark = [pytest.mark.dist, pytest.mark.timeout(1200)]


def _run(*command, cwd, **environment) -> str:
  """Returns what a command prints, which sees nothing of the checkout."""
  kept = {k: v for k, v in os.environ.items() if not k.startswith('PYTHON')}
  done = subprocess.run(
    [str(part) for part in command],
    cwd=cwd,
    env=kept | {'JAX_PLATFORMS': 'cpu'} | environment,
    capture_output=True,
    text=True,
    check=False,
  )
  said = f'{done.stdout[-2000:]}\n{done.stderr[-4000:]}'
  assert done.returncode == 0, f'{command}\n{said}'
  return done.stdout


def _find_python(version: str) -> str | None:
  """Returns an interpreter of this version that can make environments."""
  pyenv = pathlib.Path(os.environ.get('PYENV_ROOT', '~/.pyenv')).expanduser()
  built = sorted(pyenv.glob(f'versions/{version}.*/bin/python'))
  own = sys.executable if sys.version_info[:2] == _numbers(version) else None
  code = 'import sys, venv, ensurepip; print(*sys.version_info[:2])'
  for found in (own, shutil.which(f'python{version}'), *map(str, built)):
    if found is None:
      continue
    done = subprocess.run(
      [found, '-c', code], capture_output=True, text=True, check=False
    )
    if done.stdout.split() == version.split('.'):
      return found
  return None


def _numbers(version: str) -> tuple[int, ...]:
  return tuple(map(int, version.split('.')))


@pytest.fixture(scope='session')
def built(tmp_path_factory) -> tuple[pathlib.Path, pathlib.Path, pathlib.Path]:
  """The sdist, the wheel, and the source that they are of."""
  source = tmp_path_factory.mktemp('source')
  listed = subprocess.run(
    ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    check=True,
  ).stdout
  for name in filter(None, listed.split('\0')):
    if (_ROOT / name).is_file():
      (source / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy(_ROOT / name, source / name)
  folder = tmp_path_factory.mktemp('dist')
  _run(sys.executable, '-m', 'build', '--outdir', folder, source, cwd=folder)
  (sdist,), (wheel,) = folder.glob('*.tar.gz'), folder.glob('*.whl')
  return sdist, wheel, source


class _Environment:
  """An empty virtual environment with a distribution of ours in it."""

  def __init__(self, folder: pathlib.Path, version: str):
    python = _find_python(version)
    if python is None:
      pytest.skip(f'untested on Python {version}, which is not here')
    self.folder = folder
    self.wants_newest_jax = False
    self.cwd = folder / 'work'
    self.cwd.mkdir()
    self.constraints = folder / 'constraints.txt'
    self.constraints.write_text((_ROOT / 'constraints.txt').read_text())
    _run(python, '-m', 'venv', folder / 'venv', cwd=folder)

  def allow_newest_jax(self):
    """Takes jax out of what is pinned, and asks for 0.11."""
    self.wants_newest_jax = True
    lines = self.constraints.read_text().splitlines()
    kept = [x for x in lines if x.split('==')[0] not in ('jax', 'jaxlib')]
    self.constraints.write_text('\n'.join([*kept, _NEWEST_JAX, '']))

  def install(self, what: str):
    self.python('-m', 'pip', 'install', '-q', '-c', self.constraints, what)

  def python(self, *arguments) -> str:
    return _run(self.folder / 'venv/bin/python', *arguments, cwd=self.cwd)

  def mhr_jax(self, *arguments) -> str:
    return _run(self.folder / 'venv/bin/mhr-jax', *arguments, cwd=self.cwd)


@pytest.fixture(
  scope='module',
  params=[(version, 'pinned') for version in _VERSIONS]
  + [(version, 'newest') for version in _VERSIONS[1:]],
  ids=lambda param: '-jax_'.join(param),
)
def installed(request, built, tmp_path_factory):
  """The wheel in an empty environment, without the extra `data`."""
  version, jax = request.param
  folder = tmp_path_factory.mktemp('wheel')
  environment = _Environment(folder, version)
  if jax == 'newest':
    environment.allow_newest_jax()
  environment.install(str(built[1]))
  yield environment
  shutil.rmtree(folder)  # A gigabyte or two.


@pytest.fixture(scope='module')
def trained(installed, built):
  """The environment with the extra `data`; its folder has a run, `run`."""
  installed.install(f'{built[1]}[data]')
  installed.mhr_jax(
    'train',
    '--gin_file=models/t5_1_1_tiny.gin',
    '--gin_file=methods/mhr.gin',
    '--gin_file=runs/multi_task.gin',
    '--gin_file=presets/skills.gin',
    '--gin.RUN_DIR="run"',
    '--gin.BACKBONE_FROM=None',
    '--gin.t5_config.vocab_size=128',
    '--gin.STEPS=3',
    '--gin.BATCH_SIZE=8',
  )
  return installed


def test_the_core_alone_shows_a_packaged_preset(installed):
  shown = installed.mhr_jax('show', 'presets/quickstart.gin')
  assert "study.study.run_dir = 'runs/quickstart'" in shown
  package = installed.python('-c', 'import mhr_jax; print(mhr_jax.__file__)')
  assert package.startswith(str(installed.folder))
  if installed.wants_newest_jax:
    code = 'import jax; print(jax.__version__)'
    assert installed.python('-c', code).startswith('0.11.')
  assert 'missing  registering and preparing' in installed.mhr_jax('doctor')


def test_a_packaged_preset_trains(trained):
  lines = (trained.cwd / 'run/metrics.jsonl').read_text().splitlines()
  assert '"step": 3' in lines[-1]
  trained.mhr_jax('report', 'run')
  page = (trained.cwd / 'run/report.html').read_text()
  assert page.rstrip().endswith('</html>')
  code = "import mhr_jax; print(len(mhr_jax.load('run').generate(['ab'], [0])))"
  assert trained.python('-c', code).strip() == '1'


def test_the_sdist_installs_and_shows_a_preset(built, tmp_path):
  environment = _Environment(tmp_path, '.'.join(map(str, sys.version_info[:2])))
  environment.install(str(built[0]))
  shown = environment.mhr_jax('show', 'presets/quickstart.gin')
  assert "study.study.run_dir = 'runs/quickstart'" in shown
  shutil.rmtree(tmp_path)


def test_the_wheel_holds_all_modules_presets_and_its_licence(built):
  with zipfile.ZipFile(built[1]) as wheel:
    names = set(wheel.namelist())
    (path,) = (name for name in names if name.endswith('.dist-info/METADATA'))
    metadata = email.parser.Parser().parsestr(wheel.read(path).decode())
  for folder, place in (
    ('mhr_jax', 'mhr_jax'),
    ('tasks', 'mhr_jax/tasks'),
    ('configs', 'mhr_jax/configs'),
  ):
    for file in (built[2] / folder).rglob('*'):
      if file.suffix in ('.py', '.gin', '.html', '.typed'):
        assert f'{place}/{file.relative_to(built[2] / folder)}' in names
  assert not [name for name in names if name.startswith('tests')]
  assert metadata['License-Expression'] == 'Apache-2.0'
  assert metadata['Requires-Python'] == '>=3.11'
  assert metadata['Description-Content-Type'] == 'text/markdown'
  assert metadata.get_payload().startswith('# mhr_jax')
  assert any(name.endswith('licenses/LICENSE') for name in names)


def test_the_sdist_holds_what_it_was_tested_with(built):
  with tarfile.open(built[0]) as sdist:
    names = {name.partition('/')[2] for name in sdist.getnames()}
  assert {'LICENSE', 'README.md', 'constraints.txt', 'CHANGELOG.md'} <= names
