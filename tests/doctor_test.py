"""The report on an environment: what is absent is named with its remedy."""

import importlib.metadata

import pytest

from mhr_jax import cli, doctor


def _findings():
  return {finding.name: finding for finding in doctor.examine()}


def test_what_is_installed_has_its_version():
  findings = _findings()
  version = importlib.metadata.version('jax')
  assert f'jax {version}' in findings['training, decoding'].detail
  assert findings['devices'].state == 'ok'


def test_a_checkout_of_t5x_is_found_or_its_lack_is_explained(
  monkeypatch, tmp_path
):
  monkeypatch.setenv('T5X_DIR', str(tmp_path))
  found = _findings()['T5X']
  assert found.state == 'wrong'
  assert str(tmp_path) in found.detail
  assert 'git clone' in found.remedy
  (tmp_path / 't5x').mkdir()
  (tmp_path / 't5x' / 'main.py').write_text('')
  assert _findings()['T5X'].state == 'ok'


def test_an_absent_package_comes_with_a_command(monkeypatch, capsys):
  version = importlib.metadata.version

  def without_seqio(name):
    if name == 'seqio':
      raise importlib.metadata.PackageNotFoundError(name)
    return version(name)

  monkeypatch.setattr(importlib.metadata, 'version', without_seqio)
  assert cli.main(['doctor']) == 0
  lines = capsys.readouterr().out.splitlines()
  at = next(i for i, line in enumerate(lines) if 'preparing tasks' in line)
  assert lines[at].startswith('missing')
  assert 'without seqio' in lines[at]
  assert "pip install 'mhr_jax[data]'" in lines[at + 1]


@pytest.mark.parametrize('state', ['ok', 'missing', 'wrong'])
def test_a_line_says_its_state(state):
  lines = doctor.to_text(iter([doctor.Finding('x', state, 'y', 'z')]))
  assert [line.split() for line in lines] == [[state, 'x:', 'y'], ['z']]
