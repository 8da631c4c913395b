"""What setup.py says: every package, and a pin for every requirement."""

import pathlib
import re
import runpy

from packaging import requirements
import pytest
import setuptools

_ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture
def said(monkeypatch) -> dict:
  """The arguments of `setuptools.setup`."""
  found: dict = {}
  monkeypatch.setattr(setuptools, 'setup', lambda **given: found.update(given))
  monkeypatch.chdir(_ROOT)
  runpy.run_path('setup.py')
  return found


def test_every_folder_of_modules_is_a_package(said):
  folders = {'mhr_jax': 'mhr_jax'}
  folders |= {path: name for name, path in said['package_dir'].items()}
  found = {
    '.'.join([name, *path.parent.relative_to(_ROOT / folder).parts])
    for folder, name in folders.items()
    for path in (_ROOT / folder).rglob('*.py')
  }
  assert set(said['packages']) == found


def test_every_requirement_has_a_pin_that_it_allows(said):
  text = (_ROOT / 'constraints.txt').read_text()
  pins = dict(re.findall(r'^([\w.-]+)==(\S+)$', text, re.MULTILINE))
  pins = {_plain(name): version for name, version in pins.items()}
  wanted = [
    *said['install_requires'],
    *sum(said['extras_require'].values(), []),
  ]
  for requirement in map(requirements.Requirement, wanted):
    pin = pins.get(_plain(requirement.name))
    assert pin is not None, requirement
    assert requirement.specifier.contains(pin), requirement


def _plain(name: str) -> str:
  return re.sub(r'[-_.]+', '-', name).lower()


def test_the_version_is_that_of_the_citation(said):
  citation = (_ROOT / 'CITATION.cff').read_text()
  assert f'\nversion: {said["version"]}\n' in citation
