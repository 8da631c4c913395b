"""The harness, with real processes and works whose costs are known."""

import pathlib

import pytest

from benchmarks import rounds
from benchmarks.goals import Goal, judge
from benchmarks.sides import Side, SideProcess
from mhr_jax.errors import UserError

_PATH = {'PYTHONPATH': str(pathlib.Path(__file__).parent)}


def side(name, function, **arguments):
  return Side(name, f'toy_works:{function}', arguments, _PATH)


@pytest.fixture(scope='module')
def found():
  sides = [side('a', 'naps', seconds=0.01), side('b', 'naps', seconds=0.04)]
  return rounds.measure(sides, rounds=3, times=2, warm_up=1)


def test_each_work_runs_as_often_as_asked(found):
  assert set(found.works) == {'a: short', 'a: long', 'b: short', 'b: long'}
  for measured in found.works.values():
    assert [len(done) for done in measured.seconds] == [2, 2, 2]
    # One run of warm-up comes before those that are measured.
    assert [part['runs'] for part in measured.parts] == [2, 3, 4, 5, 6, 7]
  assert found.facts == {'a': {'seconds': 0.01}, 'b': {'seconds': 0.04}}


def test_sleep_takes_at_least_its_time(found):
  assert found.works['a: short'].time.median >= 0.01
  assert found.works['b: long'].time.median >= 0.08
  ratio = found.ratio('b: long', 'a: short')
  assert 1 < ratio.low <= ratio.by_round <= ratio.high


def test_no_third_round_is_begun_when_the_time_is_over():
  found = rounds.measure(
    [side('a', 'naps', seconds=0.01)], rounds=9, times=1, seconds=0
  )
  assert {len(x.seconds) for x in found.works.values()} == {2}


def test_goals_are_judged_where_both_works_were_measured(found):
  long_over_short = ('b: long', 'a: short')
  goals = [
    Goal(*long_over_short, 1.0),
    Goal(*long_over_short, 100.0),
    Goal(*long_over_short, None),
    Goal('a: short', 'c: short', 1.0),
  ]
  outcomes = judge(found, goals)
  assert [outcome.met for outcome in outcomes] == [False, True, None]


@pytest.mark.skipif(
  not pathlib.Path('/proc/self/clear_refs').exists(), reason='needs Linux'
)
def test_peak_is_that_of_the_work_and_not_of_the_set_up():
  with SideProcess(side('a', 'allocate', mebibytes=64)) as process:
    process.wait()
    used = process.run('run', 1)['bytes']
  grown = (used['peak'] - used['resident']) / 2**20
  assert 60 < grown < 100


@pytest.mark.parametrize(
  'function, error, message',
  [
    ('mistake', UserError, 'a: Nothing fits.'),
    ('bug', RuntimeError, 'ValueError: a bug'),
  ],
)
def test_mistakes_are_told_and_bugs_come_with_the_last_lines(
  function, error, message
):
  with (
    SideProcess(side('a', function)) as process,
    pytest.raises(error, match=message),
  ):
    process.wait()
