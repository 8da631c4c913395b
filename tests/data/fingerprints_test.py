"""Equal things have equal fingerprints in every process, others do not."""

import dataclasses
import functools
import os
import pathlib
import subprocess
import sys

import pytest

from mhr_jax.data import fingerprints


@dataclasses.dataclass
class Settings:
  n: int
  names: frozenset[str]


class Reader:
  def __init__(self, path):
    self.path = path

  @functools.cached_property
  def contents(self):
    return 'read'


def clean(text, *, form='x'):
  return text + form


def closing_over(value):
  return lambda text: text + value


def make_all():
  """Values of all kinds, for two processes to fingerprint."""
  return {
    'settings': Settings(1, frozenset('abcdefgh')),
    'function': functools.partial(clean, form='y'),
    'closure': closing_over('z'),
    'class': Reader,
    'object': Reader(pathlib.Path('a/b')),
    'bytes': b'abc',
    'nested': [{'x': (1, 2.5, None, True)}, object()],
  }


def test_the_same_in_another_process():
  code = (
    'import importlib.util, sys\n'
    f'spec = importlib.util.spec_from_file_location({__name__!r}, {__file__!r})\n'
    'here = importlib.util.module_from_spec(spec)\n'
    'sys.modules[spec.name] = here\n'
    'spec.loader.exec_module(here)\n'
    'print(here.fingerprints.fingerprint(here.make_all()))'
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    env={**os.environ, 'PYTHONHASHSEED': '7'},
    check=True,
    capture_output=True,
    text=True,
  )
  assert done.stdout.strip() == fingerprints.fingerprint(make_all())


@pytest.mark.parametrize(
  ('one', 'other'),
  [
    (1, 2),
    ('1', 1),
    ([1, [2]], [1, 2]),
    (Settings(1, frozenset('a')), Settings(1, frozenset('b'))),
    (functools.partial(clean, form='y'), functools.partial(clean, form='z')),
    (closing_over('y'), closing_over('z')),
    (clean, closing_over),
    (Reader('a'), Reader('b')),
    (b'a', b'b'),
  ],
)
def test_what_differs_has_another_fingerprint(one, other):
  assert fingerprints.fingerprint(one) == fingerprints.fingerprint(one)
  assert fingerprints.fingerprint(one) != fingerprints.fingerprint(other)


def test_cached_results_do_not_count():
  reader = Reader('a')
  before = fingerprints.fingerprint(reader)
  assert reader.contents == 'read'
  assert fingerprints.fingerprint(reader) == before


def test_paths_count_whole_or_by_their_name():
  here, there = pathlib.Path('a/f.txt'), pathlib.Path('b/f.txt')
  assert fingerprints.describe(here) != fingerprints.describe(there)
  assert fingerprints.describe([here], paths='name') == ['f.txt']


def test_a_file_is_known_by_its_contents(tmp_path):
  path = tmp_path / 'f'
  path.write_bytes(b'abc')
  assert fingerprints.file_digest(path).startswith('ba7816bf8f01cfea')
