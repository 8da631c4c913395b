"""gin files: whatever stands in one, it is read or refused with its place."""

import gin
from hypothesis import example, given
import pytest

from mhr_jax import configuration
from mhr_jax.data.mixture_settings import MixtureSettings
from mhr_jax.errors import UserError
from mhr_jax.optim import OptimizerSettings
from spoiling import answers, spoiled_bytes, spoiled_text

_GOOD = """\
from __gin__ import dynamic_registration
from mhr_jax import optim
from mhr_jax.data import mixture_settings

RATE = 1e-3
include 'other.gin'
optim.OptimizerSettings.clip_norm = %RATE
optim.OptimizerSettings.learning_rates = {'adapters': 1e-3}
mixture_settings.MixtureSettings:
  batch_size = 4
  input_length = 8
scope/mixture_settings.MixtureSettings.cap = None
mixture_settings.MixtureSettings.length_buckets = [(4, 4)]
"""
_WORDS = (
  *[
    '=',
    '.',
    ',',
    ':',
    '/',
    '%',
    '@',
    '(',
    ')',
    '[',
    ']',
    '{',
    '}',
    '#',
    '"',
    "'",
    '\\',
    '-',
    '+',
  ],
  *[
    'include',
    'import',
    'from',
    'as',
    'optim',
    'RATE',
    '%RATE',
    '@optim.OptimizerSettings',
  ],
  *[
    '%gin.REQUIRED',
    'None',
    '1e999',
    '0x',
    '1_0',
    'nan',
    'gin.macro',
    '__gin__',
  ],
  *('OptimizerSettings.', 'optim.OptimizerSettings.', '"', '\n', ' ', '\t'),
)
_CONFIGURABLES = (OptimizerSettings, MixtureSettings)


@pytest.fixture(autouse=True)
def _clean_gin():
  yield
  gin.clear_config()


def _read(folder):
  found = configuration.parse(
    ['mine.gin'], search_paths=[str(folder)], configurables=_CONFIGURABLES
  )
  for function in _CONFIGURABLES:
    answers(found.resolve, function)
    answers(found.call, function)


def _write(folder, data):
  (folder / 'other.gin').write_text('RATE = 2\n')
  (folder / 'mine.gin').write_bytes(data)


@given(spoiled_text(_GOOD, _WORDS))
@example('RATE = ' + '(' * 400)
@example('RATE = ' + '-' * 4000 + '1')
@example('RATE = %RATE\noptim = %RATE')
@example('A = %B\nB = %A\noptim = %A')
@example("include 'mine.gin'")
@example('import os.nothing')
@example('from mhr_jax import nothing')
@example('optim.OptimizerSettings.b1 = @optim.OptimizerSettings()')
def test_lines_of_a_gin_file(folder, text):
  _write(folder, text.encode('utf-8', 'surrogatepass'))
  answers(_read, folder)


@given(spoiled_bytes(_GOOD.encode()))
def test_bytes_of_a_gin_file(folder, data):
  _write(folder, data)
  answers(_read, folder)


def test_a_file_that_is_no_text_is_named_with_its_line(folder):
  _write(folder, b'RATE = 3\n# \xff\n')
  with pytest.raises(UserError, match=r'mine.gin:2: no text in UTF-8'):
    _read(folder)
