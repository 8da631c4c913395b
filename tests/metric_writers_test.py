"""Writers are chosen by name; what is missing is said before a run begins."""

import importlib.util

import pytest

from mhr_jax import cli, metric_writers
from mhr_jax.errors import UserError
from mhr_jax.train_settings import TrainSettings


def test_a_writer_is_chosen_by_its_name():
  assert TrainSettings(steps=1).writers == ('tensorboard',)
  assert TrainSettings(steps=1, writers=['wandb']).writers == ('wandb',)
  with pytest.raises(UserError, match="'wandbb': .*Did you mean 'wandb'"):
    TrainSettings(steps=1, writers=('wandbb',))
  with pytest.raises(UserError, match='a list is wanted'):
    TrainSettings(steps=1, writers='wandb')


def test_an_absent_package_is_named_with_its_extra_before_anything_is_written(
  tmp_path, monkeypatch, capsys, write_task
):
  find = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util,
    'find_spec',
    lambda name, *rest: None if name == 'wandb' else find(name, *rest),
  )
  metric_writers.check_installed(('tensorboard',))
  write_task(tmp_path, 'a_task', train=20)
  argv = [
    'train',
    '--gin_file=models/t5_1_1_tiny.gin',
    '--gin_file=methods/lora.gin',
    '--gin_file=runs/multi_task.gin',
    '--gin.TASKS="a_task"',
    f'--gin.DATA_DIR="{tmp_path}"',
    f'--gin.RUN_DIR="{tmp_path / "run"}"',
    '--gin.BACKBONE_FROM=None',
    '--gin.TrainSettings.writers=["wandb"]',
  ]
  assert cli.main(argv) == 2
  assert "pip install 'mhr_jax[wandb]'" in capsys.readouterr().err
  assert not (tmp_path / 'run').exists()
