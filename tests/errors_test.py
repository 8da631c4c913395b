"""Hints name the nearest known name, or list what there is."""

import pytest

from mhr_jax.errors import UserError, blaming, nearest, shorten


def test_nearest_names_the_close_one():
  assert nearest('mrh', ['mhr', 'poly']) == " Did you mean 'mhr'?"


def test_nearest_lists_when_nothing_is_close():
  assert nearest('q', ['poly', 'mhr']) == ' There are: mhr, poly.'


def test_nearest_cuts_long_lists():
  hint = nearest('???', [f'task{i}' for i in range(20)], limit=3)
  assert hint == ' There are: task0, task1, task10, … (20 in all).'


def test_nearest_of_nothing():
  assert nearest('a', []) == ' There are none.'


def test_a_long_message_keeps_its_first_lines_and_its_last():
  lines = [f'line {i}' for i in range(9)]
  assert shorten('\n'.join(lines)).splitlines() == [
    *lines[:3],
    '… (5 lines more)',
    'line 8',
  ]
  assert shorten('a\nb', most=2) == 'a\nb'


@pytest.mark.parametrize('take', [lambda x: x['b'], lambda x: x.b, int])
def test_a_file_is_blamed_for_what_it_lacks(take):
  said = r'x\.json is not a list of names: '
  with (
    pytest.raises(UserError, match=said),
    blaming('x.json', 'a list of names'),
  ):
    take({'a': 1})


def test_our_own_words_and_bugs_pass():
  with pytest.raises(UserError, match='^as it was$'), blaming('x', 'y'):
    raise UserError('as it was')
  with pytest.raises(AssertionError), blaming('x', 'y'):
    raise AssertionError
