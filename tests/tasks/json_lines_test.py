"""Tasks from folders of JSON lines: what is read, and what is refused where."""

import json

import gin
import pytest

from mhr_jax import cli
from mhr_jax.data import registry
from mhr_jax.errors import UserError
from mhr_jax.tasks import json_lines


def _write(folder, split, *lines):
  folder.mkdir(parents=True, exist_ok=True)
  text = ''.join(
    (line if isinstance(line, str) else json.dumps(line)) + '\n'
    for line in lines
  )
  (folder / f'{split}.jsonl').write_text(text)


def test_a_folder_is_a_mixture_of_its_tasks(tmp_path):
  _write(
    tmp_path / 'up-per',
    'train',
    {'inputs': 'ab', 'targets': 'AB'},
    '',
    {'inputs': 'c', 'targets': ['C', 'c'], 'id': 7},
  )
  _write(tmp_path / 'up-per', 'test', {'inputs': 'd', 'targets': 'D'})
  rank = {'inputs': 'x?', 'choices': ['no', 'yes'], 'label': 1}
  _write(tmp_path / 'answer', 'train', rank)
  (tmp_path / 'notes.txt').write_text('not a task')
  found = json_lines.register(tmp_path, vocabulary='bytes', name='jl')
  assert found == {'jl': ('jl_answer', 'jl_up_per')}
  assert registry.resolve('jl').tasks == found['jl']
  first, second = registry.read_examples('jl_up_per', 'train', 9)
  assert (first.inputs_pretokenized, first.example_id) == ('ab', 'train-1')
  assert list(second.targets_pretokenized) == ['C', 'c']
  assert second.example_id == '7'
  (ranked,) = registry.read_examples('jl_answer', 'train', 9)
  assert list(ranked.choices_pretokenized) == ['no', 'yes']
  assert list(ranked.targets_pretokenized) == ['yes']
  # Again: the same definition.
  assert json_lines.register(tmp_path, vocabulary='bytes', name='jl') == found


_GOOD = {'inputs': 'a', 'targets': 'b'}
_CHOICES = {'inputs': 'a', 'choices': ['b', 'c']}


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    ('{"inputs": "a"', 'not JSON'),
    ('["a", "b"]', 'a JSON object'),
    ({'inputs': 'a'}, "'targets' is missing"),
    ({'inputs': 'a', 'targets': []}, "'targets' is missing or empty"),
    ({'inputs': 'a', 'targets': ''}, 'none empty'),
    ({'inputs': 'a', 'targets': 3}, 'a text or a list'),
    ({'inputs': None, 'targets': 'b'}, "'inputs' is a text"),
    ({'input': 'a', 'targets': 'b'}, "has no 'input'"),
    (_GOOD | {'id': [1]}, "'id' is a text"),
    (_GOOD | {'id': 'train-1'}, "'train-1' is that of line 1 too"),
    (_GOOD | {'label': 0}, 'there are none'),
    (_CHOICES, "'label' is the index"),
    (_CHOICES | {'label': 2}, 'not 2'),
    (_CHOICES | {'label': True}, 'not True'),
    (_CHOICES | {'choices': ['b'], 'label': 0}, 'at least two'),
    (_CHOICES | {'label': 1, 'targets': 'b'}, 'Leave targets out'),
  ],
)
def test_a_mistake_is_named_with_its_line(tmp_path, line, message):
  _write(tmp_path / 'a', 'train', _GOOD, line)
  with pytest.raises(UserError) as error:
    json_lines.load_examples(tmp_path / 'a')
  assert str(error.value).startswith(f'{tmp_path}/a/train.jsonl:2: ')
  assert message in str(error.value)


def test_prepare_needs_no_more_than_the_preset(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  _write(tmp_path / 'data' / 'a', 'train', _GOOD)
  argv = ['prepare', '--gin_file=presets/json_lines.gin', '--gin.FOLDER="data"']
  argv += ['--gin.NAME="once"', '--gin.VOCABULARY="bytes"']
  for outcome in ('made', 'kept'):
    assert cli.main(argv) == 0
    assert capsys.readouterr().out.split()[:2] == [outcome, 'once_a']
  gin.clear_config()


def test_folders_without_tasks(tmp_path):
  with pytest.raises(UserError, match='holds no task: .*/train.jsonl is one'):
    json_lines.register(tmp_path, vocabulary='bytes')
  with pytest.raises(UserError, match='There is no folder'):
    json_lines.register(tmp_path / 'x', vocabulary='bytes')
  for name in ('a-b', 'a b'):
    _write(tmp_path / name, 'train', _GOOD)
  with pytest.raises(UserError, match="is task 'mine_a_b' already"):
    json_lines.register(tmp_path, vocabulary='bytes')
