"""Damaged checkpoints, data and weights: named; never taken for whole ones."""

import random
import shutil

from etils import epath
import jax
import numpy as np
import pytest

from faults.harness import (
  SAVE_EVERY,
  STEPS,
  TASKS,
  assert_explained,
  assert_same_run,
  read_arrays,
)
from mhr_jax import checkpoints, conversion, frozen
from mhr_jax.convert import safetensors_files
from mhr_jax.data import ordered, record_format, records
from mhr_jax.data.loader import build_loader
from mhr_jax.data.mixture_settings import MixtureSettings
from mhr_jax.errors import UserError

pytestmark = pytest.mark.faults

_FLIPS = 4  # of each file


@pytest.fixture
def run_dir(bench, whole, request):
  """A copy of the uninterrupted run."""
  folder = bench.root / request.node.name.replace('[', '_').strip(']')
  shutil.copytree(whole, folder)
  return folder


def _flip(path, rng):
  """Flips one bit of what is no padding."""
  data = bytearray(path.read_bytes())
  data[rng.choice(np.flatnonzero(data))] ^= 1 << rng.randrange(8)
  path.write_bytes(data)


def _cut(path, rng):
  del rng
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _remove(path, rng):
  del rng
  path.unlink()


def _files(folder):
  return sorted(path for path in folder.rglob('*') if path.is_file())


@pytest.mark.parametrize(
  ('item', 'name', 'damage'),
  [
    ('optimizer', 'd/*', _cut),
    ('trainable', 'd/*', _flip),
    ('metadata', 'metadata', _cut),
  ],
)
def test_a_damaged_last_checkpoint_is_named_and_not_passed_over(
  bench, run_dir, item, name, damage
):
  folder = run_dir / 'checkpoints' / str(STEPS) / item
  damage(
    max(folder.glob(name), key=lambda p: p.stat().st_size), random.Random(0)
  )
  before = _files(run_dir / 'checkpoints')
  assert_explained(
    bench.run(run_dir), str(folder), f'--resume_from={STEPS - SAVE_EVERY}'
  )
  assert _files(run_dir / 'checkpoints') == before


def test_the_checkpoint_before_is_used_where_it_is_asked_for(
  bench, whole, run_dir
):
  last, before = STEPS, STEPS - SAVE_EVERY
  shutil.rmtree(run_dir / 'checkpoints' / str(last) / 'optimizer')
  ended = bench.run(run_dir, f'--resume_from={before}')
  assert ended.code == 0, ended.text
  assert f'Resuming at step {before}, as asked' in ended.text
  aside = run_dir / checkpoints.SET_ASIDE_FOLDER
  assert [path.name for path in aside.iterdir()] == [str(last)]
  assert_same_run(run_dir, whole)


def test_a_step_that_is_not_there_is_refused(bench, run_dir):
  ended = bench.run(run_dir, '--resume_from=7')
  assert_explained(ended, 'no checkpoint of step 7', f'{STEPS}; 0 starts anew')


def test_no_flipped_bit_of_a_checkpoint_goes_unseen(whole, tmp_path):
  """Either the arrays are those that were saved, or reading is refused."""
  wanted = read_arrays(whole)
  rng = random.Random(1)
  refused = 0
  for path in _files(whole / 'checkpoints' / str(STEPS)):
    for _ in range(_FLIPS):
      copy = tmp_path / 'copy'
      shutil.rmtree(copy, ignore_errors=True)
      shutil.copytree(
        whole / 'checkpoints' / str(STEPS), copy / 'checkpoints' / str(STEPS)
      )
      _flip(copy / path.relative_to(whole), rng)
      try:
        found = read_arrays(copy)
      except UserError:
        refused += 1
        continue
      for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=str(path))
  assert refused


def test_a_frozen_backbone_with_a_flipped_bit_is_refused(run_dir):
  arrays = run_dir / 'backbone' / frozen.ARRAYS_FOLDER
  saved = checkpoints.saved_structure(arrays)
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), saved)
  frozen.restore_frozen(arrays.parent, shapes)
  path = max((arrays / 'd').iterdir(), key=lambda p: p.stat().st_size)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)
  with pytest.raises(UserError, match='backbone/arrays '):
    frozen.restore_frozen(arrays.parent, shapes)


def _read_all(data_dir):
  """Returns batches of training and of evaluation as bytes."""
  tasks = records.open_tasks(data_dir, TASKS)
  mixture = MixtureSettings(8, 8, 6, packing='within_task')
  loader = build_loader(str(data_dir), 'both', 'train', mixture)
  batches = [loader.batch(step) for step in range(6)]
  batches += [
    each.arrays if hasattr(each, 'arrays') else each
    for each in ordered.eval_batches(
      [task.source('validation') for task in tasks],
      batch_size=4,
      input_length=8,
      target_length=6,
    )
  ]
  return [jax.tree.map(lambda x: np.asarray(x).tobytes(), b) for b in batches]


def test_damaged_data_is_refused_or_read_as_it_was(bench, tmp_path):
  for task in TASKS:
    records.write_lengths(epath.Path(bench.data_dir), task)
  wanted = _read_all(bench.data_dir)
  folder = record_format.task_folder(bench.data_dir, TASKS[0])
  rng = random.Random(2)
  for path in _files(bench.data_dir / folder.relative_to(bench.data_dir)):
    for damage in (_remove, _cut, *[_flip] * _FLIPS):
      copy = tmp_path / 'data'
      shutil.rmtree(copy, ignore_errors=True)
      shutil.copytree(bench.data_dir, copy)
      damage(copy / path.relative_to(bench.data_dir), rng)
      try:
        found = _read_all(copy)
      except UserError:
        continue
      assert found == wanted, (path, damage)


def test_damaged_data_is_named_by_the_command(bench, tmp_path):
  copy = tmp_path / 'data'
  shutil.copytree(bench.data_dir, copy)
  path = next(copy.glob('one/*/*train.array_record*'))
  data = bytearray(path.read_bytes())
  used = np.flatnonzero(data)
  data[used[len(used) // 2]] ^= 16
  path.write_bytes(data)
  ended = bench.run(tmp_path / 'run', bindings={'DATA_DIR': str(copy)})
  assert_explained(ended, str(path.parent), 'mhr-jax prepare one')


def test_weights_with_flipped_bits_are_refused_or_read_whole(whole, tmp_path):
  conversion.convert(str(whole / 'backbone'), str(tmp_path / 'hf'), 'hf')
  path = tmp_path / 'hf' / safetensors_files.WHOLE_FILE
  data = path.read_bytes()
  header = int.from_bytes(data[:8], 'little')
  rng = random.Random(3)
  for _ in range(200):
    changed = bytearray(data)
    changed[rng.randrange(8 + header)] ^= 1 << rng.randrange(8)
    path.write_bytes(changed)
    try:
      files = safetensors_files.SafetensorsFiles([epath.Path(path)])
      for name, shape in files.shapes.items():
        files.read_into(name, np.empty(shape, np.float32))
    except UserError:
      continue


def test_a_backbone_that_changed_since_the_start_is_named(bench, whole):
  weights = bench.root / 'hf'
  conversion.convert(str(whole / 'backbone'), str(weights), 'hf')
  run_dir = bench.root / 'from_hf'
  bindings = {'BACKBONE_FROM': str(weights)}
  assert bench.run(run_dir, bindings=bindings).code == 0
  path = weights / safetensors_files.WHOLE_FILE
  data = bytearray(path.read_bytes())
  data[-3] ^= 1
  path.write_bytes(data)
  ended = bench.run(run_dir, bindings=bindings)
  assert_explained(ended, 'frozen backbone is not the one', str(run_dir))
