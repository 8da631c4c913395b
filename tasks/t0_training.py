"""T0's multi-task training: 38 data sets, 313 tasks, one a template.

    t0_<dataset>_<template>   splits train and validation
    t0_train                  mixture of them all, at rates by their sizes

Of each data set every template is a task, less the blocked ones
(`t0_datasets.BLOCKED`). A template has the first `cap` records of the training
split; `validation_examples` of these rows are held back, the same ones for all
templates of a data set. A task's rate is the number of rows that remain, so
that every row is as likely as every other, which is how MHR's authors sample.
What a template makes nothing of is left out, counted and logged.

Raw records are read from a folder (`t0_raw`) or from tensorflow-datasets
(`t0_tfds`); the same tasks from rendered and cached data are in `p3`.
"""

from collections.abc import Sequence
import functools
from typing import Literal

from etils import epath

from mhr_jax import vocabulary as vocabulary_lib
from mhr_jax.data import registry, sources
from mhr_jax.errors import UserError
from mhr_jax.tasks import t0, t0_examples, t0_raw
from mhr_jax.tasks.promptsource import Template
from mhr_jax.tasks.t0_datasets import (
  BLOCKED,
  VALIDATION_EXAMPLES,
  CapRule,
  TrainingSet,
  cap,
  choose_training_sets,
  task_name,
)
from mhr_jax.tasks.t0_raw import RawSplit
from mhr_jax.vocabulary import Vocabulary


def register(
  folder: epath.PathLike,
  *,
  vocabulary: Vocabulary | epath.PathLike,
  extra_ids: int = 100,
  name: str = 't0',
  templates: epath.PathLike | None = None,
  records: Literal['jsonl', 'tfds'] = 'jsonl',
  datasets: Sequence[str] | None = None,
  cap_rule: CapRule = 'mttl',
  validation_examples: int = VALIDATION_EXAMPLES,
) -> dict[str, tuple[str, ...]]:
  """Registers the training tasks whose data sets lie in a folder.

  Args:
    folder: of raw records, see `t0_raw.JsonLines`; or the `data_dir` of
      tensorflow-datasets.
    vocabulary: a vocabulary, the path of a SentencePiece model, or 'bytes'.
    extra_ids: sentinels behind the pieces of a model that is given by path.
    name: the prefix of all names.
    templates: the folder `promptsource/templates` of PromptSource's
      repository; without it, a `templates.yaml` lies in each data set's folder.
    records: what `folder` is.
    datasets: names of data sets, such as 'glue_mrpc'; all 38 by default.
    cap_rule: how many records a template has at most, see `t0_datasets.cap`.
    validation_examples: rows held back of each data set.

  Returns:
    The tasks of the mixture `<name>_train`, by that name.

  Raises:
    UserError: a data set or its templates are not there.
  """
  vocabulary = vocabulary_lib.load_vocabulary(vocabulary, extra_ids=extra_ids)
  raw = t0.raw_sets(folder, records)
  rates: dict[str, float] = {}
  for one in choose_training_sets(datasets):
    split = raw.find(one.dataset, one.subset).get('train')
    if split is None:
      raise UserError(
        f'{folder} holds no training records of {one.name}.'
        f' {raw.remedy(one.dataset, one.subset)} There should be all 38 data'
        ' sets; `datasets` names those to register where there is a part.'
      )
    all_templates = t0_raw.find_templates(
      None if templates is None else t0.absolute(templates),
      t0.absolute(folder),
      one.dataset,
      one.subset,
    )
    limit = cap(one.train_size, len(all_templates), cap_rule)
    for template in t0_raw.usable_templates(all_templates, split, one.name):
      if task_name(one.dataset, one.subset, template.name) not in BLOCKED:
        task = _add(
          name, one, split, template, limit, validation_examples, vocabulary
        )
        rates[task] = float(max(limit - validation_examples, 1))
  mixture = f'{name}_train'
  registry.add_mixture(mixture, rates, module=__name__)
  return {mixture: tuple(rates)}


def _add(
  prefix: str,
  one: TrainingSet,
  split: RawSplit,
  template: Template,
  limit: int,
  validation: int,
  vocabulary: Vocabulary,
) -> str:
  """Registers one template's task and returns its name."""
  task = f'{prefix}_{task_name(one.dataset, one.subset, template.name)}'
  source = sources.ExampleSource(
    functools.partial(
      t0_examples.load_training,
      task,
      split,
      template,
      one.name,
      cap=limit,
      validation=validation,
    ),
    splits=('train', 'validation'),
    files=split.files,
  )
  registry.add_task(task, source, vocabulary, module=__name__)
  return task
