"""The libraries that tests here compare with; without them, tests skip."""

import pytest

_REASON = 'needs torch, transformers and peft, which `make test-interop` adds'


@pytest.fixture(scope='session')
def torch():
  """torch, on one thread."""
  module = pytest.importorskip('torch', reason=_REASON)
  module.set_num_threads(1)
  return module


@pytest.fixture(scope='session')
def transformers(torch):
  """transformers, and torch."""
  return pytest.importorskip('transformers', reason=_REASON)


@pytest.fixture(scope='session')
def peft(transformers):
  """PEFT, transformers and torch."""
  return pytest.importorskip('peft', reason=_REASON)
