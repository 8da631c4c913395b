"""The suite is what its docstring says, and the same on every machine."""

import itertools
import subprocess
import sys

import pytest
import seqio

from mhr_jax.data import prepare, records, registry
from mhr_jax.errors import UserError
from mhr_jax.tasks import skills, skills_suite
from mhr_jax.tasks.skills_suite import SuiteSettings

_SLOT_OF = {
  name: slot
  for slot, (_, names) in enumerate(skills_suite.SLOTS.items())
  for name in names
}
_SMALL = SuiteSettings(
  n_train_tasks=12,
  n_heldout_tasks=2,
  train_examples=30,
  operation_examples=20,
  validation_examples=5,
  few_shot_examples=64,
  test_examples=40,
)


@pytest.mark.parametrize(
  ('operations', 'text', 'expected'),
  [
    ('tail', 'abcd', 'bcd'),
    ('init', 'abcd', 'abc'),
    ('alternate', 'abcdef', 'ace'),
    ('consonants', 'abcdei', 'bcd'),
    ('reverse', 'abcd', 'dcba'),
    ('left', 'abcd', 'bcda'),
    ('right', 'abcd', 'dabc'),
    ('swap', 'abcde', 'badce'),
    ('upper', 'abcd', 'ABCD'),
    ('successor', 'abop', 'bcpa'),
    ('mirror', 'abop', 'poba'),
    ('star', 'abeo', '*b**'),
    ('tail reverse upper', 'abcd', 'DCB'),
    ('consonants swap', 'abcdef', 'cbfd'),
  ],
)
def test_operations(operations, text, expected):
  composition = tuple(operations.split())
  assert skills_suite.apply_composition(composition, text) == expected


def test_unknown_operations_give_the_nearest():
  with pytest.raises(UserError, match="Did you mean 'reverse'"):
    skills_suite.apply_operation('revers', 'abc')


def test_compositions_are_different_functions_in_the_order_of_slots():
  found = skills_suite.compositions()
  assert len(found) == len(set(found)) > 100
  for composition in found:
    slots = [_SLOT_OF[name] for name in composition]
    assert slots == sorted(set(slots)) and len(slots) in (2, 3)
  # Starring vowels after they were dropped is dropping them.
  assert ('consonants', 'star') not in found
  words = [''.join(w) for w in itertools.product('abcde', repeat=5)]
  behaviours = {
    tuple(skills_suite.apply_composition(each, word) for word in words)
    for each in found
  }
  assert len(behaviours) == len(found)


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_held_out_tasks_are_new_and_their_operations_known(seed):
  drawn = skills_suite.draw_tasks(SuiteSettings(seed=seed))
  assert (len(drawn.train), len(drawn.heldout)) == (40, 8)
  assert not set(drawn.train) & set(drawn.heldout)
  used = list(itertools.chain.from_iterable(drawn.train))
  assert all(used.count(name) >= 2 for task in drawn.heldout for name in task)


def test_seeds_draw_other_tasks_and_the_first_stays_what_it_was():
  heldout = [
    skills_suite.draw_tasks(SuiteSettings(seed=seed)).heldout for seed in (0, 1)
  ]
  assert heldout[0] != heldout[1]
  assert heldout[0][0] == ('alternate', 'left', 'star')
  examples = skills_suite.make_examples(
    heldout[0][0], {'test': 3}, form='id', seed=0
  )
  assert examples['test'] == [
    ('mcbcj', 'bjm'),
    ('mgccd', 'cdm'),
    ('cjjoh', 'jhc'),
  ]


def test_strings_are_in_one_split_only_and_alike_in_both_forms():
  sizes = {'few_shot': 128, 'validation': 50, 'test': 200}
  task = ('tail', 'reverse')
  plain = skills_suite.make_examples(task, sizes, form='id', seed=3)
  named = skills_suite.make_examples(task, sizes, form='instructed', seed=3)
  assert {split: len(pairs) for split, pairs in plain.items()} == sizes
  strings = [text for pairs in plain.values() for text, _ in pairs]
  assert len(set(strings)) == len(strings)
  for split in sizes:
    for (text, target), (instructed, same) in zip(
      plain[split], named[split], strict=True
    ):
      assert instructed == f'<tail><reverse>{text}'
      assert target == same == text[1:][::-1]


def test_the_vocabulary_has_one_id_a_symbol():
  vocabulary = skills_suite.make_vocabulary()
  assert vocabulary.vocab_size == 48
  assert vocabulary == skills_suite.make_vocabulary()
  longest = '<tail><reverse><upper>abcdef'
  assert len(vocabulary.encode(longest)) + 1 == 10
  for text in (longest, 'AP*', 'p'):
    assert vocabulary.decode(vocabulary.encode(text)) == text
    assert vocabulary.unk_id not in vocabulary.encode(text)


def test_sizes_that_cannot_be_drawn_are_an_error():
  with pytest.raises(UserError, match='cannot be drawn'):
    SuiteSettings(n_train_tasks=200)


def test_examples_need_no_seqio():
  code = (
    'import sys, mhr_jax.tasks.skills_suite\n'
    'assert not {"tensorflow", "seqio"} & set(sys.modules)'
  )
  subprocess.run([sys.executable, '-c', code], check=True)


def test_registered_prepared_and_read(tmp_path):
  mixtures = skills.register(name='s', settings=_SMALL)
  assert skills.register(name='s', settings=_SMALL) == mixtures
  with pytest.raises(UserError, match='registered twice'):
    skills.register(name='s', settings=SuiteSettings(n_train_tasks=12))
  assert {name: len(tasks) for name, tasks in mixtures.items()} == {
    's_train_id': 12,
    's_heldout_id': 2,
    's_train_instructed': 12,
    's_heldout_instructed': 2,
    's_operations': 13,
  }
  prepare.prepare(tmp_path, ['s_heldout_instructed', 's_operations'])
  for name in mixtures['s_heldout_instructed']:
    task = records.open_task(tmp_path, name)
    assert task.splits == {'few_shot': 64, 'validation': 5, 'test': 40}
    record = task.source('test')[0]
    ids = record['inputs'].tolist()
    assert task.vocabulary.decode(ids) == record['inputs_pretokenized']
    assert '+' in task.category
  assert records.open_task(tmp_path, 's_operation_copy').category == 'copy'
  # The same through seqio's own pipeline, in two graphs.
  for name in mixtures['s_heldout_id']:
    example = next(
      seqio.get_mixture_or_task(name)
      .get_dataset(None, 'test', shuffle=False)
      .as_numpy_iterator()
    )
    (record,) = registry.read_examples(name, 'test', 1)
    assert example['inputs'].tolist() == [*record.inputs, 1]
