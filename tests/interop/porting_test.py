"""docs/porting.md does what it says: its commands and programs are run."""

import pathlib
import re
import shlex

import numpy as np
import pytest

from mhr_jax import backbones, cli
from mhr_jax.convert import hf_t5, t5x
from mhr_jax.convert import peft as peft_format
import mttl_checkpoints
import random_adapters
import toy_models

pytestmark = pytest.mark.interop

_PAGE = pathlib.Path(__file__).resolve().parents[2] / 'docs' / 'porting.md'


def _blocks():
  """Returns the page's indented blocks."""
  found = re.findall(r'(?:^ {4}.*\n|^\n(?= {4}))+', _PAGE.read_text(), re.M)
  return [re.sub('^ {4}', '', block.strip('\n'), flags=re.M) for block in found]


@pytest.fixture
def folders(torch, shared_dir, tmp_path, monkeypatch):
  """A working directory with the folders that the page speaks of."""
  monkeypatch.chdir(tmp_path)
  fixture = shared_dir / 'fixtures' / 'hf_t5_tiny'
  config, backbone = hf_t5.read_backbone(fixture)
  hf_t5.write_backbone('t5-v1_1-small', config, backbone)
  t5x.write_checkpoint('t5x', config, backbone, step=1_000_000)
  bundle = random_adapters.draw_bundle(backbone=config, names=False)
  peft_format.write_poly('poly', bundle)
  pathlib.Path('mttl').mkdir()
  tensors = mttl_checkpoints.to_state_dict(bundle)
  torch.save(
    {name: torch.tensor(np.asarray(x)) for name, x in tensors.items()},
    'mttl/best.ckpt',
  )
  names = [f'task {i}\n' for i in range(bundle.config.n_tasks)]
  pathlib.Path('mttl/tasks.txt').write_text(''.join(names))
  toy_models.write_run(pathlib.Path('runs/mhr').absolute(), _with_copy())
  return config


def _with_copy():
  model = toy_models.make_model()
  assert 'copy' in model.tasks
  return model


def test_the_page(folders, transformers, capsys):
  programs = [x for x in _blocks() if x.startswith('import ')]
  commands = [x for x in _blocks() if x.startswith('mhr-jax ')]
  assert len(programs) == 2 and len(commands) >= 4
  capsys.readouterr()
  for block in commands:
    for line in block.replace('\\\n', ' ').splitlines():
      assert cli.main(shlex.split(line)[1:]) == 0, capsys.readouterr().err
  printed = capsys.readouterr().out
  exec(programs[0], {})
  shown = next(x for x in _blocks() if x.startswith('reading t5-v1_1-small'))
  assert shown in printed
  capsys.readouterr()
  exec(programs[1], {})
  assert capsys.readouterr().out.strip() in shown
  for line in re.findall(r'--gin.BACKBONE_FROM=\'"(\S+)"\'', _PAGE.read_text()):
    backbones.check_backbone(line, folders)
