"""CrossFit's files: lines, seeds, partitions, and what is malformed."""

import json
import logging

import pytest

from mhr_jax import metrics
from mhr_jax.data import prepare, records, registry
from mhr_jax.errors import UserError
from mhr_jax.tasks import crossfit
from mhr_jax.tasks.crossfit_tasks import METRIC_OF_TASK

_SEEDS = (13, 100)


def write_task(folder, task, *, seeds=_SEEDS, shots=2, **lines):
  """Writes a task's files as `_build_gym.py` does; `lines` are whole files."""
  (folder / task).mkdir(parents=True)
  for seed in seeds:
    for part, count in (('train', shots), ('dev', shots), ('test', 3)):
      which = '' if part == 'test' else seed
      text = lines.get(part) or ''.join(
        f'{part} {which} q{i} \tyes\tYES {i}\n' for i in range(count)
      )
      path = folder / task / f'{task}_{shots}_{seed}_{part}.tsv'
      path.write_text(text)
  return folder


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('gym')
  for task in ('glue-rte', 'emo', 'app_reviews'):
    write_task(folder, task)
  (folder / 'notes').mkdir()
  return folder


def test_registered_prepared_and_read(folder, tmp_path):
  partition = tmp_path / 'random.json'
  parts = {'train': ['emo'], 'dev': [], 'test': ['glue-rte', 'app_reviews']}
  partition.write_text(json.dumps(parts))
  options = {'vocabulary': 'bytes', 'partitions': str(tmp_path)}
  mixtures = crossfit.register(folder, **options)
  assert crossfit.register(folder, **options) == mixtures
  assert mixtures == {
    'crossfit_all': (
      'crossfit_app_reviews',
      'crossfit_emo',
      'crossfit_glue_rte',
    ),
    'crossfit_random_train': ('crossfit_emo',),
    'crossfit_random_test': ('crossfit_glue_rte', 'crossfit_app_reviews'),
  }
  prepare.prepare(tmp_path / 'data', ['crossfit_random_test'])
  task = records.open_task(tmp_path / 'data', 'crossfit_glue_rte')
  assert task.metric == 'crossfit_accuracy'
  by_seed = {f'{k}_seed{s}': 2 for k in ('few_shot', 'dev') for s in _SEEDS}
  assert task.splits == {'train': 8, 'test': 3, **by_seed}
  record = task.source('few_shot_seed100')[1]
  assert record['inputs_pretokenized'] == ' [glue-rte] train 100 q1 '
  assert record['targets_pretokenized'] == ('yes', 'YES 1')
  joined = [r['inputs_pretokenized'].split()[1:] for r in task.source('train')]
  assert joined == [
    [part, str(seed), f'q{i}']
    for seed in _SEEDS
    for part in ('train', 'dev')
    for i in range(2)
  ]
  ids = {record['example_id'] for record in task.source('train')}
  assert len(ids) == 8 and '13/dev/2' in ids
  (metric,) = registry.get_task('crossfit_app_reviews').metric_fns
  assert metric([['1', '1'], ['2']], ['3', '5'])['crossfit_pearson'] == 100


def test_the_table_has_160_tasks_and_all_seven_metrics():
  assert len(METRIC_OF_TASK) == 160
  known = [*metrics.METRICS, *metrics.SET_METRICS]
  used = set(METRIC_OF_TASK.values())
  assert used == {name for name in known if name.startswith('crossfit_')}
  # The counts of the paper's code, and one task of each metric.
  assert [list(METRIC_OF_TASK.values()).count(n) for n in sorted(used)] == [
    *(51, 51, 28, 1, 3, 17, 9)
  ]
  assert METRIC_OF_TASK['glue-cola'] == 'crossfit_matthews'
  assert METRIC_OF_TASK['mocha'] == 'crossfit_pearson'
  assert METRIC_OF_TASK['break-QDMR-high-level'] == 'crossfit_exact_match'
  assert METRIC_OF_TASK['superglue-record'] == 'crossfit_token_f1'
  assert METRIC_OF_TASK['xsum'] == 'crossfit_rouge_l'
  assert METRIC_OF_TASK['anli'] == 'crossfit_classification_f1'
  assert METRIC_OF_TASK['boolq'] == 'crossfit_accuracy'


def test_a_line_without_output_is_named(tmp_path):
  path = tmp_path / 'x.tsv'
  path.write_text('a b\tc\n\u2028d\te\nno output\n\n')
  with pytest.raises(UserError, match=r'x\.tsv:3: a line is an input and at'):
    list(crossfit.read_examples(path, 'x', prefix='13/train'))
  path.write_text('\n a b \tc \td \r\n\n')
  (one,) = crossfit.read_examples(path, 'x', prefix='13/train')
  assert one == ('13/train/2', ' [x] a b ', ('c ', 'd'), (), None)


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'a\tb\n\tyes\tno\n', r'x\.tsv:2: the input of this line is empty'),
    (b'a\t\n', r'x\.tsv:1: output 1 of .* is empty: .* remove the line'),
    (b'a\tb\t \n', r'x\.tsv:1: output 2 .* remove the empty output'),
    (b'a\tb\nc\t\xff\n', r'x\.tsv:2: no text in UTF-8: .* at byte 6'),
  ],
)
def test_an_empty_field_and_other_bytes_are_named(tmp_path, content, message):
  path = tmp_path / 'x.tsv'
  path.write_bytes(content)
  with pytest.raises(UserError, match=message):
    list(crossfit.read_examples(path, 'x', prefix='13/train'))


def test_seeds_are_chosen_and_checked(tmp_path):
  folder = write_task(tmp_path, 'emo') / 'emo'
  assert crossfit.find_prefixes(folder, [100]) == {100: 'emo_2_100'}
  with pytest.raises(UserError, match='no files of seed 7, only 13, 100'):
    crossfit.find_prefixes(folder, [7])
  test = folder / 'emo_2_100_test.tsv'
  test.write_text(test.read_text() + 'more\tyes\n')
  with pytest.raises(UserError, match='emo_2_100_test.tsv and .* differ'):
    crossfit.load_examples(folder, crossfit.find_prefixes(folder))
  crossfit.load_examples(folder, crossfit.find_prefixes(folder, [100]))
  test.unlink()
  with pytest.raises(UserError, match='There is no .*emo_2_100_test.tsv'):
    crossfit.find_prefixes(folder)
  (folder / 'emo_4_13_train.tsv').write_text('a\tb\n')
  with pytest.raises(UserError, match='files of 2 and of 4 shots'):
    crossfit.find_prefixes(folder)


def test_partitions_are_checked(tmp_path, caplog):
  path = tmp_path / 'mine.json'
  path.write_text('{"train": ["emoo", "anli"], "test": ["emo"]}')
  with pytest.raises(
    UserError, match=r"'train' names 'emoo'.*\(2 of 2.*mean 'emo'"
  ):
    crossfit.read_partition(path, ['emo'])
  with caplog.at_level(logging.WARNING):
    found = crossfit.read_partition(path, ['emo'], absent='leave_out')
  assert found == {'test': ('emo',)}
  assert "'train' goes without emoo, anli" in caplog.text
  path.write_text('{"train": "emo"}')
  with pytest.raises(UserError, match="'train' is a list of names.*'emo'"):
    crossfit.read_partition(path, ['emo', 'e', 'm', 'o'])
  path.write_text('{"train": [], "test": ["anli"]}')
  with pytest.raises(UserError, match='mine.json names no task that is here'):
    crossfit.read_partition(path, ['emo'], absent='leave_out')
  path.write_text('{"tasks": []}')
  with pytest.raises(UserError, match='mine.json has none of train, dev, test'):
    crossfit.read_partition(path, ['emo'])


def test_folders_of_another_form_are_refused(tmp_path):
  with pytest.raises(UserError, match='There is no folder'):
    crossfit.register(tmp_path / 'gym', vocabulary='bytes')
  with pytest.raises(UserError, match='no folder of a task'):
    crossfit.register(tmp_path, vocabulary='bytes')
