"""The held-out sets: which tasks there are, and what is in them."""

import json
import logging

import pytest

from mhr_jax.data import prepare, records, registry
from mhr_jax.errors import UserError
from mhr_jax.tasks import t0, t0_raw
from mhr_jax.tasks.t0_datasets import HELD_OUT_SETS, choose_held_out_sets
from tests import toy_t0


def test_tasks_and_mixtures_of_a_folder(tmp_path):
  toy_t0.write_copa(tmp_path)
  mixtures = t0.register(tmp_path, vocabulary='bytes', name='toy')
  forms = ('toy_super_glue_copa_a_plain', 'toy_super_glue_copa_b_best')
  assert mixtures == {
    'toy_super_glue_copa_templates': forms,
    'toy_heldout': forms,
    'toy_heldout_one_template': ('toy_super_glue_copa_one_template',),
    'toy_few_shot': ('toy_super_glue_copa',),
  }
  assert registry.resolve('toy_heldout').tasks == forms
  again = t0.register(tmp_path, vocabulary='bytes', name='toy')
  assert again == mixtures


def test_every_record_in_all_forms_and_in_one(tmp_path):
  toy_t0.write_copa(tmp_path, n_test=40)
  t0.register(tmp_path, vocabulary='bytes', name='forms')
  splits = toy_t0.load_task('forms_super_glue_copa')
  assert {split: len(made) for split, made in splits.items()} == {
    'few_shot_seed0': 8,
    'few_shot_seed7': 8,
    'test_one_template': 40,
  }
  first, second = splits['few_shot_seed7'][2:4]
  assert first == (
    '1/a_plain',
    'It was 801.',
    ('It is 803.',),
    ('It is 802.', 'It is 803.'),
    1,
  )
  assert second.example_id == '1/b_best'
  assert second.inputs == 'It was 801. So?'
  drawn = splits['test_one_template']
  assert [one.example_id.partition('/')[0] for one in drawn] == [
    str(i) for i in range(40)
  ]
  n_plain = sum(one.example_id.endswith('plain') for one in drawn)
  assert 10 < n_plain < 30
  assert toy_t0.load_task('forms_super_glue_copa_one_template') == {
    'test': drawn
  }
  plain, best = (
    toy_t0.load_task(f'forms_super_glue_copa_{form}')['test']
    for form in ('a_plain', 'b_best')
  )
  assert len(plain) == len(best) == 40
  assert set(drawn) < {*plain, *best}


def test_a_template_that_does_not_apply_is_not_drawn(tmp_path, caplog):
  folder = toy_t0.write_copa(tmp_path, n_test=10)
  text = (folder / 'templates.yaml').read_text()
  (folder / 'templates.yaml').write_text(
    text.replace(
      "'{{premise}} ||| {{ answer_choices[label] }}'",
      "'{% if label %}{{premise}} ||| {{choice2}}{% endif %}'",
    )
  )
  t0.register(tmp_path, vocabulary='bytes', name='half')
  with caplog.at_level(logging.WARNING):
    assert len(toy_t0.load_task('half_super_glue_copa_a_plain')['test']) == 5
  assert '5 of 10 examples are left out: the template does not' in caplog.text
  drawn = toy_t0.load_task('half_super_glue_copa_one_template')['test']
  assert len(drawn) == 10
  assert all(one.example_id.endswith('best') for one in drawn[::2])


def test_prepared_records_have_choices(tmp_path):
  toy_t0.write_copa(tmp_path)
  t0.register(tmp_path, vocabulary='bytes', name='prep')
  prepare.prepare(tmp_path / 'data', ['prep_super_glue_copa_b_best'])
  task = records.open_task(tmp_path / 'data', 'prep_super_glue_copa_b_best')
  assert task.category == 'super_glue_copa'
  record = task.source('test')[1]
  assert record['label'] == 1
  assert list(record['choices_pretokenized']) == ['It is 2.', 'It is 3.']
  assert record['example_id'] == '1/b_best'


def test_few_shot_draws_of_t_few(tmp_path):
  toy_t0.write_copa(tmp_path / 'sets')
  toy_t0.write_lines(
    tmp_path / 'few_shot/copa/32_shot/1024_seed.jsonl',
    [toy_t0.copa_record(i) for i in range(3)],
  )
  t0.register(
    tmp_path / 'sets',
    vocabulary='bytes',
    name='tfew',
    few_shot=tmp_path / 'few_shot',
  )
  assert set(toy_t0.load_task('tfew_super_glue_copa')) == {
    'few_shot_seed1024',
    'test_one_template',
  }
  for wrong, message in (
    ('nowhere', 'data/few_shot of its repository'),
    # A folder that is there, but is another one of T-Few's repository.
    ('few_shot/copa', r'no .*few_shot/copa/copa/32_shot/\*_seed.jsonl with'),
  ):
    with pytest.raises(UserError, match=message):
      t0.register(
        tmp_path / 'sets', vocabulary='bytes', few_shot=tmp_path / wrong
      )


def test_rounds_of_anli_have_splits_and_names_of_their_own(tmp_path):
  anli = tmp_path / 'anli'
  record = {'premise': 'p', 'hypothesis': 'h', 'label': 1}
  for split in ('train_r2', 'test_r2', 'few_shot_r2_seed5', 'test_r1'):
    toy_t0.write_lines(anli / f'{split}.jsonl', [record])
  toy_t0.write_templates(
    anli / 'templates.yaml',
    'anli',
    [('must be', 'a ||| b ||| c', '{{premise}} {{hypothesis}}', 'true')],
  )
  mixtures = t0.register(tmp_path, vocabulary='bytes', name='rounds')
  assert mixtures['rounds_heldout'] == (
    'rounds_anli_must_be_r1',
    'rounds_anli_must_be_r2',
  )
  assert set(toy_t0.load_task('rounds_anli_r2')) == {
    'few_shot_seed5',
    'train',
    'test_one_template',
  }


def test_story_cloze_is_read_as_it_is_handed_out(tmp_path):
  path = tmp_path / 'story_cloze_2016/cloze_test_test__spring2016 - all.csv'
  path.parent.mkdir()
  path.write_text(
    'InputStoryid,InputSentence1,InputSentence2,InputSentence3,InputSentence4,'
    'RandomFifthSentenceQuiz1,RandomFifthSentenceQuiz2,AnswerRightEnding\n'
    'x,"A, b.",C.,D.,E.,F.,G.,2\n'
  )
  found = t0_raw.JsonLines(tmp_path).find('story_cloze', '2016')
  (record,) = found['test'].read()
  assert record.fields == {
    'story_id': 'x',
    'input_sentence_1': 'A, b.',
    'input_sentence_2': 'C.',
    'input_sentence_3': 'D.',
    'input_sentence_4': 'E.',
    'sentence_quiz1': 'F.',
    'sentence_quiz2': 'G.',
    'answer_right_ending': 2,
  }
  header, row = path.read_text().splitlines()
  for damaged, message in (
    (b'InputStoryid\nx\n', ":1: there is no column 'Answer"),
    (f'{header}\n{row[:-1]}\n'.encode(), ":2: the column 'Answer.* holds ''"),
    (f'{header}\n{row}\nx,A\n'.encode(), ':3: the column .* holds None'),
    (f'{header}\n{row}\n'.encode('utf-16'), ':1: no text in UTF-8'),
  ):
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=message):
      list(found['test'].read())


@pytest.mark.parametrize(
  ('name', 'field', 'right', 'wrong'),
  (
    ('super_glue_copa', 'label', (0, 1), (-1, 2, '0', None, True)),
    ('anli_r2', 'label', (0, 1, 2), (-1, 3)),
    ('winogrande_winogrande_xl', 'answer', ('1', '2'), ('', 1)),
    ('story_cloze_2016', 'answer_right_ending', (1, 2), (0, 3)),
    ('hellaswag', 'label', (0, '3'), ('', 4)),
  ),
)
def test_a_wrong_label_is_located(name, field, right, wrong):
  (held_out,) = choose_held_out_sets([name])

  def read(*labels):
    records = [
      t0_raw.Record(f'f:{i}', {field: x}) for i, x in enumerate(labels)
    ]
    split = t0_raw.RawSplit(lambda: iter(records), ())
    return list(t0_raw.labelled(split, held_out).read())

  assert [one.fields[field] for one in read(*right)] == list(right)
  for label in wrong:
    with pytest.raises(UserError, match=f"f:1: '{field}' is {label!r}; {name}"):
      read(right[0], label)


def test_hidden_labels_of_a_held_out_set_are_no_labels(tmp_path):
  folder = toy_t0.write_copa(tmp_path)
  hidden = [{**toy_t0.copa_record(i), 'label': -1} for i in range(2)]
  for split in ('validation', 'few_shot_seed0'):
    toy_t0.write_lines(folder / f'{split}.raw.jsonl', hidden)
  t0.register(tmp_path, vocabulary='bytes', name='hid')
  for task in ('hid_super_glue_copa_a_plain', 'hid_super_glue_copa'):
    with pytest.raises(UserError, match=r"raw.jsonl:1: .*hidden.*'validation'"):
      toy_t0.load_task(task)
  toy_t0.write_lines(folder / 'validation.raw.jsonl', [{'labels': 1}])
  with pytest.raises(UserError, match="no field 'label'.*mean 'labels'"):
    toy_t0.load_task('hid_super_glue_copa_a_plain')


@pytest.mark.parametrize(
  ('options', 'message'),
  (
    ({'datasets': ['super_glue_cop']}, "Did you mean 'super_glue_copa'"),
    ({'datasets': ['super_glue_cb']}, 'holds no records of super_glue_cb'),
    ({'records': 'csv'}, "'jsonl' or 'tfds', not 'csv'"),
    ({'templates': 'nowhere'}, 'There is no .*nowhere/super_glue/copa/templ'),
  ),
)
def test_what_is_not_there_is_said(tmp_path, options, message):
  toy_t0.write_copa(tmp_path)
  with pytest.raises(UserError, match=message):
    t0.register(tmp_path, vocabulary='bytes', name='err', **options)


def test_an_empty_folder_or_none_is_an_error(tmp_path):
  with pytest.raises(UserError, match='none of the held-out data sets: super'):
    t0.register(tmp_path, vocabulary='bytes')
  with pytest.raises(UserError, match='There is no folder'):
    t0.register(tmp_path / 'no', vocabulary='bytes')


@pytest.mark.parametrize(
  ('line', 'message'),
  (
    ('{"premise": ', r'validation.raw.jsonl:2: not JSON'),
    ('[1]', r'validation.raw.jsonl:2: a record is a JSON object'),
    ('{"premise": "\xe9"}', r'validation.raw.jsonl:2: no text in UTF-8'),
    (
      '{"premise": "x", "choice1": "y", "choice_2": "z", "label": 0}',
      r"jsonl:2: .*templates.yaml:\d+: template 'a plain': it needs a field"
      r" 'choice2', which the record lacks. Did you mean 'choice_2'",
    ),
  ),
)
def test_a_damaged_record_is_located(tmp_path, line, message):
  folder = toy_t0.write_copa(tmp_path)
  good = json.dumps(toy_t0.copa_record(0))
  (folder / 'validation.raw.jsonl').write_bytes(
    f'{good}\n{line}\n'.encode('latin-1')
  )
  t0.register(tmp_path, vocabulary='bytes', name=f'bad{len(line)}')
  with pytest.raises(UserError, match=message):
    toy_t0.load_task(f'bad{len(line)}_super_glue_copa_a_plain')


def test_the_real_sets_have_the_published_sizes(shared_dir):
  folder = shared_dir / 'data/t0_heldout_subset'
  mixtures = t0.register(folder, vocabulary='bytes', name='real_t0')
  used = {each.name: each.used_templates for each in HELD_OUT_SETS}
  assert len(mixtures['real_t0_super_glue_copa_templates']) == 8
  assert used['super_glue_copa'] == 8
  assert len(mixtures['real_t0_super_glue_cb_templates']) == 15
  copa = toy_t0.load_task('real_t0_super_glue_copa')
  assert {split: len(made) for split, made in copa.items()} == {
    **{f'few_shot_seed{s}': 32 * 8 for s in (0, 1, 32, 42, 1024)},
    'test_one_template': 100,
  }
