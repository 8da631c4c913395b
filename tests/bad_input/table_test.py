"""Every mistake of the table: code 2, a short message, nothing written.

`bad_input_cases` has the table. Its rows run in this process, and a few of
them as a user runs them; with `make test-bad-input` all of them do, and each
must answer within the seconds of $MHR_JAX_BAD_INPUT_SECONDS.
"""

import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import time

import gin
import pytest

from bad_input_cases import TABLE, workspace
from mhr_jax import cli

_SECONDS = os.environ.get('MHR_JAX_BAD_INPUT_SECONDS')
_MAX_LINES = 5
_PROGRAM = str(pathlib.Path(sys.executable).with_name('mhr-jax'))
_HERE = [case for case in TABLE if not case.absent]
_APART = [case for case in TABLE if case.sample or _SECONDS]


@pytest.fixture(scope='module')
def good(tmp_path_factory, write_task, write_mixture):
  """A folder with one good thing of every kind."""
  folder = tmp_path_factory.mktemp('good')
  workspace.build(folder, write_task, write_mixture)
  return folder


@pytest.fixture
def spoiled(good, tmp_path, request):
  """A copy of it with a case's mistake in it."""
  folder = tmp_path / 'work'
  shutil.copytree(good, folder)
  request.getfixturevalue('case').spoil(folder)
  return folder


@pytest.fixture
def _clean():
  """What the rows of this process leave behind is taken away."""
  modules = set(sys.modules)
  kept = {each: dict(each._REGISTRY) for each in _registries()}
  yield
  gin.clear_config()
  for each in _registries():
    entries = kept.get(each, {})
    each._REGISTRY.clear()
    each._REGISTRY.update(entries)
  for name in {'bad', 'failing'} & (set(sys.modules) - modules):
    del sys.modules[name]


def _registries():
  if 'seqio' not in sys.modules:
    return ()
  import seqio

  return seqio.TaskRegistry, seqio.MixtureRegistry


def _snapshot(folder):
  """Returns every path below a folder, with the digest of each file."""
  return {
    str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).digest()
    if path.is_file()
    else None
    for path in folder.rglob('*')
    if '__pycache__' not in path.parts
  }


def _check(case, code, out, err):
  said = f'exit code {code}\n{out}\n{err}'
  assert code == 2, said
  assert 'Traceback' not in err, said
  lines = err.splitlines()
  # What has been noticed until then may stand before it.
  answer = [line for line in lines if not line.startswith('WARNING:')]
  assert answer[0].startswith('mhr-jax: '), said
  assert len(lines) <= _MAX_LINES, said
  for part in case.says:
    assert part in err, f'{part!r} is not said. {said}'


@pytest.mark.skipif(_SECONDS is not None, reason='all rows run apart')
@pytest.mark.parametrize('case', _HERE, ids=lambda case: case.name)
def test_a_mistake_is_answered(case, spoiled, _clean, capfd, monkeypatch):
  monkeypatch.chdir(spoiled)
  monkeypatch.syspath_prepend(str(spoiled))
  before = _snapshot(spoiled)
  capfd.readouterr()
  code = cli.main(list(case.argv))
  _check(case, code, *capfd.readouterr())
  assert _snapshot(spoiled) == before


@pytest.mark.slow
@pytest.mark.parametrize('case', _APART, ids=lambda case: case.name)
def test_a_mistake_is_answered_as_a_user_makes_it(
  case, spoiled, tmp_path, request
):
  before = _snapshot(spoiled)
  start = time.monotonic()
  done = subprocess.run(
    [_PROGRAM, *case.argv],
    cwd=spoiled,
    env=_environment(case, tmp_path),
    input=case.stdin,
    capture_output=True,
    text=True,
    check=False,
  )
  seconds = time.monotonic() - start
  request.node.user_properties.append(
    ('seconds to answer', (case.name, seconds))
  )
  _check(case, done.returncode, done.stdout, done.stderr)
  assert _snapshot(spoiled) == before
  assert seconds < float(_SECONDS or 'inf')


def _environment(case, folder):
  """Returns that of a user who has modules beside, and lacks some packages."""
  lacking = folder / 'lacking'
  lacking.mkdir()
  for name in case.absent:
    text = f'raise ModuleNotFoundError("No module named {name}", name="{name}")'
    (lacking / f'{name}.py').write_text(text)
  kept = {k: v for k, v in os.environ.items() if not k.startswith('TF_')}
  paths = [str(lacking), '.', *filter(None, [kept.get('PYTHONPATH')])]
  return kept | {
    'HOME': str(folder / 'home'),
    'PYTHONPATH': os.pathsep.join(paths),
    'JAX_PLATFORMS': 'cpu',
  }
