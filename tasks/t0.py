"""The eleven held-out data sets of T0: zero-shot and few-shot.

Of each data set those templates of PromptSource that are for its original task
(of COPA the first eight of them), with their answer choices. Names are those
that T0 gives to its tasks, behind a prefix:

    t0_<dataset>_<template>       split test: every record in this form
    t0_<dataset>_one_template     split test: every record once, in a form
                                  drawn for it (the protocol of T-Few and of
                                  MHR's authors)
    t0_<dataset>                  few-shot: splits few_shot_seed<S>, and train
                                  where its records are there, with every
                                  record in all forms; and test_one_template
    t0_<dataset>_templates        mixture: the data set's templates
    t0_heldout                    mixture: those of all data sets
    t0_heldout_one_template       mixture: t0_<dataset>_one_template of all
    t0_few_shot                   mixture: t0_<dataset> of all

<dataset> is `super_glue_copa`, `anli_r1`, `winogrande_winogrande_xl` and so on
(`t0_datasets.HELD_OUT_SETS`), the category of its tasks. The split that is
tested on is the validation split, of ANLI and Story Cloze the test split.

Raw records and templates are read from a folder (`t0_raw`) or from
tensorflow-datasets (`t0_tfds`). The tasks of the multi-task training are in
`t0_training`; both kinds from rendered and cached data, as bigscience/P3 is
published, in `p3`.
"""

from collections.abc import Mapping, Sequence
import functools
from typing import Any, Literal

from etils import epath

from mhr_jax import vocabulary as vocabulary_lib
from mhr_jax.data import registry, sources
from mhr_jax.errors import UserError
from mhr_jax.tasks import t0_examples, t0_raw
from mhr_jax.tasks.promptsource import Template
from mhr_jax.tasks.t0_datasets import (
  HELD_OUT_SETS,
  HeldOutSet,
  choose_held_out_sets,
  task_name,
)
from mhr_jax.tasks.t0_raw import RawSplit
from mhr_jax.vocabulary import Vocabulary

METRICS = ('accuracy',)


def register(
  folder: epath.PathLike,
  *,
  vocabulary: Vocabulary | epath.PathLike,
  extra_ids: int = 100,
  name: str = 't0',
  templates: epath.PathLike | None = None,
  records: Literal['jsonl', 'tfds'] = 'jsonl',
  few_shot: epath.PathLike | None = None,
  datasets: Sequence[str] | None = None,
  seed: int = 0,
) -> dict[str, tuple[str, ...]]:
  """Registers the held-out data sets that lie in a folder.

  No record is read until its task is prepared.

  Args:
    folder: of raw records, see `t0_raw.JsonLines`; or the `data_dir` of
      tensorflow-datasets.
    vocabulary: a vocabulary, the path of a SentencePiece model, or 'bytes'.
    extra_ids: sentinels behind the pieces of a model that is given by path.
    name: the prefix of all names.
    templates: the folder `promptsource/templates` of PromptSource's
      repository; without it, a `templates.yaml` lies in each data set's folder.
    records: what `folder` is.
    few_shot: the folder `data/few_shot` of T-Few's repository, for its draws
      (of ANLI 50, where mttl draws 32 of its own); else those of the data set's
      folder.
    datasets: names of data sets, such as 'super_glue_copa'; all that are there
      by default.
    seed: of the draws of one template a record.

  Returns:
    The tasks of each mixture by the mixture's name.

  Raises:
    UserError: there is no data set, or one that was asked for is not there.
  """
  vocabulary = vocabulary_lib.load_vocabulary(vocabulary, extra_ids=extra_ids)
  raw = raw_sets(folder, records)
  mixtures: dict[str, list[str]] = {}
  for held_out, splits in _find_sets(raw, datasets, folder):
    draws = _find_draws(few_shot, held_out, splits)
    used = used_templates(
      t0_raw.find_templates(
        None if templates is None else absolute(templates),
        absolute(folder),
        held_out.dataset,
        held_out.subset,
      ),
      held_out,
    )
    add = functools.partial(
      _add, prefix=name, held_out=held_out, vocabulary=vocabulary, seed=seed
    )
    splits, draws = (
      {key: t0_raw.labelled(split, held_out) for key, split in some.items()}
      for some in (splits, draws)
    )
    test = _only(splits, test=held_out.test_split)
    train = draws | _only(splits, train=held_out.train_split)
    if test:
      usable = _usable(used, test, held_out)
      each = [add(template, test, [template]) for template in usable]
      mixtures[f'{name}_{held_out.name}_templates'] = each
      mixtures.setdefault(f'{name}_heldout', []).extend(each)
      mixtures.setdefault(f'{name}_heldout_one_template', []).append(
        add('one_template', test, usable, drawn=('test',))
      )
    if train:
      both = train | _only(splits, test_one_template=held_out.test_split)
      usable = _usable(used, both, held_out)
      whole = add('', both, usable, drawn=('test_one_template',))
      mixtures.setdefault(f'{name}_few_shot', []).append(whole)
  for mixture, tasks in mixtures.items():
    registry.add_mixture(mixture, tasks, module=__name__)
  return {mixture: tuple(tasks) for mixture, tasks in mixtures.items()}


def _find_draws(
  few_shot: epath.PathLike | None, held_out: HeldOutSet, splits: Any
) -> Any:
  """Returns the few-shot splits: T-Few's, or those beside the records."""
  if few_shot is None:
    return t0_raw.few_shot_splits(splits, held_out.suffix)
  return t0_raw.find_t_few_draws(absolute(few_shot), held_out)


def used_templates(
  templates: Sequence[Template], held_out: HeldOutSet
) -> list[Template]:
  """Returns those templates of a data set that it is scored with.

  Raises:
    UserError: there are none for its original task, with answer choices.
  """
  used = [
    template
    for template in templates
    if template.task == 'original' and template.answer_choices
  ][: held_out.used_templates]
  if not used:
    raise UserError(
      f'{templates[0].file}: no template has original_task true and answer'
      f' choices; {held_out.name} cannot be scored.'
    )
  return used


def raw_sets(
  folder: epath.PathLike, records: Literal['jsonl', 'tfds']
) -> t0_raw.RawSets:
  """Returns where raw records are looked for.

  Raises:
    UserError: there is no such folder, or no such form.
  """
  if records == 'jsonl':
    return t0_raw.JsonLines(absolute(folder))
  if records == 'tfds':
    from mhr_jax.tasks import t0_tfds

    return t0_tfds.Tfds(absolute(folder))
  raise UserError(f"records is 'jsonl' or 'tfds', not {records!r}.")


def absolute(folder: epath.PathLike) -> epath.Path:
  """Returns a folder's whole path."""
  folder = epath.Path(folder).expanduser()
  return folder if '://' in str(folder) else folder.resolve()


def _find_sets(
  raw: t0_raw.RawSets, names: Sequence[str] | None, folder: epath.PathLike
) -> list[tuple[HeldOutSet, dict[str, RawSplit]]]:
  """Returns the data sets that are there, or that were asked for.

  Raises:
    UserError: there is none, or not one that was asked for.
  """
  found = []
  for each in choose_held_out_sets(names):
    splits = raw.find(each.dataset, each.subset)
    if splits:
      found.append((each, splits))
    elif names is not None:
      raise UserError(
        f'{folder} holds no records of {each.name}.'
        f' {raw.remedy(each.dataset, each.subset)}'
      )
  if not found:
    known = ', '.join(each.name for each in HELD_OUT_SETS)
    first = HELD_OUT_SETS[0]
    raise UserError(
      f'{folder} holds none of the held-out data sets: {known}. Of {first.name}:'
      f' {raw.remedy(first.dataset, first.subset)}'
    )
  return found


def _usable(
  templates: Sequence[Template],
  splits: Mapping[str, RawSplit],
  held_out: HeldOutSet,
) -> list[Template]:
  for split in splits.values():
    templates = t0_raw.usable_templates(templates, split, held_out.name)
  return list(templates)


def _only(splits: Mapping[str, RawSplit], **names: str) -> dict[str, RawSplit]:
  """Returns the splits that are there, under new names."""
  return {new: splits[old] for new, old in names.items() if old in splits}


def _add(
  form: Template | str,
  splits: Mapping[str, RawSplit],
  templates: Sequence[Template],
  *,
  prefix: str,
  held_out: HeldOutSet,
  vocabulary: Vocabulary,
  seed: int,
  drawn: Sequence[str] = (),
) -> str:
  """Registers a task of a data set and returns its name."""
  if isinstance(form, Template):
    task = task_name(
      held_out.dataset, held_out.subset, form.name, held_out.suffix
    )
  else:
    task = '_'.join([held_out.name, *([form] if form else [])])
  task = f'{prefix}_{task}'
  load = functools.partial(
    t0_examples.load_forms,
    task,
    dict(splits),
    tuple(templates),
    held_out.name,
    drawn=tuple(drawn),
    seed=seed,
  )
  files = dict.fromkeys(
    path for split in splits.values() for path in split.files
  )
  source = sources.ExampleSource(load, splits=tuple(splits), files=tuple(files))
  registry.add_task(task, source, vocabulary, module=__name__, metrics=METRICS)
  return task
