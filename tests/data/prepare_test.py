"""Prepared data is whole or absent, made once, and read without TensorFlow."""

import functools
import json
import os
import pathlib
import subprocess
import sys
import time

import pytest
import seqio
import tensorflow as tf

from mhr_jax.data import (
  prepare,
  preprocessors,
  record_format,
  records,
  registry,
  sources,
)
from mhr_jax.errors import UserError
from mhr_jax.vocabulary import ByteVocabulary

_BYTES = ByteVocabulary()


def load_lines(
  path: pathlib.Path, log: pathlib.Path | None = None, seconds: float = 0.0
) -> sources.TaskExamples:
  """Examples of a file, one a line; slow ones log that they were read."""
  if log:
    with log.open('a') as f:
      f.write(f'{os.getpid()}\n')

  def examples():
    for i, line in enumerate(path.read_text().splitlines()):
      time.sleep(seconds)
      yield sources.TextExample(f'line {i}', line, (line.upper(), 'or else'))

  return sources.TaskExamples({'train': examples(), 'test': []}, 'Lines')


def register_lines(name, path, log=None, seconds=0.0):
  """Registers the lines of a file as a task; again replaces the task."""
  seqio.TaskRegistry.remove(name)
  load = functools.partial(load_lines, path, log, seconds)
  source = sources.ExampleSource(load, splits=('train', 'test'), files=[path])
  registry.add_task(name, source, _BYTES, module=__name__)


@seqio.map_over_dataset
def _parse_tsv(line):
  fields = tf.strings.split(line, '\t')
  return {'inputs': fields[0], 'targets': fields[1]}


@pytest.fixture
def lines(tmp_path) -> pathlib.Path:
  path = tmp_path / 'lines.txt'
  path.write_text('one\ntwo, zwei\ndrei ß\n')
  return path


def _outcomes(data_dir, *names, **settings):
  results = prepare.prepare(data_dir, names, progress='off', **settings)
  return [result.outcome for result in results]


# What `import tensorflow` meets where TensorFlow is not installed.
_WITHOUT_TENSORFLOW = """
import importlib.machinery, sys
_find = importlib.machinery.PathFinder.find_spec
class Without(importlib.machinery.PathFinder):
  @classmethod
  def find_spec(cls, name, path=None, target=None):
    absent = name.split('.')[0] in ('tensorflow', 'tensorflow_text', 'seqio')
    return None if absent else _find(name, path, target)
sys.meta_path = [
  Without if f is importlib.machinery.PathFinder else f for f in sys.meta_path
]
"""


def test_anyone_reads_it_with_tfds_and_without_tensorflow(lines, tmp_path):
  register_lines('P.Lines', lines)
  data_dir = tmp_path / 'data'
  assert _outcomes(data_dir, 'P.Lines') == ['made']
  code = _WITHOUT_TENSORFLOW + (
    'import json, tensorflow_datasets as tfds\n'
    f'builder = tfds.builder_from_directory({str(data_dir / "p_lines/1.0.0")!r})\n'
    'source = builder.as_data_source("train")\n'
    f'same = tfds.data_source("p_lines", data_dir={str(data_dir)!r})["train"]\n'
    'assert len(source) == len(same) == 3 and "test" not in builder.info.splits\n'
    'show = lambda v: (v.tolist() if hasattr(v, "tolist") else\n'
    '  [show(x) for x in v] if isinstance(v, list) else\n'
    '  v if isinstance(v, int) else v.decode())\n'
    'print(json.dumps({k: show(v) for k, v in source[2].items()}))\n'
    'assert "tensorflow" not in sys.modules\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], check=True, capture_output=True, text=True
  )
  upper, other = _BYTES.encode('DREI SS'), _BYTES.encode('or else')
  assert json.loads(done.stdout) == {
    'inputs': _BYTES.encode('drei ß'),
    'targets': upper + other,
    'target_lengths': [len(upper), len(other)],
    'inputs_pretokenized': 'drei ß',
    'targets_pretokenized': ['DREI SS', 'or else'],
    'example_id': 'line 2',
    'choices': [],
    'choice_lengths': [],
    'choices_pretokenized': [],
    'label': -1,
  }


def test_the_manifest_and_the_reader_agree(lines, tmp_path):
  register_lines('p_lines', lines)
  registry.add_mixture('p_mixture', {'p_lines': 2.0}, module=__name__)
  data_dir = tmp_path / 'data'
  (result,) = prepare.prepare(data_dir, ['p_mixture'])
  assert result.splits == {'train': 3} and result.task == 'p_lines'
  task = records.open_task(data_dir, 'p_lines')
  assert task.category == 'Lines' and task.vocabulary == _BYTES
  assert task.source('train')[0]['targets_pretokenized'] == ('ONE', 'or else')
  mixture = records.open_mixture(data_dir, 'p_mixture')
  assert (mixture.tasks, mixture.rates) == (('p_lines',), (2.0,))
  folder = record_format.task_folder(data_dir, 'p_lines')
  assert (folder / 'lengths_train.npz').exists()
  seqio.MixtureRegistry.remove('p_mixture')


def test_kept_while_nothing_changed_and_made_again_when_stale(lines, tmp_path):
  register_lines('p_lines', lines)
  data_dir = tmp_path / 'data'
  assert _outcomes(data_dir, 'p_lines') == ['made']
  assert _outcomes(data_dir, 'p_lines') == ['kept']
  lines.write_text('changed\n')
  assert _outcomes(data_dir, 'p_lines') == ['made again']
  task = records.open_task(data_dir, 'p_lines')
  assert task.source('train')[0]['inputs_pretokenized'] == 'changed'
  register_lines('p_lines', lines, seconds=1e-6)  # another setting
  assert _outcomes(data_dir, 'p_lines') == ['made again']
  assert _outcomes(data_dir, 'p_lines', remake='all') == ['made again']
  assert _outcomes(data_dir, 'p_lines') == ['kept']


def test_the_same_file_in_another_folder_is_not_stale(lines, tmp_path):
  register_lines('p_lines', lines)
  assert _outcomes(tmp_path / 'data', 'p_lines') == ['made']
  moved = tmp_path / 'moved' / lines.name
  moved.parent.mkdir()
  lines.rename(moved)
  register_lines('p_lines', moved)
  assert _outcomes(tmp_path / 'data', 'p_lines') == ['kept']


def test_seqio_file_sources_are_stale_when_their_files_change(tmp_path):
  path = tmp_path / 'text.tsv'
  path.write_text('a\tb\n')
  feature = seqio.Feature(seqio.ByteVocabulary())
  seqio.TaskRegistry.add(
    'p_user',
    source=seqio.TextLineDataSource({'train': str(path)}),
    preprocessors=[
      _parse_tsv,
      *preprocessors.STANDARD,
    ],
    output_features={'inputs': feature, 'targets': feature},
  )
  assert _outcomes(tmp_path / 'data', 'p_user') == ['made']
  assert _outcomes(tmp_path / 'data', 'p_user') == ['kept']
  path.write_text('a\tc\nd\te\n')
  assert _outcomes(tmp_path / 'data', 'p_user') == ['made again']
  task = records.open_task(tmp_path / 'data', 'p_user')
  assert [r['targets_pretokenized'] for r in task.source('train')] == [
    ('c',),
    ('e',),
  ]
  seqio.TaskRegistry.remove('p_user')


def test_errors_leave_nothing_behind(lines, tmp_path):
  data_dir = tmp_path / 'data'
  lines.write_text('')
  register_lines('p_lines', lines)
  with pytest.raises(UserError, match="'p_lines' has no examples"):
    _outcomes(data_dir, 'p_lines')
  lines.unlink()
  with pytest.raises(UserError, match=r'lines\.txt, which is absent'):
    _outcomes(data_dir, 'p_lines')
  assert prepare.read_manifest(data_dir, 'p_lines') is None
  assert not data_dir.exists()


def test_names_that_share_a_folder_are_refused(lines, tmp_path):
  register_lines('p_lines', lines)
  register_lines('p.lines', lines)
  with pytest.raises(UserError, match="share the folder 'p_lines'"):
    _outcomes(tmp_path, 'p_lines', 'p.lines')
  _outcomes(tmp_path, 'p_lines')
  with pytest.raises(UserError, match="holds the task 'p_lines'"):
    _outcomes(tmp_path, 'p.lines')
  seqio.TaskRegistry.remove('p.lines')


def _start_preparing(lines, log, data_dir, seconds) -> subprocess.Popen:
  """Starts another process that prepares the task, and waits until it reads."""
  code = (
    'import importlib.util, pathlib, sys\n'
    'spec = importlib.util.spec_from_file_location('
    f'{__name__!r}, {__file__!r})\n'
    'here = importlib.util.module_from_spec(spec)\n'
    'sys.modules[spec.name] = here\n'
    'spec.loader.exec_module(here)\n'
    f'here.register_lines("p_lines", pathlib.Path({str(lines)!r}),'
    f' pathlib.Path({str(log)!r}), {seconds})\n'
    f'print(*here._outcomes({str(data_dir)!r}, "p_lines"))\n'
  )
  process = subprocess.Popen(
    [sys.executable, '-c', code], stdout=subprocess.PIPE, text=True
  )
  deadline = time.monotonic() + 120
  while not log.exists() and process.poll() is None:
    assert time.monotonic() < deadline
    time.sleep(0.02)
  return process


@pytest.mark.slow
def test_of_two_processes_one_makes_it_and_the_other_waits(lines, tmp_path):
  log, data_dir = tmp_path / 'log', tmp_path / 'data'
  process = _start_preparing(lines, log, data_dir, seconds=0.5)
  register_lines('p_lines', lines, log, 0.5)
  started = time.monotonic()
  assert _outcomes(data_dir, 'p_lines') == ['made elsewhere']
  assert time.monotonic() - started > 0.5
  assert process.communicate(timeout=60)[0].strip() == 'made'
  assert log.read_text().split() == [str(process.pid)]


@pytest.mark.slow
def test_what_a_killed_process_left_is_made_whole(lines, tmp_path):
  log, data_dir = tmp_path / 'log', tmp_path / 'data'
  process = _start_preparing(lines, log, data_dir, seconds=0.5)
  time.sleep(0.7)  # the first record is written
  process.kill()
  process.wait()
  assert prepare.read_manifest(data_dir, 'p_lines') is None
  assert list((data_dir / 'p_lines').iterdir())
  register_lines('p_lines', lines, log, 0.0)
  assert _outcomes(data_dir, 'p_lines') == ['made']
  assert len(records.open_task(data_dir, 'p_lines').source('train')) == 3
  assert [p.name for p in (data_dir / 'p_lines').iterdir()] == ['1.0.0']


def test_a_store_without_renaming_gets_copies(lines, tmp_path, monkeypatch):
  monkeypatch.setattr(prepare, '_is_local', lambda path: False)
  register_lines('p_lines', lines)
  data_dir = tmp_path / 'data'
  for expected in ('made', 'kept'):
    assert _outcomes(data_dir, 'p_lines') == [expected]
  lines.write_text('new')
  assert _outcomes(data_dir, 'p_lines') == ['made again']
  task = records.open_task(data_dir, 'p_lines')
  assert task.source('train')[0]['inputs_pretokenized'] == 'new'
  assert [p.name for p in (data_dir / 'p_lines').iterdir()] == ['1.0.0']


def test_no_bar_without_a_terminal(lines, tmp_path, capfd):
  register_lines('p_lines', lines)
  prepare.prepare(tmp_path / 'data', ['p_lines'], progress='auto')
  captured = capfd.readouterr()
  assert captured.out == '' and 'preparing' not in captured.err
