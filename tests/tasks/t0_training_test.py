"""The training tasks: caps, what is held back, rates."""

import pytest

from mhr_jax.data import registry
from mhr_jax.errors import UserError
from mhr_jax.tasks import t0_examples, t0_training
from mhr_jax.tasks.promptsource import Template
from mhr_jax.tasks.t0_raw import RawSplit, Record
from tests import toy_t0


def _template(jinja):
  return Template('t', jinja, None, 'other', 'f', 1)


def test_every_template_is_a_task_at_the_rate_of_its_rows(tmp_path):
  toy_t0.write_mrpc(tmp_path)
  mixtures = t0_training.register(
    tmp_path, vocabulary='bytes', name='rows', datasets=['glue_mrpc']
  )
  tasks = ('rows_glue_mrpc_equal_or_not', 'rows_glue_mrpc_same')
  assert mixtures == {'rows_train': tasks}
  resolved = registry.resolve('rows_train')
  # MRPC's size is a fact, whatever the folder holds: 3,668 less 100.
  assert (resolved.tasks, resolved.rates) == (tasks, (3568.0, 3568.0))


def test_the_same_rows_are_held_back_of_every_template(tmp_path):
  toy_t0.write_mrpc(tmp_path)
  t0_training.register(
    tmp_path,
    vocabulary='bytes',
    name='held',
    datasets=['glue_mrpc'],
    validation_examples=3,
  )
  same = toy_t0.load_task('held_glue_mrpc_same')
  other = toy_t0.load_task('held_glue_mrpc_equal_or_not')

  def rows(examples):
    return [one.example_id.partition('/')[0] for one in examples]

  assert rows(same['validation']) == rows(other['validation'])
  assert len(same['validation']) == 3
  assert sorted(map(int, rows(same['train'] + same['validation']))) == list(
    range(20)
  )
  one = same['train'][0]
  row = int(rows([one])[0])
  # Training needs no choices, though the template has some.
  assert (one.inputs, one.targets, one.choices, one.label) == (
    f'one {row} = two {row}?',
    (('no', 'yes')[row % 2],),
    (),
    None,
  )


def test_a_cap_takes_the_first_rows():
  records = [Record(f'r{i}', toy_t0.mrpc_record(i)) for i in range(50)]
  split = RawSplit(lambda: iter(records), ())
  template = _template('{{sentence1}} ||| {{label}}')
  made = t0_examples.load_training(
    'x', split, template, 'c', cap=30, validation=100
  )
  sizes = {name: len(list(each)) for name, each in made.splits.items()}
  # Of few rows a fifth at most is held back.
  assert sizes == {'train': 24, 'validation': 6}


def test_what_gives_no_example_is_an_error_with_counts():
  records = [Record(f'r{i}', {'x': ' '}) for i in range(10)]
  split = RawSplit(lambda: iter(records), ())
  template = _template('{{x}} ||| {{x}}')
  made = t0_examples.load_training(
    'a_task', split, template, 'c', cap=10, validation=0
  )
  with pytest.raises(UserError, match='a_task, train: not one of 10.*input is'):
    list(made.splits['train'])


def test_all_sets_are_wanted_unless_named(tmp_path):
  toy_t0.write_mrpc(tmp_path)
  with pytest.raises(UserError, match='records of glue_qqp.*`datasets` names'):
    t0_training.register(tmp_path, vocabulary='bytes', name='all')
  with pytest.raises(UserError, match="Did you mean 'glue_qqp'"):
    t0_training.register(tmp_path, vocabulary='bytes', datasets=['glue_qq'])
