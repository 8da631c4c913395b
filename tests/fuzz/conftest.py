"""How many examples: few and always the same, unless `make test-fuzz` asks."""

import os
import pathlib

from hypothesis import HealthCheck, settings
import pytest

_EXAMPLES = 'MHR_JAX_FUZZ_EXAMPLES'

_SHARED = {
  'deadline': 10_000,  # milliseconds: a reader never hangs
  'suppress_health_check': list(HealthCheck),
  'database': None,
}
settings.register_profile('few', max_examples=25, derandomize=True, **_SHARED)
settings.register_profile(
  'many', max_examples=int(os.environ.get(_EXAMPLES, 1000)), **_SHARED
)


# Before the tests of this folder, which take what holds when they are read.
settings.load_profile('many' if _EXAMPLES in os.environ else 'few')


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> pathlib.Path:
  """A folder whose files every example writes anew."""
  return tmp_path_factory.mktemp('fuzz')
