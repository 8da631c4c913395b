"""Names and ids are checked on the host, with the nearest name in the error."""

import numpy as np
import pytest

from mhr_jax.errors import UserError
from mhr_jax.task_table import TaskTable

TABLE = TaskTable(('a_task', 'b_task', 'c'))


def test_ids_of_names_and_ids_are_equal():
  np.testing.assert_array_equal(TABLE.ids(['c', 'a_task']), [2, 0])
  np.testing.assert_array_equal(TABLE.ids([2, 0]), [2, 0])


def test_json_round_trip():
  assert TaskTable.from_json(TABLE.to_json()) == TABLE


@pytest.mark.parametrize('task', [3, -1])
def test_out_of_range_is_an_error(task):
  with pytest.raises(UserError, match='out of range: there are 3 tasks'):
    TABLE.id_of(task)


def test_unknown_name_gives_the_nearest():
  with pytest.raises(UserError, match="Did you mean 'a_task'"):
    TABLE.id_of('a_taks')


def test_duplicates_are_an_error():
  with pytest.raises(UserError, match="'a' is listed twice"):
    TaskTable(('a', 'a'))


def test_names_are_a_list_of_texts():
  assert TaskTable.from_names(['a', 'b']) == TaskTable(('a', 'b'))
  with pytest.raises(UserError, match="not by 'abc'"):
    TaskTable.from_names('abc')
  for other in (3, None, {'a': 0}):
    with pytest.raises(UserError, match=f'not by {other}'):
      TaskTable.from_names(other)
  with pytest.raises(UserError, match='is a text, not 1'):
    TaskTable(('a', 1))
