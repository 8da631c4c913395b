"""Damaged settings of PEFT's folders: refused by file and key."""

import json

import pytest

from mhr_jax.convert import peft
from mhr_jax.convert.peft_files import CONFIG_FILE
from mhr_jax.errors import UserError
import random_adapters


@pytest.fixture
def folder(tmp_path):
  bundle = random_adapters.draw_bundle(
    n_skills=1, n_splits=1, mixing='uniform', rank=3
  )
  peft.write_lora(tmp_path / 'lora', bundle)
  return tmp_path / 'lora'


@pytest.mark.parametrize(
  ('name', 'value', 'message'),
  [
    ('peft_type', ['LORA'], "of the type .'LORA'., which has no"),
    ('lora_alpha', '16', "lora_alpha is '16'; a number is wanted"),
    ('alpha_pattern', ['q'], 'alpha_pattern is .* an object is wanted'),
    ('alpha_pattern', {'q': 'x'}, "alpha_pattern: q is 'x'; a number"),
    ('rank_pattern', {'q': 1.5}, 'rank_pattern: q is 1.5; a whole number'),
    ('rank_pattern', {'(': 2}, r"rank_pattern: '\(' is no regular expression"),
    ('init_lora_weights', [1], r'init_lora_weights=\[1\]'),
  ],
)
def test_values_of_another_kind(folder, name, value, message):
  path = folder / CONFIG_FILE
  path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
  with pytest.raises(UserError, match=message) as error:
    peft.read_adapter(folder, random_adapters.BACKBONE)
  assert str(folder) in str(error.value)


def test_settings_that_are_cut_short(folder):
  (folder / CONFIG_FILE).write_text('{"r": ')
  with pytest.raises(UserError, match=f'{CONFIG_FILE} is not whole JSON'):
    peft.read_adapter(folder, random_adapters.BACKBONE)
