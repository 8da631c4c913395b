"""The rows of SuperNI and CrossFit: their recipes, and that they run."""

import json

import gin
import pytest

from mhr_jax import adapters, cli, configurables, configuration, optim
from mhr_jax.few_shot import FewShotSettings
from mhr_jax.side_by_side import LossSettings
from mhr_jax.t5.config import list_linears, t5_config
from mhr_jax.trainer import TrainSettings

_ROWS = [
  f'{bench}_{method}_{size}'
  for bench in ('superni', 'crossfit')
  for method in ('lora', 'poly', 'mhr')
  for size in ('large', 'xl')
]


@pytest.fixture(autouse=True)
def _clean_gin():
  yield
  gin.clear_config()


@pytest.fixture
def fresh_registry():
  """Forgets the tasks of the benchmarks: each test has folders of its own."""
  seqio = pytest.importorskip('seqio')
  from mhr_jax.data import registry

  yield
  for name in ('natural_instructions', 'crossfit'):
    module = f'mhr_jax.tasks.{name}'
    for mixture in registry.list_mixtures(module):
      seqio.MixtureRegistry.remove(mixture)
    for task in registry.list_tasks(module):
      seqio.TaskRegistry.remove(task)


def _parse(name, *bindings):
  return configuration.parse(
    [f'presets/{name}.gin'],
    bindings,
    configurables=configurables.all_configurables(),
  )


@pytest.mark.parametrize('name', _ROWS)
def test_a_row_is_the_published_recipe(name):
  parsed = _parse(name)
  steps = 25_000 if name.startswith('superni') else 203_760
  settings = parsed.call(TrainSettings)
  assert (settings.steps, settings.label_smoothing) == (steps, 0.1)
  assert settings.loss_normalisation == 'examples'
  optimizer = parsed.call(optim.OptimizerSettings)
  assert (optimizer.name, optimizer.clip_norm) == ('adamw', 0.1)
  assert optimizer.learning_rates == optim.PerLabel(1e-3, 1e-3, 0.1)
  warmup = optimizer.warmup_steps or int(steps * optimizer.warmup_proportion)
  assert warmup == (1500 if name.startswith('superni') else 12_225)


@pytest.mark.parametrize('name', ['superni_mhr_xl', 'crossfit_mhr_xl'])
def test_attention_alone_is_adapted_by_noisy_routing(name):
  config = _parse(name).call(adapters.AdapterConfig, n_tasks=3)
  assert (config.rank, config.n_skills, config.n_splits) == (16, 8, 8)
  assert config.mixing == 'relaxed_bernoulli'
  linears = list_linears(t5_config('t5_1_1_xl'))
  chosen = adapters.select_linears(config, linears)
  assert sum(linears[path].layers for path in chosen) == 288
  assert not [path for path in chosen if 'mlp' in path]


@pytest.mark.parametrize(
  ('bench', 'seeds'),
  [('superni', (13, 42, 58)), ('crossfit', (13, 21, 42, 87, 100))],
)
def test_few_shot_takes_the_benchmarks_seeds(bench, seeds):
  parsed = _parse(f'{bench}_few_shot_mhr_z')
  settings = parsed.call(FewShotSettings)
  assert (settings.seeds, settings.shots) == (seeds, None)
  assert (settings.steps, settings.batch_size) == (1000, 8)
  assert parsed.call(LossSettings) == LossSettings(
    label_smoothing=0.1, normalisation='examples'
  )


def _write_superni(folder):
  (folder / 'tasks').mkdir(parents=True)
  (folder / 'splits/default').mkdir(parents=True)
  for role, name in (('train', 'a'), ('train', 'b'), ('test', 'c')):
    instances = [
      {'id': f'{name}{i}', 'input': str(i), 'output': ['yes', 'no']}
      for i in range(104)
    ]
    task = {'Definition': 'Do.', 'Instances': instances}
    (folder / f'tasks/{name}.json').write_text(json.dumps(task))
    with (folder / f'splits/default/{role}_tasks.txt').open('a') as file:
      file.write(f'{name}\n')


def _write_crossfit(folder):
  for task in ('emo', 'glue-rte', 'app_reviews'):
    (folder / task).mkdir(parents=True)
    for seed in (13, 21, 42, 87, 100):
      for part in ('train', 'dev', 'test'):
        path = folder / task / f'{task}_2_{seed}_{part}.tsv'
        path.write_text('one\t1\ntwo\t2\n')
  parts = {'train': ['emo', 'glue-rte'], 'test': ['app_reviews']}
  (folder / 'random.json').write_text(json.dumps(parts))


_TINY = {
  't5_config.name': 't5_1_1_tiny',
  't5_config.vocab_size': 384,
  'INPUT_LENGTH': 64,
  'TARGET_LENGTH': 8,
  'VOCABULARY': 'bytes',
  'RUN_DIR': 'run',
}


def _run(command, preset, bench, *flags, **bindings):
  where = (
    {'NI_FOLDER': 'ni'}
    if bench == 'superni'
    else {'CROSSFIT_FOLDER': 'gym', 'PARTITIONS': 'gym/random.json'}
  )
  model = {k: v for k, v in _TINY.items() if k.startswith('t5_config')}
  if command == 'train':
    own = model
  else:
    own = {'DecodingSettings.num_beams': 1}  # Four take a minute to compile.
  sizes = {k: v for k, v in _TINY.items() if k not in model}
  values = {**own, **sizes, **where, **bindings}
  argv = [f'--gin.{key}={value!r}' for key, value in values.items()]
  path = f'--gin_file=presets/{preset}.gin'
  return cli.main([command, path, *argv, *flags])


@pytest.fixture
def folders(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  _write_superni(tmp_path / 'ni')
  _write_crossfit(tmp_path / 'gym')
  return tmp_path


@pytest.mark.slow
@pytest.mark.usefixtures('fresh_registry')
@pytest.mark.parametrize('name', ['superni_lora_xl', 'crossfit_poly_large'])
def test_a_row_builds(name, folders, capsys):
  bench, method, _ = name.split('_')
  assert _run('train', name, bench, '--dry_run', BACKBONE_FROM=None) == 0
  printed = capsys.readouterr().out
  assert printed.startswith(f'{method}: ') and 'memory ' in printed
  assert not (folders / 'run').exists()


@pytest.mark.slow
@pytest.mark.usefixtures('fresh_registry')
@pytest.mark.parametrize('bench', ['superni', 'crossfit'])
def test_a_row_is_trained_adapted_and_scored(bench, folders):
  """Two steps each, end to end."""
  train = {'BACKBONE_FROM': None, 'STEPS': 2, 'AdapterConfig.rank': 2}
  assert _run('train', f'{bench}_mhr_large', bench, **train) == 0
  assert _run('adapt', f'{bench}_few_shot_mhr_z', bench, STEPS=2) == 0
  results = json.loads(
    (folders / 'run/few_shot/mhr_z/results.json').read_text()
  )
  if bench == 'crossfit':
    assert len(results['own_metric']['values']) == 5
    cell = folders / 'run/few_shot/mhr_z/crossfit_app_reviews/seed87'
    scores = json.loads((cell / 'scores.json').read_text())
    assert scores['own_metrics'] == {'crossfit_app_reviews': 'crossfit_pearson'}
    return
  assert len(results['rouge_l']['values']) == 3
  assert _run('evaluate', 'superni_zero_shot', bench) == 0
  where = folders / 'run/evaluations/ni_test_official_test'
  scores = json.loads((where / 'scores.json').read_text())
  assert scores['overall']['instances'] == 100
  assert scores['own_metrics'] == {'ni_c': 'rouge_l'}
