"""What `mhr_jax.load` returns, against the model's own parts and plain loops."""

import dataclasses

import jax
import numpy as np
import pytest

import mhr_jax
from mhr_jax import (
  backbones,
  checkpoints,
  frozen,
  loading,
  logits_checksum,
  run_folder,
  saving,
)
from mhr_jax.api import Model
from mhr_jax.errors import UserError
from mhr_jax.model import RoutedT5
from mhr_jax.vocabulary import ByteVocabulary
import toy_text

TEXTS = ['abc', 'b', 'cab', 'aa', 'bcc']
TASKS = ['copy', 2, 'first', 'upper', 0]
TASK_IDS = np.array([0, 2, 1, 2, 0])


def write_run(folder, model, params, *, vocabulary=toy_text.VOCABULARY):
  """Writes a run folder as training leaves it, without the training."""
  run_folder.write_description(
    folder, model=model, task_table=toy_text.TASKS, vocabulary=vocabulary
  )
  backbone, config = params['backbone'], model.config
  kept = frozen.save_frozen(folder / 'backbone', backbone, config=config)
  trained = {k: v for k, v in params.items() if k != 'backbone'}
  with checkpoints.Checkpoints(folder) as saved:
    facts = {'frozen': {'backbone': kept}}
    saved.save(7, trainable=trained, optimizer={'n': 7}, metadata=facts)


@pytest.fixture(scope='module')
def routed():
  model = toy_text.make_model()
  return model, toy_text.make_params(model)


@pytest.fixture(scope='module')
def model(routed):
  table, vocabulary = toy_text.TASKS, toy_text.VOCABULARY
  return Model(loading.LoadedModel(*routed, table, vocabulary, 'toy'))


@pytest.fixture(scope='module')
def tokens():
  """Inputs and what the decoder reads, five rows with padding."""
  rng = np.random.default_rng(0)
  lengths = np.array([8, 3, 5, 1, 7])
  inputs = rng.integers(3, 259, (5, 8))
  inputs = np.where(np.arange(8) < lengths[:, None], inputs, 0)
  targets = rng.integers(3, 259, (5, 6))
  targets[:, 0] = 0
  return inputs, targets


def _without_adapters(routed, **fields):
  model, params = routed
  bare = RoutedT5(model.config)
  params = {'backbone': params['backbone']}
  return Model(loading.LoadedModel(bare, params, **fields))


def test_logits_are_the_models_for_names_and_ids_alike(routed, model, tokens):
  inner, params = routed
  inputs, targets = tokens
  batch = {
    'encoder_input_tokens': inputs.astype(np.int32),
    'decoder_input_tokens': targets.astype(np.int32),
    'task_ids': TASK_IDS.astype(np.int32),
  }
  expected = jax.jit(inner.logits)(params, batch)
  for tasks in (TASKS, TASK_IDS, TASK_IDS.tolist()):
    found = model.logits(inputs, targets, task_ids=tasks)
    assert isinstance(found, np.ndarray) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)
  one = model.logits(inputs, targets, task_ids='upper')
  np.testing.assert_allclose(one[1], found[1], atol=1e-6)
  assert np.abs(one[0] - found[0]).max() > 0.1


def test_average_is_uniform_mixing(routed, model, tokens):
  inner, params = routed
  uniform = dataclasses.replace(
    inner, adapters=dataclasses.replace(inner.adapters, mixing='uniform')
  )
  batch = {
    'encoder_input_tokens': tokens[0].astype(np.int32),
    'decoder_input_tokens': tokens[1].astype(np.int32),
  }
  expected = jax.jit(uniform.logits)(params, batch)
  found = model.logits(*tokens, task_ids='average')
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_masked_tokens_are_not_read_and_padding_is_where_a_mask_says(
  model, tokens
):
  inputs, targets = tokens
  mask = (inputs != 0).astype(int)
  plain = model.logits(inputs, targets, task_ids=TASKS)
  given = model.logits(inputs, targets, mask, task_ids=TASKS)
  np.testing.assert_array_equal(plain, given)
  mask[:, 2] = 0
  other = np.where(mask, inputs, 77)
  np.testing.assert_array_equal(
    model.logits(inputs, targets, mask, TASKS),
    model.logits(other, targets, mask, TASKS),
  )
  read = model.logits(inputs, targets, np.ones_like(mask), TASKS)
  assert np.abs(read - plain)[1:].max(axis=(1, 2)).min() > 1e-4


@pytest.mark.parametrize(
  'tasks, message',
  [
    (None, "Which task? The model knows 3: copy, first, upper; or 'average'"),
    ('uper', "no task 'uper'. Did you mean 'upper'?"),
    (3, 'Task id 3 is out of range: there are 3 tasks, 0 to 2'),
    (-1, 'Task id -1 is out of range'),
    (['copy', 'average', 0, 0, 0], "'average' is for a whole batch"),
    (['copy'] * 4, 'There are 4 tasks for 5 rows'),
    ([[0]] * 5, 'not with shape (5, 1)'),
    (0.5, 'not 0.5'),
  ],
)
def test_a_wrong_task_is_named(model, tokens, tasks, message):
  with pytest.raises(UserError) as error:
    model.logits(*tokens, task_ids=tasks)
  assert message in str(error.value)


def test_wrong_tokens_are_named(model, tokens):
  inputs, targets = tokens
  cases = [
    ((inputs[0], targets), r'input_ids is a table .* shape \(8,\)'),
    ((inputs * 1.0, targets), 'not float64'),
    ((inputs + 400, targets), r'input_ids\[0, 0\] is .* ids 0 to 258'),
    ((inputs, targets[:3]), 'decoder_input_ids has 3 rows, input_ids has 5'),
    ((inputs, targets, inputs[:, :4]), r'attention_mask has shape \(5, 4\)'),
  ]
  for arguments, message in cases:
    with pytest.raises(UserError, match=message):
      model.logits(*arguments, task_ids=0)


def test_without_routing_no_task_is_needed(routed, tokens):
  bare = _without_adapters(routed)
  assert bare.tasks == ()
  alone = bare.logits(*tokens)
  np.testing.assert_array_equal(alone, bare.logits(*tokens, task_ids='average'))
  with pytest.raises(UserError, match='no adapters, so no tasks'):
    bare.logits(*tokens, task_ids=0)
  with pytest.raises(UserError, match='has no vocabulary'):
    bare.generate('a text')
  with pytest.raises(UserError, match='has no adapters'):
    bare.effective_lora()


def test_tasks_without_names_have_numbers(routed):
  unnamed = Model(loading.LoadedModel(*routed))
  assert unnamed.tasks == ('0', '1', '2')
  assert unnamed.n_parameters['routers'] == 3 * 2 * 3 * 3
  with pytest.raises(UserError, match="no task 'copy'. There are: 0, 1, 2"):
    unnamed.effective_lora('copy')


@pytest.mark.parametrize('num_beams', [1, 4])
def test_mixed_tasks_write_what_each_task_writes_alone(
  model, tokens, num_beams
):
  inputs, _ = tokens
  mixed = model.generate_ids(
    inputs, task_ids=TASKS, max_new_tokens=9, num_beams=num_beams
  )
  seen = set()
  for task in range(3):
    alone = model.generate_ids(
      inputs, task_ids=task, max_new_tokens=9, num_beams=num_beams
    )
    rows = task == TASK_IDS
    width = min(alone.shape[1], mixed.shape[1])
    np.testing.assert_array_equal(mixed[rows, :width], alone[rows, :width])
    assert not mixed[rows, width:].any() and not alone[rows, width:].any()
    seen.add(alone.tobytes())
  assert len(seen) == 3


def test_tokens_start_end_and_are_cut_as_transformers_has_them(routed, tokens):
  inner, params = routed
  inputs = np.vstack([tokens[0], np.zeros((1, 8), int)])
  widths = set()
  for factor in (1, 2, 3, 4, 5, 6):  # the more, the sooner rows end
    backbone = jax.tree.map(np.copy, params['backbone'])
    backbone['decoder']['logits_dense']['kernel'][:, 1] *= factor
    model = Model(loading.LoadedModel(inner, params | {'backbone': backbone}))
    found = model.generate_ids(
      inputs, task_ids=[*TASK_IDS, 1], max_new_tokens=12
    )
    assert not found[:, 0].any() and not found[5].any()
    ends = (found == 1).argmax(axis=1)[:5]
    lengths = np.where(ends > 0, ends + 1, 13)
    assert found.shape == (6, lengths.max())
    after = np.arange(found.shape[1]) >= lengths[:, None]
    assert not found[:5][after].any()
    widths.add(found.shape[1])
  assert len(widths) > 1 and 13 in widths


def test_texts_are_written_one_by_one_or_together(model):
  together = model.generate(TEXTS, TASKS, max_new_tokens=6, batch_size=2)
  ids = [toy_text.VOCABULARY.encode(text) + [1] for text in TEXTS]
  for text, row, task, written in zip(TEXTS, ids, TASKS, together, strict=True):
    assert model.generate(text, task, max_new_tokens=6) == written
    tokens = model.generate_ids(
      np.array([row + [0] * (16 - len(row))]), task_ids=task, max_new_tokens=6
    )
    expected = toy_text.VOCABULARY.decode(tokens[0, 1:].tolist()).strip()
    assert written == expected
  assert len(set(together)) > 2
  assert model.generate([], 'copy') == []
  cut = model.generate('abcdef', 'copy', max_new_tokens=6, input_length=4)
  assert cut == model.generate('abc', 'copy', max_new_tokens=6)


def test_scores_are_sums_over_the_choices_tokens(model):
  choices = ['a', 'bcd', 'longer']
  found = model.score(TEXTS, choices, TASKS)
  assert found.shape == (5, 3) and found.dtype == np.float32
  average = model.score(TEXTS, choices, TASKS, normalisation='average')
  np.testing.assert_allclose(average * [2, 4, 7], found, rtol=1e-6)
  encode = toy_text.VOCABULARY.encode
  for row, (text, task) in enumerate(zip(TEXTS, TASKS, strict=True)):
    for column, choice in enumerate(choices):
      target = [*encode(choice), 1]
      logits = model.logits(
        np.pad([[*encode(text), 1]], ((0, 0), (0, 7 - len(text)))),
        np.array([([0] + target)[:-1] + [0] * (7 - len(target))]),
        task_ids=task,
      )[0].astype(float)
      logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
      expected = logits[np.arange(len(target)), target].sum()
      assert found[row, column] == pytest.approx(expected, abs=1e-4)


def test_choices_may_differ_from_text_to_text(model):
  lists = [['a'], ['b', 'longer'], ['a', 'b', 'c'], ['longer'], ['c', 'a']]
  found = model.score(TEXTS, lists, TASKS, batch_size=4)
  assert [len(scores) for scores in found] == [1, 2, 3, 1, 2]
  shared = model.score(TEXTS, ['a', 'b', 'c', 'longer'], TASKS, batch_size=4)
  columns = [[0], [1, 3], [0, 1, 2], [3], [2, 0]]
  for row, (scores, column) in enumerate(zip(found, columns, strict=True)):
    np.testing.assert_allclose(scores, shared[row, column], atol=1e-4)
  alone = model.score(TEXTS[1], ['a', 'b', 'c', 'longer'], TASKS[1])
  np.testing.assert_allclose(alone, shared[1], atol=1e-4)
  with pytest.raises(UserError, match='Text 1 has no choices'):
    model.score(TEXTS[:2], [['a'], []], 0)
  with pytest.raises(UserError, match='2 lists of choices for 5 texts'):
    model.score(TEXTS, [['a'], ['b']], 0)
  with pytest.raises(UserError, match="Did you mean 'average'"):
    model.score(TEXTS, ['a'], 0, normalisation='averag')


@pytest.mark.parametrize('task', ['first', 2, 'average'])
def test_a_tasks_lora_alone_gives_the_tasks_logits(routed, model, tokens, task):
  inner, params = routed
  found = model.effective_lora(task)
  assert found.keys() == set(toy_text.ADAPTERS.targets)
  assert found['encoder/mlp/wo']['a'].shape == (1, 16, 2)
  assert found['decoder/mlp/wi_0']['b'].shape == (1, 2, 16)
  # Into the kernels, in float64 on the host.
  backbone = jax.tree.map(np.copy, params['backbone'])
  for path, pair in found.items():
    stack, sublayer, name = path.split('/')
    change = pair['a'].astype(float) @ pair['b'].astype(float)
    linear = backbone[stack]['layers'][sublayer][name]
    linear['kernel'] = (linear['kernel'] + change).astype(np.float32)
  fused = RoutedT5(inner.config)
  fused = Model(loading.LoadedModel(fused, {'backbone': backbone}))
  np.testing.assert_allclose(
    fused.logits(*tokens), model.logits(*tokens, task_ids=task), atol=1e-5
  )


@pytest.fixture(scope='module')
def run_dir(routed, tmp_path_factory):
  folder = tmp_path_factory.mktemp('api') / 'run'
  write_run(folder, *routed)
  return folder


def test_a_run_folder_is_a_model(run_dir, model, tokens):
  found = mhr_jax.load(run_dir)
  assert found.tasks == toy_text.TASKS.names
  np.testing.assert_array_equal(
    found.logits(*tokens, task_ids=TASKS), model.logits(*tokens, task_ids=TASKS)
  )
  assert found.generate('abc', 'upper', max_new_tokens=6) == model.generate(
    'abc', 'upper', max_new_tokens=6
  )
  assert 'run' in repr(found) and '3 tasks' in repr(found)


def test_bfloat16_is_of_the_backbone_and_of_what_is_computed(
  run_dir, model, tokens
):
  found = mhr_jax.load(run_dir, dtype='bfloat16')
  dtypes = {
    label: {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}
    for label, tree in found.loaded.params.items()
  }
  assert dtypes == {
    'backbone': {'bfloat16'},
    'adapters': {'float32'},
    'routers': {'float32'},
  }
  assert found.loaded.model.config.dtype == 'bfloat16'
  logits = found.logits(*tokens, task_ids=TASKS)
  assert logits.dtype == np.float32
  exact = model.logits(*tokens, task_ids=TASKS)
  assert 1e-4 < np.abs(logits - exact).max() < 0.2
  with pytest.raises(UserError, match='float16'):
    mhr_jax.load(run_dir, dtype='float16')  # pyrefly: ignore


@pytest.mark.parametrize('format', ['native', 'peft-poly'])
def test_adapters_alone_go_back_onto_their_backbone(
  run_dir, model, tokens, tmp_path, format
):
  model.save(tmp_path / 'a', format)
  found = mhr_jax.load(run_dir, adapter=tmp_path / 'a')
  assert found.tasks == model.tasks
  np.testing.assert_allclose(
    found.logits(*tokens, task_ids=TASKS),
    model.logits(*tokens, task_ids=TASKS),
    atol=0 if format == 'native' else 1e-5,
  )
  assert found.loaded.vocabulary == toy_text.VOCABULARY
  model.save(tmp_path / 'a', format)  # replaces its own
  with pytest.raises(UserError, match=f'load.BACKBONE, adapter=.{tmp_path}/a'):
    mhr_jax.load(tmp_path / 'a')


@pytest.mark.parametrize('task', ['upper', 'average'])
@pytest.mark.parametrize('format', ['native', 'peft-lora'])
def test_one_tasks_adapter_alone(
  run_dir, model, tokens, tmp_path, format, task
):
  model.save(tmp_path, format, task)
  found = mhr_jax.load(run_dir, adapter=tmp_path)
  assert found.loaded.model.adapters.n_skills == 1
  np.testing.assert_allclose(
    found.logits(*tokens), model.logits(*tokens, task_ids=task), atol=1e-5
  )


@pytest.mark.parametrize('format, task', [('hf', 'first'), ('t5x', 'average')])
def test_a_fused_backbone_computes_what_the_task_does(
  model, tokens, tmp_path, format, task
):
  saved = model.save(tmp_path / 'a', format, task)
  assert saved.logits_change is not None and saved.logits_change < 1e-5
  assert task in saved.what
  config = toy_text.CONFIG if format == 't5x' else None
  found = mhr_jax.load(tmp_path / 'a', config=config)
  assert found.loaded.model.adapters is None
  np.testing.assert_allclose(
    found.logits(*tokens), model.logits(*tokens, task_ids=task), atol=1e-5
  )
  if format == 'hf':
    assert found.loaded.vocabulary == toy_text.VOCABULARY
    return
  assert 'not in its files: relative_attention_max_distance=8' in saved.what
  with pytest.raises(UserError, match='vocabulary='):
    found.generate('a')


def test_a_bare_backbone_keeps_its_vocabulary(routed, tokens, tmp_path):
  bare = _without_adapters(routed, vocabulary=toy_text.VOCABULARY)
  bare.save(tmp_path / 'a')
  found = mhr_jax.load(tmp_path / 'a')
  np.testing.assert_array_equal(found.logits(*tokens), bare.logits(*tokens))
  assert found.loaded.vocabulary == toy_text.VOCABULARY
  bare.save(tmp_path / 'b', dtype='bfloat16')
  small = backbones.load_backbone(
    tmp_path / 'b', toy_text.CONFIG, dtype='bfloat16'
  )
  expected = found.loaded.params['backbone']
  jax.tree.map(
    lambda x, y: np.testing.assert_array_equal(x, y.astype('bfloat16')),
    small,
    expected,
  )


def test_programs_are_of_all_tasks_or_of_one(model, tmp_path, monkeypatch):
  calls = []
  monkeypatch.setattr(
    saving.serving,
    'export_stablehlo',
    lambda folder, routed, params, **rest: calls.append(rest),
  )
  model.save(tmp_path, 'stablehlo')
  model.save(tmp_path, 'stablehlo', 'upper')
  assert [call['task_id'] for call in calls] == [None, 2]
  assert calls[0]['task_table'] == toy_text.TASKS
  assert calls[0]['vocabulary'] == toy_text.VOCABULARY


@pytest.mark.parametrize(
  'format, task, message',
  [
    ('peft', None, "There is no format 'peft'. Did you mean 'peft-"),
    ('peft-lora', None, 'Which task? The model knows 3'),
    ('hf', None, 'Which task? The model knows 3'),
    ('hf', 'uper', "Did you mean 'upper'"),
    ('peft-poly', 'upper', "'peft-poly' holds all tasks"),
    ('native', 5, 'Task id 5 is out of range'),
  ],
)
def test_what_cannot_be_saved_is_said_before_anything_is_written(
  model, tmp_path, format, task, message
):
  with pytest.raises(UserError) as error:
    model.save(tmp_path / 'a', format, task)
  assert message in str(error.value)
  assert not (tmp_path / 'a').exists()


@pytest.mark.parametrize('format', saving.SAVE_FORMATS)
def test_folders_of_something_else_are_left_alone(model, tmp_path, format):
  (tmp_path / 'notes.txt').write_text('mine')
  with pytest.raises(UserError, match='something else already'):
    model.save(tmp_path, format, None if format == 'peft-poly' else 0)
  (tmp_path / 'config.json').write_text('{}')
  with pytest.raises(UserError, match='a transformers folder already'):
    model.save(tmp_path, format, None if format == 'peft-poly' else 0)
  assert len(list(tmp_path.iterdir())) == 2


def test_bare_backbones_have_no_adapters_to_save(routed, tmp_path):
  bare = _without_adapters(routed)
  for format in ('peft-poly', 'peft-lora'):
    with pytest.raises(UserError, match='there are none to write'):
      bare.save(tmp_path, format)


def test_an_adapter_for_another_backbone_is_refused(routed, model, tmp_path):
  config = dataclasses.replace(toy_text.CONFIG, mlp_dim=32, dropout_rate=0.5)
  other = RoutedT5(config)
  params = toy_text.make_params(other)
  backbones.save_backbone(tmp_path / 'b', params['backbone'], config)
  model.save(tmp_path / 'a')
  with pytest.raises(UserError) as error:
    mhr_jax.load(tmp_path / 'b', adapter=tmp_path / 'a')
  message = 'trained on another backbone: mlp_dim is 16, wanted 32.'
  assert message in str(error.value)
  with pytest.raises(UserError, match='a native backbone folder, no adapter'):
    mhr_jax.load(tmp_path / 'b', adapter=tmp_path / 'b')


def test_tasks_get_names_where_a_file_has_none(run_dir, model, tmp_path):
  model.save(tmp_path / 'a', 'peft-poly')
  (tmp_path / 'a' / 'tasks.json').unlink()
  unnamed = mhr_jax.load(run_dir, adapter=tmp_path / 'a')
  assert unnamed.tasks == ('0', '1', '2')
  named = mhr_jax.load(run_dir, adapter=tmp_path / 'a', tasks=['x', 'y', 'z'])
  assert named.tasks == ('x', 'y', 'z')
  named.save(tmp_path / 'b')
  assert mhr_jax.load(run_dir, tmp_path / 'b').tasks == ('x', 'y', 'z')
  with pytest.raises(UserError, match='has 3 tasks; 2 names are given'):
    mhr_jax.load(run_dir, adapter=tmp_path / 'a', tasks=['x', 'y'])
  with pytest.raises(UserError, match='has names for its tasks: x, y, z'):
    mhr_jax.load(run_dir, adapter=tmp_path / 'b', tasks=['1', '2', '3'])


def test_a_vocabulary_that_does_not_fit_is_refused(routed, tmp_path):
  bare = _without_adapters(routed)
  bare.save(tmp_path / 'a')
  large = mhr_jax.load(tmp_path / 'a', vocabulary=ByteVocabulary(1000))
  with pytest.raises(UserError, match='1259 ids, the backbone 259'):
    large.generate('a')


def test_the_checksum_is_of_logits_on_the_documented_tokens(run_dir, model):
  plain = model.logits_checksum('upper')
  assert plain == mhr_jax.load(run_dir).logits_checksum(2)
  assert plain != model.logits_checksum('copy')
  inputs, targets = logits_checksum.probe_tokens(toy_text.CONFIG)
  assert inputs[1, 2] == 3 + 7919 * 2 * 3 % 256
  assert targets[3, 4] == 3 + 104729 * 4 * 5 % 256 and not targets[:, 0].any()
  by_hand = logits_checksum.summarise(
    model.logits(inputs, targets, np.ones_like(inputs), 'upper')
  )
  assert by_hand.tokens == plain.tokens
  assert by_hand.mean == pytest.approx(plain.mean, rel=1e-4)
  mixed = model.logits(inputs, targets, np.ones_like(inputs), [0, 1, 2, 0])
  assert logits_checksum.summarise(mixed).tokens == (
    model.logits_checksum().tokens
  )
