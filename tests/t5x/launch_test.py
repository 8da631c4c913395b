"""The real T5X trains, dies, resumes, evaluates and infers routed models."""

import json

from etils import epath
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.util import tensor_util

from mhr_jax.tree_paths import leaves_by_path

pytestmark = [pytest.mark.t5x, pytest.mark.timeout(1800)]

# The fixture of T5X's older form.
_LEGACY = """
from __gin__ import dynamic_registration
from mhr_jax.t5 import config
BACKBONE = @config.T5Config()
config.T5Config:
  vocab_size = 32128
  emb_dim = 4
  num_heads = 2
  head_dim = 2
  mlp_dim = 8
  relative_attention_num_buckets = 4
  num_encoder_layers = 2
  num_decoder_layers = 2
"""


def read(checkpoint):
  """Returns every array of a T5X checkpoint by path."""
  folder = epath.Path(checkpoint) / 'state'
  with ocp.PyTreeCheckpointer() as checkpointer:
    tree = checkpointer.metadata(folder).item_metadata.tree
    plain = jax.tree.map(
      lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree
    )
    return leaves_by_path(checkpointer.restore(folder, restore_args=plain))


def equal_where(a, b, part):
  """Whether all common leaves with `part` in their path are bit-identical."""
  names = [name for name in a if name in b and part(name)]
  assert names
  return all(np.array_equal(a[name], b[name]) for name in names)


def is_backbone(name):
  return name.startswith('target/') and not is_added(name)


def is_added(name):
  return name.startswith(('target/adapters/', 'target/routers/'))


def learning_rates(run):
  """Returns what T5X logged, by step."""
  events = event_accumulator.EventAccumulator(str(run / 'train'))
  logged = events.Reload().Tensors('learning_rate/current')
  return {
    each.step: float(tensor_util.make_ndarray(each.tensor_proto))
    for each in logged
  }


def flags_of(path, start, steps):
  return (
    f'--gin.MODEL_DIR="{path}"',
    f'--gin.INITIAL_CHECKPOINT_PATH="{start}"',
    f'--gin.TRAIN_STEPS={steps}',
  )


def evaluate_and_infer(launcher, method, checkpoint, *flags):
  """Returns what T5X's infer wrote for each task."""
  launcher.run(
    'eval',
    method,
    f'--gin.CHECKPOINT_PATH="{checkpoint}"',
    f'--gin.EVAL_OUTPUT_DIR="{launcher.folder / "eval"}"',
    *flags,
  )
  scores = [*(launcher.folder / 'eval').rglob('*metrics.jsonl')]
  assert len(scores) == 3
  assert 'exact_match' in scores[0].read_text()
  launcher.run(
    'infer',
    method,
    f'--gin.CHECKPOINT_PATH="{checkpoint}"',
    f'--gin.INFER_OUTPUT_DIR="{launcher.folder / "infer"}"',
    *flags,
  )
  written = [*(launcher.folder / 'infer').glob('*.jsonl-*')]
  lines = [json.loads(s) for path in written for s in path.open()]
  assert len(lines) == 3 * 4
  return lines


def kill_and_resume(launcher, method, start, first, *flags):
  """Returns the checkpoint killed after, the last one, and the log.

  Args:
    launcher: of the test.
    method: of the run.
    start: the checkpoint to start from.
    first: its step.
    *flags: more of them.
  """
  run = launcher.folder / 'run'
  killed, last = (run / f'checkpoint_{first + n}' for n in (5, 10))
  launcher.train_and_kill(method, killed, *flags_of(run, start, 10_000), *flags)
  text = launcher.run(
    'train', method, *flags_of(run, start, first + 10), *flags
  )
  assert killed.name in text
  states = read(killed), read(last)
  assert int(states[1]['state/step']) == first + 10
  assert not equal_where(*states, is_added)
  return last, states[1]


@pytest.mark.parametrize('method', ['mhr', 'poly'])
def test_train_kill_resume_eval_infer(launcher, shared_dir, method):
  fixture = shared_dir / 'fixtures' / 't5x_ocdbt_tiny' / 'unrolled'
  start = fixture / 'checkpoint_3'
  last, state = kill_and_resume(launcher, method, start, 3)
  assert equal_where(read(start), state, is_backbone)
  # The warm-up of 100 steps counts from the start, not from step 0.
  rates = learning_rates(launcher.folder / 'run')
  assert rates[13] == pytest.approx(1e-3 * (13 - 1 - 3) / 100)
  kept = {name.split('/')[4] for name in state if '/mu/' in name}
  assert kept == {'adapters', 'routers'}
  evaluate_and_infer(launcher, method, last)


def test_only_the_routing_trains_on_new_tasks(launcher, pretrained):
  flags = '--gin.PHASE="adapt"', '--gin.FRESH=("routers",)'
  last, state = kill_and_resume(launcher, 'mhr_z', pretrained, 8, *flags)
  before = read(pretrained)
  assert equal_where(before, state, is_backbone)
  assert equal_where(before, state, lambda n: n.startswith('target/adapters/'))
  evaluate_and_infer(launcher, 'mhr_z', last, flags[0])


def test_the_averaged_inventory_trains_without_routers(launcher, pretrained):
  flags = '--gin.PHASE="adapt"', '--gin.FRESH=()'
  last, state = kill_and_resume(launcher, 'mhr_mu', pretrained, 8, *flags)
  assert equal_where(read(pretrained), state, is_backbone)
  assert not [name for name in state if 'routers' in name]
  evaluate_and_infer(launcher, 'mhr_mu', last, flags[0])


def test_an_older_checkpoint_is_a_start_in_two_partitions(launcher, shared_dir):
  start = shared_dir / 'fixtures' / 't5x_legacy_tiny' / 'checkpoint_3'
  (launcher.folder / 'tiny.gin').write_text(_LEGACY)
  run = launcher.folder / 'run'
  text = launcher.run(
    'train',
    'mhr',
    *flags_of(run, start, 8),
    '--gin.AdapterConfig.n_splits=2',
    '--gin.NUM_PARTITIONS=2',
    devices=8,
  )
  assert "'data': 4, 'model': 2" in text
  assert int(read(run / 'checkpoint_8')['state/step']) == 8


def test_a_start_that_lacks_a_parameter_is_refused(launcher, shared_dir):
  start = shared_dir / 'fixtures' / 't5x_legacy_tiny' / 'checkpoint_3'
  process = launcher.start(
    'train', 'mhr', *flags_of(launcher.folder / 'run', start, 8)
  )
  assert process.wait(timeout=400)
  text = (launcher.folder / 'log').read_text()
  assert 'target/encoder/layers_2' in text
