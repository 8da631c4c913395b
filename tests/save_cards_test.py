"""Whatever is saved has a card, whose lines load it."""

import re

import pytest

import mhr_jax
from mhr_jax import api, backbones, run_files
from mhr_jax.loading import LoadedModel
from mhr_jax.model_card import RunDescription, model_card
from mhr_jax.saving import SAVE_FORMATS
from mhr_jax.task_table import TaskTable
import toy_text


@pytest.fixture(scope='module')
def model():
  routed = toy_text.make_model()
  return LoadedModel(
    routed, toy_text.make_params(routed), toy_text.TASKS, toy_text.VOCABULARY
  )


def _load_as_the_card_says(card, backbone):
  code = re.search(r'```python\n(.*?)```', card, re.DOTALL)
  assert code is not None
  scope = {}
  exec(code[1].replace('path/to/the/backbone', str(backbone)), scope)
  return scope['model']


_LIGHT = [('native', None), ('peft-poly', None), ('run', None)]
_HEAVY = [('native', 1), ('peft-lora', 1), ('hf', 1)]


@pytest.mark.parametrize(
  ('format', 'task'),
  [*_LIGHT, *(pytest.param(*each, marks=pytest.mark.slow) for each in _HEAVY)],
)
def test_the_lines_of_a_card_load_what_was_saved(format, task, model, tmp_path):
  folder = tmp_path / "it's here"
  backbones.save_backbone(
    tmp_path / 'b', model.params['backbone'], toy_text.CONFIG
  )
  saved = api.Model(model).save(folder, format, task)
  card = (folder / run_files.CARD_FILE).read_text()
  assert card.startswith("# it's here\n")
  assert saved.what[1:] in card
  loaded = _load_as_the_card_says(card, tmp_path / 'b')
  expected = {
    label: count
    for label, count in loaded.n_parameters.items()
    if label != 'backbone' or format in ('run', 'hf')
  }
  assert f'| all | {sum(expected.values()):,} |' in card
  if format != 'hf':
    assert '| `rank` | `2` |' in card
    assert '`first`' in card


@pytest.mark.slow
def test_programs_have_a_card(model, tmp_path):
  api.Model(model).save(tmp_path / 'p', 'stablehlo')
  assert 'run.py request.json' in (tmp_path / 'p' / 'README.md').read_text()


def test_a_bare_backbone_has_a_card_and_t5xs_folder_none(model, tmp_path):
  bare = mhr_jax.Model(
    LoadedModel(
      mhr_jax.RoutedT5(toy_text.CONFIG), {'backbone': model.params['backbone']}
    )
  )
  bare.save(tmp_path / 'n', 'native')
  card = (tmp_path / 'n' / run_files.CARD_FILE).read_text()
  found = _load_as_the_card_says(card, None)
  assert found.n_parameters == bare.n_parameters
  bare.save(tmp_path / 't', 't5x')
  assert [path.name for path in (tmp_path / 't').iterdir()] == ['checkpoint_0']
  assert set(SAVE_FORMATS) >= {format for format, _ in (*_LIGHT, *_HEAVY)}


def test_markdown_in_names_is_shown_and_not_obeyed():
  hostile = 'a`b``|<script>\n# c'
  card = model_card(
    RunDescription(
      name='x',
      summary='y',
      tasks=TaskTable((hostile,)),
      settings={'k': hostile},
      command='run ``` x',
    ),
    path="it's",
  )
  shown = '``` a`b``\\|<script> # c ```'
  assert f'| 0 | {shown} |' in card
  assert f'| `k` | {shown} |' in card
  assert '````\nrun ``` x\n````' in card
  code = re.search(r'```python\n(.*?)```', card, re.DOTALL)
  assert code is not None
  compile(code[1], 'card', 'exec')
