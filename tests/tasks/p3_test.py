"""P3's caches: read back as written, and equal to what is rendered here."""

import json

import pytest
import seqio

from mhr_jax.data import registry
from mhr_jax.errors import UserError
from mhr_jax.tasks import p3, p3_cache, t0, t0_training
from mhr_jax.vocabulary import ByteVocabulary
from tests import toy_t0

_BYTES = ByteVocabulary()


def _write_promptsource(folder):
  """The templates of COPA, as PromptSource's repository has them."""
  path = folder / 'super_glue/copa/templates.yaml'
  toy_t0.write_templates(path, 'super_glue', toy_t0.COPA)
  return path


# Two records of the toy COPA in two forms: input, choices, the right one.
_PLAIN = [
  ('It was 0.', ['It is 1.', 'It is 2.'], 0),
  ('It was 1.', ['It is 2.', 'It is 3.'], 1),
]
_BEST = [
  ('It was 0. So?', ['It is 1.', 'It is 2.'], 0),
  ('It was 1. So?', ['It is 2.', 'It is 3.'], 1),
]


def _no_source(split, shuffle_files, seed=None):
  raise AssertionError('The cache is read instead.')


def _cache_scored(folder, rendered, **how):
  """Writes a task for scoring: one record a choice."""
  toy_t0.write_cached_task(
    folder,
    'validation',
    [
      {
        'idx': [i, j],
        'inputs_pretokenized': inputs,
        'targets_pretokenized': choice,
        'is_correct': j == label,
        'weight': 1.0,
      }
      for i, (inputs, choices, label) in enumerate(rendered)
      for j, choice in enumerate(choices)
    ],
    vocabulary=_BYTES,
    **how,
  )


def _cache_plain(folder, split, rendered):
  toy_t0.write_cached_task(
    folder,
    split,
    [
      {
        'inputs_pretokenized': inputs,
        'targets_pretokenized': f'\n{choices[label]}',
        'answer_choices': choices,
      }
      for inputs, choices, label in rendered
    ],
    vocabulary=_BYTES,
  )


def test_held_out_tasks_are_those_rendered_from_raw_records(tmp_path):
  toy_t0.write_copa(tmp_path / 'raw', n_test=2)
  t0.register(tmp_path / 'raw', vocabulary='bytes', name='raw')
  cache = tmp_path / 'p3'
  _cache_scored(
    cache / 'super_glue_copa_a_plain_score_eval', _PLAIN, n_shards=2
  )
  # Without the task for scoring, the choices are in the task itself.
  _cache_plain(cache / 'super_glue_copa_b_best', 'validation', _BEST)
  _write_promptsource(tmp_path / 'templates')
  mixtures = p3.register(
    cache,
    part='heldout',
    vocabulary='bytes',
    name='p3',
    templates=tmp_path / 'templates',
    datasets=['super_glue_copa'],
  )
  forms = ('p3_super_glue_copa_a_plain', 'p3_super_glue_copa_b_best')
  assert mixtures == {
    'p3_super_glue_copa_templates': forms,
    'p3_heldout': forms,
  }
  for form in ('a_plain', 'b_best'):
    of_raw = toy_t0.load_task(f'raw_super_glue_copa_{form}')
    assert toy_t0.load_task(f'p3_super_glue_copa_{form}') == of_raw
    assert len(of_raw['test']) == 2


def test_training_tasks_are_those_rendered_from_raw_records(tmp_path, caplog):
  toy_t0.write_mrpc(tmp_path / 'raw', n=2)
  t0_training.register(
    tmp_path / 'raw', vocabulary='bytes', name='rawt', datasets=['glue_mrpc']
  )
  choices = ['no', 'yes']
  _cache_plain(
    tmp_path / 'p3/glue_mrpc_same',
    'train',
    [('one 0 = two 0?', choices, 0), ('one 1 = two 1?', choices, 1)],
  )
  _cache_scored(tmp_path / 'p3/glue_mrpc_same_score_eval', [])
  mixtures = p3.register(
    tmp_path / 'p3',
    part='train',
    vocabulary='bytes',
    name='p3t',
    datasets=['glue_mrpc'],
  )
  assert mixtures == {'p3t_train': ('p3t_glue_mrpc_same',)}
  assert registry.resolve('p3t_train').rates == (3568.0,)
  assert 'has 1 tasks of glue_mrpc; PromptSource has 7' in caplog.text
  assert toy_t0.load_task('p3t_glue_mrpc_same') == toy_t0.load_task(
    'rawt_glue_mrpc_same'
  )


def test_a_cache_reads_as_seqio_reads_its_own(tmp_path):
  # seqio's reader of cached tasks is what T0 reads P3 with.
  folder = tmp_path / 'super_glue_copa_b_best'
  _cache_plain(folder, 'train', _BEST)
  task = seqio.Task(
    'super_glue_copa_b_best',
    source=seqio.FunctionDataSource(_no_source, splits=['train']),
    output_features={
      key: seqio.Feature(seqio.ByteVocabulary(), add_eos=False)
      for key in ('inputs', 'targets')
    },
    preprocessors=[seqio.CacheDatasetPlaceholder()],
  )
  before = seqio.get_global_cache_dirs()
  seqio.set_global_cache_dirs([str(tmp_path)])
  try:
    cached = task.get_dataset(split='train', use_cached=True, shuffle=False)
    theirs = list(cached.as_numpy_iterator())
  finally:
    seqio.set_global_cache_dirs(before)
  shards = p3_cache.find_shards(folder, 'train')
  ours = list(p3_cache.read_examples(shards, 'f', choices='keep'))
  assert len(theirs) == len(ours) == 2
  for their, our in zip(theirs, ours, strict=True):
    assert their['inputs_pretokenized'].decode() == our.inputs
    assert their['targets_pretokenized'].decode().strip() == our.targets[0]
    assert [each.decode() for each in their['answer_choices']] == list(
      our.choices
    )
    assert list(their['inputs']) == list(_BYTES.encode(our.inputs))


def test_records_that_t0_marked_are_left_out(tmp_path):
  toy_t0.write_cached_task(
    tmp_path,
    'train',
    [
      {'inputs_pretokenized': 'a', 'targets_pretokenized': 'x'},
      {'inputs_pretokenized': 'b', 'targets_pretokenized': '<NO LABEL>'},
      {'inputs_pretokenized': 'c', 'targets_pretokenized': ' y '},
    ],
  )
  shards = p3_cache.find_shards(tmp_path, 'train')
  made = list(p3_cache.read_examples(shards, 'f', choices='leave out'))
  assert [(one.example_id, one.targets) for one in made] == [
    ('0/f', ('x',)),
    ('2/f', ('y',)),
  ]
  with pytest.raises(UserError, match="record 0: there is no field 'answer_ch"):
    list(p3_cache.read_examples(shards, 'f', choices='keep'))
  with pytest.raises(UserError, match="record 0: there is no field 'idx'"):
    list(p3_cache.read_scored(shards, 'f'))


def test_scored_records_in_any_order_are_grouped(tmp_path):
  scored = [
    {
      'idx': [example, choice],
      'inputs_pretokenized': f'in {example}',
      'targets_pretokenized': f'out {choice}',
      'is_correct': int(choice == example % 3),
      'weight': 1.0,
    }
    for choice in (2, 0, 1)
    for example in (1, 3, 0, 2)
  ]
  # Of the last example no choice is correct.
  scored += [{**scored[0], 'idx': [9, 0], 'is_correct': 0}]
  toy_t0.write_cached_task(tmp_path, 'test', scored)
  made = list(p3_cache.read_scored(p3_cache.find_shards(tmp_path, 'test'), 'f'))
  assert [one.example_id for one in made] == ['0/f', '1/f', '2/f', '3/f']
  assert [one.label for one in made] == [0, 1, 2, 0]
  assert made[1].choices == ('out 0', 'out 1', 'out 2')
  assert (made[1].inputs, made[1].targets) == ('in 1', ('out 1',))


def test_damaged_caches_are_located(tmp_path):
  with pytest.raises(UserError, match='holds no task of P3'):
    p3.register(tmp_path, part='train', vocabulary='bytes')
  task = tmp_path / 'glue_mrpc_same'
  example = {'inputs_pretokenized': 'a', 'targets_pretokenized': 'x'}
  toy_t0.write_cached_task(task, 'train', [example] * 4, n_shards=2)
  first, second = p3_cache.find_shards(task, 'train')
  data = first.read_bytes()
  first.write_bytes(data[:-10])
  with pytest.raises(UserError, match='00000-of-00002 is damaged behind rec'):
    list(p3_cache.read_records([first]))
  second.unlink()
  with pytest.raises(UserError, match="has 1 of the 2 shards of 'train'"):
    p3_cache.find_shards(task, 'train')
  (task / 'info.train.json').write_text(json.dumps({'shards': 2}))
  with pytest.raises(UserError, match='info.train.json: no `num_shards`'):
    p3_cache.find_shards(task, 'train')


@pytest.mark.parametrize(
  ('options', 'message'),
  (
    ({'part': 'train'}, 'holds no task of glue_mrpc'),
    ({'part': 'test'}, "'train' or 'heldout', not 'test'"),
    ({'part': 'heldout'}, 'need `templates`'),
  ),
)
def test_options_that_do_not_fit(tmp_path, options, message):
  (tmp_path / 'a_task').mkdir()
  (tmp_path / 'a_task/COMPLETED').write_text('')
  with pytest.raises(UserError, match=message):
    p3.register(tmp_path, vocabulary='bytes', name='opt', **options)
