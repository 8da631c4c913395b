"""Soups: who is chosen, what is averaged, and that a run does it all."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from mhr_jax import (
  adaptation,
  adapter_soup,
  adapters,
  commands,
  evaluation,
  methods,
  optim,
  run_folder,
  task_embeddings,
  train,
)
from mhr_jax.adapter_soup import Soup, SoupChooser, SoupSettings
from mhr_jax.adapters import AdapterConfig
from mhr_jax.data import few_shot as few_shot_data
from mhr_jax.data import ordered, records
from mhr_jax.data.mixture_settings import MixtureSettings
from mhr_jax.errors import UserError
from mhr_jax.few_shot import FewShotSettings
from mhr_jax.t5.decoding import DecodingSettings
from mhr_jax.task_data import TaskData
from mhr_jax.task_embeddings import TaskEmbeddings
from mhr_jax.task_table import TaskTable
from mhr_jax.trainer import TrainSettings
import toy_text

EVALUATE = evaluation.EvaluationSettings(
  decoding=DecodingSettings(max_new_tokens=4)
)


class Given:
  """A space in which each task lies where a test says."""

  def __init__(self, **vectors):
    self.vectors = vectors

  def embed(self, task, tokens):
    del tokens
    return np.array(self.vectors[task], np.float32)


def make_chooser(n_nearest=2, **settings):
  """Nearest: copy to first, then upper; first to upper, then copy."""
  known = TaskEmbeddings(
    toy_text.TASKS.names,
    np.array([[1, 0.2], [0, 1], [-1, 0.5]], np.float32),
    Given(copy=[0.3, 1], first=[0.2, -1], upper=[-0.3, 1]),
  )
  return SoupChooser(SoupSettings(n_nearest=n_nearest, **settings), known)


@pytest.fixture(scope='module')
def private():
  model = toy_text.make_model(mixing='private', n_splits=1)
  return model, toy_text.make_params(model)


@pytest.mark.parametrize('weights', ['equal', 'similarity'])
def test_neighbours_are_those_of_a_sort_of_cosines(weights):
  rng = np.random.default_rng(1)
  vectors = rng.normal(size=(30, 8)).astype(np.float32)
  vector = rng.normal(size=8).astype(np.float32)
  known = TaskEmbeddings(tuple(map(str, range(30))), vectors, Given())
  settings = SoupSettings(n_nearest=4, weights=weights)
  soup = adapter_soup.choose_soup(vector, known, settings)
  norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(vector)
  cosines = vectors @ vector / norms
  expected = np.argsort(cosines)[::-1][:4]
  assert soup.tasks == tuple(map(str, expected))
  np.testing.assert_allclose(soup.similarities, cosines[expected], rtol=1e-5)
  shares = np.full(4, 0.25)
  if weights == 'similarity':
    shares = cosines[expected] / cosines[expected].sum()
  np.testing.assert_allclose(soup.weights, shares, rtol=1e-5)


def test_weights_by_similarity_leave_out_who_is_not_alike():
  known = TaskEmbeddings(('a', 'b'), np.array([[1, 0], [-1, 0]]), Given())
  settings = SoupSettings(n_nearest=2, weights='similarity')
  vector = np.array([1.0, 1.0])
  assert adapter_soup.choose_soup(vector, known, settings).weights == (1, 0)
  with pytest.raises(UserError, match="weights='equal' does without"):
    adapter_soup.choose_soup(np.array([0.0, 1.0]), known, settings)


@pytest.mark.parametrize('kind', ['a', 'b'])
def test_the_average_is_that_of_numpy(private, kind):
  model, params = private
  shares = make_chooser().shares(Soup(('upper', 'copy'), (1, 1), (0.75, 0.25)))
  np.testing.assert_array_equal(shares, [0.25, 0, 0.75])
  _, start = adaptation.adaptation_start(
    model, params, 'adapter_soup', key=jax.random.key(0), shares=shares
  )
  found = start['adapters']['encoder']['mlp']['wo'][kind]
  old = params['adapters']['encoder']['mlp']['wo'][kind]
  expected = 0.25 * old[:, :, [0]] + 0.75 * old[:, :, [2]]
  np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_a_soup_of_one_is_that_tasks_adapter_exactly(private):
  model, params = private
  chooser = make_chooser(n_nearest=1)
  none = np.zeros((0, 1), np.int32)
  soup = chooser.choose('copy', none)
  assert soup.tasks == ('first',) and soup.weights == (1.0,)
  one_task, start = adaptation.adaptation_start(
    model,
    params,
    'adapter_soup',
    key=jax.random.key(0),
    shares=chooser.shares(soup),
  )
  jax.tree.map(
    np.testing.assert_array_equal,
    adapters.task_adapter(start, 0, one_task.adapters),
    adapters.task_adapter(
      params, toy_text.TASKS.id_of('first'), model.adapters
    ),
  )


def test_more_neighbours_than_tasks_is_an_error():
  with pytest.raises(UserError, match='n_nearest must be at most 3'):
    make_chooser(n_nearest=4)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'space': 'backbon'}, "Did you mean 'backbone'"),
    ({'weights': 'even'}, "weights is 'even'; one of 'equal', 'similarity'"),
    ({'n_nearest': 0}, 'n_nearest is 0; at least 1'),
    ({'space': 'file'}, 'a file go together'),
    ({'file': 'a.npz'}, 'a file go together'),
  ],
)
def test_impossible_settings_are_errors(settings, message):
  with pytest.raises(UserError, match=message):
    SoupSettings(**settings)


def test_shots_are_all_that_were_drawn_and_once_each():
  cell = toy_text.make_cells(seeds=(1,), held_back=2)[0]
  (inputs,) = adapter_soup.inputs_by_task(cell.shots).values()
  source = toy_text.make_source(cell.task, 20)
  expected = [[*source[i]['inputs'].tolist(), 1] for i in cell.indices]
  assert len(expected) == 6
  assert [row[row != 0].tolist() for row in inputs] == expected


def test_cells_start_from_soups_of_their_own_side_by_side(private, tmp_path):
  """With learning rate 0, what trained is the start."""
  # But for the rate as in adaptation_test: one program serves both.
  optimizer = optim.OptimizerSettings(
    learning_rates={'adapters': 0.0}, warmup_proportion=0.0
  )
  settings = adaptation.AdaptationSettings(optimizer=optimizer, side_by_side=4)
  cells = toy_text.make_cells()[::2]
  chooser = make_chooser()
  results = adaptation.adapt(
    *private,
    'adapter_soup',
    cells,
    toy_text.VOCABULARY,
    settings=settings,
    evaluate=EVALUATE,
    soups=chooser,
    folder=tmp_path,
  )
  assert [result.soup.tasks for result in results] == [
    ('first', 'copy'),
    ('copy', 'upper'),
    ('first', 'upper'),
  ]
  for result in results:
    shares = chooser.shares(result.soup)
    averaged = adapters.average_adapters(private[1]['adapters'], shares)
    jax.tree.map(
      np.testing.assert_array_equal, result.trained['adapters'], averaged
    )
  text = (tmp_path / 'upper' / 'seed0' / 'adapted.json').read_text()
  facts = json.loads(text)['soup']
  assert facts['tasks'] == ['first', 'upper']
  assert facts['weights'] == [0.5, 0.5]
  np.testing.assert_allclose(facts['similarities'], [0.958, 0.685], atol=1e-3)


def test_every_new_task_has_the_skill_of_its_soup(private):
  chooser = make_chooser()
  batches = toy_text.make_batches()
  model, params, served, soups = adapter_soup.serve_soups(
    *private, chooser, batches[::-1]
  )
  assert list(soups) == ['upper', 'first', 'copy']
  assert model.adapters.n_skills == model.adapters.n_tasks == 3
  for i, soup in enumerate(soups.values()):
    averaged = adapters.average_adapters(
      private[1]['adapters'], chooser.shares(soup)
    )
    jax.tree.map(
      lambda all_of, one, i=i: np.testing.assert_array_equal(
        all_of[:, :, [i]], one
      ),
      params['adapters'],
      averaged,
    )
  for old, new in zip(batches[::-1], served, strict=True):
    ids = [list(soups).index(record.task) for record in new.records]
    n = len(ids)
    assert new.arrays['task_ids'].tolist() == ids + [0] * (4 - n)
    np.testing.assert_array_equal(
      new.arrays['encoder_input_tokens'], old.arrays['encoder_input_tokens']
    )


@pytest.mark.slow
def test_zero_shot_serves_every_task_by_its_own_soup(private, tmp_path):
  """Against one model a task, with that task's average alone."""
  model, params = private
  chooser = make_chooser()
  batches = toy_text.make_batches()
  found = adaptation.zero_shot(
    *private,
    'adapter_soup',
    batches,
    toy_text.VOCABULARY,
    settings=EVALUATE,
    soups=chooser,
    folder=tmp_path,
  )
  soups = json.loads((tmp_path / 'soups.json').read_text())
  assert {task: soup['tasks'] for task, soup in soups.items()} == {
    'copy': ['first', 'copy'],
    'first': ['copy', 'upper'],
    'upper': ['first', 'upper'],
  }
  single = dataclasses.replace(model, adapters=model.adapters.without_routing())
  expected = []
  for task in toy_text.TASKS.names:
    shares = chooser.shares(Soup(tuple(soups[task]['tasks']), (), (0.5, 0.5)))
    own = {
      'backbone': params['backbone'],
      'adapters': adapters.average_adapters(params['adapters'], shares),
    }
    of_task = ordered.eval_batches(
      [toy_text.make_source(task, 5)], batch_size=5, **toy_text.WIDTHS
    )
    expected += evaluation.predict(
      single, own, of_task, toy_text.VOCABULARY, settings=EVALUATE
    )
  lines = (tmp_path / 'predictions.jsonl').read_text().splitlines()
  written = [json.loads(line)['prediction'] for line in lines]
  assert written == [each.prediction for each in expected]
  assert found.overall['instances'] == 15


@dataclasses.dataclass
class Run:
  """What `build_chooser` asks of a run."""

  model: object
  params: object
  task_table: object


def test_training_tasks_are_embedded_once(private, tmp_path, write_task):
  """Again only where other embeddings are asked for."""
  for i, task in enumerate(toy_text.TASKS.names):
    write_task(tmp_path, task, seed=i, train=7)
  run = Run(*private, toy_text.TASKS)
  path = tmp_path / 'run' / adapter_soup.EMBEDDINGS_FILE

  def build(run=run, **settings):
    settings = SoupSettings(**{'space': 'text', 'n_nearest': 1, **settings})
    return adapter_soup.build_chooser(
      'adapter_soup',
      settings,
      run,
      run_dir=path.parent,
      data_dir=tmp_path,
      input_length=8,
    )

  built = build()
  first = path.read_bytes()
  again = build(n_nearest=2)
  assert path.read_bytes() == first
  np.testing.assert_array_equal(again.known.vectors, built.known.vectors)
  assert built.known.tasks == toy_text.TASKS.names
  build(n_examples=3)
  assert path.read_bytes() != first
  with pytest.raises(UserError, match="no split 'dev'.*SoupSettings.data_dir"):
    build(split='dev')
  other = Run(*private, TaskTable(('copy', 'frist')))
  with pytest.raises(UserError, match="'frist' is not prepared"):
    build(other)
  with pytest.raises(UserError, match='has no table of tasks'):
    build(Run(*private, None))
  assert (
    adapter_soup.build_chooser(
      'private',
      SoupSettings(),
      run,
      run_dir='/nowhere',
      data_dir='/nowhere',
      input_length=8,
    )
    is None
  )


def test_a_file_needs_no_data(private, tmp_path):
  path = tmp_path / 'vectors.npz'
  vectors = {'copy': [1.0, 0], 'first': [0, 1.0], 'new': [0.1, 1.0]}
  np.savez(path, **vectors)

  def build(names):
    return adapter_soup.build_chooser(
      'adapter_soup',
      SoupSettings(space='file', file=str(path), n_nearest=1),
      Run(*private, TaskTable(names)),
      run_dir=tmp_path,
      data_dir='/nowhere',
      input_length=8,
    )

  soup = build(('copy', 'first')).choose('new', np.zeros((0, 1), np.int32))
  assert soup.tasks == ('first',)
  with pytest.raises(UserError, match="no vector of task 'fist'. Did you mean"):
    build(('copy', 'fist'))


def test_the_row_of_the_table():
  method = methods.get_method('adapter_soup')
  assert method.pretrain_as == 'private'
  base = toy_text.ADAPTERS
  counts = [
    methods.parameter_counts(
      name,
      {'x': adapters.LinearShape(2, 8, 8)},
      dataclasses.replace(base, targets=('.*',)),
      phase='adapt',
      n_tasks=1,
    )
    for name in ('adapter_soup', 'private')
  ]
  assert counts[0] == counts[1]


def test_embeddings_of_the_backbone_are_what_is_chosen_by(private):
  """The nearest training task of a copy of a training task is itself."""
  model, params = private
  embedder = task_embeddings.BackboneEmbedder(model.config, params['backbone'])
  rng = np.random.default_rng(0)
  inputs = {
    name: rng.integers(3 + 60 * i, 63 + 60 * i, (6, 5)).astype(np.int32)
    for i, name in enumerate(toy_text.TASKS.names)
  }
  known = task_embeddings.embed_tasks(embedder, inputs)
  chooser = SoupChooser(SoupSettings(n_nearest=1), known)
  for name, tokens in inputs.items():
    soup = chooser.choose('new', tokens[::-1].copy())
    assert soup.tasks == (name,)
    np.testing.assert_allclose(soup.similarities, 1, atol=1e-5)


@pytest.mark.slow
def test_a_run_is_adapted_and_says_from_whom(tmp_path, write_task):
  """From training to the printed table, by the backbone's embeddings."""
  for i, task in enumerate((*toy_text.TASKS.names, 'new')):
    write_task(tmp_path / 'data', task, seed=i, train=12, test=3)
  data = TaskData(toy_text.TASKS.names, data_dir=str(tmp_path / 'data'))
  run_dir = tmp_path / 'run'
  train.train(
    str(run_dir),
    backbone=dataclasses.replace(toy_text.CONFIG, vocab_size=384),
    data=data,
    mixture=MixtureSettings(batch_size=8, **toy_text.WIDTHS),
    settings=TrainSettings(steps=1),
    method='private',
    adapters=functools.partial(
      AdapterConfig, rank=2, targets=toy_text.ADAPTERS.targets
    ),
  )

  def adapt():
    return commands.adapt(
      str(run_dir),
      method='adapter_soup',
      data=dataclasses.replace(data, tasks='new'),
      few_shot_settings=FewShotSettings(
        shots=4, steps=2, batch_size=4, seeds=(0, 1), **toy_text.WIDTHS
      ),
      adaptation_settings=adaptation.AdaptationSettings(
        soup=SoupSettings(n_nearest=2)
      ),
      evaluation_settings=EVALUATE,
    )

  results = adapt()
  kept = run_dir / adapter_soup.EMBEDDINGS_FILE
  time = kept.stat().st_mtime_ns
  assert [each.soup for each in adapt()] == [each.soup for each in results]
  assert kept.stat().st_mtime_ns == time
  folder = run_dir / 'few_shot' / 'adapter_soup' / 'new' / 'seed1'
  soup = json.loads((folder / 'adapted.json').read_text())['soup']
  assert soup['tasks'] == list(results[1].soup.tasks)
  assert len(set(soup['tasks']) & set(toy_text.TASKS.names)) == 2
  table = commands.adaptation_table(results)
  assert f'  new, seed 1: {soup["tasks"][0]} 0.' in table
  arrays = few_shot_data.few_shot_examples(
    records.open_task(data.data_dir, 'copy').source('train'), 12, 0
  )
  run = run_folder.load_run(run_dir)
  batches = ordered.eval_batches(
    [ordered.ExampleSource('copy', arrays.train)],
    batch_size=12,
    **toy_text.WIDTHS,
  )
  embedder = task_embeddings.BackboneEmbedder(
    run.model.config, run.params['backbone']
  )
  vector = embedder.embed('copy', adapter_soup.inputs_by_task(batches)['copy'])
  with np.load(kept) as stored:
    np.testing.assert_allclose(stored['vectors'][0], vector, atol=1e-5)
