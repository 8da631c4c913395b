"""PEFT's folders without PEFT: what is read, what is refused, by which name."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest

from mhr_jax import adapter_folder
from mhr_jax.adapters import AdapterConfig
from mhr_jax.convert import hf_names, peft, tensor_files
from mhr_jax.errors import UserError
from mhr_jax.t5 import config as config_lib
from mhr_jax.task_table import TaskTable
import random_adapters

BACKBONE = random_adapters.BACKBONE
LINEARS = config_lib.list_linears(BACKBONE)
CONFIG_FILE, TENSORS_FILE = 'adapter_config.json', 'adapter_model.safetensors'


def assert_same_params(actual, expected):
  jax.tree.map(np.testing.assert_array_equal, actual.params, expected.params)


def read_folder(folder):
  settings = json.loads((folder / CONFIG_FILE).read_text())
  return settings, tensor_files.read_tensors(folder / TENSORS_FILE)


def change_folder(folder, change):
  """Applies `change(settings, tensors)` to a folder."""
  settings, tensors = read_folder(folder)
  tensors = {name: tensor.copy() for name, tensor in tensors.items()}
  change(settings, tensors)
  (folder / CONFIG_FILE).write_text(json.dumps(settings))
  tensor_files.write_tensors(folder / TENSORS_FILE, tensors)


def tensor_of(tensors, path, layer, suffix):
  return tensors[
    f'base_model.model.{hf_names.module_name(path, layer)}.{suffix}'
  ]


class TestPoly:
  def test_round_trip_bit_for_bit(self, tmp_path):
    bundle = random_adapters.draw_bundle(mixing='relaxed_bernoulli')
    peft.write_poly(tmp_path / 'one', bundle)
    back = peft.read_adapter(tmp_path / 'one', BACKBONE)
    assert back.config == bundle.config
    assert back.task_table == bundle.task_table
    assert_same_params(back, bundle)
    peft.write_poly(tmp_path / 'two', back)
    for name in (CONFIG_FILE, TENSORS_FILE, 'tasks.json'):
      first, second = (tmp_path / x / name for x in ('one', 'two'))
      assert first.read_bytes() == second.read_bytes()

  def test_alpha_and_a_wider_scope(self, tmp_path):
    bundle = random_adapters.draw_bundle(alpha=16.0, router_scope='layer')
    peft.write_poly(tmp_path, bundle)
    settings, tensors = read_folder(tmp_path)
    assert settings['r'] == 2 and 'alpha' not in settings
    path = 'decoder/encoder_decoder_attention/value'
    shared = bundle.params['routers']['decoder']['encoder_decoder_attention']
    logits = tensor_of(tensors, path, 2, 'poly_router.module_logits')
    assert logits.shape == (5, 12)
    for task, split, skill in np.ndindex(5, 4, 3):
      expected = shared['routing_logits'][2, task, split, skill]
      assert logits[task, 3 * split + skill] == expected
    inventory = bundle.params['adapters']['decoder'][
      'encoder_decoder_attention'
    ]
    np.testing.assert_array_equal(
      tensor_of(tensors, path, 2, 'poly_lora_B'),
      16 * inventory['value']['b'][2],
    )
    np.testing.assert_array_equal(
      tensor_of(tensors, path, 2, 'poly_lora_A'), inventory['value']['a'][2]
    )

  @pytest.mark.parametrize(
    'scope',
    [
      'block',
      pytest.param('stack', marks=pytest.mark.slow),
      pytest.param('model', marks=pytest.mark.slow),
    ],
  )
  def test_every_scope_gives_the_same_mixtures(self, tmp_path, scope):
    bundle = random_adapters.draw_bundle(alpha=4.0, router_scope=scope)
    peft.write_poly(tmp_path, bundle)
    back = peft.read_adapter(tmp_path, BACKBONE)
    assert back.config.alpha == 1 and back.config.router_scope == 'module'
    for task in (0, 4):
      ours, theirs = (
        adapter_folder.effective_bundle(x, task).params['adapters']
        for x in (bundle, back)
      )
      ours = jax.tree_util.tree_map_with_path(
        lambda path, x: 4 * x if path[-1].key == 'b' else x, ours
      )
      jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7),
        theirs,
        ours,
      )

  def test_uniform_is_logits_of_zero(self, tmp_path):
    bundle = random_adapters.draw_bundle(mixing='uniform')
    peft.write_poly(tmp_path, bundle)
    back = peft.read_adapter(tmp_path, BACKBONE)
    one, other = (
      adapter_folder.effective_bundle(x, 1).params for x in (bundle, back)
    )
    jax.tree.map(np.testing.assert_array_equal, one, other)

  @pytest.mark.parametrize(
    'settings, named',
    [
      ({'mixing': 'softmax'}, "no mixing='softmax'"),
      ({'mixing': 'straight_through'}, "no mixing='straight_through'"),
      ({'mixing': 'l2_norm'}, "no mixing='l2_norm'"),
      ({'mixing': 'private', 'n_skills': 5}, "no mixing='private'"),
      ({'normalisation': 'sqrt'}, "no normalisation='sqrt'"),
      ({'shared_skill': True}, 'no shared_skill=True'),
    ],
  )
  def test_what_poly_lacks_is_named_with_the_way_out(
    self, tmp_path, settings, named
  ):
    bundle = random_adapters.draw_bundle(**settings)
    with pytest.raises(UserError, match=f'{named}.* as peft-lora'):
      peft.write_poly(tmp_path, bundle)
    assert not list(tmp_path.iterdir())
    for task in (2, 'average'):
      one = adapter_folder.effective_bundle(bundle, task)
      peft.write_lora(tmp_path / str(task), one)
      back = peft.read_adapter(tmp_path / str(task), BACKBONE)
      assert_same_params(back, one)

  def test_a_lora_is_no_poly(self, tmp_path):
    bundle = random_adapters.draw_bundle(
      n_skills=1, n_splits=1, mixing='uniform'
    )
    with pytest.raises(UserError, match='a LoRA, .* peft-lora'):
      peft.write_poly(tmp_path, bundle)

  def refuse(self, tmp_path, change, message):
    peft.write_poly(tmp_path, random_adapters.draw_bundle())
    change_folder(tmp_path, change)
    with pytest.raises(UserError, match=message) as error:
      peft.read_adapter(tmp_path, BACKBONE)
    assert str(tmp_path) in str(error.value)

  @pytest.mark.parametrize(
    'name, value, message',
    [
      ('poly_type', 'clustered', "poly_type='clustered'"),
      ('modules_to_save', ['lm_head'], "modules_to_save=.'lm_head'.* no equiv"),
      ('something_new', 3, 'something_new=3, which has no equivalent'),
      ('n_skills', None, 'n_skills=None; a positive whole number'),
      ('r', 3, r'poly_lora_A has the shape .4, 3, 5, 2.; .4, 3, 5, 3. is what'),
      ('n_tasks', 4, r'module_logits has the shape .5, 12.; .4, 12.'),
    ],
  )
  def test_settings_without_an_equivalent(self, tmp_path, name, value, message):
    def change(settings, tensors):
      del tensors
      settings[name] = value

    self.refuse(tmp_path, change, message)

  def test_settings_that_choose_linears_are_read_from_the_tensors(
    self, tmp_path
  ):
    bundle = random_adapters.draw_bundle(targets=('.*/wo', '.*/query'))
    peft.write_poly(tmp_path, bundle)

    def change(settings, tensors):
      del tensors
      settings['target_modules'] = 'all-linear'
      settings['exclude_modules'] = ['k', 'v', 'o', 'wi_0', 'wi_1']

    change_folder(tmp_path, change)
    back = peft.read_adapter(tmp_path, BACKBONE)
    assert_same_params(back, bundle)
    assert set(back.config.targets) == {
      path for path in LINEARS if path.endswith(('/wo', '/query'))
    }

  def test_layers_that_are_left_out(self, tmp_path):
    def change(settings, tensors):
      del settings
      for name in [x for x in tensors if 'encoder.block.0' in x]:
        if 'DenseReluDense.wo' in name:
          del tensors[name]

    self.refuse(tmp_path, change, r'encoder/mlp/wo has .* layers .1. alone')

  def test_one_tensor_that_is_missing(self, tmp_path):
    def change(settings, tensors):
      del settings
      del tensors[next(x for x in tensors if x.endswith('k.poly_lora_B'))]

    self.refuse(tmp_path, change, r'/key has its b in layers')

  @pytest.mark.parametrize(
    'name',
    [
      'base_model.model.lm_head.weight',
      'base_model.model.lm_head.poly_lora_A',
      'base_model.model.encoder.block.0.layer.0.SelfAttention.q.poly_lora_C',
      'encoder.block.0.layer.0.SelfAttention.q.poly_lora_A',
    ],
  )
  def test_a_tensor_that_is_something_else(self, tmp_path, name):
    def change(settings, tensors):
      del settings
      tensors[name] = np.zeros((2, 2), np.float32)

    self.refuse(tmp_path, change, f'no equivalent here: {name}')

  @pytest.mark.parametrize(
    'changes, message',
    [
      (
        {'mlp_activations': ('relu',)},
        'of .*/mlp/wi_0 in layer 0; the backbone has no such linear',
      ),
      (
        {'num_decoder_layers': 2},
        'of decoder/.* in layer 2; the backbone has 2 layers',
      ),
      ({'mlp_dim': 32}, r'lora_B has the shape .4, 3, 2, 7.; .4, 3, 2, 8. is'),
      ({'num_decoder_layers': 4}, 'layers .0, 1, 2. alone, .* has 4'),
    ],
  )
  def test_another_backbone(self, tmp_path, changes, message):
    peft.write_poly(tmp_path, random_adapters.draw_bundle())
    other = dataclasses.replace(BACKBONE, **changes)
    with pytest.raises(UserError, match=message):
      peft.read_adapter(tmp_path, other)


LORA = {'n_tasks': 1, 'n_skills': 1, 'n_splits': 1, 'mixing': 'uniform'}


def draw_lora(**settings):
  return random_adapters.draw_bundle(**(LORA | {'rank': 3} | settings))


class TestLora:
  @pytest.mark.parametrize('alpha', [1.0, 16.0, 0.3])
  def test_round_trip_bit_for_bit(self, tmp_path, alpha):
    bundle = draw_lora(alpha=alpha, targets=('decoder/.*',))
    peft.write_lora(tmp_path / 'one', bundle, base_model='google/t5')
    back = peft.read_adapter(tmp_path / 'one', BACKBONE)
    assert back.config.alpha == alpha and back.config.rank == 3
    assert_same_params(back, bundle)
    assert back.task_table == TaskTable(('task 0',))
    peft.write_lora(tmp_path / 'two', back, base_model='google/t5')
    for name in (CONFIG_FILE, TENSORS_FILE):
      first, second = (tmp_path / x / name for x in ('one', 'two'))
      assert first.read_bytes() == second.read_bytes()

  def test_the_tensors_are_transposed_and_alpha_stays_apart(self, tmp_path):
    bundle = draw_lora(alpha=16.0)
    peft.write_lora(tmp_path, bundle, base_model='google/t5')
    settings, tensors = read_folder(tmp_path)
    assert settings['lora_alpha'] == 16 and settings['r'] == 3
    assert settings['base_model_name_or_path'] == 'google/t5'
    pair = bundle.params['adapters']['encoder']['mlp']['wi_1']
    a = tensor_of(tensors, 'encoder/mlp/wi_1', 1, 'lora_A.weight')
    b = tensor_of(tensors, 'encoder/mlp/wi_1', 1, 'lora_B.weight')
    np.testing.assert_array_equal(a, pair['a'][1, 0, 0].T)
    np.testing.assert_array_equal(b, pair['b'][1, 0, 0].T)

  def test_one_adapter_of_many_tasks_keeps_their_names(self, tmp_path):
    bundle = draw_lora(n_tasks=4)
    peft.write_lora(tmp_path, bundle)
    back = peft.read_adapter(tmp_path, BACKBONE)
    assert back.task_table == bundle.task_table and back.config.n_tasks == 4

  def test_skills_need_a_task(self, tmp_path):
    with pytest.raises(UserError, match='5 tasks, 3 skills.* for which task'):
      peft.write_lora(tmp_path, random_adapters.draw_bundle())

  def delta(self, bundle, path, layer):
    """Returns what an adapter adds to a kernel, in float64."""
    pair = bundle.params['adapters']
    for part in path.split('/'):
      pair = pair[part]
    a, b = (np.float64(pair[x][layer, 0, 0]) for x in ('a', 'b'))
    return bundle.config.alpha / bundle.config.rank * a @ b

  def test_rank_stabilised_scale(self, tmp_path):
    bundle = draw_lora(alpha=6.0)
    peft.write_lora(tmp_path, bundle)
    change_folder(tmp_path, lambda s, _: s.update(use_rslora=True))
    back = peft.read_adapter(tmp_path, BACKBONE)
    assert_same_params(back, bundle)
    assert back.config.scale == pytest.approx(6 / 3**0.5, rel=1e-15)

  @pytest.mark.parametrize('rslora', [False, True])
  def test_ranks_and_alphas_by_pattern(self, tmp_path, rslora):
    """Narrow adapters are padded, and b makes up for another scale."""
    narrow, other = 'encoder/attention/key', 'decoder/mlp/wo'
    module = hf_names.module_name(narrow, 1)
    bundle = draw_lora(alpha=6.0)
    peft.write_lora(tmp_path, bundle)

    def change(settings, tensors):
      settings['use_rslora'] = rslora
      settings['rank_pattern'] = {module: 2}
      settings['alpha_pattern'] = {'decoder.*wo': 5}
      prefix = f'base_model.model.{module}'
      tensors[f'{prefix}.lora_A.weight'] = tensors[f'{prefix}.lora_A.weight'][
        :2
      ]
      b = tensors[f'{prefix}.lora_B.weight']
      tensors[f'{prefix}.lora_B.weight'] = b[:, :2]

    change_folder(tmp_path, change)
    _, tensors = read_folder(tmp_path)
    back = peft.read_adapter(tmp_path, BACKBONE)
    for path, linear in LINEARS.items():
      for layer in range(linear.layers):
        a = np.float64(tensor_of(tensors, path, layer, 'lora_A.weight'))
        b = np.float64(tensor_of(tensors, path, layer, 'lora_B.weight'))
        alpha = 5 if path == other else 6
        rank = 2 if (path, layer) == (narrow, 1) else 3
        expected = alpha / (rank**0.5 if rslora else rank) * (b @ a).T
        np.testing.assert_allclose(
          self.delta(back, path, layer), expected, rtol=1e-5, atol=1e-6
        )

  def test_half_precision_is_read_as_float32(self, tmp_path):
    bundle = draw_lora()
    peft.write_lora(tmp_path, bundle)

    def change(settings, tensors):
      del settings
      for name in tensors:
        tensors[name] = tensors[name].astype(ml_dtypes.bfloat16)

    change_folder(tmp_path, change)
    back = peft.read_adapter(tmp_path, BACKBONE)
    rounded = jax.tree.map(
      lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32), bundle.params
    )
    jax.tree.map(np.testing.assert_array_equal, back.params, rounded)
    assert {x.dtype for x in jax.tree.leaves(back.params)} == {
      np.dtype(np.float32)
    }

  @pytest.mark.parametrize(
    'name, value',
    [
      ('use_dora', True),
      ('fan_in_fan_out', True),
      ('modules_to_save', ['shared']),
      ('lora_bias', True),
      ('layer_replication', [[0, 2]]),
      ('trainable_token_indices', [3]),
      ('init_lora_weights', 'pissa_niter_4'),
      ('init_lora_weights', 'olora'),
      ('init_lora_weights', 'loftq'),
      ('lora_alpha', None),
    ],
  )
  def test_settings_without_an_equivalent(self, tmp_path, name, value):
    peft.write_lora(tmp_path, draw_lora())
    change_folder(tmp_path, lambda s, _: s.update({name: value}))
    with pytest.raises(UserError, match=name):
      peft.read_adapter(tmp_path, BACKBONE)

  def test_settings_of_training_pass(self, tmp_path):
    bundle = draw_lora()
    peft.write_lora(tmp_path, bundle)
    harmless = {
      'bias': 'all',
      'init_lora_weights': 'gaussian',
      'layers_to_transform': [0, 1, 2],
      'loftq_config': {},
      'lora_dropout': 0.1,
      'peft_version': '0.21.2',
      'revision': 'main',
      'target_modules': 'all-linear',
    }
    change_folder(tmp_path, lambda s, _: s.update(harmless))
    assert_same_params(peft.read_adapter(tmp_path, BACKBONE), bundle)

  def test_tensors_of_dora_are_named(self, tmp_path):
    name = 'base_model.model.encoder.block.0.layer.0.SelfAttention.q'
    name += '.lora_magnitude_vector'
    peft.write_lora(tmp_path, draw_lora())
    change_folder(tmp_path, lambda _, t: t.update({name: np.zeros(3)}))
    with pytest.raises(UserError, match=name):
      peft.read_adapter(tmp_path, BACKBONE)


class TestTargets:
  def targets(self, tmp_path, *patterns):
    peft.write_lora(tmp_path, draw_lora(targets=patterns))
    return read_folder(tmp_path)[0]['target_modules']

  def test_short_names_where_they_mean_the_same(self, tmp_path):
    assert self.targets(tmp_path, '.*/(query|value)', '.*/wo') == [
      'q',
      'v',
      'wo',
    ]

  def test_a_regular_expression_where_they_do_not(self, tmp_path):
    assert self.targets(tmp_path, 'decoder/self_attention/query') == (
      r'decoder\.block\.\d+\.layer\.0\.SelfAttention\.q'
    )


class TestFolders:
  def test_other_kinds_are_named(self, tmp_path):
    peft.write_lora(tmp_path, draw_lora())
    change_folder(tmp_path, lambda s, _: s.update(peft_type='OFT'))
    with pytest.raises(UserError, match="'OFT', .* There are: IA3, LORA, POLY"):
      peft.read_adapter(tmp_path, BACKBONE)

  def test_an_empty_folder(self, tmp_path):
    with pytest.raises(UserError, match=f'no {CONFIG_FILE}'):
      peft.read_adapter(tmp_path, BACKBONE)

  def test_settings_alone(self, tmp_path):
    peft.write_lora(tmp_path, draw_lora())
    (tmp_path / TENSORS_FILE).unlink()
    with pytest.raises(UserError, match='neither adapter_model.safetensors'):
      peft.read_adapter(tmp_path, BACKBONE)

  def test_pickles_are_refused_unasked(self, tmp_path):
    peft.write_lora(tmp_path, draw_lora())
    (tmp_path / TENSORS_FILE).rename(tmp_path / 'adapter_model.bin')
    with pytest.raises(UserError, match='pickle.*allow_pickle'):
      peft.read_adapter(tmp_path, BACKBONE)

  def test_nothing_is_overwritten(self, tmp_path):
    lora = draw_lora(names=False)
    peft.write_lora(tmp_path, lora)
    with pytest.raises(UserError, match='not an empty folder.*Choose a new'):
      peft.write_poly(tmp_path, random_adapters.draw_bundle())
    back = peft.read_adapter(tmp_path, BACKBONE)
    assert back.task_table is None
    assert_same_params(back, lora)


@pytest.mark.parity
@pytest.mark.parametrize('kind', ['mhr', 'poly', 'lora'])
def test_the_fixtures_are_read_and_written_tensor_by_tensor(
  shared_dir, tmp_path, kind
):
  """Every tensor of PEFT's own files comes back under its name."""
  folder = shared_dir / 'fixtures' / 'peft_parity' / kind / 'adapter'
  backbone = config_lib.T5Config(
    vocab_size=384,
    emb_dim=32,
    num_heads=4,
    head_dim=8,
    mlp_dim=64,
    num_encoder_layers=2,
    num_decoder_layers=2,
  )
  bundle = peft.read_adapter(folder, backbone)
  assert (
    bundle.config
    == {
      'mhr': AdapterConfig(3, 4, 4, 2, mixing='relaxed_bernoulli'),
      'poly': AdapterConfig(3, 4, 1, 2, mixing='relaxed_bernoulli'),
      'lora': AdapterConfig(1, 1, 1, 2, alpha=4, mixing='uniform'),
    }[kind]
  )
  write = peft.write_lora if kind == 'lora' else peft.write_poly
  write(tmp_path, bundle)
  settings, tensors = read_folder(tmp_path)
  expected_settings, expected = read_folder(folder)
  assert set(tensors) == set(expected)
  for name in expected:
    np.testing.assert_array_equal(tensors[name], expected[name])
  expected_settings['target_modules'].sort()
  for name, value in settings.items():
    assert expected_settings[name] == value
