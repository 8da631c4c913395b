"""The tiny routed T5 as a model of `mhr_jax.load`, and as a run folder."""

import numpy as np

from mhr_jax import checkpoints, frozen, run_folder
from mhr_jax.api import Model
from mhr_jax.loading import LoadedModel
from mhr_jax.model import RoutedT5
import toy_text

TASKS = ['copy', 2, 'first', 'upper', 0]
TASK_IDS = np.array([0, 2, 1, 2, 0])


def make_model(**changes):
  """Returns a model with names for its tasks and a vocabulary."""
  routed = toy_text.make_model(**changes)
  params = toy_text.make_params(routed)
  return Model(
    LoadedModel(routed, params, toy_text.TASKS, toy_text.VOCABULARY, 'the toy')
  )


def without_adapters(model, **fields):
  """Returns the backbone of a model as a model; `fields` of LoadedModel."""
  bare = RoutedT5(model.loaded.model.config)
  params = {'backbone': model.loaded.params['backbone']}
  return Model(LoadedModel(bare, params, **fields))


def write_run(folder, model):
  """Writes a model as a run folder that training left, at step 7."""
  loaded = model.loaded
  run_folder.write_description(
    folder,
    model=loaded.model,
    task_table=loaded.task_table,
    vocabulary=loaded.vocabulary,
  )
  trained = dict(loaded.params)
  kept = frozen.save_frozen(
    folder / 'backbone', trained.pop('backbone'), config=loaded.model.config
  )
  with checkpoints.Checkpoints(folder) as saved:
    facts = {'frozen': {'backbone': kept}}
    saved.save(
      7, trainable=trained, optimizer={'n': np.int32(7)}, metadata=facts
    )


def draw_tokens():
  """Returns inputs and what the decoder reads: five rows with padding."""
  rng = np.random.default_rng(0)
  lengths = np.array([8, 3, 5, 1, 7])
  inputs = rng.integers(3, 259, (5, 8))
  inputs = np.where(np.arange(8) < lengths[:, None], inputs, 0)
  targets = rng.integers(3, 259, (5, 6))
  targets[:, 0] = 0
  return inputs, targets
