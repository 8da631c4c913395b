"""Settings of a run: what older ones mean, and which methods they concern."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from mhr_jax import jobs, train
from mhr_jax.adapters import AdapterConfig
from mhr_jax.data.mixture_settings import MixtureSettings
from mhr_jax.optim import OptimizerSettings
from mhr_jax.t5.config import T5Config
from mhr_jax.task_data import TaskData
from mhr_jax.trainer import TrainSettings


@pytest.fixture(scope='module')
def data(tmp_path_factory, write_task, write_mixture):
  """Two prepared tasks."""
  data_dir = tmp_path_factory.mktemp('data')
  for name in ('one', 'two'):
    write_task(data_dir, name, train=20)
  write_mixture(data_dir, 'both', ('one', 'two'), (1.0, 1.0))
  return TaskData(tasks='both', data_dir=str(data_dir))


@dataclasses.dataclass(frozen=True)
class _Inner:
  rate: float = 0.5
  name: str = 'a'


@dataclasses.dataclass(frozen=True)
class _Outer:
  steps: int
  inner: _Inner = _Inner()
  other: _Inner | None = None


def test_older_settings_have_the_defaults_of_fields_they_do_not_know():
  outer = _Outer(3, _Inner(0.25, 'b'), _Inner())
  old = {'outer.steps': '3', 'outer.inner.name': "'b'", 'gone': '1'}
  found = train.with_defaults(old, {'outer': outer, 'gone': 1})
  # What is asked for now is not looked at, only the defaults.
  assert found == old | {'outer.inner.rate': '0.5', 'outer.other': 'None'}
  assert train.with_defaults(found, {'outer': outer}) == found
  by_method = train.with_defaults({}, {'by': {'mhr': _Inner(1.0)}})
  assert by_method == {'by.mhr.rate': '0.5', 'by.mhr.name': "'a'"}
  # A field without a default stays unknown.
  assert 'outer.steps' not in train.with_defaults({}, {'outer': outer})


def _job(run_dir, data, method, anneal_steps):
  nothing = (
    'backbone_from',
    'start_from',
    'heldback',
    'alignment',
    'routing_statistics',
  )
  return jobs.build_job(
    run_dir,
    backbone=T5Config(
      vocab_size=384,
      emb_dim=8,
      num_heads=2,
      head_dim=4,
      mlp_dim=8,
      num_encoder_layers=1,
      num_decoder_layers=1,
    ),
    data=data,
    mixture=MixtureSettings(batch_size=8, input_length=8, target_length=6),
    settings=TrainSettings(steps=3, anneal_steps=anneal_steps),
    method=method,
    adapters=functools.partial(
      AdapterConfig, n_skills=2, n_splits=2, targets='encoder/attention/query'
    ),
    optimizer=OptimizerSettings(),
    mesh_shape=(-1, 1),
    mix_in='auto',
    split='train',
    **dict.fromkeys(nothing),
  )


@pytest.mark.parametrize(
  ('method', 'anneals'),
  [('private', 0), ('lora', 0), ('full', 0), ('mhr', 2), ('random', 2)],
)
def test_only_methods_with_routers_anneal(tmp_path, data, method, anneals):
  with_it, without = (_job(tmp_path, data, method, n) for n in (2, 0))
  assert with_it.settings.anneal_steps == anneals
  assert (with_it.settings == without.settings) == (anneals == 0)


@pytest.mark.slow
def test_private_adapters_train_alike_with_and_without_annealing(
  tmp_path, data
):
  one, other = (
    train.run_job(_job(tmp_path / str(n), data, 'private', n), {}).params
    for n in (0, 3)
  )
  jax.tree.map(np.testing.assert_array_equal, one, other)
