"""Official scores, references and tracks, against plain loops."""

import json

import numpy as np
import pytest

from mhr_jax import metrics
from mhr_jax.data import registry
from mhr_jax.errors import UserError
from mhr_jax.scores import Prediction
from mhr_jax.tasks import natural_instructions as ni
from mhr_jax.tasks import ni_files, ni_scores
from mhr_jax.vocabulary import ByteVocabulary

_ENTAILMENT, _TITLES = 'Textual Entailment', 'Title Generation'


def _write(folder, track='default', *, reference=None, **languages):
  """Two test tasks of three instances; all have two references."""
  (folder / 'tasks').mkdir(exist_ok=True)
  (folder / f'splits/{track}').mkdir(parents=True)
  (folder / 'eval').mkdir(exist_ok=True)
  lines = []
  for name, category in (('task1', _ENTAILMENT), ('task2', _TITLES)):
    instances = [
      {'id': f'{name}-{i}', 'input': 'in', 'output': [f'an out {i}', 'b\u2028']}
      for i in range(3)
    ]
    task = {
      'Definition': 'Do.',
      'Categories': [category],
      'Instances': instances,
      **languages,
    }
    (folder / f'tasks/{name}.json').write_text(json.dumps(task))
    for one in instances:
      line = {
        'id': one['id'],
        'references': one['output'],
        'task_id': name,
        'task_category': category,
        'track': track,
      }
      lines.append(line | (reference or {}))
  text = ''.join(json.dumps(x, ensure_ascii=False) + '\n' for x in lines)
  (folder / 'eval/test_references.jsonl').write_text(text)
  (folder / f'splits/{track}/train_tasks.txt').write_text('')
  (folder / f'splits/{track}/test_tasks.txt').write_text('task1\ntask2\n')
  return folder


def _load(folder, name, **kwargs):
  return ni.load_examples(
    folder / f'tasks/{name}.json',
    'test',
    prompt=ni.PromptSettings(),
    splits=ni.SplitSettings(few_shot_pool=1),
    vocabulary=ByteVocabulary(),
    **kwargs,
  )


def _predictions(texts):
  return [
    Prediction(id_, 'any', None, '', text, ('unused',))
    for id_, text in texts.items()
  ]


TEXTS = {
  'task1-0': 'An OUT, 0!',
  'task1-1': 'an out',
  'task2-0': 'out an',
  'task2-2': 'an out 2',
  'else-0': 'left out',
}


def test_scores_by_track_category_and_task(tmp_path):
  references = ni_files.read_references(_write(tmp_path))
  assert ni_scores.make_references(tmp_path).keys() == references.keys()
  found = ni_scores.official_scores(_predictions(TEXTS), references)
  texts = [TEXTS.get(id_, '') for id_ in references]
  choices = [one.references for one in references.values()]
  exact = metrics.exact_match(texts, choices)
  rouge = metrics.rouge_l(texts, choices)
  assert exact.tolist() == [100, 0, 0, 0, 0, 100]
  assert found.overall == {
    'instances': 6,
    'exact_match': pytest.approx(exact.mean()),
    'rouge_l': pytest.approx(rouge.mean()),
  }
  assert found.missing == 2
  entailment, titles = found.categories[_ENTAILMENT], found.categories[_TITLES]
  assert entailment['reported'] == pytest.approx(exact[:3].mean())
  assert titles['reported'] == pytest.approx(rouge[3:].mean())
  assert found.tasks['task2']['rouge_l'] == titles['rouge_l']


def test_other_languages_need_a_tokenizer(tmp_path):
  folder = _write(tmp_path, 'xlingual', Input_language=['English', 'Tamil'])
  references = ni_files.read_references(folder)
  predictions = _predictions(TEXTS)
  with pytest.raises(UserError, match="GPT-2's tokens.*give tokenize"):
    ni_scores.official_scores(predictions, references, track='xlingual')
  with pytest.raises(UserError, match="'default', only of xlingual"):
    ni_scores.official_scores(predictions, references)
  found = ni_scores.official_scores(
    predictions, references, track='xlingual', tokenize=list
  )
  # Letters as tokens: 'out an' and 'an out 0' have 'out' and one blank each.
  expected = []
  for id_, one in references.items():
    a = TEXTS.get(id_, '')
    expected.append(max(_f(a, b) for b in one.references))
  assert found.overall['rouge_l'] == pytest.approx(np.mean(expected))


def _f(a, b):
  table = np.zeros((len(a) + 1, len(b) + 1))
  for i, x in enumerate(a):
    for j, y in enumerate(b):
      table[i + 1, j + 1] = (
        table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
      )
  return 200 * table[-1, -1] / max(len(a) + len(b), 1)


def test_tasks_of_a_track_are_registered_with_their_own_metric(tmp_path):
  folder = _write(tmp_path, 'xlingual', Output_language=['Tamil'])
  mixtures = ni.register(
    folder, vocabulary='bytes', name='tamil', track='xlingual'
  )
  names = ('tamil_task1', 'tamil_task2')
  assert mixtures == {'tamil_test': names, 'tamil_few_shot': names}
  assert registry.resolve('tamil_test').tasks == mixtures['tamil_test']
  own = [_load(folder, name).metric for name in ('task1', 'task2')]
  assert own == ['exact_match', None]
  with pytest.raises(UserError, match=r'no .*splits/default/train_tasks\.txt'):
    ni.register(folder, vocabulary='bytes', name='tamil2')
  with pytest.raises(UserError, match="no track 'xling'.*'xlingual'"):
    ni.register(folder, vocabulary='bytes', name='tamil2', track='xling')


@pytest.mark.parametrize(
  ('reference', 'message'),
  [
    ({}, None),
    ({'references': ['b']}, r'the references \(.*references\.jsonl:1: the two'),
    ({'task_category': 'Misc.'}, "category 'Textual Ent.* but 'Misc.'"),
    ({'id': 'other'}, 'task1-0 is not in .*test_references.jsonl'),
    ({'references': None}, r'references\.jsonl:1: a line has an id and'),
  ],
)
def test_test_tasks_are_compared_with_the_references(
  tmp_path, reference, message
):
  folder = _write(tmp_path, reference=reference)
  if message is None:
    assert _load(folder, 'task1').metric == 'exact_match'
    return
  with pytest.raises(UserError, match=message):
    _load(folder, 'task1')
