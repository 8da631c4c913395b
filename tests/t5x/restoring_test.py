"""What a run starts from, as far as it needs no T5X."""

import numpy as np
import pytest

from mhr_jax.errors import UserError
from mhr_jax.t5x import restoring


@pytest.mark.parametrize(
  ('path', 'step'),
  [('/a/checkpoint_3', 3), ('gs://b/t5_1_1_xl/checkpoint_1000000/', 10**6)],
)
def test_the_first_step_is_in_the_name(path, step):
  assert restoring.first_step(path) == step


@pytest.mark.parametrize('path', ['/a/checkpoint', '/a/checkpoint_3.tmp'])
def test_a_name_without_a_step_is_refused(path):
  with pytest.raises(UserError, match='step_offset'):
    restoring.first_step(path)


def _state(**leaves):
  return {'target': leaves, 'state': {'step': 3, 'param_states': {'x': 1}}}


def test_all_but_the_fresh_labels_must_be_there():
  fresh = restoring.FreshLabels(['routers'])
  have = _state(encoder={'w': np.ones(2)}, adapters={'a': np.ones(1)})
  want = _state(
    encoder={'w': None}, adapters={'a': None}, routers={'model': None}
  )
  kept = fresh(have, want)
  assert set(kept['target']) == {'encoder', 'adapters'}
  assert kept['state'] == {'step': 3}
  assert fresh(have, want, is_resuming=True) is have
  with pytest.raises(UserError, match='lacks 1 of 1 parameters.*routers/model'):
    restoring.FreshLabels([])(have, _state(routers={'model': None}))
