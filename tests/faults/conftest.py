"""One bench for the faults' tests, with a training that nothing happens to."""

import pathlib
import tempfile

import pytest

from faults.harness import Bench


@pytest.fixture(scope='session')
def bench():
  """A bench; its training `whole` is done."""
  # Not in pytest's own folder, which no other user may enter.
  with tempfile.TemporaryDirectory(prefix='mhr_jax_faults_') as name:
    folder = pathlib.Path(name)
    folder.chmod(0o755)
    made = Bench(folder).set_up()
    ended = made.run(folder / 'whole')
    assert ended.code == 0, ended.text
    yield made


@pytest.fixture(scope='session')
def whole(bench):
  """The run folder of a training that nothing happened to."""
  return bench.root / 'whole'
