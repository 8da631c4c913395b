"""Tests of what pickles need before they are read; tests/interop reads them."""

import pickle
import sys

import pytest

from mhr_jax.convert import torch_files
from mhr_jax.errors import UserError


class Program:
  """Writes a file when it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return self.path.write_text, ('run',)


def test_a_pickle_is_not_opened_unasked(tmp_path):
  path = tmp_path / 'pytorch_model.bin'
  path.write_bytes(pickle.dumps(Program(tmp_path / 'trace')))
  with pytest.raises(UserError, match=r'pytorch_model\.bin.*allow_pickle=True'):
    torch_files.read_state_dict(path)
  assert not (tmp_path / 'trace').exists()


def test_without_torch_the_extra_is_named(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)
  path = tmp_path / 'pytorch_model.bin'
  path.write_bytes(b'')
  with pytest.raises(UserError, match=r'mhr_jax\[interop\]'):
    torch_files.read_state_dict(path, allow_pickle=True)
