"""The notebooks run, in the order in which they tell their story."""

import pathlib

import nbclient
import nbformat
import pytest

_FOLDER = pathlib.Path(__file__).resolve().parents[1] / 'notebooks'
_NAMES = ('quick_start', 'routing')


def _read(name: str):
  return nbformat.read(_FOLDER / f'{name}.ipynb', as_version=4)


def _text(notebook) -> str:
  """Returns what the cells printed."""
  return ''.join(
    output.text
    for cell in notebook.cells
    for output in cell.get('outputs', ())
    if output.output_type == 'stream' and output.name == 'stdout'
  )


@pytest.mark.parametrize('name', _NAMES)
def test_outputs_are_stored_short_and_without_places(name):
  path = _FOLDER / f'{name}.ipynb'
  assert path.stat().st_size < 250_000
  text = path.read_text()
  assert '/tmp/' not in text and '/home/' not in text
  assert not any(
    output.output_type == 'error'
    for cell in _read(name).cells
    for output in cell.get('outputs', ())
  )
  assert _text(_read(name))


@pytest.mark.nightly
@pytest.mark.timeout(1500)
def test_they_run_and_routing_is_used(tmp_path):
  printed = {}
  for name in _NAMES:
    notebook = _read(name)
    client = nbclient.NotebookClient(
      notebook,
      timeout=None,  # pytest's holds for both.
      kernel_name='python3',
      resources={'metadata': {'path': tmp_path}},
    )
    client.execute()
    printed[name] = _text(notebook)
  assert (tmp_path / 'runs' / 'mhr' / 'report.html').exists()
  scores = dict(
    line.rsplit(maxsplit=1)
    for line in printed['routing'].splitlines()
    if line.startswith(('skills_id_', 'average'))
  )
  own = float(scores.pop('skills_id_tail_reverse'))
  assert own > 50
  assert all(float(score) < own / 2 for score in scores.values())
