"""Finding, opening and writing T5X's files; what is not whole is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mhr_jax.convert import t5x
from mhr_jax.errors import UserError
from mhr_jax.t5 import parameters
from mhr_jax.tree_paths import leaves_by_path
import t5x_checkpoints

QUERY = 'encoder/layers_0/attention/query/kernel'


@pytest.mark.parametrize(
  'options',
  [
    {},
    {'spec_of': t5x_checkpoints.spec_in_a_bucket},
    {'spec_of': t5x_checkpoints.spec_of_2021},
    {'small': 0},
    {'small': 10**9},
  ],
)
def test_the_older_form_wherever_it_was_written(tmp_path, options):
  config = t5x_checkpoints.make_config(seed=1, scan_layers=False)
  backbone = t5x_checkpoints.draw_backbone(config)
  t5x_checkpoints.write_legacy(
    tmp_path / 't5', leaves_by_path(backbone), **options
  )
  assert t5x.is_checkpoint(tmp_path / 't5')
  _, read = t5x.read_backbone(tmp_path / 't5')
  t5x_checkpoints.assert_equal_trees(
    read, parameters.stack_layers(backbone, config)
  )


@pytest.mark.parametrize('version', [2, 3])
def test_bfloat16_of_the_older_form(tmp_path, version):
  """Version 2 wrote bfloat16 as integers."""
  config = t5x_checkpoints.make_config(scan_layers=False)
  backbone = t5x_checkpoints.draw_backbone(config, dtype=jnp.bfloat16)
  stored = leaves_by_path(backbone)
  if version == 2:
    stored = {path: leaf.view(np.uint16) for path, leaf in stored.items()}
  t5x_checkpoints.write_legacy(
    tmp_path / 'checkpoint_3', stored, version=version
  )
  expected = parameters.stack_layers(backbone, config)
  t5x_checkpoints.assert_equal_trees(
    t5x.read_backbone(tmp_path, dtype='bfloat16')[1], expected
  )
  as_float32 = jax.tree.map(lambda leaf: leaf.astype(np.float32), expected)
  t5x_checkpoints.assert_equal_trees(t5x.read_backbone(tmp_path)[1], as_float32)


def test_the_newest_finished_checkpoint_is_taken_and_said(tmp_path, caplog):
  config = t5x_checkpoints.make_config(scan_layers=False)
  for step in (9, 10):
    t5x.write_checkpoint(
      tmp_path,
      config,
      t5x_checkpoints.draw_backbone(config, seed=step),
      step=step,
    )
  for name in ('checkpoint_11.orbax-checkpoint-tmp', 'checkpoint_12.tmp-4'):
    (tmp_path / name / 'state').mkdir(parents=True)
    (tmp_path / name / 'state' / '_METADATA').write_text('{}')
  (tmp_path / 'checkpoint_13').mkdir()
  expected = parameters.stack_layers(
    t5x_checkpoints.draw_backbone(config, seed=10), config
  )
  t5x_checkpoints.assert_equal_trees(t5x.read_backbone(tmp_path)[1], expected)
  assert 'holds 2 T5X checkpoints' in caplog.text
  assert 'checkpoint_10' in caplog.text


def test_folders_that_are_no_checkpoint(tmp_path):
  absent, empty = tmp_path / 'absent', tmp_path / 'empty'
  empty.mkdir()
  tensorflow = tmp_path / 'tensorflow'
  tensorflow.mkdir()
  (tensorflow / 'checkpoint').write_text('model_checkpoint_path: "m.ckpt-1"')
  unfinished = tmp_path / 'unfinished'
  config = t5x_checkpoints.make_config(scan_layers=False)
  t5x_checkpoints.write_legacy(
    unfinished / 'checkpoint_3.tmp-9',
    leaves_by_path(t5x_checkpoints.draw_backbone(config)),
  )
  for folder, message in [
    (absent, 'There is no folder'),
    (empty, 'is no T5X checkpoint'),
    (tensorflow, "TensorFlow's"),
    (unfinished, r'Not written to the end: checkpoint_3\.tmp-9'),
    (unfinished / 'checkpoint_3.tmp-9', 'Not written to the end'),
  ]:
    assert not t5x.is_checkpoint(folder)
    with pytest.raises(UserError, match=message):
      t5x.read_backbone(folder)


def test_other_trees_are_no_t5(tmp_path):
  t5x_checkpoints.write_state(
    tmp_path / 'checkpoint_1', {'layer/kernel': np.ones((2, 3))}
  )
  with pytest.raises(UserError, match='token_embedder/embedding is absent'):
    t5x.infer_config(tmp_path)
  other = tmp_path / 'other' / 'state'
  ocp.PyTreeCheckpointer().save(other, {'params': np.ones(3)})
  with pytest.raises(UserError, match='has no target.* it has params'):
    t5x.infer_config(other.parent)


def test_files_that_were_not_copied_are_missed(tmp_path):
  config = t5x_checkpoints.make_config(scan_layers=False)
  target = leaves_by_path(t5x_checkpoints.draw_backbone(config))
  folder = tmp_path / 'checkpoint_3'
  t5x_checkpoints.write_legacy(folder, target)
  zarr = folder / f'target.{QUERY.replace("/", ".")}'
  (zarr / '1.1').unlink()
  with pytest.raises(UserError, match=rf'{QUERY} .* 1 of its 4 chunks'):
    t5x.read_backbone(folder, config)
  for file in zarr.iterdir():
    file.unlink()
  with pytest.raises(UserError, match=rf'{zarr.name} cannot be read'):
    t5x.read_backbone(folder, config)
  data = (folder / 'checkpoint').read_bytes()
  (folder / 'checkpoint').write_bytes(data[: len(data) // 2])
  with pytest.raises(UserError, match='checkpoint cannot be read'):
    t5x.read_backbone(folder, config)


def test_arrays_that_were_not_copied_are_missed(tmp_path):
  config = t5x_checkpoints.make_config()
  t5x.write_checkpoint(tmp_path, config, t5x_checkpoints.draw_backbone(config))
  for file in (tmp_path / 'checkpoint_0' / 'state').glob('**/d/*'):
    file.unlink()
  with pytest.raises(UserError, match='state.* cannot be read'):
    t5x.read_backbone(tmp_path)


def test_nothing_is_overwritten(tmp_path):
  config = t5x_checkpoints.make_config()
  backbone = t5x_checkpoints.draw_backbone(config)
  t5x.write_checkpoint(tmp_path, config, backbone, step=5)
  with pytest.raises(UserError, match='checkpoint_5 exists'):
    t5x.write_checkpoint(
      tmp_path, config, t5x_checkpoints.draw_backbone(config, 1), step=5
    )
  t5x_checkpoints.assert_equal_trees(t5x.read_backbone(tmp_path)[1], backbone)
  (tmp_path / 'checkpoint_6').mkdir()
  t5x.write_checkpoint(
    tmp_path, config, t5x_checkpoints.draw_backbone(config, 1), step=6
  )
  t5x_checkpoints.assert_equal_trees(
    t5x.read_backbone(tmp_path)[1], t5x_checkpoints.draw_backbone(config, 1)
  )


def test_only_the_newest_step_is_written_into_a_folder_of_checkpoints(tmp_path):
  config = t5x_checkpoints.make_config()
  backbone = t5x_checkpoints.draw_backbone(config)
  t5x.write_checkpoint(tmp_path, config, backbone, step=5)
  with pytest.raises(UserError, match=r'holds checkpoint_5.* another folder'):
    t5x.write_checkpoint(tmp_path, config, backbone, step=3)
  (tmp_path / 'checkpoint_9').mkdir()  # Without a state it is none.
  newer = t5x_checkpoints.draw_backbone(config, 1)
  t5x.write_checkpoint(tmp_path, config, newer, step=7)
  t5x_checkpoints.assert_equal_trees(t5x.read_backbone(tmp_path)[1], newer)


def test_a_checkpoint_does_not_go_into_another(tmp_path):
  config = t5x_checkpoints.make_config()
  backbone = t5x_checkpoints.draw_backbone(config)
  t5x.write_checkpoint(tmp_path, config, backbone, step=5)
  inside = tmp_path / 'checkpoint_5'
  for folder in (inside, tmp_path / 'checkpoint_8'):
    with pytest.raises(UserError, match=f'{tmp_path}, or a new one'):
      t5x.write_checkpoint(folder, config, backbone, step=6)
  inside.rename(tmp_path / 'mine')
  with pytest.raises(UserError, match='is the place of one checkpoint'):
    t5x.write_checkpoint(tmp_path / 'mine', config, backbone, step=6)


def test_a_write_that_fails_leaves_no_checkpoint(tmp_path, monkeypatch):
  def fail(*args, **kwargs):
    raise OSError('disk full')

  config = t5x_checkpoints.make_config()
  monkeypatch.setattr(ocp.PyTreeCheckpointHandler, 'finalize', fail)
  with pytest.raises(OSError, match='disk full'):
    t5x.write_checkpoint(
      tmp_path, config, t5x_checkpoints.draw_backbone(config)
    )
  assert not t5x.is_checkpoint(tmp_path)
  assert not (tmp_path / 'checkpoint_0').exists()
