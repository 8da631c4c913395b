"""Tests of opening and reading prepared data."""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from mhr_jax import run_files
from mhr_jax.data import record_format, records
from mhr_jax.errors import UserError
from mhr_jax.vocabulary import ByteVocabulary


@pytest.fixture(scope='module')
def prepared(tmp_path_factory, write_task, write_mixture):
  data_dir = tmp_path_factory.mktemp('data')
  written = {
    name: write_task(data_dir, name, category=name[:3], train=23, test=5)
    for name in ('Add:one', 'add_two')
  }
  write_task(data_dir, 'other', vocabulary=ByteVocabulary(extra_ids=1), train=2)
  write_mixture(data_dir, 'both', list(written), [1.0, 3.0])
  return data_dir, written


def test_records_are_what_was_written(prepared):
  data_dir, written = prepared
  task = records.open_task(data_dir, 'Add:one')
  assert task.splits == {'train': 23, 'test': 5} and task.category == 'Add'
  source = task.source('train')
  assert len(source) == 23 and source.name == 'Add:one'
  for i, want in enumerate(written['Add:one']['train']):
    found = source[i]
    assert found['inputs'].tolist() == list(want.inputs)
    flat = [token for target in want.targets for token in target]
    assert found['targets'].tolist() == flat
    assert found['target_lengths'].tolist() == [len(t) for t in want.targets]
    assert found['inputs'].dtype == found['targets'].dtype == np.int32
    assert found['inputs_pretokenized'] == want.inputs_pretokenized
    assert found['targets_pretokenized'] == tuple(want.targets_pretokenized)
    assert found['example_id'] == want.example_id
  with pytest.raises(IndexError):
    source[23]


def test_our_decoding_equals_that_of_tensorflow_datasets(prepared):
  data_dir, _ = prepared
  import tensorflow_datasets as tfds

  folder = record_format.task_folder(data_dir, 'Add:one')
  plain = tfds.builder_from_directory(folder).as_data_source('train')
  source = records.open_task(data_dir, 'Add:one').source('train')
  for ours, theirs in zip(
    source.__getitems__([4, 0]), [plain[4], plain[0]], strict=True
  ):
    np.testing.assert_array_equal(ours['inputs'], theirs['inputs'])
    np.testing.assert_array_equal(ours['targets'], theirs['targets'])
    assert ours['example_id'].encode() == theirs['example_id']


def test_tokens_and_lengths(prepared):
  data_dir, written = prepared
  source = records.open_task(data_dir, 'add_two').source('train')
  table = source.read_tokens([7, 3])
  inputs = table.input_spans(np.arange(2))
  want = written['add_two']['train']
  assert inputs[0].tolist() == list(want[7].inputs)
  assert inputs[1].tolist() == list(want[3].inputs)
  lengths = source.read_lengths()
  assert lengths.inputs.tolist() == [len(each.inputs) for each in want]
  assert lengths.first.tolist() == [len(each.targets[0]) for each in want]
  longest = [max(len(t) for t in each.targets) for each in want]
  assert lengths.longest.tolist() == longest


def test_stored_lengths_are_those_measured(tmp_path, write_task):
  write_task(tmp_path, 'task', train=9, test=2)
  source = records.open_task(tmp_path, 'task').source('train')
  records.write_lengths(tmp_path, 'task')
  stored = source.read_lengths()
  source.measure = None  # stored ones are not measured again
  assert source.read_lengths().longest.tolist() == stored.longest.tolist()
  part = records.open_task(tmp_path, 'task').source('train[2:5]')
  assert part.read_lengths().inputs.tolist() == stored.inputs[2:5].tolist()


def test_parts_of_splits(prepared):
  data_dir, written = prepared
  task = records.open_task(data_dir, 'add_two')
  first, last = task.source('train[:-4]'), task.source('train[-4:]')
  assert (len(first), len(last)) == (19, 4)
  want = written['add_two']['train'][19].example_id
  assert last[0]['example_id'] == want


def test_open_mixture(prepared):
  data_dir, _ = prepared
  mixture = records.open_mixture(data_dir, 'both')
  assert mixture.tasks == ('Add:one', 'add_two')
  assert mixture.rates == (1.0, 3.0)
  assert records.list_tasks(data_dir) == ['Add:one', 'add_two', 'other']


def test_the_vocabulary_comes_with_the_task(prepared):
  data_dir, _ = prepared
  task = records.open_task(data_dir, 'add_two')
  assert task.vocabulary == ByteVocabulary(extra_ids=100)


def test_errors_name_the_remedy(prepared, tmp_path):
  data_dir, _ = prepared
  with pytest.raises(UserError, match=r"mhr-jax prepare .*mean 'add_two'"):
    records.open_task(data_dir, 'add_tow')
  with pytest.raises(UserError, match='There are none'):
    records.open_task(tmp_path / 'nowhere', 'add_two')
  with pytest.raises(UserError, match=r"mhr-jax prepare .*mean 'both'"):
    records.open_mixture(data_dir, 'bath')
  with pytest.raises(UserError, match="no split 'tests'. Did you mean 'test'"):
    records.open_task(data_dir, 'add_two').source('tests')
  with pytest.raises(UserError, match='Nothing to read'):
    records.open_task(data_dir, 'add_two').source('train[:0]')
  with pytest.raises(UserError, match='Nothing to read'):
    records.open_task(data_dir, 'add_two').source('train[')


def test_tasks_of_other_vocabularies_are_refused(prepared):
  data_dir, _ = prepared
  with pytest.raises(UserError, match="'other' was prepared with vocabulary"):
    records.open_tasks(data_dir, ['add_two', 'other'])
  fingerprint = ByteVocabulary(extra_ids=1).fingerprint
  with pytest.raises(UserError, match='the model has'):
    records.open_tasks(
      data_dir, ['add_two'], vocabulary_fingerprint=fingerprint
    )


@pytest.mark.parametrize(
  ('version', 'message'),
  [
    (99, "'task' in format 99; .*run `mhr-jax prepare task"),
    (1, 'in format 1 .prepared before records had answer choices.; .*prepare'),
  ],
)
def test_another_format_is_refused(tmp_path, write_task, version, message):
  write_task(tmp_path, 'task')
  folder = record_format.task_folder(tmp_path, 'task')
  path = folder / record_format.MANIFEST
  manifest = json.loads(path.read_text()) | {'format_version': version}
  path.write_text(json.dumps(manifest))
  with pytest.raises(UserError, match=message):
    records.open_task(tmp_path, 'task')


def test_choices_are_what_was_written(tmp_path, write_task):
  written = write_task(tmp_path, 'task', choices=(2, 4), test=9)['test']
  source = records.open_task(tmp_path, 'task').source('test')
  for found, want in zip(source.__getitems__(range(9)), written, strict=True):
    flat = [token for choice in want.choices for token in choice]
    assert found['choices'].tolist() == flat
    assert found['choice_lengths'].tolist() == [len(c) for c in want.choices]
    assert found['choices_pretokenized'] == tuple(want.choices_pretokenized)
    assert found['label'] == want.label


def test_training_data_needs_no_tensorflow(prepared):
  data_dir, _ = prepared
  code = f"""
    import sys

    class Without:  # as on a machine that has none of these
      def __init__(self, finder):
        self.finder = finder
      def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('tensorflow', 'seqio', 'torch'):
          return None
        return self.finder.find_spec(name, path, target)
      def __getattr__(self, name):
        return getattr(self.finder, name)

    sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
    from mhr_jax.data import loader, ordered, read_ahead, records
    settings = loader.MixtureSettings(4, 16, 8, packing='within_task')
    made = loader.build_loader({str(data_dir)!r}, 'both', 'train', settings)
    assert read_ahead.ReadAhead(made)(3)['task_ids'].shape == (4,)
    source = records.open_task({str(data_dir)!r}, 'add_two').source('test')
    widths = dict(batch_size=4, input_length=16, target_length=8)
    print(len(list(ordered.eval_batches([source], **widths))))
  """
  done = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(code)],
    capture_output=True,
    text=True,
    check=False,
    timeout=120,
  )
  assert done.stdout.strip() == '2', done.stderr


def _damage(path, old, new):
  text = path.read_text()
  assert old in text
  path.write_text(text.replace(old, new))


def test_a_manifest_that_was_altered_is_refused(tmp_path, write_task):
  write_task(tmp_path, 'task', category='a')
  path = record_format.task_folder(tmp_path, 'task') / record_format.MANIFEST
  sealed = run_files.seal(json.loads(path.read_text()))
  run_files.write_json(path, sealed)
  assert records.open_task(tmp_path, 'task').category == 'a'
  _damage(path, '"a"', '"b"')
  with pytest.raises(
    UserError, match='mhr_jax.json was altered .* prepare task'
  ):
    records.open_task(tmp_path, 'task')


def test_a_mixture_that_was_altered_is_refused(tmp_path, write_mixture):
  write_mixture(tmp_path, 'both', ['a', 'b'], [1.0, 3.0])
  path = tmp_path / record_format.MIXTURES / 'both.json'
  run_files.write_json(path, run_files.seal(json.loads(path.read_text())))
  assert records.open_mixture(tmp_path, 'both').rates == (1.0, 3.0)
  _damage(path, '3.0', '8.0')
  with pytest.raises(UserError, match='both.json was altered .* prepare both'):
    records.open_mixture(tmp_path, 'both')


def test_records_that_were_cut_short_or_are_others_are_refused(
  tmp_path, write_task
):
  """array_record alone reads a part of a file as other records."""
  write_task(tmp_path, 'task', train=30)
  folder = record_format.task_folder(tmp_path, 'task')
  path = folder / record_format.MANIFEST
  manifest = json.loads(path.read_text())
  manifest['file_sizes'] = record_format.file_sizes(folder)
  path.write_text(json.dumps(manifest))
  assert len(records.open_task(tmp_path, 'task').source('train')) == 30
  file = next(folder.glob('*.array_record-*'))
  whole = file.read_bytes()
  file.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(UserError, match='cannot be read: .* bytes, .* written'):
    records.open_task(tmp_path, 'task').source('train')
  file.write_bytes(whole)
  path.write_text(json.dumps(manifest | {'splits': {'train': 29}}))
  with pytest.raises(UserError, match="30 records of split 'train', 29 were"):
    records.open_task(tmp_path, 'task').source('train')
