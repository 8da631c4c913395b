"""Works for the tests of the harness."""

import time

from benchmarks.works import Works
from mhr_jax.errors import UserError


def naps(seconds):
  """Two works that sleep, one of them twice as long; both count their runs."""
  counts = {'short': 0, 'long': 0}

  def make(name, length):
    def run():
      print('libraries print what they like')
      counts[name] += 1
      time.sleep(length)
      return {'runs': float(counts[name])}

    return run

  runs = {'short': make('short', seconds), 'long': make('long', 2 * seconds)}
  return Works(runs, {'seconds': seconds})


def allocate(mebibytes):
  """A work that needs so much memory while it runs; its set-up needs more."""
  len(b'1' * (4 * mebibytes << 20))

  def run():
    len(b'1' * (mebibytes << 20))

  return Works({'run': run})


def mistake():
  raise UserError('Nothing fits.')


def bug():
  raise ValueError('a bug')
