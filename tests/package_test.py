"""The names of `mhr_jax` itself: all there, light, and the modules' own."""

import ast
import importlib
import pathlib
import pkgutil
import subprocess
import sys

import pytest

import mhr_jax


def _typed_imports() -> dict[str, str]:
  """Returns the module of each name that type checkers see."""
  assert mhr_jax.__file__ is not None
  tree = ast.parse(pathlib.Path(mhr_jax.__file__).read_text())
  return {
    alias.name: str(node.module)
    for block in tree.body
    if isinstance(block, ast.If)
    for node in block.body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
  }


def test_public_names_are_those_of_their_modules():
  typed = _typed_imports()
  assert set(typed) == set(mhr_jax.__all__)
  for name, module in typed.items():
    expected = getattr(importlib.import_module(module), name)
    assert getattr(mhr_jax, name) is expected
    assert getattr(expected, '__module__', module) == module


def test_no_name_hides_a_module():
  modules = {module.name for module in pkgutil.iter_modules(mhr_jax.__path__)}
  assert not modules & set(mhr_jax.__all__)


def test_an_unknown_name_is_an_attribute_error():
  with pytest.raises(AttributeError, match="no attribute 'RoutedT6'"):
    _ = mhr_jax.RoutedT6
  assert set(mhr_jax.__all__) <= set(dir(mhr_jax))


def _loaded_after(code: str) -> set[str]:
  """Returns the top-level modules that a new process has after some code."""
  code += "\nimport sys; print(*{n.partition('.')[0] for n in sys.modules})"
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  return set(done.stdout.split())


def test_imports_are_light():
  heavy = {'tensorflow', 'seqio', 'torch', 'matplotlib', 'transformers'}
  assert not {'jax', 'numpy', *heavy} & _loaded_after('import mhr_jax')
  loaded = _loaded_after('from mhr_jax import *')
  assert 'jax' in loaded
  assert not heavy & loaded


@pytest.mark.slow
def test_a_model_is_loaded_and_written_without_heavy_libraries(tmp_path):
  heavy = ('tensorflow', 'seqio', 'torch', 'transformers', 'peft', 'matplotlib')
  code = f"""
import os, sys
os.environ['JAX_PLATFORMS'] = 'cpu'
sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})
import mhr_jax, toy_text
from mhr_jax.loading import LoadedModel
model = toy_text.make_model()
model = mhr_jax.Model(LoadedModel(model, toy_text.make_params(model)))
model.save({str(tmp_path / 'hf')!r}, 'hf', 0)
model.save({str(tmp_path / 't5x')!r}, 't5x', 1)
model.save({str(tmp_path / 'peft')!r}, 'peft-poly')
mhr_jax.load({str(tmp_path / 't5x')!r}, config=toy_text.CONFIG)
found = mhr_jax.load({str(tmp_path / 'hf')!r}, {str(tmp_path / 'peft')!r})
print(found.logits([[5, 6, 1]], [[0, 7]], task_ids=2).shape)
print([name for name in {heavy!r} if name in sys.modules])
"""
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=False
  )
  assert done.stdout.split('\n') == ['(1, 2, 259)', '[]', ''], done.stderr
