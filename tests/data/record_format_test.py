"""What the writer stores is what tensorflow-datasets' own features encode."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from mhr_jax.data import record_format
from mhr_jax.data.record_format import Record
from mhr_jax.errors import UserError


def _record(i: int, n_references: int = 2, n_choices: int = 0) -> Record:
  return Record(
    inputs=list(range(i)),
    targets=[[i] * (k + 1) for k in range(n_references)],
    inputs_pretokenized=f'ïn {i}',
    targets_pretokenized=[f'öut {k}' for k in range(n_references)],
    example_id=f'id {i}',
    choices=[[i + k] * k for k in range(n_choices)],
    choices_pretokenized=[f'chöice {k}' for k in range(n_choices)],
    label=n_choices - 1,
  )


@pytest.mark.parametrize(('n_references', 'n_choices'), [(1, 0), (3, 4)])
def test_serialized_as_the_features_do(n_references, n_choices):
  record = _record(4, n_references, n_choices)
  features = record_format.features()
  encoded = features.encode_example(
    {
      'inputs': np.array(record.inputs, np.int32),
      'targets': np.concatenate(record.targets).astype(np.int32),
      'target_lengths': np.array([len(t) for t in record.targets], np.int32),
      'inputs_pretokenized': record.inputs_pretokenized,
      'targets_pretokenized': record.targets_pretokenized,
      'example_id': record.example_id,
      'choices': np.array([i for c in record.choices for i in c], np.int32),
      'choice_lengths': np.array([len(c) for c in record.choices], np.int32),
      'choices_pretokenized': record.choices_pretokenized,
      'label': record.label,
    }
  )
  theirs = features.deserialize_example_np(features.serialize_example(encoded))
  ours = features.deserialize_example_np(record_format.serialize(record))
  assert ours.keys() == theirs.keys()
  for name, value in ours.items():
    np.testing.assert_array_equal(value, theirs[name])


@pytest.mark.parametrize('n', [1, 3, 4, 6, 7])
def test_shards_keep_the_order(tmp_path, monkeypatch, n):
  monkeypatch.setattr(record_format, '_RECORDS_PER_SHARD', 3)
  sizes = record_format.write_dataset(
    tmp_path / 'a/1.0.0',
    'A',
    {'train': (_record(i) for i in range(n)), 'empty': []},
  )
  assert sizes == {'train': n}
  builder = tfds.builder_from_directory(tmp_path / 'a/1.0.0')
  assert builder.info.splits['train'].num_shards == -(-n // 3)
  source = builder.as_data_source('train')
  assert [len(source[i]['inputs']) for i in range(len(source))] == list(
    range(n)
  )


def test_nothing_to_write_is_an_error(tmp_path):
  with pytest.raises(UserError, match="'A' has no examples"):
    record_format.write_dataset(tmp_path, 'A', {'train': [], 'test': iter(())})


def test_dataset_names():
  assert record_format.dataset_name('T:0.x-Y_z') == 't_0_x_y_z'
