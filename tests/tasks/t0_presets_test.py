"""T0's presets on small folders: they build, and COPA is adapted to."""

import json
import pathlib

import gin
import pytest
import seqio

from mhr_jax import cli
from mhr_jax.data import registry
from mhr_jax.tasks import promptsource
from tests import toy_t0

_TINY = (
  'config.t5_config.vocab_size=384',
  'DATA_DIR="data"',
  'VOCABULARY="bytes"',
  'INPUT_LENGTH=48',
  'TARGET_LENGTH=16',
)


@pytest.fixture(autouse=True)
def _clean():
  """Forgets settings and tasks: raw and cached ones have the same names."""
  yield
  gin.clear_config()
  for module in ('p3', 't0', 't0_training'):
    for name in registry.list_mixtures(f'mhr_jax.tasks.{module}'):
      seqio.MixtureRegistry.remove(name)
    for name in registry.list_tasks(f'mhr_jax.tasks.{module}'):
      seqio.TaskRegistry.remove(name)


@pytest.fixture
def folders(tmp_path, monkeypatch):
  """Raw records in `raw` and the training tasks in `p3`, where one stands."""
  monkeypatch.chdir(tmp_path)
  folder = toy_t0.write_mrpc('raw', n=60)
  toy_t0.write_copa('raw')
  for template in promptsource.read_templates(folder / 'templates.yaml'):
    made = [template.render(toy_t0.mrpc_record(i), seed='') for i in range(60)]
    toy_t0.write_cached_task(
      pathlib.Path('p3') / f'glue_mrpc_{template.slug}',
      'train',
      [
        {'inputs_pretokenized': one.inputs, 'targets_pretokenized': one.targets}
        for one in made
        if isinstance(one, promptsource.Rendered)
      ],
    )


def _run(command, files, *bindings, flags=()):
  argv = [f'--gin_file={file}' for file in files]
  argv += [f'--gin.{binding}' for binding in (*_TINY, *bindings)]
  return cli.main([command, *argv, *flags])


def _train(*bindings, flags=('--dry_run',)):
  return _run(
    'train',
    ['presets/t0_train.gin', 'models/t5_1_1_tiny.gin'],
    'BACKBONE_FROM=None',
    'RUN_DIR="run"',
    'T0_DATASETS=("glue_mrpc",)',
    'AdapterConfig.n_splits=4',
    'BATCH_SIZE=8',
    *bindings,
    flags=flags,
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  ('method', 'bindings'),
  (
    ('mhr', ('T0_FOLDER="p3"',)),
    (
      'poly',
      (
        'T0_FOLDER="raw"',
        'METHOD="poly"',
        'TASK_MODULES=(@raw/task_data.TaskModule(),)',
      ),
    ),
    ('lora', ('T0_FOLDER="p3"', 'METHOD="lora"')),
  ),
)
def test_multi_task_training_builds(folders, capsys, method, bindings):
  del folders
  assert _train(*bindings) == 0
  printed = capsys.readouterr().out
  assert printed.startswith(f'{method}: ')
  assert '96 examples of 2 tasks' in printed
  assert not pathlib.Path('run').exists()


@pytest.mark.slow
def test_copa_is_adapted_to_and_ranked_by_template(folders, capsys):
  del folders
  assert _train('T0_FOLDER="p3"', 'STEPS=2', flags=()) == 0
  capsys.readouterr()
  few_shot = (
    'T0_FOLDER="raw"',
    'RUN_DIR="run"',
    'T0_DATASETS=("super_glue_copa",)',
  )
  bindings = (*few_shot, 'SEEDS=(0, 7)', 'STEPS=2', 'METHOD="mhr_z"')
  assert _run('adapt', ['presets/t0_copa_cb_small.gin'], *bindings) == 0
  assert 't0_super_glue_copa  (' in capsys.readouterr().out
  for seed in (0, 7):
    folder = pathlib.Path(f'run/few_shot/mhr_z/t0_super_glue_copa/seed{seed}')
    scores = json.loads((folder / 'scores.json').read_text())
    assert set(scores['tasks']) == {
      't0_super_glue_copa_a_plain',
      't0_super_glue_copa_b_best',
    }
    for template in scores['tasks'].values():
      assert (template['instances'], template['chance']) == (6, 50.0)
  assert _run('evaluate', ['presets/t0_zero_shot.gin'], *few_shot) == 0
  assert 'accuracy' in capsys.readouterr().out
