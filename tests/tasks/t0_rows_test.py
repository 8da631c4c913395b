"""T0's rows have the published settings; nothing is trained here."""

import gin
import pytest

from mhr_jax import configurables, configuration, methods, run_folder, train
from mhr_jax.adapters import AdapterConfig
from mhr_jax.model import RoutedT5
from mhr_jax.optim import OptimizerSettings
from mhr_jax.t5.config import t5_config

_BINDINGS = ('T0_FOLDER="p3"', 'VOCABULARY="bytes"', 'BACKBONE_FROM="t5"')


@pytest.fixture(autouse=True)
def _clean_gin():
  yield
  gin.clear_config()


def _parse(name, *bindings):
  parsed = configuration.parse(
    [f'presets/{name}.gin'],
    [*_BINDINGS, *bindings],
    configurables=configurables.all_configurables(),
  )
  parsed.resolve(train.train, given=configurables.roots()[train.train])
  return parsed


def _macro(name):
  return gin.query_parameter(f'{name}/macro.value')


# From mttl's configs/t0 at c66b20d: pretrain.json with lora.json,
# poly_lora.json (n_splits=64 for MHR) or ia3.json; parameters: the sizes of
# T5 1.1 XL and XXL, 432 adapted linears (192 of (IA)³), 8 skills.
@pytest.mark.parametrize(
  ('name', 'bindings', 'method', 'rate', 'scaled', 'adapters', 'routers'),
  (
    ('t0_xl', (), 'mhr', 1e-3, False, 17_694_720, 69_230_592),
    (
      't0_xl',
      ('AdapterConfig.n_splits=8',),
      'mhr',
      1e-3,
      False,
      17_694_720,
      8_653_824,
    ),
    ('t0_3b', (), 'mhr', 1e-3, False, 17_694_720, 69_230_592),
    ('t0_xxl', (), 'mhr', 1e-3, False, 35_389_440, 69_230_592),
    ('t0_11b', (), 'mhr', 1e-3, False, 35_389_440, 69_230_592),
    ('t0_poly_xl', (), 'poly', 1e-3, False, 17_694_720, 1_081_728),
    ('t0_3b', ('METHOD="poly"',), 'poly', 1e-3, False, 17_694_720, 1_081_728),
    ('t0_lora_xl', (), 'lora', 1e-3, True, 2_211_840, 0),
    (
      't0_lora_xl',
      ('OptimizerSettings.scale_parameter=False',),
      'lora',
      1e-3,
      False,
      2_211_840,
      0,
    ),
    ('t0_ia3_xl', (), 'ia3', 3e-4, True, 540_672, 0),
    ('t0_mhr_mu_xl', (), 'mhr_mu', 1e-3, False, 17_694_720, 69_230_592),
  ),
)
def test_a_row_is_the_published_one(
  name, bindings, method, rate, scaled, adapters, routers
):
  parsed = _parse(name, *bindings)
  assert _macro('METHOD') == method
  optimizer = parsed.call(OptimizerSettings)
  assert optimizer.name == 'adafactor'
  assert optimizer.scale_parameter is scaled
  assert (optimizer.clip_norm, optimizer.warmup_proportion) == (1.0, 0.06)
  assert _macro('LEARNING_RATES') == {'adapters': rate, 'routers': 0.1}
  assert _macro('STEPS') == (1_000 if method == 'mhr_mu' else 100_000)
  assert (_macro('BATCH_SIZE'), _macro('INPUT_LENGTH')) == (16, 256)
  backbone = parsed.call(t5_config)
  assert backbone.dropout_rate == 0.1
  config = parsed.call(AdapterConfig, n_tasks=313)
  model = RoutedT5(backbone, methods.adapter_config(method, config))
  counts = model.count_parameters()
  assert counts['adapters'] == adapters
  assert counts.get('routers', 0) == routers


def test_raw_records_may_be_those_of_tensorflow_datasets():
  _parse('t0_xl', 'T0_RECORDS="tfds"')
  options = gin.query_parameter('raw/task_data.TaskModule.options')
  assert str(options['records']) == '%T0_RECORDS'
  assert _macro('T0_RECORDS') == 'tfds'


def test_few_shot_adapts_with_the_dropout_of_the_run():
  # What a run writes of its model is all that adaptation makes it from.
  written = run_folder.model_to_json(RoutedT5(_parse('t0_xl').call(t5_config)))
  assert run_folder.model_from_json(written).config.dropout_rate == 0.1
