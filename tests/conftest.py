"""Shared fixtures: virtual devices, prepared data, the optional shared data.

Also the table of what parity tests measured, at the end of pytest's output.
"""

import dataclasses
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
_DIFFERENCE = 'largest difference'
_SECONDS = 'seconds to answer'


@pytest.fixture(scope='session')
def shared_dir() -> pathlib.Path:
  """The folder of real data and fixtures that lies beside the checkout."""
  if not _SHARED.is_dir():
    pytest.skip('needs ../shared (real data and fixtures), which is absent')
  return _SHARED


@pytest.fixture
def report_difference(request):
  """A function that measures a difference, for the table and for an assert.

  `report_difference(case, reference, actual, expected)` returns the largest
  absolute difference of two arrays, or of two trees of them; NaN where one of
  them is NaN.
  """

  def report(case, reference, actual, expected):
    largest, size = _measure(actual, expected)
    value = (case, reference, largest, size)
    request.node.user_properties.append((_DIFFERENCE, value))
    return largest

  return report


def _measure(actual, expected):
  """Returns the largest absolute difference and the largest value of two."""
  differences, sizes = [], []

  def compare(path, x, y):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    name = jax.tree_util.keystr(path)
    assert x.shape == y.shape, f'{name}: shapes {x.shape} and {y.shape}'
    differences.append(np.max(np.abs(x - y), initial=0))
    sizes.append(np.max(np.abs(y), initial=0))

  jax.tree_util.tree_map_with_path(compare, actual, expected)
  return float(np.max(differences)), float(np.max(sizes))


def pytest_terminal_summary(terminalreporter):
  """Prints what tests measured: differences, and seconds to answer."""
  _print_seconds(terminalreporter)
  rows = {}
  for reports in terminalreporter.stats.values():
    for report in reports:
      if getattr(report, 'when', None) == 'call':
        for name, value in report.user_properties:
          if name == _DIFFERENCE:
            case, reference, *sizes = value
            rows.setdefault((reference, case), []).append(sizes)
  if not rows:
    return
  terminalreporter.section('largest differences')
  width = max(len(case) for _, case in rows)
  wide = max(len(reference) for reference, _ in rows)
  terminalreporter.write_line(
    f'{"reference":{wide}}  {"case":{width}}  difference  of values up to'
  )
  for (reference, case), sizes in sorted(rows.items()):
    difference, size = np.max(sizes, axis=0)
    terminalreporter.write_line(
      f'{reference:{wide}}  {case:{width}}  {difference:10.1e}  {size:.3g}'
    )


def _print_seconds(terminalreporter):
  """Prints how long the slowest of what was asked took to answer."""
  found = [
    value
    for reports in terminalreporter.stats.values()
    for report in reports
    if getattr(report, 'when', None) == 'call'
    for name, value in report.user_properties
    if name == _SECONDS
  ]
  if found:
    terminalreporter.section('seconds until a mistake was answered')
    for name, seconds in sorted(found, key=lambda each: -each[1])[:5]:
      terminalreporter.write_line(f'{seconds:6.1f}  {name}')


def _make_records(name, n, *, seed, lengths, references, choices):
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
    record = record_format.Record(
      inputs=generator.integers(3, 250, size).tolist(),
      targets=targets,
      inputs_pretokenized=f'{name} é {i}',
      targets_pretokenized=[f'{i}/{j}' for j in range(n_targets)],
      example_id=f'{name}-{i}',
    )
    records.append(_with_choices(record, generator, choices))
  return records


def _with_choices(record, generator, bounds):
  """The record with so many answer choices, or as it is where that is 0."""
  if bounds == (0, 0):
    return record
  n = generator.integers(bounds[0], bounds[1] + 1)
  choices = [
    generator.integers(3, 250, generator.integers(1, 6)).tolist()
    for _ in range(n)
  ]
  label = int(generator.integers(n))
  return dataclasses.replace(
    record,
    targets=[choices[label]],
    targets_pretokenized=[f'choice {label}'],
    choices=choices,
    choices_pretokenized=[f'choice {j}' for j in range(n)],
    label=label,
  )


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
    choices=(0, 0),
    vocabulary=_VOCABULARY,
    category=None,
    **sizes,
  ):
    splits = {
      split: _make_records(
        name,
        n,
        seed=seed,
        lengths=lengths,
        references=references,
        choices=choices,
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
