"""Strategies that spoil good files: bytes, JSON values, texts.

For property-based tests of readers: whatever a file holds, a reader returns
something or raises `UserError`, and nothing else.
"""

import copy
import json
import math

from hypothesis import strategies as st

from mhr_jax.errors import UserError

# What files lie about: sizes, counts and positions.
_LIES = st.sampled_from(
  [-1, 0, 1, 2.5, 2**31, 2**63, 10**18, 10**400, math.nan, math.inf, True]
)
_PLAIN = st.one_of(
  st.none(), st.booleans(), st.integers(-5, 300), _LIES, st.text(max_size=6)
)
_JSON = st.recursive(
  _PLAIN,
  lambda inner: st.one_of(
    st.lists(inner, max_size=3),
    st.dictionaries(st.text(max_size=4), inner, max_size=3),
  ),
  max_leaves=6,
)


def answers(read, *args, **options):
  """Returns what a reader makes of something; None where it refuses.

  Every other exception fails the test that called.
  """
  try:
    return read(*args, **options)
  except UserError as error:
    assert str(error)
    return None


@st.composite
def spoiled_bytes(draw, good):
  """Draws the bytes of a good file with a few of them changed; or any."""
  data = bytearray(good)
  for _ in range(draw(st.integers(1, 4))):
    at = draw(st.integers(0, len(data)))
    length = draw(st.integers(0, 8))
    match draw(
      st.sampled_from(['replace', 'insert', 'delete', 'cut', 'repeat'])
    ):
      case 'replace':
        data[at : at + length] = draw(
          st.binary(min_size=length, max_size=length)
        )
      case 'insert':
        data[at:at] = draw(st.binary(max_size=8))
      case 'delete':
        del data[at : at + length]
      case 'cut':
        del data[at:]
      case 'repeat':
        data[at:at] = data[at : at + 40]
  return draw(st.one_of(st.just(bytes(data)), st.binary(max_size=80)))


@st.composite
def spoiled_json(draw, good):
  """Draws a JSON value with a few of its parts replaced or left out."""
  value = copy.deepcopy(good)
  for _ in range(draw(st.integers(1, 3))):
    places = [(None, None), *_places(value)]
    holder, key = draw(st.sampled_from(places))
    if holder is None:
      if draw(st.integers(0, 9)) == 0:
        value = draw(_JSON)
    elif draw(st.booleans()) or isinstance(holder, list):
      holder[key] = draw(_JSON)
    else:
      del holder[key]
  return value


def _places(value):
  """Returns (container, key) of every part of a JSON value."""
  if not isinstance(value, dict | list):
    return []
  keys = list(value) if isinstance(value, dict) else range(len(value))
  found = [(value, key) for key in keys]
  for key in keys:
    if isinstance(value[key], dict | list):
      found += _places(value[key])
  return found


@st.composite
def spoiled_json_bytes(draw, good):
  """Draws a JSON file: with other values, or with other bytes."""
  whole = json.dumps(good, indent=1).encode()
  if draw(st.integers(0, 3)) == 0:
    return draw(spoiled_bytes(whole))
  return json.dumps(draw(spoiled_json(good)), indent=1).encode()


@st.composite
def spoiled_text(draw, good, words):
  """Draws a text with lines changed, doubled, left out or put in.

  Args:
    good: the text.
    words: pieces of the language, which get further than random letters.
  """
  lines = good.splitlines()
  piece = st.one_of(st.sampled_from(words), st.text(max_size=6))
  line = st.lists(piece, max_size=6).map(''.join)
  for _ in range(draw(st.integers(1, 4))):
    at = draw(st.integers(0, max(len(lines) - 1, 0)))
    match draw(st.sampled_from(['replace', 'insert', 'delete', 'edit'])):
      case 'replace':
        lines[at : at + 1] = [draw(line)]
      case 'insert':
        lines[at:at] = [draw(line)]
      case 'delete':
        del lines[at : at + 1]
      case 'edit' if lines:
        cut = draw(st.integers(0, len(lines[at])))
        lines[at] = lines[at][:cut] + draw(piece) + lines[at][cut + 1 :]
  return '\n'.join(lines)
