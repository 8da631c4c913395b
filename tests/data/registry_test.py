"""Registering is idempotent; every seqio task reads the same way."""

import functools
import io

import numpy as np
import pytest
import sentencepiece
import seqio
import tensorflow as tf

from mhr_jax.data import preprocessors, registry, sources
from mhr_jax.errors import UserError
from mhr_jax.vocabulary import ByteVocabulary, SentencePieceVocabulary

_BYTES = ByteVocabulary()
_HERE = 'tests.registry_test'


def _load(n: int) -> sources.TaskExamples:
  examples = [
    sources.TextExample(f'e{i}', f'in {i}', (f'out {i}', 'other'))
    for i in range(n)
  ]
  return sources.TaskExamples({'train': examples, 'test': examples[:1]}, 'Some')


def _source(n: int = 3) -> sources.ExampleSource:
  load = functools.partial(_load, n)
  return sources.ExampleSource(load, splits=('train', 'test'))


def _dataset(split, shuffle_files, seed=None):
  del split, shuffle_files, seed
  return tf.data.Dataset.from_tensor_slices(
    {'question': ['a b', 'c'], 'answer': ['x', 'yé']}
  )


@seqio.map_over_dataset
def _rename(example):
  return {
    'inputs': tf.strings.join(['q: ', example['question']]),
    'targets': example['answer'],
    'references': tf.stack([example['answer'], 'z']),
  }


@pytest.fixture(scope='module')
def model_file(tmp_path_factory) -> str:
  buffer = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(['the cat sat', 'a dog ran', 'the end'] * 9),
    model_writer=buffer,
    vocab_size=40,
    hard_vocab_limit=False,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    minloglevel=2,
  )
  path = tmp_path_factory.mktemp('vocabulary') / 'v.model'
  path.write_bytes(buffer.getvalue())
  return str(path)


@pytest.fixture(autouse=True)
def _clean_registries():
  before = set(seqio.TaskRegistry.names()), set(seqio.MixtureRegistry.names())
  yield
  for names, each in zip(
    before, (seqio.TaskRegistry, seqio.MixtureRegistry), strict=True
  ):
    for name in set(each.names()) - names:
      each.remove(name)


_TEXTS = ['the cat', 'A  dog <extra_id_0> ran', 'ünknown', '', '<extra_id_1>']


@pytest.mark.parametrize('text', _TEXTS)
def test_ids_equal_those_of_seqio(model_file, text):
  for theirs, ours in (
    (
      seqio.SentencePieceVocabulary(model_file, extra_ids=5),
      SentencePieceVocabulary(model_file, extra_ids=5),
    ),
    (seqio.ByteVocabulary(4), ByteVocabulary(4)),
  ):
    ids = list(theirs.encode(text))
    assert ours.encode(text) == ids
    assert ours.vocab_size == theirs.vocab_size
    for more in ([], [0, 0], [1, 7, 8], [2], [ours.vocab_size - 1]):
      assert ours.decode(ids + more) == theirs.decode(ids + more)


def test_t5_ids_equal_those_of_seqio(shared_dir):
  path = str(shared_dir / 'data/vocab/t5_vocab.model')
  theirs = seqio.SentencePieceVocabulary(path, extra_ids=100)
  ours = SentencePieceVocabulary(path, extra_ids=100)
  for text in [*_TEXTS, 'translate English to German: Das ist gut.', 'naïve ①']:
    assert ours.encode(text) == list(theirs.encode(text))
  ids = [32_099, 13_959, 0, 2, 31_999, 5, 1, 9]
  assert ours.decode(ids) == theirs.decode(ids)


@pytest.mark.parametrize('text', _TEXTS)
def test_our_vocabulary_inside_seqio(model_file, text):
  ours = SentencePieceVocabulary(model_file, extra_ids=5)
  wrapped = preprocessors.to_seqio(ours)
  assert wrapped.vocab_size == ours.vocab_size and wrapped.extra_ids == 5
  ids = ours.encode(text)
  assert wrapped.encode_tf(tf.constant(text)).numpy().tolist() == ids
  assert wrapped.decode(ids) == ours.decode(ids)
  assert preprocessors.from_seqio(wrapped) == ours


def test_vocabularies_that_have_no_form_here_are_refused(model_file):
  ascending = seqio.SentencePieceVocabulary(
    model_file, extra_ids=5, reverse_extra_ids=False
  )
  for vocabulary in (ascending, seqio.PassThroughVocabulary(9)):
    with pytest.raises(UserError, match='cannot be used'):
      preprocessors.from_seqio(vocabulary)


def test_registering_again_is_a_no_op_and_differently_an_error():
  first = registry.add_task('r_a', _source(), _BYTES, module='one.module')
  again = registry.add_task('r_a', _source(), _BYTES, module='one.module')
  assert again is first
  with pytest.raises(UserError, match=r'one\.module and by other\.module'):
    registry.add_task('r_a', _source(4), _BYTES, module='other.module')
  with pytest.raises(UserError, match='different definitions'):
    registry.add_task('r_a', _source(), ByteVocabulary(1), module='one.module')


def test_mixtures_are_idempotent_too():
  for name in ('r_a', 'r_b'):
    registry.add_task(name, _source(), _BYTES, module=_HERE)
  first = registry.add_mixture('r_m', ['r_a', 'r_b'], module='one.module')
  assert registry.add_mixture('r_m', ['r_a', 'r_b'], module='x') is first
  with pytest.raises(UserError, match=r'one\.module and by other\.module'):
    registry.add_mixture('r_m', {'r_a': 2.0, 'r_b': 1}, module='other.module')


def test_resolve_gives_tasks_in_order_with_their_rates():
  for name in ('r_c', 'r_a', 'r_b'):
    registry.add_task(name, _source(), _BYTES, module=_HERE)
  registry.add_mixture('r_inner', {'r_c': 1, 'r_a': 3}, module=_HERE)
  registry.add_mixture('r_outer', {'r_inner': 2, 'r_b': 5}, module=_HERE)
  resolved = registry.resolve('r_outer')
  assert resolved.tasks == ('r_a', 'r_b', 'r_c')
  assert resolved.rates == (1.5, 5, 0.5)
  assert registry.resolve('r_b') == registry.TaskRates(('r_b',), (1.0,))
  assert registry.list_tasks(_HERE) == ['r_a', 'r_b', 'r_c']
  assert registry.list_mixtures(_HERE) == ['r_inner', 'r_outer']
  assert registry.list_tasks('elsewhere') == []


def test_unknown_names_give_the_nearest():
  registry.add_task('r_country', _source(), _BYTES, module=_HERE)
  for call in (registry.get_task, registry.resolve):
    with pytest.raises(UserError, match="Did you mean 'r_country'"):
      call('r_counrty')
  with pytest.raises(UserError, match="Did you mean 'r_country'"):
    registry.add_mixture('r_m', ['r_contry'], module=_HERE)
  with pytest.raises(UserError, match="no split 'tset'. Did you mean 'test'"):
    registry.read_examples('r_country', 'tset', 1)


def test_plain_reading_equals_the_seqio_pipeline():
  task = registry.add_task('r_a', _source(), _BYTES, module=_HERE)
  plain = registry.read_examples('r_a', 'train', 9)
  assert [record.example_id for record in plain] == ['e0', 'e1', 'e2']
  dataset = task.get_dataset(None, 'train', shuffle=False)
  for record, example in zip(plain, dataset.as_numpy_iterator(), strict=True):
    assert [*record.inputs, 1] == example['inputs'].tolist()
    assert [*record.targets[0], 1] == example['targets'].tolist()
    assert record.targets_pretokenized == tuple(
      text.decode() for text in example['references']
    )


def test_a_seqio_task_of_a_user_keeps_its_pipeline_and_references():
  feature = seqio.Feature(seqio.ByteVocabulary(), add_eos=True)
  seqio.TaskRegistry.add(
    'r_user',
    source=seqio.FunctionDataSource(_dataset, splits=['train']),
    preprocessors=[_rename, *preprocessors.STANDARD],
    output_features={'inputs': feature, 'targets': feature},
  )
  records = registry.read_examples('r_user', 'train', 5)
  assert [r.inputs_pretokenized for r in records] == ['q: a b', 'q: c']
  assert records[1].targets_pretokenized == ['yé', 'z']
  assert records[1].inputs == _BYTES.encode('q: c')
  assert records[1].targets == [_BYTES.encode('yé'), _BYTES.encode('z')]
  assert records[1].example_id == 'train-1'
  # Described alike at each look, although seqio caches things within.
  task = registry.get_task('r_user')
  assert registry.define_task(task) == registry.define_task(task)


def test_tasks_that_cannot_be_used_say_why():
  feature = seqio.Feature(seqio.ByteVocabulary())
  other = seqio.Feature(seqio.ByteVocabulary(7))
  for name, features, message in (
    ('r_x', {'targets': feature}, "no feature 'inputs'"),
    ('r_y', {'inputs': feature, 'targets': other}, 'T5 shares one'),
    ('r_z', {'inputs': feature, 'targets': feature}, 'pipeline failed'),
  ):
    seqio.TaskRegistry.add(
      name,
      source=seqio.FunctionDataSource(_dataset, splits=['train']),
      preprocessors=[],
      output_features=features,
    )
    with pytest.raises(UserError, match=message):
      registry.read_examples(name, 'train', 1)


def _load_choices(**changes) -> sources.TaskExamples:
  right = sources.TextExample('0/a', 'sky?', ('blue',), ('red', 'blue'), 1)
  free = sources.TextExample('1/a', 'say', ('so',))
  wrong = sources.TextExample('2/b', 'sea?', ('no',), ('yes', 'no', 'eh'), 1)
  wrong = wrong._replace(**changes)
  return sources.TaskExamples({'train': [right, free, wrong]}, 'Yes')


def _add_choices(**changes):
  load = functools.partial(_load_choices, **changes)
  source = sources.ExampleSource(load, splits=('train',))
  return registry.add_task('r_choices', source, _BYTES, module=_HERE)


def test_choices_are_read_plainly_and_through_seqio_alike():
  task = _add_choices()
  plain = registry.read_examples('r_choices', 'train', 3)
  assert plain[0].choices_pretokenized == ('red', 'blue')
  assert plain[0].choices == [_BYTES.encode('red'), _BYTES.encode('blue')]
  assert [record.label for record in plain] == [1, -1, 1]
  seqio.TaskRegistry.add(
    'r_seqio',
    source=task.source,
    preprocessors=[_as_it_is, *preprocessors.STANDARD],
    output_features=task.output_features,
  )
  through = registry.read_examples('r_seqio', 'train', 3)
  for one, other in zip(plain, through, strict=True):
    assert one.choices == other.choices and one.label == other.label
    assert list(one.choices_pretokenized) == list(other.choices_pretokenized)


@seqio.map_over_dataset
def _as_it_is(example):
  return example


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'label': 3}, 'has 3 choices, but the label 3'),
    ({'label': None}, 'has 3 choices, but the label -1'),
    ({'label': -2}, 'has 3 choices, but the label -2'),
    ({'label': 0}, "choice 0, 'yes', as its label, .*targets is .'no'.:"),
    ({'targets': ()}, 'first of its targets is'),
    ({'choices': ('no',), 'label': 0}, "one choice alone, 'no'"),
    ({'choices': ()}, 'the label 1, but no choices'),
    ({'choices': 'no'}, "the text 'no' for choices"),
  ],
)
def test_choices_that_do_not_fit_name_task_split_and_example(changes, message):
  _add_choices(**changes)
  where = "'r_choices', split 'train': example '2/b'"
  with pytest.raises(UserError, match=f'{where} .*{message}'):
    registry.read_examples('r_choices', 'train', 9)


def test_a_source_without_a_split_that_it_declares_is_an_error():
  source = sources.ExampleSource(
    functools.partial(_load, 1), splits=('train', 'dev')
  )
  registry.add_task('r_a', source, _BYTES, module=_HERE)
  with pytest.raises(UserError, match="did not return the split 'dev'"):
    registry.read_examples('r_a', 'train', 1)


def test_seqio_evaluates_with_all_references():
  task = registry.add_task('r_a', _source(), _BYTES, module=_HERE)
  example = next(
    task.get_dataset(None, 'train', shuffle=False).as_numpy_iterator()
  )
  target = task.postprocess_fn('out 0', example=example, is_target=True)
  prediction = task.postprocess_fn('Other!', example=example, is_target=False)
  scores = {}
  for metric in task.metric_fns:
    scores |= metric([target], [prediction])
  np.testing.assert_equal(scores, {'exact_match': 100.0, 'rouge_l': 100.0})
