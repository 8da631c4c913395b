"""What a backbone in bfloat16 or int8 costs in accuracy, and saves in memory.

    mhr-jax study --gin_file=presets/quickstart.gin --gin.SEEDS='(0,)'
    python -m benchmarks.stored_backbone runs/quickstart

takes the quick start's backbone and its `mhr` run, and compares with float32:
the run as it is, with its backbone rounded afterwards; and the same adapters
trained anew over the rounded backbone. Then the bytes of T5 1.1's parameters a
device. What was trained is kept beside the study and taken up again.
"""

import argparse
from collections.abc import Mapping, Sequence
import dataclasses
import functools
import json
import math
import pathlib
from typing import Any, get_args

import jax
import numpy as np

from benchmarks import options
from mhr_jax import evaluation, partitioning, run_folder, train
from mhr_jax.adapters import AdapterConfig
from mhr_jax.data import ordered, records
from mhr_jax.data.mixture_settings import MixtureSettings
from mhr_jax.evaluation import EvaluationSettings
from mhr_jax.model import RoutedT5
from mhr_jax.optim import OptimizerSettings
from mhr_jax.t5 import storage
from mhr_jax.t5.config import Storage, t5_config
from mhr_jax.t5.decoding import DecodingSettings
from mhr_jax.task_data import TaskData, TaskModule
from mhr_jax.trainer import TrainSettings

STORAGES: Sequence[Storage] = get_args(Storage)
_WIDTHS = {'input_length': 10, 'target_length': 7}
_GIB = 2**30


def main(argv: Sequence[str] | None = None) -> None:
  """Measures, prints a table and writes JSON."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('study', type=pathlib.Path, help="the quick start's")
  parser.add_argument('--data_dir', default='data_cache')
  parser.add_argument('--steps', type=int, default=600, help='of training anew')
  parser.add_argument('--json', type=pathlib.Path)
  flags = parser.parse_args(argv)
  data = TaskData(
    'skills_train_id',
    data_dir=flags.data_dir,
    modules=(TaskModule('mhr_jax.tasks.skills'),),
  )
  found: dict[str, Any] = {'bytes': measure_bytes()}
  found['rounded afterwards'] = measure_rounding(flags.study, data)
  found['trained over it'] = {
    kind: measure_training(flags.study, data, kind, flags.steps)
    for kind in STORAGES
  }
  print(to_text(found))
  if flags.json:
    flags.json.write_text(json.dumps(found, indent=1) + '\n')


def measure_rounding(
  study: pathlib.Path, data: TaskData
) -> dict[Storage, dict[str, float]]:
  """Returns, by storage, the errors of a run whose backbone is rounded."""
  run = run_folder.load_run(study / 'mhr' / 'seed0')
  expected = [_logits(run.model, run.params, b) for b in _batches(data, run)]
  found = {}
  for kind in STORAGES:
    model = _stored(run.model, kind)
    held = storage.store(run.params['backbone'], kind)
    params = {**run.params, 'backbone': held}
    errors = [
      np.abs(_logits(model, params, batch) - true)
      for batch, true in zip(_batches(data, run), expected, strict=True)
    ]
    found[kind] = _scores(model, params, data, run) | {
      'largest logits error': max(float(e.max()) for e in errors),
      'mean logits error': float(np.mean([e.mean() for e in errors])),
    }
  return found


def measure_training(
  study: pathlib.Path, data: TaskData, kind: Storage, steps: int
) -> dict[str, float]:
  """Returns the scores of adapters trained over a backbone stored so."""
  run_dir = study / 'stored_backbone' / f'{kind}_{steps}'
  train.train(
    str(run_dir),
    backbone=t5_config('t5_1_1_tiny', vocab_size=128, storage=kind),
    backbone_from=str(study / 'backbone' / 'seed0'),
    data=data,
    mixture=MixtureSettings(batch_size=64, rates='equal', **_WIDTHS),
    settings=TrainSettings(steps, save_every=100),
    adapters=functools.partial(AdapterConfig, rank=4, alpha=4.0, n_splits=8),
    optimizer=OptimizerSettings(
      schedule='cosine',
      learning_rates={'adapters': 1e-2},
      weight_decay={'adapters': 0.0},
    ),
  )
  run = run_folder.load_run(run_dir)
  return _scores(run.model, run.params, data, run)


def measure_bytes() -> dict[str, dict[Storage, float]]:
  """Returns GiB of the backbone a device, by model, mesh and storage."""
  found = {}
  for name in ('t5_1_1_small', 't5_1_1_xl', 't5_1_1_xxl'):
    for devices in (1, 8):
      mesh = jax.sharding.AbstractMesh(
        (1, devices), (partitioning.DATA_AXIS, partitioning.MODEL_AXIS)
      )
      found[f'{name}, model={devices}'] = {
        kind: _bytes_a_device(t5_config(name, storage=kind), mesh) / _GIB
        for kind in STORAGES
      }
  return found


def _bytes_a_device(config, mesh) -> int:
  model = RoutedT5(config)
  shapes = model.abstract_params()
  places = partitioning.shardings(model.logical_axes(), mesh, shapes).tree
  return sum(
    math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf, place in zip(
      jax.tree.leaves(shapes), jax.tree.leaves(places), strict=True
    )
  )


def _stored(model: RoutedT5, kind: Storage) -> RoutedT5:
  config = dataclasses.replace(model.config, storage=kind)
  return dataclasses.replace(model, config=config)


def _batches(data: TaskData, run: run_folder.Run):
  """Yields ten test examples of every task."""
  tasks = records.open_tasks(data.data_dir, data.resolve().tasks)
  return ordered.eval_batches(
    [task.source('test') for task in tasks],
    batch_size=100,
    task_table=run.task_table,
    limit=10,
    **_WIDTHS,
  )


@functools.lru_cache
def _compiled_logits(model: RoutedT5) -> Any:
  return jax.jit(model.logits)


def _logits(model: RoutedT5, params: Mapping[str, Any], batch) -> np.ndarray:
  """Returns logits where targets are; rows that only fill up are left out."""
  found = np.asarray(_compiled_logits(model)(params, batch.arrays))
  return found[batch.arrays['decoder_loss_weights'] > 0]


def _scores(model, params, data, run) -> dict[str, float]:
  settings = EvaluationSettings(
    metrics=('exact_match',), decoding=DecodingSettings(max_new_tokens=7)
  )
  evaluate = evaluation.make_evaluate(
    model, lambda: _batches(data, run), run.vocabulary, settings=settings
  )
  named = {'heldback/loss': 'loss', 'heldback/exact_match': 'exact match'}
  return {named[k]: v for k, v in evaluate(0, params).items()}


def to_text(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
  """Returns tables in Markdown, a row for each storage, mesh or measurement."""
  lines = []
  for part, rows in found.items():
    names = list(next(iter(rows.values())))
    lines += ['', f'| {part} | ' + ' | '.join(names) + ' |']
    lines.append('|---|' + '---:|' * len(names))
    for name, values in rows.items():
      cells = ' | '.join(f'{value:.4g}' for value in values.values())
      lines.append(f'| {name} | {cells} |')
  return '\n'.join(lines[1:])


if __name__ == '__main__':
  options.run(main)
