"""Numbers of a run come back as written, also after a resume."""

import io
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from rich import console as rich_console

from mhr_jax import progress as progress_lib
from mhr_jax import reporting, run_files
from mhr_jax.errors import UserError
from mhr_jax.task_table import TaskTable


def test_metrics_come_back_in_order(tmp_path):
  with reporting.MetricsWriter(tmp_path) as writer:
    writer.write(1, {'train/loss': 2.5})
    writer.write(2, {'train/loss': jnp.float32(1.5), 'train/grad_norm': 3})
  lines = reporting.read_metrics(tmp_path)
  assert [line['step'] for line in lines] == [1, 2]
  assert lines[1]['train/loss'] == 1.5
  assert lines[1]['train/grad_norm'] == 3.0


def test_the_first_step_written_says_where_it_resumes(tmp_path):
  for steps, factor in ((range(1, 6), 1.0), (range(4, 6), 10.0)):
    with reporting.MetricsWriter(tmp_path) as writer:
      for step in steps:
        writer.write(step, {'train/loss': factor * step})
  losses = [line['train/loss'] for line in reporting.read_metrics(tmp_path)]
  assert losses == [1.0, 2.0, 3.0, 40.0, 50.0]


def test_nothing_is_touched_before_the_first_number(tmp_path):
  with reporting.MetricsWriter(tmp_path) as writer:
    writer.write(1, {'train/loss': 1})
  with reporting.MetricsWriter(tmp_path):
    pass
  assert len(reporting.read_metrics(tmp_path)) == 1


def test_unfinished_last_line_is_ignored_and_others_are_errors(tmp_path):
  path = tmp_path / run_files.METRICS_FILE
  path.write_text('{"step": 1}\n{"step": 2, "tr')
  assert reporting.read_metrics(tmp_path) == [{'step': 1}]
  path.write_text('{"step"\n{"step": 2}\n')
  with pytest.raises(UserError, match='line 1 is not JSON'):
    reporting.read_metrics(tmp_path)


def test_non_finite_numbers_are_valid_json(tmp_path):
  with reporting.MetricsWriter(tmp_path) as writer:
    writer.write(1, {'train/loss': float('nan')})
  text = (tmp_path / run_files.METRICS_FILE).read_text()
  assert json.loads(text)['train/loss'] is None
  assert 'NaN' not in text


def test_tensorboard_reads_what_was_written(tmp_path):
  """Read by TensorBoard's own reader, which checks every record's CRC."""
  from tensorboard.backend.event_processing import event_file_loader

  with reporting.MetricsWriter(tmp_path) as writer:
    writer.write(3, {'train/loss': 0.5})
  (path,) = (tmp_path / run_files.TENSORBOARD_FOLDER).iterdir()
  events = list(event_file_loader.EventFileLoader(str(path)).Load())
  found = [
    (event.step, value.tag, value.tensor.float_val[0])
    for event in events
    for value in event.summary.value
  ]
  assert found == [(3, 'train/loss', 0.5)]


_WITHOUT_TENSORFLOW = """
import sys
from mhr_jax import reporting
with reporting.MetricsWriter(sys.argv[1]) as writer:
  writer.write(1, {'loss': 1.0})
heavy = {'tensorflow', 'seqio', 'torch', 'matplotlib'} & set(sys.modules)
assert not heavy, heavy
"""


def test_tensorboard_is_written_without_tensorflow(tmp_path):
  command = [sys.executable, '-c', _WITHOUT_TENSORFLOW, str(tmp_path)]
  subprocess.run(command, check=True)
  assert any((tmp_path / run_files.TENSORBOARD_FOLDER).iterdir())


def test_a_store_without_append_gets_the_whole_file(tmp_path, monkeypatch):
  monkeypatch.setattr(run_files, 'is_remote', lambda path: True)
  test_the_first_step_written_says_where_it_resumes(tmp_path)


def _console(*, terminal: bool) -> tuple[rich_console.Console, io.StringIO]:
  text = io.StringIO()
  return rich_console.Console(
    file=text, force_terminal=terminal, width=120
  ), text


def test_without_a_terminal_progress_is_lines():
  console, text = _console(terminal=False)
  with progress_lib.Progress(
    40, console=console, every_seconds=1e6
  ) as progress:
    for step in range(1, 41):
      progress.update(step, loss=1.0 / step, examples=8, tokens=2_000)
  first, last = text.getvalue().splitlines()
  assert first.startswith('train  1/40  loss 1  ')
  assert 'examples/s' in first and 'tokens/s' in first and ' left' in first
  assert last.startswith('train  40/40  loss 0.025')
  assert ' left' not in last


def test_on_a_terminal_progress_is_a_bar():
  console, text = _console(terminal=True)
  with progress_lib.Progress(4, console=console) as progress:
    assert '0/4  starting' in text.getvalue()
    progress.update(4, loss=0.5)
  assert '4/4  loss 0.5' in text.getvalue()


def test_progress_of_other_processes_is_silent():
  console, text = _console(terminal=False)
  with progress_lib.Progress(2, console=console, enabled=False) as progress:
    progress.update(2, loss=0.5, examples=3)
  assert text.getvalue() == ''
  assert progress.examples_per_second > 0


def _params():
  return {
    'backbone': {'encoder': {'w': jnp.zeros((4, 4))}, 'head': jnp.zeros(3)},
    'adapters': {'encoder': {'a': jnp.zeros((2, 4), jnp.bfloat16)}},
  }


def test_parameter_rows_count_every_leaf_once():
  params = _params()
  rows = reporting.parameter_rows(params, trains=('adapters',))
  total = sum(leaf.size for leaf in jax.tree.leaves(params))
  assert sum(row.parameters for row in rows) == total
  assert [row.trains for row in rows] == [False, False, True]
  assert rows[2].dtype == 'bfloat16'


def test_run_folder_explains_itself(tmp_path):
  description = reporting.RunDescription(
    name='MHR on two tasks',
    summary='Adapters pre-trained on two tasks.',
    method='mhr',
    tasks=TaskTable(('first', 'sec|ond')),
    parameters=reporting.parameter_rows(_params(), trains=('adapters',)),
    settings={'steps': 10, 'optimizer': 'adamw'},
    command='python -m mhr_jax.train --gin_file=x.gin',
    config_text='train.steps = 10\n',
  )
  reporting.write_run_folder(tmp_path, description)
  card = (tmp_path / run_files.CARD_FILE).read_text()
  assert '| adapters/encoder | 8 | 29.63% | bfloat16 | yes |' in card
  assert '`sec\\|ond`' in card
  assert f"mhr_jax.load('{tmp_path}')" in card
  assert '--gin_file=x.gin' in card
  facts = json.loads((tmp_path / run_files.RUN_FILE).read_text())
  assert facts['method'] == 'mhr' and facts['n_tasks'] == 2
  assert facts['parameters'][0]['parameters'] == 16
  assert 'jax' in facts['versions']
  tasks = (tmp_path / run_files.TASKS_FILE).read_text()
  assert TaskTable.from_json(tasks) == description.tasks
  assert (tmp_path / run_files.CONFIG_FILE).read_text() == 'train.steps = 10\n'


def test_run_log_shows_and_writes(tmp_path):
  console, text = _console(terminal=False)
  progress = progress_lib.Progress(100, console=console, every_seconds=0)
  with reporting.RunLog(tmp_path, 100, progress=progress) as log:
    log.say('Starting.')
    log(50, {'train/loss': 2.0, 'train/examples': 9, 'train/seconds_left': 65})
    log(50, {'heldback/loss': 2.5})
  shown = text.getvalue().splitlines()
  assert shown[0] == 'Starting.'
  assert shown[1].startswith('train  50/100  loss 2  ')
  assert shown[1].endswith('1:05 left')
  assert shown[2] == 'step 50  heldback/loss 2.5'
  lines = reporting.read_metrics(tmp_path)
  assert lines[1]['heldback/loss'] == 2.5
