"""Names become tasks; seqio is imported only to prepare what is missing."""

import subprocess
import sys

import pytest

from mhr_jax.errors import UserError
from mhr_jax.task_data import TaskData, TaskModule


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
