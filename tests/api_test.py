"""What `mhr_jax.load` returns, against the model's own parts and plain loops."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mhr_jax
from mhr_jax import adapter_folder, loading, logits_checksum, task_choice
from mhr_jax.api import Model
from mhr_jax.convert import hf_t5, t5x, tensor_files
from mhr_jax.errors import UserError
from mhr_jax.model import RoutedT5
from mhr_jax.task_table import TaskTable
from mhr_jax.vocabulary import ByteVocabulary
import mttl_checkpoints
import toy_models
import toy_text

TEXTS = ['abc', 'b', 'cab', 'aa', 'bcc']


@pytest.fixture(scope='module')
def model():
  return toy_models.make_model()


@pytest.fixture(scope='module')
def tokens():
  return toy_models.draw_tokens()


def test_logits_are_the_models_for_names_and_ids_alike(model, tokens):
  inner, params = model.loaded.model, model.loaded.params
  inputs, targets = tokens
  batch = {
    'encoder_input_tokens': inputs.astype(np.int32),
    'decoder_input_tokens': targets.astype(np.int32),
    'task_ids': toy_models.TASK_IDS.astype(np.int32),
  }
  expected = jax.jit(inner.logits)(params, batch)
  for tasks in (
    toy_models.TASKS,
    toy_models.TASK_IDS,
    toy_models.TASK_IDS.tolist(),
  ):
    found = model.logits(inputs, targets, task_ids=tasks)
    assert isinstance(found, np.ndarray) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)
  for tasks in (
    jnp.asarray(toy_models.TASK_IDS),
    list(jnp.asarray(toy_models.TASK_IDS)),
  ):
    again = model.logits(inputs, targets, task_ids=tasks)
    np.testing.assert_array_equal(again, found)
  for task in (np.array(2), jnp.int32(2)):
    one = model.logits(inputs, targets, task_ids=task)
    np.testing.assert_allclose(one[1], found[1], atol=1e-6)
  one = model.logits(inputs, targets, task_ids='upper')
  np.testing.assert_allclose(one[1], found[1], atol=1e-6)
  assert np.abs(one[0] - found[0]).max() > 0.1


def test_a_task_that_is_called_average_is_that_task(model, tokens):
  names = TaskTable(('copy', 'average', 'upper'))
  named = Model(dataclasses.replace(model.loaded, task_table=names))
  expected = model.logits(*tokens, task_ids=1)
  for tasks in ('average', ['average'] * 5):
    found = named.logits(*tokens, task_ids=tasks)
    np.testing.assert_array_equal(found, expected)
  with pytest.raises(UserError, match='knows 3: copy, average, upper.$'):
    named.logits(*tokens)


def test_average_is_uniform_mixing(model, tokens):
  inner, params = model.loaded.model, model.loaded.params
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
  plain = model.logits(inputs, targets, task_ids=toy_models.TASKS)
  given = model.logits(inputs, targets, mask, task_ids=toy_models.TASKS)
  np.testing.assert_array_equal(plain, given)
  mask[:, 2] = 0
  other = np.where(mask, inputs, 77)
  np.testing.assert_array_equal(
    model.logits(inputs, targets, mask, toy_models.TASKS),
    model.logits(other, targets, mask, toy_models.TASKS),
  )
  read = model.logits(inputs, targets, np.ones_like(mask), toy_models.TASKS)
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
    (True, 'not True'),
    ([True, False, 0, 0, 0], 'not True'),
    (np.zeros(5, bool), 'not'),
    ([[0], [1, 2]], 'lists of different lengths'),
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
    (([[5, 6], [7]], targets), 'input_ids has rows of different lengths'),
    ((inputs, targets, [[1], [1, 1]]), 'attention_mask has rows of different'),
    ((inputs[:0], targets), r'input_ids has the shape \(0, 8\)'),
    ((inputs[:, :0], targets), r'input_ids has the shape \(5, 0\)'),
    ((inputs, targets[:, :0]), r'decoder_input_ids has the shape \(5, 0\)'),
  ]
  for arguments, message in cases:
    with pytest.raises(UserError, match=message):
      model.logits(*arguments, task_ids=0)


def test_without_routing_no_task_is_needed(model, tokens):
  bare = toy_models.without_adapters(model)
  assert bare.tasks == ()
  alone = bare.logits(*tokens)
  np.testing.assert_array_equal(alone, bare.logits(*tokens, task_ids='average'))
  with pytest.raises(UserError, match='no adapters, so no tasks'):
    bare.logits(*tokens, task_ids=0)
  with pytest.raises(UserError, match='has no vocabulary'):
    bare.generate('a text')
  with pytest.raises(UserError, match='has no adapters'):
    bare.effective_lora()


def test_tasks_without_names_have_numbers(model):
  unnamed = Model(loading.LoadedModel(model.loaded.model, model.loaded.params))
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
    inputs, task_ids=toy_models.TASKS, max_new_tokens=9, num_beams=num_beams
  )
  seen = set()
  for task in range(3):
    alone = model.generate_ids(
      inputs, task_ids=task, max_new_tokens=9, num_beams=num_beams
    )
    rows = task == toy_models.TASK_IDS
    width = min(alone.shape[1], mixed.shape[1])
    np.testing.assert_array_equal(mixed[rows, :width], alone[rows, :width])
    assert not mixed[rows, width:].any() and not alone[rows, width:].any()
    seen.add(alone.tobytes())
  assert len(seen) == 3


def test_tokens_start_end_and_are_cut_as_transformers_has_them(model, tokens):
  inner, params = model.loaded.model, model.loaded.params
  inputs = np.vstack([tokens[0], np.zeros((1, 8), int)])
  widths = set()
  for factor in (1, 2, 3, 4, 5, 6):  # the more, the sooner rows end
    backbone = jax.tree.map(np.copy, params['backbone'])
    backbone['decoder']['logits_dense']['kernel'][:, 1] *= factor
    model = Model(loading.LoadedModel(inner, params | {'backbone': backbone}))
    found = model.generate_ids(
      inputs, task_ids=[*toy_models.TASK_IDS, 1], max_new_tokens=12
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
  together = model.generate(
    TEXTS, toy_models.TASKS, max_new_tokens=6, batch_size=2
  )
  ids = [toy_text.VOCABULARY.encode(text) + [1] for text in TEXTS]
  for text, row, task, written in zip(
    TEXTS, ids, toy_models.TASKS, together, strict=True
  ):
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


@pytest.mark.parametrize(
  'texts, given, message',
  [
    (None, {}, 'texts is a text or a list of texts, not None'),
    ([None], {}, 'element 0 is None'),
    ('a', {'num_beams': 2.5}, 'num_beams is 2.5; a whole number'),
    ('a', {'max_new_tokens': 2.5}, 'max_new_tokens is 2.5; a whole number'),
    ('a', {'top_k': True}, 'top_k is True; a whole number'),
    ('a', {'temperature': '1'}, "temperature is '1'; a number"),
    ('a', {'max_new_token': 2}, "Did you mean 'max_new_tokens'"),
    ('a', {'imput_length': 2}, "Did you mean 'input_length'"),
    ('a', {'temprature': 2}, "no argument 'temprature'.*'temperature'"),
  ],
)
def test_what_texts_are_not_written_for_is_named(model, texts, given, message):
  with pytest.raises(UserError, match=message):
    model.generate(texts, 'copy', **given)


def test_only_decimal_digits_are_an_id():
  assert task_choice.parse_task('2', ()) == 2
  assert task_choice.parse_task('²', ()) == '²'


def test_scores_are_sums_over_the_choices_tokens(model):
  choices = ['a', 'bcd', 'longer']
  found = model.score(TEXTS, choices, toy_models.TASKS)
  assert found.shape == (5, 3) and found.dtype == np.float32
  average = model.score(
    TEXTS, choices, toy_models.TASKS, normalisation='average'
  )
  np.testing.assert_allclose(average * [2, 4, 7], found, rtol=1e-6)
  encode = toy_text.VOCABULARY.encode
  for row, (text, task) in enumerate(zip(TEXTS, toy_models.TASKS, strict=True)):
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
  found = model.score(TEXTS, lists, toy_models.TASKS, batch_size=4)
  assert [len(scores) for scores in found] == [1, 2, 3, 1, 2]
  shared = model.score(
    TEXTS, ['a', 'b', 'c', 'longer'], toy_models.TASKS, batch_size=4
  )
  columns = [[0], [1, 3], [0, 1, 2], [3], [2, 0]]
  for row, (scores, column) in enumerate(zip(found, columns, strict=True)):
    np.testing.assert_allclose(scores, shared[row, column], atol=1e-4)
  alone = model.score(TEXTS[1], ['a', 'b', 'c', 'longer'], toy_models.TASKS[1])
  np.testing.assert_allclose(alone, shared[1], atol=1e-4)
  with pytest.raises(UserError, match='Text 1 has no choices'):
    model.score(TEXTS[:2], [['a'], []], 0)
  with pytest.raises(UserError, match='2 lists of choices for 5 texts'):
    model.score(TEXTS, [['a'], ['b']], 0)
  for choices in (
    [['a'], 'b', ['c'], ['d'], ['e']],
    [['a'], [['b']], ['c'], ['d'], ['e']],
    ['a', ['b']],
    ['a', None],
    'ab',
    None,
  ):
    with pytest.raises(UserError, match='choices is a list of texts'):
      model.score(TEXTS, choices, 0)
  assert model.score([], ['a', 'b'], 0).shape == (0, 2)
  with pytest.raises(UserError, match="Did you mean 'average'"):
    model.score(TEXTS, ['a'], 0, normalisation='averag')


@pytest.mark.parametrize('task', ['first', 2, 'average'])
def test_a_tasks_lora_alone_gives_the_tasks_logits(model, tokens, task):
  inner, params = model.loaded.model, model.loaded.params
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


def test_a_vocabulary_that_does_not_fit_is_refused(model):
  large = ByteVocabulary(1000)
  bare = toy_models.without_adapters(model, vocabulary=large)
  with pytest.raises(UserError, match='1259 ids, the backbone 259'):
    bare.generate('a')


def test_the_checksum_is_of_logits_on_the_documented_tokens(model):
  plain = model.logits_checksum('upper')
  assert plain == model.logits_checksum(2)
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


@pytest.fixture(scope='module')
def folders(model, tmp_path_factory):
  """The model as a run, an adapter, an mttl checkpoint; its T5 as others'."""
  folder = tmp_path_factory.mktemp('saved')
  backbone = model.loaded.params['backbone']
  toy_models.write_run(folder / 'run', model)
  model.save(folder / 'adapter')
  t5x.write_checkpoint(folder / 't5x', toy_text.CONFIG, backbone)
  hf_t5.write_backbone(folder / 'hf', toy_text.CONFIG, backbone)
  tensor_files.write_tensors(
    folder / 'mttl.safetensors',
    mttl_checkpoints.to_state_dict(model.loaded.bundle),
  )
  return folder


def test_what_t5x_does_not_say_is_told_unasked(folders, caplog):
  assert 'Assumed' not in caplog.text
  found = mhr_jax.load(folders / 't5x')
  assert found.loaded.model.config.relative_attention_max_distance == 128
  for assumed in ('max_distance 128', 'eos_id 1', "activations ('gelu'"):
    assert assumed in caplog.text
  caplog.clear()
  mhr_jax.load(folders / 't5x', config=toy_text.CONFIG)
  assert not caplog.text


def test_what_t5x_does_not_say_is_taken_from_our_adapter(
  model, tokens, folders, caplog, tmp_path
):
  found = mhr_jax.load(folders / 't5x', folders / 'adapter')
  assert found.loaded.model == model.loaded.model and not caplog.text
  np.testing.assert_allclose(
    found.logits(*tokens, task_ids=1),
    model.logits(*tokens, task_ids=1),
    atol=1e-6,
  )
  narrow = dataclasses.replace(toy_text.CONFIG, mlp_dim=8)
  bare = RoutedT5(narrow)
  t5x.write_checkpoint(tmp_path, narrow, toy_text.make_params(bare)['backbone'])
  with pytest.raises(UserError, match='adapter does not fit: .*mlp_dim is 8'):
    mhr_jax.load(tmp_path, folders / 'adapter')


def test_what_mttl_does_not_say_is_told_and_may_be_said(folders, caplog):
  sources = folders / 'hf', folders / 'mttl.safetensors'
  assert mhr_jax.load(*sources).loaded.model.adapters.alpha == 1
  assert 'alpha; 1 is assumed' in caplog.text and 'alpha=…' in caplog.text
  caplog.clear()
  said = {'alpha': 2.0, 'mixing': 'relaxed_bernoulli'}
  found = mhr_jax.load(*sources, **said).loaded.model.adapters
  assert not caplog.text
  assert (found.alpha, found.mixing) == (2.0, 'relaxed_bernoulli')
  for others in ((folders / 'hf', folders / 'adapter'), (folders / 'run',)):
    for name, value in said.items():
      with pytest.raises(UserError, match=f'{name}=.* is for adapters of an'):
        mhr_jax.load(*others, **{name: value})


def test_a_step_that_nothing_has_is_refused(folders):
  assert mhr_jax.load(folders / 'run', step=7).loaded.step == 7
  for sources in (
    [folders / 't5x'],
    [folders / 'hf'],
    [folders / 'run', folders / 'adapter'],
  ):
    with pytest.raises(UserError, match='step=7 chooses a checkpoint of a run'):
      mhr_jax.load(*sources, step=7)


def test_tasks_are_named_by_a_list(folders):
  sources = folders / 'hf', folders / 'mttl.safetensors'
  with pytest.raises(UserError, match="not by 'abc'"):
    mhr_jax.load(*sources, tasks='abc', alpha=2.0)
  named = mhr_jax.load(*sources, tasks=['x', 'y', 'average'], alpha=2.0)
  assert named.tasks == ('x', 'y', 'average')


def test_another_backbone_of_the_same_shape_is_told(
  model, folders, caplog, tmp_path
):
  mhr_jax.load(folders / 'hf', folders / 'adapter')
  unrolled = dataclasses.replace(toy_text.CONFIG, scan_layers=False)
  mhr_jax.load(folders / 'hf', folders / 'adapter', config=unrolled)
  assert not caplog.text
  other = jax.tree.map(np.copy, model.loaded.params['backbone'])
  other['decoder']['logits_dense']['kernel'][0, 0] += 1
  hf_t5.write_backbone(tmp_path / 'other', toy_text.CONFIG, other)
  mhr_jax.load(tmp_path / 'other', folders / 'adapter')
  sums = [
    adapter_folder.checksum_backbone(backbone, toy_text.CONFIG)
    for backbone in (model.loaded.params['backbone'], other)
  ]
  assert all(each in caplog.text for each in sums)


def test_a_folder_of_transformers_is_read_in_float64(model, tokens, folders):
  with jax.enable_x64(True):
    found = mhr_jax.load(folders / 'hf', folders / 'adapter', dtype='float64')
    embedding = found.loaded.params['backbone']['token_embedder']['embedding']
    assert embedding.dtype == np.float64
    logits = found.logits(*tokens, task_ids=1)
  expected = model.logits(*tokens, task_ids=1)
  np.testing.assert_allclose(logits, expected, atol=1e-4)
