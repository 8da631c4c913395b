"""Names become tasks; seqio is imported only to prepare what is missing."""

import importlib
import json
import subprocess
import sys

import pytest

from mhr_jax.data import records
from mhr_jax.errors import UserError
from mhr_jax.task_data import TaskData, TaskModule

_MODULE = """
import functools
import seqio
from mhr_jax.data import registry, sources
from mhr_jax.vocabulary import ByteVocabulary

registered, loaded = [], []

def load(name, prefix):
  loaded.append(name)
  example = sources.TextExample('0', prefix + name, ('x',))
  return sources.TaskExamples({'train': [example]})

def register(*, prefix):
  registered.append(prefix)
  for mixture in ('left', 'right'):
    seqio.MixtureRegistry.remove(mixture)
  for name in ('made:1', 'made:2', 'made:3'):
    seqio.TaskRegistry.remove(name)
    read = functools.partial(load, name, prefix)
    source = sources.ExampleSource(read, splits=('train',), files=[])
    registry.add_task(name, source, ByteVocabulary(), module=__name__)
  registry.add_mixture('left', ('made:1', 'made:2'), module=__name__)
  registry.add_mixture('right', ('made:2', 'made:3'), module=__name__)
"""


@pytest.fixture
def data_dir(tmp_path, write_task, write_mixture):
  """Three prepared tasks and a mixture of two."""
  for name in ('one', 'two', 'three'):
    write_task(tmp_path, name, train=2)
  write_mixture(tmp_path, 'both', ('one', 'two'), (3.0, 1.0))
  return str(tmp_path)


@pytest.mark.parametrize(
  'tasks, expected',
  [
    ('both', {'one': 3.0, 'two': 1.0}),
    ('three', {'three': 1.0}),
    (['three', 'both'], {'three': 1.0, 'one': 3.0, 'two': 1.0}),
  ],
)
def test_names_resolve_to_tasks_in_order(data_dir, tasks, expected):
  found = TaskData(tasks=tasks, data_dir=data_dir).resolve()
  assert dict(zip(found.tasks, found.rates, strict=True)) == expected
  assert found.tasks == tuple(expected)


def test_only_a_mixture_has_rates_of_its_own(data_dir):
  assert TaskData(tasks='both', data_dir=data_dir).mixture_name == 'both'
  assert TaskData(tasks='one', data_dir=data_dir).mixture_name is None
  assert TaskData(tasks=['both'], data_dir=data_dir).mixture_name is None


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'tasks': 'oen'}, "Did you mean 'one'"),
    ({'modules': [TaskModule('no_such')], 'tasks': 'x'}, "module 'no_such'"),
    ({'prepare': 'sometimes'}, "not 'sometimes'"),
  ],
)
def test_mistakes_are_explained(data_dir, changes, message):
  settings = {'tasks': 'both', 'data_dir': data_dir} | changes
  with pytest.raises(UserError, match=message):
    TaskData(**settings).resolve()


@pytest.mark.parametrize(
  'given', ['mine', ('mine',), TaskModule('mine'), [TaskModule('mine')]]
)
def test_a_module_without_options_may_be_its_name(given):
  assert TaskData('a', modules=given).modules == (TaskModule('mine'),)


def test_what_is_no_module_is_refused():
  with pytest.raises(UserError, match=r'modules holds 3; the name of a module'):
    TaskData('a', modules=(3,))


def test_a_module_registers_by_its_function(tmp_path, monkeypatch):
  (tmp_path / 'with_register.py').write_text(
    'seen = []\ndef register(*, size=1):\n  seen.append(size)\n'
  )
  (tmp_path / 'by_import.py').write_text('')
  monkeypatch.syspath_prepend(tmp_path)
  assert TaskModule('with_register', {'size': 3}).register().seen == [3]
  TaskModule('by_import').register()
  with pytest.raises(UserError, match="argument 'sise'"):
    TaskModule('with_register', {'sise': 3}).register()
  with pytest.raises(UserError, match='no function `register`'):
    TaskModule('by_import', {'size': 3}).register()


def test_prepared_tasks_need_neither_modules_nor_seqio(data_dir):
  code = (
    'import sys\nfrom mhr_jax.task_data import TaskData, TaskModule\n'
    f'data = TaskData("both", {data_dir!r}, [TaskModule("no_such")])\n'
    'assert data.resolve().tasks == ("one", "two")\n'
    'assert not {"seqio", "tensorflow"} & set(sys.modules)'
  )
  subprocess.run([sys.executable, '-c', code], check=True)


@pytest.fixture
def made(tmp_path, monkeypatch):
  """A module with an option, and a function that resolves names with it."""
  (tmp_path / 'made_with_options.py').write_text(_MODULE)
  monkeypatch.syspath_prepend(tmp_path)
  sys.modules.pop('made_with_options', None)
  module = importlib.import_module('made_with_options')

  def resolve(tasks, prefix, prepare='missing'):
    """Returns the module's calls, of registering and of making tasks."""
    module.registered.clear()
    module.loaded.clear()
    modules = [TaskModule('made_with_options', {'prefix': prefix})]
    TaskData(tasks, str(tmp_path / 'data'), modules, prepare).resolve()
    return len(module.registered), sorted(module.loaded)

  yield resolve
  sys.modules.pop('made_with_options')


def _text(tmp_path, task):
  source = records.open_task(tmp_path / 'data', task).source('train')
  return source[0]['inputs_pretokenized']


def test_other_options_of_the_modules_make_the_data_again(
  tmp_path, made, caplog
):
  assert made('left', 'a') == (1, ['made:1', 'made:2'])
  assert made('left', 'a') == (0, [])
  assert not caplog.messages
  assert made('left', 'b', 'never') == (0, [])
  assert made('left', 'b') == (1, ['made:1', 'made:2'])
  assert 'left was prepared with other options (prefix)' in caplog.text
  assert _text(tmp_path, 'made:1') == 'bmade:1'
  assert made('left', 'b') == (0, [])


def test_mixtures_that_share_tasks_see_each_others_options(
  tmp_path, made, caplog
):
  made('left', 'a')
  assert made('right', 'a') == (1, ['made:3'])
  assert made(['left', 'right'], 'a') == (0, [])
  assert made('right', 'b') == (1, ['made:2', 'made:3'])
  # `left` itself was prepared with 'a', but one of its tasks is no longer.
  assert made('left', 'a') == (1, ['made:2'])
  assert 'Tasks of left were since prepared' in caplog.text
  assert _text(tmp_path, 'made:2') == 'amade:2'


def test_data_without_a_record_of_its_options_is_taken_as_it_is(tmp_path, made):
  made('made:1', 'a')
  record = tmp_path / 'data' / 'made_from' / 'made%3A1.json'
  assert json.loads(record.read_text())['modules'] == [
    {'name': 'made_with_options', 'options': {'prefix': 'a'}}
  ]
  record.unlink()
  assert made('made:1', 'b') == (0, [])
