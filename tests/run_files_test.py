"""Folders written whole or not at all; JSON whose damage is located."""

from etils import epath
import pytest

from mhr_jax import run_files
from mhr_jax.errors import UserError


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    (None, r'x\.json is absent'),
    ('{"a": 1,\n "b"', r'x\.json is not whole JSON: .* at line 2, column 5'),
    ('', 'at line 1, column 1'),
    ('[1]', 'holds no JSON object'),
    (b'\xff\xfe{}', 'is no JSON: .*decode'),
  ],
)
def test_damaged_json_is_located(tmp_path, text, message):
  path = tmp_path / 'x.json'
  if text is not None:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
  with pytest.raises(UserError, match=message):
    run_files.read_json(path)


@pytest.mark.parametrize('version', [2, '1', None, [1], True])
def test_a_format_that_is_not_read_is_refused(version):
  with pytest.raises(
    UserError, match=r'x\.json(: format_version is| has format)'
  ):
    run_files.check_format({'format_version': version}, 1, where='x.json')


def test_a_folder_appears_when_it_is_whole(tmp_path):
  target = tmp_path / 'deep' / 'target'
  with run_files.new_folder(target) as place:
    (place / 'file').write_text('whole')
    assert not target.exists()
  assert [path.name for path in target.parent.iterdir()] == ['target']
  assert (target / 'file').read_text() == 'whole'


@pytest.mark.parametrize(
  ('error', 'seen'), [(OSError, UserError), (KeyError, KeyError)]
)
def test_what_fails_leaves_an_empty_target_as_it_was(tmp_path, error, seen):
  target = tmp_path / 'target'
  target.mkdir()
  with pytest.raises(seen), run_files.new_folder(target) as place:
    (place / 'file').write_text('half')
    raise error('full')
  assert list(tmp_path.iterdir()) == [target] and not list(target.iterdir())


def test_a_target_filled_in_the_meantime_is_kept(tmp_path):
  target = epath.Path(tmp_path / 'target')
  with (
    pytest.raises(UserError, match='cannot be written'),
    run_files.new_folder(target) as place,
  ):
    (place / 'file').write_text('ours')
    target.mkdir()
    (target / 'file').write_text('theirs')
  assert [path.name for path in tmp_path.iterdir()] == ['target']
  assert (target / 'file').read_text() == 'theirs'
