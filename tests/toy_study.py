"""A study of a few steps on tasks that are easily half right; also a program.

    python tests/toy_study.py DATA_DIR RUN_DIR

runs it (again), so that tests can kill it.
"""

import dataclasses
import functools
import json
import pathlib
import sys

import numpy as np

from mhr_jax import study
from mhr_jax.adaptation import AdaptationSettings
from mhr_jax.adapters import AdapterConfig
from mhr_jax.analysis.gradients import AlignmentSettings
from mhr_jax.data import record_format
from mhr_jax.data.mixture_settings import MixtureSettings
from mhr_jax.evaluation import EvaluationSettings
from mhr_jax.few_shot import FewShotSettings
from mhr_jax.optim import OptimizerSettings
from mhr_jax.t5.decoding import DecodingSettings
from mhr_jax.task_data import TaskData
from mhr_jax.trainer import TrainSettings
from mhr_jax.vocabulary import ByteVocabulary
import toy_text

TRAINING, UNSEEN = ('old_a', 'old_b'), ('new_a', 'new_b', 'new_c')
WIDTHS = {'input_length': 6, 'target_length': 3}
METHODS = ('lora', 'mhr', 'mhr_z', 'mhr_mu', 'mhr_rand')
SEEDS = (3, 4)
_VOCABULARY = ByteVocabulary(extra_ids=100)


def write_data(folder: pathlib.Path) -> None:
  """Writes prepared tasks of 'y' and 'n'; unseen ones have more of 'n'."""
  for i, name in enumerate(TRAINING):
    _write_task(folder, name, 0.7, seed=i, train=20, test=6 + i)
  for i, name in enumerate(UNSEEN):
    _write_task(folder, name, 0.3, seed=7 + i, few_shot=8, test=6 + i)


def _write_task(folder, name, yes, *, seed, **sizes):
  rng = np.random.default_rng(seed)
  encode = _VOCABULARY.encode

  def record(index):
    text = ''.join(rng.choice(list('abc'), 3))
    answer = rng.choice(['y', 'n'], p=[yes, 1 - yes])
    return record_format.Record(
      inputs=encode(text),
      targets=[encode(answer)],
      inputs_pretokenized=text,
      targets_pretokenized=[str(answer)],
      example_id=f'{name}-{index}',
    )

  splits = {
    split: [record(index) for index in range(n)] for split, n in sizes.items()
  }
  task = record_format.task_folder(folder, name)
  manifest = {
    'format_version': record_format.FORMAT_VERSION,
    'task': name,
    'fingerprint': f'of {name}',
    'vocabulary': _VOCABULARY.spec(),
    'category': None if name == 'new_c' else 'first',
    'splits': record_format.write_dataset(task, name, splits),
    'made_with': {},
  }
  (task / record_format.MANIFEST).write_text(json.dumps(manifest))


def make_settings(data_dir) -> study.Study:
  """Returns the study of the data that `write_data` wrote."""

  def training(tasks, steps, **measured):
    return study.Training(
      data=TaskData(tasks, data_dir=str(data_dir)),
      mixture=MixtureSettings(batch_size=8, **WIDTHS),
      settings=TrainSettings(steps=steps, save_every=2, log_every=1),
      optimizer=OptimizerSettings(
        learning_rates={'backbone': 0.03, 'adapters': 0.03}
      ),
      **measured,
    )

  def test_set(tasks):
    data = TaskData(tasks, data_dir=str(data_dir))
    return study.TestSet(data=data, batch_size=4, **WIDTHS)

  adaptation = AdaptationSettings(
    optimizer=OptimizerSettings(learning_rates={'adapters': 0.1}),
    side_by_side=2,
  )
  return study.Study(
    suite='toy',
    methods=METHODS,
    seeds=SEEDS,
    backbone=dataclasses.replace(toy_text.CONFIG, vocab_size=384),
    adapters=functools.partial(
      AdapterConfig,
      n_skills=3,
      n_splits=2,
      rank=2,
      targets=toy_text.ADAPTERS.targets,
    ),
    backbone_training=training(TRAINING, 6),
    multi_task=training(
      TRAINING, 4, alignment=AlignmentSettings(every=2, examples=4)
    ),
    average=training(TRAINING, 3),
    multi_task_test=test_set(TRAINING),
    zero_shot_test=test_set(UNSEEN),
    few_shot=study.FewShot(
      data=TaskData(UNSEEN, data_dir=str(data_dir)),
      settings=FewShotSettings(shots=6, steps=8, batch_size=4, **WIDTHS),
      adaptation=dict.fromkeys(METHODS, adaptation),
    ),
    evaluation=EvaluationSettings(
      decoding=DecodingSettings(max_new_tokens=3),
      metrics=('exact_match', 'rouge_l'),
    ),
    baselines={
      'copy': {'few_shot': {'new_a': 1.0, 'new_b': 3.0, 'new_c': 5.0}}
    },
  )


if __name__ == '__main__':
  study.study(sys.argv[2], settings=make_settings(sys.argv[1]))
