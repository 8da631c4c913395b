"""Templates: rendered as PromptSource does, and what is wrong with a file."""

import json

import pytest

from mhr_jax.errors import UserError
from mhr_jax.tasks import promptsource
from mhr_jax.tasks.promptsource import Rendered, Template

_FILE = """\
dataset: toys
templates:
  b:
    !Template
    name: second one!
    jinja: '{{q}} ||| {{a}}'
    metadata: !TemplateMetadata
      original_task: false
  a: !Template
    name: first
    jinja: '{{q}}? ||| {{answer_choices[label]}}'
    answer_choices: Yes ||| No
    metadata: !TemplateMetadata
      original_task: true
"""


def _template(jinja, answer_choices=None):
  return Template('t', jinja, answer_choices, 'original', 'f.yaml', 7)


def _render(jinja, answer_choices=None, seed='0', **record):
  return _template(jinja, answer_choices).render(record, seed=seed)


def _read(tmp_path, text):
  path = tmp_path / 'templates.yaml'
  path.write_text(text)
  return promptsource.read_templates(path)


@pytest.mark.parametrize('name', ('super_glue_copa', 'super_glue_cb'))
def test_rendering_is_promptsource_s_row_by_row(shared_dir, name):
  folder = shared_dir / 'data/t0_heldout_subset' / name

  def read(file):
    return [json.loads(line) for line in (folder / file).open()]

  made = []
  for template in promptsource.read_templates(folder / 'templates.yaml'):
    for record in read('validation.raw.jsonl'):
      one = template.render(record, seed='')
      if isinstance(one, Rendered) and one.label is not None:
        made.append(
          {
            'template': template.name,
            'original_task': template.task == 'original',
            'idx': record['idx'],
            'inputs': one.inputs,
            'targets': one.targets,
            'answer_choices': list(one.choices),
            'label': one.label,
          }
        )
  expected = read('validation.jsonl')
  assert len(expected) == {'super_glue_copa': 1000, 'super_glue_cb': 840}[name]
  assert made == expected


def test_a_file_gives_its_templates_by_name(tmp_path):
  first, second = _read(tmp_path, _FILE)
  assert (first.name, first.task, first.answer_choices) == (
    'first',
    'original',
    'Yes ||| No',
  )
  assert (second.name, second.slug) == ('second one!', 'second_one_')
  assert second.task == 'other'
  assert (first.line, second.line) == (9, 4)
  assert first.fields() == {'q', 'label'}
  made = first.render({'q': 'So', 'label': 1}, seed='')
  assert made == Rendered('So?', 'No', ('Yes', 'No'), 1)


@pytest.mark.parametrize(
  ('jinja', 'expected'),
  (
    ('  {{x}}\n\n||| b \n', ('a', 'b')),
    ('{{x}}  {{x}}\n\n{{x}}|||b', ('a  a\n\na', 'b')),
    # As text: the filters bind to what stands directly before them.
    ('{{x + y}}|||{{z_z}}', ('a' + 'y' * 10, 'z')),
    ('{{most | most_frequent | join(",")}}|||b', ('2,1', 'b')),
    (
      '{% for a, b in zip(most, "pqr") %}{{a}}{{b}}{% endfor %}|||b',
      ('2p1q3r', 'b'),
    ),
    ('{{pipes}} {{listed}}|||b', 'the template gives more than one target'),
    ('{{pipes}}|||{{pipes}}', ('a|||b', 'a|||b')),
    ('{{nothing}}|||b', 'the input is empty'),
    ('{{x}}|||{{nothing}}', 'the target is empty'),
    ('{% if nothing %}{{x}}|||b{% endif %}', 'the template does not apply'),
  ),
)
def test_what_is_rendered(jinja, expected):
  record = {
    'x': 'a',
    'y': 'y' * 10,
    'z-z': 'z',
    'most': [2, 1, 3, 1, 2],
    'pipes': 'a|||b',
    'listed': ['|||'],
    'nothing': '',
  }
  made = _template(jinja).render(record, seed='')
  if isinstance(expected, tuple):
    assert made == Rendered(*expected)
  else:
    assert made == expected


def test_long_values_are_cut_at_a_word():
  made = _render('{{x}} end ||| b', x='word ' * 1000)
  # 2,048 characters with the three dots, at a space.
  assert made.inputs == 'word ' * 408 + 'word... end'


def test_choices_are_whole_and_hold_the_target():
  assert _render('q ||| {{b}}', '{{a}} |||{{b}}', a='x', b='y') == Rendered(
    'q', 'y', ('x', 'y'), 1
  )
  assert _render('q ||| {{c}}', 'x ||| y', c='z').label is None
  # PromptSource cuts the target and not the choices.
  made = _render('q ||| {{a}}', '{{a}} ||| y', a='w ' * 2000)
  assert len(made.choices[0]) == 3999 and made.targets.endswith('w...')
  assert made.label is None


def test_choice_is_drawn_from_the_seed():
  jinja = '{% set n = [1, 2, 3, 4, 5, 6] | choice %}{{n}}{{n}} ||| b'
  drawn = {seed: _render(jinja, seed=str(seed)).inputs for seed in range(30)}
  assert set(drawn.values()) == {str(n) * 2 for n in range(1, 7)}
  assert drawn[3] == _render(jinja, seed='3').inputs


@pytest.mark.parametrize(
  ('jinja', 'record', 'message'),
  (
    ('{{premis}}|||b', {'premise': 'x'}, "'premis'.*lacks. Did you mean 'prem"),
    ('{{x[0].y.z}}|||b', {'x': [1]}, 'UndefinedError'),
    ('{{x.__class__.__mro__[1].y}}|||b', {'x': 1}, 'SecurityError'),
    ('{{x}}|||b', {'x': 1, 'answer_choices': 2}, 'may not have a field'),
  ),
)
def test_what_fails_names_file_and_template(jinja, record, message):
  with pytest.raises(UserError, match=f"^f.yaml:7: template 't': .*{message}"):
    _template(jinja).render(record, seed='')


@pytest.mark.parametrize(
  ('old', 'new', 'message'),
  (
    ('dataset: toys', 'dataset: [toys', ':2: not YAML'),
    ('name: first', 'name: first: second', ':10: not YAML'),
    ('  a: !Template\n', '  a: !Template x\n', ':(9|10): not YAML'),
    ('  a: !Template\n', '  c: !Template x\n  a:\n', ':9: .*no mapping'),
    ('  a: !Template', '  a: !!python/object:os.x', ':9: not YAML.*python'),
    ('  a: !Template', '  a:', 'is no `!Template`'),
    ('name: first', 'nam: first', ":9: the template has no 'name'"),
    ('name: first', 'name: 3', ":9: 'name' of the template is 3"),
    ('name: first', 'name: second one!', ':(4|9): .*has the same name'),
    ('? ||| ', '? || ', ":9: template 'first': there is no |||"),
    ('{{q}}?', '{% if q %}\n\n', ":9: template 'first': line 2 of its Jinja"),
    ('templates:', 'template:', ':1: there is no mapping `templates`'),
    (
      'metadata: !TemplateMetadata\n',
      'metadata: 1\n  x:\n',
      ':[45]: .*map|YAML',
    ),
  ),
)
def test_a_malformed_file_is_located(tmp_path, old, new, message):
  assert old in _FILE
  with pytest.raises(UserError, match=r'templates\.yaml.*(' + message + ')'):
    _read(tmp_path, _FILE.replace(old, new, 1))


def test_a_damaged_file_is_never_anything_but_a_user_error(tmp_path):
  for at in range(0, len(_FILE), 3):
    for damage in (_FILE[:at], _FILE[:at] + '\t!x {{' + _FILE[at:]):
      try:
        _read(tmp_path, damage)
      except UserError as e:
        assert 'templates.yaml' in str(e)
