"""Hints name the nearest known name, or list what there is."""

from mhr_jax.errors import nearest


def test_nearest_names_the_close_one():
  assert nearest('mrh', ['mhr', 'poly']) == " Did you mean 'mhr'?"


def test_nearest_lists_when_nothing_is_close():
  assert nearest('q', ['poly', 'mhr']) == ' There are: mhr, poly.'


def test_nearest_cuts_long_lists():
  hint = nearest('???', [f'task{i}' for i in range(20)], limit=3)
  assert hint == ' There are: task0, task1, task10, … (20 in all).'


def test_nearest_of_nothing():
  assert nearest('a', []) == ' There are none.'
