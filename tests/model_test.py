"""The whole model: mixed tasks, mixing in both places, gradients, decoding."""

import dataclasses
import functools

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from mhr_jax import methods, model
from mhr_jax.adapters import AdapterConfig, task_adapter
from mhr_jax.errors import UserError
from mhr_jax.model import RoutedT5
from mhr_jax.t5.config import T5Config, list_linears, t5_config
from mhr_jax.t5.decoding import DecodingSettings, decode_tokens

T5 = T5Config(
  vocab_size=48,
  emb_dim=16,
  num_heads=2,
  head_dim=8,
  mlp_dim=24,
  num_encoder_layers=2,
  num_decoder_layers=2,
)
MHR = AdapterConfig(
  n_tasks=3, n_skills=4, n_splits=4, rank=2, mixing='relaxed_bernoulli'
)
# Fewer linears compile faster; one of each kind of place.
FEW = dataclasses.replace(
  MHR,
  targets=('encoder/.*/query', 'encoder/mlp/wi_0', 'decoder/.*/(value|wo)'),
)
ROUTED = RoutedT5(T5, FEW, 'front')
INDEX = np.arange(4, dtype=np.int32)
TASK_IDS = np.array([2, 0, 2, 1], np.int32)


@functools.cache
def params_of(routed):
  """Random parameters in which every leaf matters."""
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    scale = 0.3 if path[0].key == 'backbone' else 1.0
    return jnp.array(scale * rng.normal(size=leaf.shape), leaf.dtype)

  return jax.tree_util.tree_map_with_path(draw, routed.abstract_params())


@functools.cache
def batch_of():
  rng = np.random.default_rng(1)
  inputs = rng.integers(2, 48, size=(4, 6)).astype(np.int32)
  targets = rng.integers(2, 48, size=(4, 5)).astype(np.int32)
  inputs[1, 4:] = 0
  weights = np.ones((4, 5), np.float32)
  weights[0, 3:] = 0
  return {
    'encoder_input_tokens': inputs,
    'decoder_input_tokens': np.pad(targets[:, :-1], ((0, 0), (1, 0))),
    'decoder_target_tokens': targets,
    'decoder_loss_weights': weights,
    'task_ids': TASK_IDS,
  }


def with_task(task):
  return batch_of() | {'task_ids': np.full(4, task, np.int32)}


@functools.partial(jax.jit, static_argnums=0)
def logits_of(routed, params, batch):
  return routed.logits(params, batch)


@functools.partial(jax.jit, static_argnums=0)
def losses_of(routed, params, batch, noise_key=None, index=None):
  """Returns ((sum, (weights, rows)), gradients of adapters and routers)."""

  def loss(trainable):
    total, weights, parts = routed.loss(
      params | trainable,
      batch,
      noise_key=noise_key,
      example_index=index,
      label_smoothing=0.1,
    )
    return total, (weights, parts['row_nll'])

  trainable = {k: v for k, v in params.items() if k != 'backbone'}
  return jax.value_and_grad(loss, has_aux=True)(trainable)


def close(x, y, rtol=2e-5, atol=2e-5):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), x, y
  )


@pytest.mark.parametrize('scan_layers', [True, False])
@pytest.mark.parametrize('mixing', ['sigmoid', 'uniform'])
def test_axes_have_the_structure_of_the_parameters(scan_layers, mixing):
  routed = RoutedT5(
    dataclasses.replace(T5, scan_layers=scan_layers),
    dataclasses.replace(MHR, mixing=mixing),
  )
  axes = routed.logical_axes()
  jax.tree.map(
    lambda leaf, names: np.testing.assert_equal(leaf.ndim, len(names)),
    routed.abstract_params(),
    axes,
  )
  assert ('routers' in axes) == (mixing == 'sigmoid')
  wo = axes['adapters']['decoder']['mlp']['wo']
  assert wo['a'] == ('layers', 'split', 'skill', 'mlp', 'rank')
  assert wo['b'] == ('layers', 'split', 'skill', 'rank', 'embed')


def test_drawn_parameters_have_the_abstract_shapes():
  shapes = ROUTED.abstract_params()
  added = ROUTED.init_added(jax.random.key(0))
  assert added['adapters']['encoder']['mlp']['wi_0']['a'].any()
  assert set(shapes) == {'backbone', *added}
  jax.tree.map(
    lambda leaf, shape: np.testing.assert_equal(leaf.shape, shape.shape),
    added,
    {label: shapes[label] for label in added},
  )
  counts = methods.parameter_counts('mhr', list_linears(T5), FEW)
  del counts['trainable']
  assert ROUTED.count_parameters() == counts | {
    'backbone': sum(x.size for x in jax.tree.leaves(shapes['backbone']))
  }


def test_counts_of_xl_with_the_t0_recipe():
  added = AdapterConfig(n_tasks=313, n_splits=64)
  assert RoutedT5(t5_config('t5_1_1_xl'), added).count_parameters() == {
    'backbone': 2_849_757_184,
    'adapters': 17_694_720,
    'routers': 69_230_592,
  }


def test_a_mixed_batch_equals_a_loop_over_its_tasks():
  params = params_of(ROUTED)
  logits = logits_of(ROUTED, params, batch_of())
  (total, (weights, rows)), gradients = losses_of(ROUTED, params, batch_of())
  summed, count = 0.0, 0.0
  loop_gradients = jax.tree.map(np.zeros_like, gradients)
  for task in range(3):
    own = task == TASK_IDS
    same = with_task(task)
    np.testing.assert_allclose(
      logits[own], logits_of(ROUTED, params, same)[own], atol=2e-5
    )
    same['decoder_loss_weights'] = (
      same['decoder_loss_weights'] * own[:, None]
    ).astype(np.float32)
    (part, (n, _)), gradient = losses_of(ROUTED, params, same)
    summed, count = summed + part, count + n
    loop_gradients = jax.tree.map(np.add, loop_gradients, gradient)
  np.testing.assert_allclose(total, summed, rtol=1e-5)
  assert weights == count == 18
  close(gradients, loop_gradients, rtol=1e-4, atol=1e-4)
  other = logits_of(ROUTED, params, with_task(0))
  assert abs(np.asarray(other) - logits)[TASK_IDS != 0].max() > 0.1
  assert rows.shape == (4,)


def test_a_tasks_own_adapter_serves_its_rows():
  """The exported LoRA of a task, handed in unbatched, gives its logits."""
  params, batch = params_of(ROUTED), batch_of()
  task = jax.jit(task_adapter, static_argnums=2)(params, 2, FEW)
  logits = jax.jit(ROUTED.network.apply)(
    {'params': params['backbone']},
    batch['encoder_input_tokens'],
    batch['decoder_input_tokens'],
    jax.tree.map(lambda x: np.asarray(x)[:, None], task),
  )
  rows = TASK_IDS == 2
  close(logits[rows], logits_of(ROUTED, params, batch)[rows])


@pytest.mark.parametrize(
  'scan_layers', [True, pytest.param(False, marks=pytest.mark.slow)]
)
def test_mixing_in_front_equals_mixing_in_the_layer(scan_layers):
  config = dataclasses.replace(T5, scan_layers=scan_layers)
  params = params_of(RoutedT5(config, FEW))
  key = jax.random.key(5)
  front, layer = (
    losses_of(RoutedT5(config, FEW, place), params, batch_of(), key, INDEX)
    for place in ('front', 'layer')
  )
  close(front, layer, rtol=1e-4, atol=1e-4)
  gradients = front[1]
  assert set(gradients) == {'adapters', 'routers'}
  assert all(abs(g).max() > 0 for g in jax.tree.leaves(gradients))


@functools.partial(jax.jit, static_argnums=0)
def shared_loss_of(routed, params, batch, share):
  """Returns the loss at a share of uniform weights, and what routing gets."""

  def loss(routers):
    return routed.loss(
      params | {'routers': routers},
      batch,
      noise_key=jax.random.key(5),
      uniform_share=share,
    )[0]

  return jax.value_and_grad(loss)(params['routers'])


def test_annealed_to_uniform_the_model_is_its_average_adapter():
  """With noise and in both places; and then routing gets no gradient."""
  params, batch = params_of(ROUTED), batch_of()
  average = methods.adapter_config('mhr', FEW, phase='average')
  start = methods.start_params('mhr', params, average, phase='average')
  expected = jax.jit(RoutedT5(T5, average).loss)(start, batch)[0]
  learned = []
  for place in ('front', 'layer'):
    run = functools.partial(shared_loss_of, RoutedT5(T5, FEW, place), params)
    loss, gradient = run(batch, 1.0)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient))
    loss, gradient = run(batch, 0.0)
    learned.append(loss)
    assert all(leaf.any() for leaf in jax.tree.leaves(gradient))
  assert abs(learned[0] - expected) > 1e-3
  np.testing.assert_allclose(*learned, rtol=1e-5)


def test_noise_belongs_to_the_example_and_not_to_its_place():
  params, key = params_of(ROUTED), jax.random.key(5)
  order = np.array([3, 1, 0, 2], np.int32)
  moved = {name: leaf[order] for name, leaf in batch_of().items()}
  run = functools.partial(losses_of, ROUTED, params)
  (_, (_, rows)), _ = run(batch_of(), key, INDEX)
  (_, (_, moved_rows)), _ = run(moved, key, order)
  close(np.asarray(rows)[order], moved_rows)
  (_, (_, still)), _ = run(batch_of())
  assert abs(np.asarray(still) - rows).max() > 1e-3


def test_auto_chooses_by_the_bytes_of_all_pairs(monkeypatch):
  def in_layer(routed, task_ids, limit):
    monkeypatch.setattr(model, 'FRONT_BYTES', limit)
    chosen = []

    def look(params):
      paired = routed._pair(params, task_ids, None, None)
      chosen.append(routed._mixes_in_layer(paired))
      return routed.mix(params, task_ids)

    mixed = jax.eval_shape(look, routed.abstract_params())
    size = sum(4 * leaf.size for leaf in jax.tree.leaves(mixed))
    return chosen[0], size

  auto = RoutedT5(T5, FEW)
  size = in_layer(auto, TASK_IDS, 0)[1]
  assert not in_layer(auto, TASK_IDS, size)[0]
  assert in_layer(auto, TASK_IDS, size - 1)[0]
  assert not in_layer(auto, TASK_IDS[:1], 0)[0]
  assert not in_layer(ROUTED, TASK_IDS, 0)[0]
  assert in_layer(RoutedT5(T5, FEW, 'layer'), TASK_IDS, size)[0]


@pytest.mark.parametrize('mixing', ['uniform', 'sigmoid', 'relaxed_bernoulli'])
def test_one_task_takes_unbatched_adapters(mixing):
  routed = RoutedT5(T5, dataclasses.replace(FEW, n_tasks=1, mixing=mixing))
  params = routed.abstract_params()

  def batches(task_ids, noise_key=None):
    mixed = jax.eval_shape(
      lambda p: routed.mix(p, task_ids, noise_key=noise_key), params
    )
    return {leaf.shape[1] for leaf in jax.tree.leaves(mixed)}

  assert batches(None) == {1}
  tasks = np.zeros(4, np.int32)
  noisy = batches(tasks, jax.random.key(0))
  assert noisy == ({4} if mixing == 'relaxed_bernoulli' else {1})


def test_missing_task_ids_are_an_error_where_they_matter():
  with pytest.raises(UserError, match='no task_ids.*3 tasks'):
    ROUTED.mix(params_of(ROUTED), None)


def test_an_id_that_no_task_has_gets_no_tasks_adapter():
  task_ids = np.array([2, -1, 3], np.int32)
  mixed = jax.jit(ROUTED.mix)(params_of(ROUTED), task_ids)
  for leaf in jax.tree.leaves(mixed):
    assert np.isfinite(leaf[:, 0]).all() and np.isnan(leaf[:, 1:]).all()


def test_a_zero_b_is_the_bare_backbone():
  params = params_of(ROUTED)
  zeroed = jax.tree_util.tree_map_with_path(
    lambda path, x: 0 * x if path[-1].key == 'b' else x, params['adapters']
  )
  bare = logits_of(RoutedT5(T5), {'backbone': params['backbone']}, batch_of())
  adapted = logits_of(ROUTED, params | {'adapters': zeroed}, batch_of())
  np.testing.assert_allclose(bare, adapted, rtol=1e-6, atol=1e-6)


def test_the_bare_backbone_works_through_the_same_calls():
  bare = RoutedT5(T5)
  params = bare.abstract_params()
  assert set(params) == set(bare.logical_axes()) == {'backbone'}
  assert bare.mix(params, None) is None
  assert bare.init_added(jax.random.key(0)) == {}
  settings = DecodingSettings(3)
  loss, score, tokens = jax.eval_shape(
    lambda p, b: (
      bare.loss(p, b),
      bare.score(p, b),
      bare.generate(p, b, settings),
    ),
    params,
    batch_of(),
  )
  assert loss[0].shape == () and score.shape == (4,)
  assert tokens.shape == (4, 3)


def test_score_is_the_log_probability_of_the_targets():
  params, batch = params_of(ROUTED), batch_of()
  logits = np.asarray(logits_of(ROUTED, params, batch), np.float64)
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  expected = [
    sum(
      log_p[i, t, batch['decoder_target_tokens'][i, t]]
      for t in range(5)
      if batch['decoder_loss_weights'][i, t]
    )
    for i in range(4)
  ]
  close(jax.jit(ROUTED.score)(params, batch), np.array(expected))


def end_sooner(backbone):
  """Makes the end token likelier."""
  kernel = backbone['decoder']['logits_dense']['kernel']
  ending = {'kernel': kernel.at[:, T5.eos_id].mul(3)}
  return backbone | {'decoder': backbone['decoder'] | {'logits_dense': ending}}


@pytest.mark.parity
@pytest.mark.parametrize('num_beams', [1, 4])
@pytest.mark.parametrize('method', ['poly', 'mhr'])
def test_decoding_mixed_tasks_equals_decoding_each_alone(
  method, num_beams, report_difference
):
  """Alone: only the task's rows, its one LoRA, and wider padding."""
  added = dataclasses.replace(FEW, n_splits=1 if method == 'poly' else 4)
  routed, settings = RoutedT5(T5, added), DecodingSettings(8, num_beams)
  params = dict(params_of(routed))
  params['backbone'] = end_sooner(params['backbone'])
  rng = np.random.default_rng(4)
  tasks = np.array([2, 0, 1, 1, 2, 0, 2, 1, 0], np.int32)
  lengths = np.array([9, 1, 4, 7, 2, 9, 5, 3, 6])
  inputs = rng.integers(2, 48, (9, 9)).astype(np.int32)
  inputs[np.arange(9) >= lengths[:, None]] = 0

  generate = jax.jit(routed.generate, static_argnums=2)
  batch = {'encoder_input_tokens': inputs, 'task_ids': tasks}
  mixed = np.asarray(generate(params, batch, settings))

  decode = jax.jit(decode_tokens, static_argnums=(0, 4))
  make_adapter = jax.jit(task_adapter, static_argnums=2)
  for task in range(3):
    rows = tasks == task
    adapter = make_adapter(params, task, added)
    alone = decode(
      routed.network,
      params['backbone'],
      np.pad(inputs[rows], ((0, 0), (0, 4))),
      jax.tree.map(lambda x: np.asarray(x)[:, None], adapter),
      settings,
    )
    case = f'{method}: tokens of mixed tasks, {num_beams} beams'
    assert not report_difference(case, 'each task alone', mixed[rows], alone)

  # A wrong task would be seen, and rows end at different lengths.
  wrong = generate(params, batch | {'task_ids': (tasks + 1) % 3}, settings)
  changed = (mixed != wrong).any(axis=1)
  assert changed.sum() > 5 and set(tasks[changed]) == {0, 1, 2}
  assert len(set((mixed != 0).sum(axis=1).tolist())) > 2


def test_float64_throughout_and_only_in_64_bit_mode():
  routed = RoutedT5(dataclasses.replace(T5, dtype='float64'), FEW)
  wide = jax.tree.map(np.float64, params_of(ROUTED))
  bare = RoutedT5(routed.config)
  with pytest.raises(UserError, match='JAX_ENABLE_X64=1'):
    jax.eval_shape(bare.logits, params_of(ROUTED), batch_of())
  with jax.enable_x64(True):
    logits = logits_of(routed, wide, batch_of())
  assert logits.dtype == np.float64
  narrow = logits_of(ROUTED, params_of(ROUTED), batch_of())
  assert 0 < abs(np.asarray(logits) - narrow).max() < 1e-4


def test_impossible_models_say_why():
  with pytest.raises(UserError, match="no mix_in 'frnt'"):
    RoutedT5(T5, MHR, 'frnt')
  with pytest.raises(UserError, match='n_splits=16 does not divide'):
    RoutedT5(T5, dataclasses.replace(MHR, n_splits=16))
  with pytest.raises(UserError, match='matches no linear'):
    RoutedT5(T5, dataclasses.replace(MHR, targets=('q',)))
