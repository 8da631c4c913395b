"""Weights & Biases' own client, offline: what it stores is what was written."""

import json
import struct

import pytest

from mhr_jax import cli, reporting

pytestmark = pytest.mark.interop

_BLOCK = 2**15
_HEADER = 7  # of the file, and of each piece: checksum, length, kind
_LAST = (1, 4)  # a whole record, or the last piece of one


def _read_records(path):
  """Yields the records of a run's file: pieces in blocks, as LevelDB logs."""
  from wandb.proto import wandb_internal_pb2

  data = path.read_bytes()
  assert data[:4] == b':W&B'
  at, record = _HEADER, b''
  while at < len(data):
    if _BLOCK - at % _BLOCK < _HEADER:  # The rest of a block is padding.
      at += _BLOCK - at % _BLOCK
      continue
    length, kind = struct.unpack_from('<HB', data, at + 4)
    record += data[at + _HEADER : at + _HEADER + length]
    at += _HEADER + length
    if kind in _LAST:
      yield wandb_internal_pb2.Record.FromString(record)
      record = b''


def _history(path):
  """Returns {name: value} of each step that a file holds."""
  rows = []
  for record in _read_records(path):
    if record.WhichOneof('record_type') == 'history':
      items = record.history.item
      row = {
        item.key or '/'.join(item.nested_key): json.loads(item.value_json)
        for item in items
      }
      rows.append({k: v for k, v in row.items() if k[1:] in ('oss', 'step')})
  return rows


def _config(path):
  return {
    item.key: json.loads(item.value_json)
    for record in _read_records(path)
    if record.WhichOneof('record_type') in ('run', 'config')
    for item in getattr(record, record.WhichOneof('record_type')).config.update
  }


@pytest.fixture
def offline(wandb, tmp_path, monkeypatch):
  """No account, no settings of whoever runs the test, and no network."""
  for name in ('WANDB_MODE', 'WANDB_PROJECT', 'WANDB_RUN_ID', 'WANDB_DIR'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv('WANDB_BASE_URL', 'http://127.0.0.1:9')
  monkeypatch.setenv('WANDB_CONFIG_DIR', str(tmp_path / 'config'))
  monkeypatch.setenv('WANDB_CACHE_DIR', str(tmp_path / 'cache'))
  return tmp_path / 'run'


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_what_is_stored_is_what_was_written(offline):
  for steps, settings in (((1, 2, 3), {'steps': '9'}), ((3, 4), {})):
    writer = reporting.MetricsWriter(
      offline, writers=('wandb',), settings=settings
    )
    with writer:
      for step in steps:
        writer.write(step, {'loss': 0.5 * step})
  first, second = sorted((offline / 'wandb').glob('offline-run-*/*.wandb'))
  assert first.name == second.name  # The same run, which resumed.
  assert _config(first)['steps'] == '9'
  for path, steps in ((first, (1, 2, 3)), (second, (3, 4))):
    rows = [row for row in _history(path) if 'loss' in row]
    assert [row['_step'] for row in rows] == list(steps)
    assert [row['loss'] for row in rows] == [0.5 * step for step in steps]


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_a_training_that_asks_for_it_writes_it(offline, write_task, tmp_path):
  write_task(tmp_path, 'a_task', train=20)
  argv = [
    'train',
    '--gin_file=models/t5_1_1_tiny.gin',
    '--gin_file=methods/lora.gin',
    '--gin_file=runs/multi_task.gin',
    '--gin.TASKS="a_task"',
    f'--gin.DATA_DIR="{tmp_path}"',
    f'--gin.RUN_DIR="{offline}"',
    '--gin.BACKBONE_FROM=None',
    '--gin.BATCH_SIZE=8',
    '--gin.INPUT_LENGTH=8',
    '--gin.TARGET_LENGTH=4',
    '--gin.STEPS=2',
    '--gin.TrainSettings.log_every=1',
    '--gin.TrainSettings.eval_every=0',
    '--gin.TrainSettings.writers=["tensorboard", "wandb"]',
  ]
  assert cli.main(argv) == 0
  assert list((offline / 'tensorboard').iterdir())
  (path,) = (offline / 'wandb').glob('offline-run-*/*.wandb')
  written = reporting.read_metrics(offline)
  steps = {row['_step'] for row in _history(path)}
  assert {line['step'] for line in written} <= steps
  assert _config(path)['settings.steps'] == '2'
