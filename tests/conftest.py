"""Shared fixtures: virtual devices, prepared data, the optional shared data."""

import json
import os
import pathlib

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import jax
import numpy as np
import pytest

from mhr_jax.data import record_format
from mhr_jax.vocabulary import ByteVocabulary

jax.config.update('jax_num_cpu_devices', 8)

_VOCABULARY = ByteVocabulary(extra_ids=100)
_SHARED = pathlib.Path(__file__).resolve().parents[2] / 'shared'


@pytest.fixture(scope='session')
def shared_dir() -> pathlib.Path:
  """The folder of real data and fixtures that lies beside the checkout."""
  if not _SHARED.is_dir():
    pytest.skip('needs ../shared (real data and fixtures), which is absent')
  return _SHARED


def _make_records(name, n, *, seed, lengths, references):
  """Random records; each token id tells its task, example and kind."""
  generator = np.random.default_rng([seed, len(name)])
  records = []
  for i in range(n):
    size = generator.integers(lengths[0], lengths[1] + 1)
    n_targets = generator.integers(references[0], references[1] + 1)
    targets = [
      generator.integers(3, 250, generator.integers(1, 5)).tolist()
      for _ in range(n_targets)
    ]
    records.append(
      record_format.Record(
        inputs=generator.integers(3, 250, size).tolist(),
        targets=targets,
        inputs_pretokenized=f'{name} é {i}',
        targets_pretokenized=[f'{i}/{j}' for j in range(n_targets)],
        example_id=f'{name}-{i}',
      )
    )
  return records


@pytest.fixture(scope='session')
def write_task():
  """A function that writes a prepared task and returns its records."""

  def write(
    data_dir,
    name,
    *,
    seed=0,
    lengths=(0, 9),
    references=(1, 3),
    vocabulary=_VOCABULARY,
    category=None,
    **sizes,
  ):
    splits = {
      split: _make_records(
        name, n, seed=seed, lengths=lengths, references=references
      )
      for split, n in (sizes or {'train': 20}).items()
    }
    folder = record_format.task_folder(data_dir, name)
    counts = record_format.write_dataset(folder, name, splits)
    manifest = {
      'format_version': record_format.FORMAT_VERSION,
      'task': name,
      'fingerprint': f'of {name}',
      'vocabulary': vocabulary.spec(),
      'category': category,
      'splits': counts,
      'made_with': {},
    }
    (folder / record_format.MANIFEST).write_text(json.dumps(manifest))
    return splits

  return write


@pytest.fixture(scope='session')
def write_mixture():
  """A function that writes a prepared mixture."""

  def write(data_dir, name, tasks, rates):
    folder = data_dir / record_format.MIXTURES
    folder.mkdir(parents=True, exist_ok=True)
    content = {'tasks': list(tasks), 'rates': list(rates)}
    (folder / f'{name}.json').write_text(json.dumps(content))

  return write
