"""Prepared tasks of random tokens, written as `mhr-jax prepare` writes them."""

from collections.abc import Iterator
import json
import pathlib

import numpy as np

from mhr_jax.data import record_format
from mhr_jax.vocabulary import ByteVocabulary

_FIRST_TOKEN = 3
_LAST_TOKEN = 250


def write_tasks(
  data_dir: pathlib.Path,
  n_tasks: int,
  n_examples: int,
  *,
  input_length: int,
  target_length: int,
) -> list[str]:
  """Writes tasks with a `train` split; returns their names.

  Args:
    data_dir: the folder of all prepared data.
    n_tasks: how many.
    n_examples: of each.
    input_length: of the longest inputs; they have a third of it at least.
    target_length: of the longest targets, likewise.
  """
  vocabulary = ByteVocabulary(extra_ids=100)
  names = [f'random_{i:04d}' for i in range(n_tasks)]
  for i, name in enumerate(names):
    rng = np.random.default_rng(i)
    records = _draw_records(rng, n_examples, input_length, target_length)
    folder = record_format.task_folder(data_dir, name)
    counts = record_format.write_dataset(folder, name, {'train': records})
    manifest = {
      'format_version': record_format.FORMAT_VERSION,
      'task': name,
      'fingerprint': f'{n_examples} random examples',
      'vocabulary': vocabulary.spec(),
      'category': None,
      'splits': counts,
      'made_with': {},
    }
    text = json.dumps(manifest)
    (folder / record_format.MANIFEST).write_text(text)
  return names


def _draw_records(
  rng: np.random.Generator, count: int, inputs: int, targets: int
) -> Iterator[record_format.Record]:
  for i in range(count):
    sizes = [rng.integers(-(-most // 3), most) for most in (inputs, targets)]
    tokens = [
      rng.integers(_FIRST_TOKEN, _LAST_TOKEN, size).tolist() for size in sizes
    ]
    yield record_format.Record(
      inputs=tokens[0],
      targets=[tokens[1]],
      inputs_pretokenized=f'inputs {i}',
      targets_pretokenized=[f'targets {i}'],
      example_id=str(i),
    )
