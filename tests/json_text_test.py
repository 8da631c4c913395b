"""Whatever is wrong with a JSON text, it is one kind of error."""

import json

import pytest

from mhr_jax import json_text


@pytest.mark.parametrize(
  'text, position',
  [
    ('{"a": }', 6),
    ('', 0),
    ('[' * 100_000, 0),
    ('{"a":' * 100_000, 0),
    ('[1, ' + '9' * 5000 + ']', 4),
    ('["a", "\\ud800"]', 7),
    ('{"\\uDFFF": 1}', 2),
  ],
)
def test_what_cannot_be_used_is_a_decode_error_with_its_place(text, position):
  with pytest.raises(json.JSONDecodeError) as caught:
    json_text.parse(text)
  assert caught.value.pos == position


def test_whole_surrogate_pairs_and_escaped_backslashes_are_texts():
  assert json_text.parse(b'["\\ud83d\\ude00", "\\\\ud800"]') == [
    '\U0001f600',
    '\\ud800',
  ]
  with pytest.raises(UnicodeDecodeError):
    json_text.parse(b'["\xff"]')
