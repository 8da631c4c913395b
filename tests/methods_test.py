"""The table of methods: counts, phases, and that the starts are exact."""

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from mhr_jax import adapters, methods
from mhr_jax.adapters import AdapterConfig, LinearShape
from mhr_jax.errors import UserError
from mhr_jax.t5.config import list_linears, t5_config

BASE = AdapterConfig(n_tasks=5, n_skills=3, n_splits=2, rank=2)
LINEARS = {
  'encoder/mlp/wo': LinearShape(3, 16, 8),
  'decoder/mlp/wo': LinearShape(2, 16, 8),
}
ATTENTION = ('.*attention/.*',)

# Trainable parameters on T5 1.1 Large, XL, XXL by the paper's recipes, worked
# out by hand from the authors' configs: all linears at rank 1 with 8 skills;
# and attention alone at rank 16.
COUNTS = {
  ('lora', 'adapt'): (1_142_784, 2_211_840, 4_423_680),
  ('poly_mu', 'adapt'): (1_142_784, 2_211_840, 4_423_680),
  ('mhr_mu', 'adapt'): (1_142_784, 2_211_840, 4_423_680),
  ('private', 'adapt'): (1_142_784, 2_211_840, 4_423_680),
}


def linears_of(size):
  return list_linears(t5_config(f't5_1_1_{size}'))


@pytest.mark.parametrize(('method', 'phase'), COUNTS)
def test_counts_of_one_adapter(method, phase):
  base = AdapterConfig(n_tasks=1, n_splits=64)
  for size, expected in zip(
    ('large', 'xl', 'xxl'), COUNTS[method, phase], strict=True
  ):
    counts = methods.parameter_counts(
      method, linears_of(size), base, phase=phase
    )
    assert counts == {'adapters': expected, 'routers': 0, 'trainable': expected}


@pytest.mark.parametrize(
  ('size', 'modules'),
  [('large', 9_142_272), ('xl', 17_694_720), ('xxl', 35_389_440)],
)
@pytest.mark.parametrize(
  ('n_splits', 'per_task', 'at_313'),
  [
    (1, 3_456, 1_081_728),
    (8, 27_648, 8_653_824),
    (16, 55_296, 17_307_648),
    (64, 221_184, 69_230_592),
  ],
)
def test_counts_of_the_t0_recipe(size, modules, n_splits, per_task, at_313):
  linears = linears_of(size)
  name = 'poly' if n_splits == 1 else 'mhr'
  base = AdapterConfig(n_tasks=313, n_splits=n_splits)
  pretrain = methods.parameter_counts(name, linears, base)
  assert pretrain['adapters'] == modules
  assert pretrain['routers'] == at_313
  assert pretrain['trainable'] == modules + at_313
  few_shot = methods.parameter_counts(
    name, linears, base, phase='adapt', n_tasks=1
  )
  assert few_shot['trainable'] == modules + per_task
  only_z = methods.parameter_counts(
    f'{name}_z', linears, base, phase='adapt', n_tasks=1
  )
  assert only_z == {
    'adapters': modules,
    'routers': per_task,
    'trainable': per_task,
  }


@pytest.mark.parametrize(
  ('n_splits', 'total'), [(1, 18_776_448), (8, 26_348_544), (64, 86_925_312)]
)
def test_pretraining_totals_of_xl(n_splits, total):
  base = AdapterConfig(n_tasks=313, n_splits=n_splits)
  counts = methods.parameter_counts('mhr', linears_of('xl'), base)
  assert counts['trainable'] == total


@pytest.mark.parametrize(
  ('size', 'lora', 'modules'),
  [
    ('large', 9_437_184, 75_497_472),
    ('xl', 18_874_368, 150_994_944),
    ('xxl', 37_748_736, 301_989_888),
  ],
)
def test_counts_of_the_natural_instructions_recipe(size, lora, modules):
  linears = linears_of(size)
  base = AdapterConfig(n_tasks=875, n_splits=8, rank=16, targets=ATTENTION)
  assert methods.parameter_counts('lora', linears, base)['trainable'] == lora
  counts = methods.parameter_counts('mhr', linears, base)
  assert counts['adapters'] == modules
  assert counts['routers'] == 16_128_000
  poly = methods.parameter_counts('poly', linears, base)
  assert poly['routers'] == 2_016_000
  new = methods.parameter_counts(
    'mhr_z', linears, base, phase='adapt', n_tasks=1
  )
  assert new['trainable'] == 18_432


@pytest.mark.parametrize(
  ('size', 'expected'),
  [('large', 479_232), ('xl', 933_888), ('xxl', 1_867_776)],
)
def test_counts_on_key_value_and_wi_1(size, expected):
  base = AdapterConfig(n_tasks=1, targets=('.*/(key|value|wi_1)',))
  counts = methods.parameter_counts('lora', linears_of(size), base)
  assert counts['trainable'] == expected


def test_private_has_an_adapter_a_task():
  lora = methods.parameter_counts('lora', LINEARS, BASE)['trainable']
  private = methods.parameter_counts('private', LINEARS, BASE)
  assert private == {'adapters': 5 * lora, 'routers': 0, 'trainable': 5 * lora}


def test_full_adds_nothing():
  counts = methods.parameter_counts('full', LINEARS, BASE)
  assert counts == {'adapters': 0, 'routers': 0, 'trainable': 0}
  assert methods.adapter_config('full', BASE) is None
  assert methods.trained_labels('full', 'adapt') == ('backbone',)


def test_every_row_is_whole():
  assert list(methods.METHODS) == (
    [
      'lora',
      'lora_big',
      'private',
      'adapter_soup',
      'poly',
      'poly_z',
      'poly_mu',
      'poly_rand',
      'mhr',
      'mhr_z',
      'mhr_mu',
      'mhr_rand',
      'random',
      'random_mu',
      'ia3',
      'poly_ia3',
      'poly_ia3_z',
      'poly_ia3_mu',
      'mhr_ia3',
      'mhr_ia3_z',
      'mhr_ia3_mu',
      'full',
    ]
  )
  for name, method in methods.METHODS.items():
    assert method.name == name
    assert methods.get_method(method) is method
    source = methods.METHODS[method.pretrain_as]
    assert not source.shares_pretraining
    assert source.pretrain_trains == method.pretrain_trains
    assert methods.adapter_config(method, BASE) == methods.adapter_config(
      source, BASE
    )
  assert methods.get_method('mhr_z').shares_pretraining


def test_unknown_methods_and_fixed_mixing_are_refused():
  with pytest.raises(UserError, match="Did you mean 'mhr_z'"):
    methods.get_method('mhrz')
  uniform = AdapterConfig(n_tasks=5, mixing='uniform')
  with pytest.raises(UserError, match="mixing='uniform' has none"):
    methods.adapter_config('mhr', uniform)
  assert methods.adapter_config('lora', uniform).n_skills == 1


def test_settings_of_gates_stay_where_routing_is_learned_and_only_there():
  base = AdapterConfig(5, normalisation='sqrt', shared_skill=True)
  learned = methods.adapter_config('mhr', base)
  assert learned.mixing_form == base.mixing_form
  for method, phase in (
    ('lora', 'pretrain'),
    ('lora_big', 'pretrain'),
    ('private', 'pretrain'),
    ('poly', 'average'),
    ('mhr_mu', 'adapt'),
  ):
    config = methods.adapter_config(method, base, phase=phase)
    assert not config.has_routers
    assert (config.normalisation, config.shared_skill) == ('sum', False)


def pretrained(method):
  config = methods.adapter_config(method, BASE)
  shapes = jax.eval_shape(
    lambda key: methods.init_added(key, config, LINEARS), jax.random.key(0)
  )
  rng = np.random.default_rng(0)
  draw = lambda x: jnp.array(rng.normal(size=x.shape), x.dtype)  # noqa: E731
  return {'backbone': {'w': jnp.ones(2)}} | jax.tree.map(draw, shapes)


def start(method, params, n_tasks=2, **options):
  config = methods.adapter_config(
    method, BASE, phase=options.get('phase', 'adapt'), n_tasks=n_tasks
  )
  key = jax.random.key(3)
  return config, methods.start_params(
    method, params, config, key=key, **options
  )


@pytest.mark.parametrize('method', ['poly', 'mhr', 'poly_z', 'mhr_z'])
def test_adapting_an_inventory_keeps_it_and_adds_rows(method):
  params = pretrained(method)
  config, started = start(method, params)
  assert config.n_tasks == 2
  assert config.n_splits == (1 if method.startswith('poly') else 2)
  assert started['adapters'] is params['adapters']
  assert started['backbone'] is params['backbone']
  logits = jax.tree.leaves(started['routers'])[0]
  assert logits.shape[1] == 2
  assert abs(logits).max() <= 1e-3
  _, mean = start(method, params, rows='mean')
  np.testing.assert_allclose(
    mean['routers']['encoder']['mlp']['wo']['routing_logits'][:, 0],
    params['routers']['encoder']['mlp']['wo']['routing_logits'].mean(1),
    rtol=1e-5,
  )


@pytest.mark.parametrize('method', ['poly_mu', 'mhr_mu'])
def test_mu_starts_from_the_exact_average_and_trains_one_adapter(method):
  params = pretrained(method)
  config, started = start(method, params)
  assert set(started) == {'backbone', 'adapters'}
  assert methods.trained_labels(method, 'adapt') == ('adapters',)
  uniform = methods.adapter_config(method, BASE)
  uniform = AdapterConfig(5, 3, uniform.n_splits, rank=2, mixing='uniform')
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
    adapters.task_adapter(started, 0, config),
    adapters.task_adapter(params, 0, uniform),
  )


def test_zero_shot_of_an_inventory_is_its_average():
  params = pretrained('mhr')
  config, average = start('mhr', params, phase='average')
  _, mu = start('mhr_mu', params)
  assert (config.n_skills, config.n_splits, config.mixing) == (1, 1, 'uniform')
  jax.tree.map(np.testing.assert_array_equal, average, mu)


def test_lora_and_full_go_on_from_where_they_stand():
  params = pretrained('lora')
  _, started = start('lora', params)
  assert started == params
  backbone = {'backbone': params['backbone']}
  assert start('full', backbone) == (None, backbone)
  with pytest.raises(UserError, match='no adapters to average'):
    start('full', backbone, phase='average')


def test_private_starts_afresh():
  params = pretrained('private')
  config, started = start('private', params)
  wo = started['adapters']['encoder']['mlp']['wo']
  assert wo['a'].shape == (3, 1, 1, 16, 2)
  assert wo['a'].any() and not wo['b'].any()
  assert config.mixing == 'uniform'
  with pytest.raises(ValueError, match='need a key'):
    methods.start_params('private', params, config)


def test_lora_big_has_the_parameters_of_an_inventory():
  poly = methods.parameter_counts('poly', LINEARS, BASE)
  big = methods.parameter_counts('lora_big', LINEARS, BASE)
  assert big['trainable'] == big['adapters'] == poly['adapters']
  config = methods.adapter_config('lora_big', BASE)
  assert (config.rank, config.n_skills, config.scale) == (6, 1, 1 / 6)
  # From a run's own settings, as resuming and adapting have it.
  assert methods.adapter_config('lora_big', config, phase='adapt') == config


@pytest.mark.parametrize('method', ['poly_rand', 'mhr_rand'])
def test_a_redrawn_inventory_is_a_fresh_draw_with_the_usual_rows(method):
  params = pretrained(method)
  config, started = start(method, params)
  fresh = adapters.init_adapters(jax.random.key(3), config, LINEARS)
  jax.tree.map(np.testing.assert_array_equal, started['adapters'], fresh)
  for path in LINEARS:
    stack = path.partition('/')[0]
    drawn = started['adapters'][stack]['mlp']['wo']
    before = params['adapters'][stack]['mlp']['wo']
    assert drawn['a'].shape == before['a'].shape
    assert abs(drawn['a']).max() <= (3 * 16) ** -0.5
    assert (drawn['a'] != before['a']).all()
    assert not drawn['b'].any()
  assert started['backbone'] is params['backbone']
  source = methods.get_method(method).pretrain_as
  _, usual = start(source, params)
  jax.tree.map(
    np.testing.assert_array_equal, started['routers'], usual['routers']
  )
  with pytest.raises(ValueError, match='need a key'):
    methods.start_params(method, params, config)


def test_new_tasks_of_random_train_rows_that_are_drawn_as_others():
  wide = methods.adapter_config('random', BASE)
  adapted = methods.adapter_config('random', wide, phase='adapt', n_tasks=1)
  assert (wide.router_init, adapted.router_init) == ('normal', 'uniform')
  assert methods.adapter_config('mhr', BASE, phase='adapt') == BASE


def test_random_routing_is_wide_before_training_and_narrow_for_new_tasks():
  config = methods.adapter_config('random', BASE)
  assert config.has_routers and config.router_init == 'normal'
  assert methods.trained_labels('random', 'pretrain') == ('adapters',)
  base = AdapterConfig(n_tasks=500, n_skills=4, n_splits=2)
  wide = methods.adapter_config('random', base)
  drawn = methods.init_added(jax.random.key(0), wide, LINEARS)
  logits = np.concatenate(
    [x.ravel() for x in jax.tree.leaves(drawn['routers'])]
  )
  assert abs(logits.mean()) < 0.1
  assert logits.std() == pytest.approx(3, rel=0.02)
  assert (abs(logits) > 2).mean() == pytest.approx(0.505, abs=0.02)
  params = pretrained('random')
  _, started = start('random', params)
  assert abs(jax.tree.leaves(started['routers'])[0]).max() <= 1e-3
  config, started = start('random_mu', params)
  assert set(started) == {'backbone', 'adapters'} and not config.has_routers
  _, average = start('mhr_mu', params)
  jax.tree.map(np.testing.assert_array_equal, started, average)
