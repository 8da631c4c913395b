"""gin files resolve with origins; gin's errors say where and the remedy."""

import importlib
import pathlib

import gin
import pytest

from mhr_jax import configuration, configuration_values
from mhr_jax.errors import UserError

_MODULE = """
import dataclasses

@dataclasses.dataclass(frozen=True)
class Optimizer:
  rate: float = 0.1
  names: tuple = ('a',)

@dataclasses.dataclass(frozen=True)
class Task:
  name: str

def bake(*, run_dir, steps=3, optimizer=None, tasks=()):
  if steps < 0:
    raise __import__('mhr_jax.errors').errors.UserError('steps < 0')
  return run_dir, steps, optimizer, tasks
"""
_BASE = """
from __gin__ import dynamic_registration
import recipe as r
STEPS = 5
RUN_DIR = %gin.REQUIRED  # where to write the run
"""
_RUN = """
from __gin__ import dynamic_registration
import recipe as r

include 'base.gin'
fast/r.Optimizer.rate = 3.0
r.bake:
  run_dir = %RUN_DIR
  steps = %STEPS
  optimizer = @fast/r.Optimizer()
  tasks = [@one/r.Task(), {'a': @one/r.Task(), 'b': %STEPS}]
one/r.Task.name = 'x'
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
  """A module to configure and two gin files, in the working directory."""
  (tmp_path / 'recipe.py').write_text(_MODULE)
  (tmp_path / 'base.gin').write_text(_BASE)
  (tmp_path / 'run.gin').write_text(_RUN)
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.delitem(importlib.sys.modules, 'recipe', raising=False)
  saved = gin.config._REGISTRY.copy(), dict(gin.config._INVERSE_REGISTRY)
  yield importlib.import_module('recipe')
  gin.clear_config()
  gin.config._REGISTRY, inverse = saved[0], saved[1]
  gin.config._INVERSE_REGISTRY.clear()
  gin.config._INVERSE_REGISTRY.update(inverse)


def _parse(recipe, files=('run.gin',), bindings=()):
  return configuration.parse(
    files, bindings, configurables=[recipe.bake, recipe.Optimizer]
  )


def test_call_uses_files_then_bindings_then_arguments(recipe):
  parsed = _parse(recipe, bindings=['RUN_DIR = "a"', 'bake.steps = 9'])
  optimizer, task = recipe.Optimizer(rate=3.0), recipe.Task('x')
  tasks = [task, {'a': task, 'b': 5}]
  assert parsed.call(recipe.bake) == ('a', 9, optimizer, tasks)
  assert parsed.call(recipe.bake, steps=1)[1] == 1
  assert parsed.files == ('run.gin', 'base.gin')


def test_values_equal_what_gin_itself_parses(recipe, tmp_path):
  bindings = ['RUN_DIR = "a"', 'bake.steps = 9']
  _parse(recipe, bindings=bindings)
  ours = gin.config_str()
  gin.clear_config()
  gin.parse_config_files_and_bindings(['run.gin'], bindings)
  assert ours == gin.config_str()


def test_resolved_values_name_their_origin(recipe):
  parsed = _parse(recipe, bindings=['RUN_DIR = "a"'])
  resolved = parsed.resolve(recipe.bake)
  origins = {item.key: item.origin for item in resolved.settings}
  assert origins == {
    'recipe.bake.run_dir': 'command line',
    'recipe.bake.steps': 'base.gin:4',
    'recipe.bake.optimizer': 'run.gin:10',
    'recipe.bake.tasks': 'run.gin:11',
    'fast/recipe.Optimizer.rate': 'run.gin:6',
    'fast/recipe.Optimizer.names': 'default',
    'one/recipe.Task.name': 'run.gin:12',
  }
  assert resolved.to_dict()['recipe.bake.tasks'] == (
    "[@one/recipe.Task(), {'a': @one/recipe.Task(), 'b': 5}]"
  )


def test_resolved_text_is_a_gin_file_of_the_same_values(recipe, tmp_path):
  parsed = _parse(recipe, bindings=['RUN_DIR = "a"'])
  expected = parsed.call(recipe.bake)
  resolved = parsed.resolve(recipe.bake)
  (tmp_path / 'again.gin').write_text(resolved.to_text())
  again = _parse(recipe, ['again.gin'])
  assert again.call(recipe.bake) == expected
  assert again.resolve(recipe.bake).to_dict() == resolved.to_dict()


def test_show_marks_what_is_missing(recipe):
  resolved = _parse(recipe).resolve(recipe.bake, missing='show')
  first = resolved.to_text().splitlines()[3]
  assert first.startswith('# recipe.bake.run_dir = (required)  # RUN_DIR is')


def test_a_function_as_value_may_lack_what_its_caller_gives(recipe):
  bindings = ['RUN_DIR = "a"', 'bake.optimizer = @Task']
  parsed = _parse(recipe, bindings=bindings)
  resolved = parsed.resolve(recipe.bake).to_dict()
  assert resolved['recipe.bake.optimizer'] == '@recipe.Task'
  assert 'recipe.Task.name' not in resolved
  assert parsed.call(recipe.bake)[2](name='y') == recipe.Task('y')


def test_diff_lists_changed_keys():
  old, new = {'a': '1', 'b': '2', 'c': '3'}, {'a': '1', 'b': '5', 'd': '4'}
  assert configuration_values.diff(old, new) == [
    'b: 2 -> 5',
    'c: 3 -> (unset)',
    'd: (unset) -> 4',
  ]


def test_a_users_error_passes_without_gins_additions(recipe):
  parsed = _parse(recipe, bindings=['RUN_DIR = "a"', 'STEPS = -1'])
  with pytest.raises(UserError) as caught:
    parsed.call(recipe.bake)
  assert str(caught.value) == 'steps < 0'


@pytest.mark.parametrize(
  'binding, message',
  [
    (
      'bake.tasks = ()',
      'RUN_DIR is not set (where to write the run); base.gin:5 requires it.'
      ' Add --gin.RUN_DIR=…',
    ),
    (
      'RUN_DIR = runs/a',
      'command line: strings need quotes: --gin.RUN_DIR=\'"runs/a"\'',
    ),
    (
      'RUN_DIR = true',
      'command line: true is no value in gin; write --gin.RUN_DIR=True',
    ),
    (
      'bake.step = 3',
      "command line: bake has no parameter 'step'. Did you mean 'steps'?"
      ' Parameters: run_dir, steps, optimizer, tasks.',
    ),
    (
      'baek.steps = 3',
      "command line: There is no 'baek' to configure. Did you mean 'bake'?",
    ),
    (
      'bake.optimizer = @Optimiser()',
      "command line: There is no 'Optimiser' to configure."
      " Did you mean 'Optimizer'?",
    ),
    (
      'RUN_DIR = %STEPZ',
      "STEPZ is not set. Did you mean 'STEPS'? It is used at command line."
      ' Add `--gin.STEPZ=…`.',
    ),
    (
      'RUN_DIR = ["a"',
      'command line: a bracket is not closed, or a string not ended',
    ),
  ],
)
def test_a_mistaken_binding_is_explained(recipe, binding, message):
  with pytest.raises(UserError) as caught:
    _parse(recipe, bindings=[binding]).resolve(recipe.bake)
  assert str(caught.value) == message


@pytest.mark.parametrize(
  'text, message',
  [
    (
      'bake.steps = 3',
      "bad.gin:3: 'bake' needs `import recipe` above it (recipe.bake).",
    ),
    ('r.baek.steps = 3', "bad.gin:3: recipe has no 'baek'. Did you mean"),
    ('r.bake:\n  steps = 1\n  run_dir = a', 'bad.gin:5: strings need quotes'),
    (
      'r.bake:\n  steps = 1\n  optimizer = @r.Optimiser()',
      "bad.gin:5: recipe has no 'Optimiser'. Did you mean 'Optimizer'?",
    ),
    ('r.bake 3', "bad.gin:3: gin cannot read 'r.bake 3'"),
    ("include 'bas.gin'", "bad.gin:3: There is no gin file 'bas.gin'."),
    ('import nothing_such', "bad.gin:3: No module named 'nothing_such'"),
    ('import broken', 'bad.gin:3: importing broken failed: NameError'),
    ("include 'bad.gin'", 'bad.gin includes itself'),
    ('r.bake.steps = 3', 'bake needs `run_dir`, which nothing sets. Add'),
  ],
)
def test_a_mistaken_file_is_explained(recipe, tmp_path, text, message):
  head = 'from __gin__ import dynamic_registration\nimport recipe as r\n'
  (tmp_path / 'broken.py').write_text('undefined_name\n')
  (tmp_path / 'bad.gin').write_text(f'{head}{text}\n')
  with pytest.raises(UserError) as caught:
    _parse(recipe, ['bad.gin']).resolve(recipe.bake)
  assert str(caught.value).startswith(message)


def test_an_unset_macro_names_the_file_that_sets_it(recipe, tmp_path):
  head = 'from __gin__ import dynamic_registration\nimport recipe as r\n'
  (tmp_path / 'bad.gin').write_text(f'{head}r.bake.steps = %STEPS\n')
  with pytest.raises(UserError) as caught:
    _parse(recipe, ['bad.gin'])
  assert str(caught.value) == (
    'STEPS is not set. It is used at bad.gin:3.'
    ' Add `--gin_file=base.gin` or `--gin.STEPS=…`.'
  )


def test_a_missing_file_lists_every_candidate_and_the_nearest(recipe, tmp_path):
  other = tmp_path / 'other'
  other.mkdir()
  with pytest.raises(UserError) as caught:
    configuration.find_file('runs/base.gin', search_paths=[str(other)])
  first, second = str(caught.value).split('\n')
  assert first.endswith("'runs/base.gin'. Did you mean 'base.gin'?")
  assert second.startswith(
    f'Tried {other}/runs/base.gin, {tmp_path}/runs/base.gin, '
  )


def test_search_paths_come_before_the_working_directory(recipe, tmp_path):
  other = tmp_path / 'other'
  other.mkdir()
  (other / 'base.gin').write_text('')
  found = configuration.find_file('base.gin', search_paths=[str(other)])
  assert pathlib.Path(found) == other / 'base.gin'
