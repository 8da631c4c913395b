"""Raw records of T0's data sets from tensorflow-datasets, as on Hugging Face.

`ADAPTORS` says which builder has which data set, and how its fields become
those that PromptSource's templates read. It has those sets whose records can
be had whole. What is not in it: sets that tensorflow-datasets lacks; Story
Cloze, whose four sentences it joins (`t0_raw` reads the file that is handed
out); TREC, whose labels it orders otherwise.

Of HellaSwag it lacks `ctx_a` and `ctx_b`, which one of the four templates for
the original task reads: that one is left out, with a warning.

A builder must have been prepared (`tfds build`, or `download_and_prepare`):
its folder is read as it lies there. Its records are in an order of its own, so
that the first so many of a training split are others than on Hugging Face.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import functools
from typing import Any

from etils import epath
import numpy as np
import tensorflow_datasets as tfds

from mhr_jax.errors import UserError
from mhr_jax.tasks import t0_datasets
from mhr_jax.tasks.t0_raw import RawSplit, Record

Fields = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Adaptor:
  """Where tensorflow-datasets has a data set, and what it calls its fields.

  Attributes:
    builder: its name, with the configuration if it has one.
    renamed: fields by their name here, with their name there.
    made: fields by their name here, each made from a record there.
    splits: splits by their name here, with their name there.
    lacks: fields that Hugging Face has and tensorflow-datasets has not.
  """

  builder: str
  renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
  made: Mapping[str, Callable[[Fields], Any]] = dataclasses.field(
    default_factory=dict
  )
  splits: Mapping[str, str] | None = None
  lacks: tuple[str, ...] = ()

  def adapt(self, record: Fields) -> dict[str, Any]:
    """Returns a record with the names that the templates read."""
    there = set(self.renamed.values())
    return {
      **{key: value for key, value in record.items() if key not in there},
      **{new: record[old] for new, old in self.renamed.items()},
      **{new: make(record) for new, make in self.made.items()},
    }


def _winogrande_answer(record: Fields) -> str:
  """Hugging Face has the text '1' or '2', this the index of a class."""
  return str(record['label'] + 1) if record['label'] >= 0 else ''


def _title_and_description(record: Fields) -> str:
  return f'{record["title"]} {record["description"]}'


def _anli(round_: int) -> dict[str, str]:
  return {f'{split}_r{round_}': split for split in ('train', 'test')}


ADAPTORS: Mapping[tuple[str, str | None], tuple[Adaptor, ...]] = {
  **{
    ('super_glue', subset): (Adaptor(f'super_glue/{subset}'),)
    for subset in ('rte', 'cb', 'wsc.fixed', 'copa', 'wic')
  },
  ('anli', None): tuple(
    Adaptor(f'anli/r{i}', {'premise': 'context'}, splits=_anli(i))
    for i in (1, 2, 3)
  ),
  ('winogrande', 'winogrande_xl'): (
    Adaptor(
      'winogrande',
      made={'answer': _winogrande_answer},
      splits={
        'train': 'train_xl',
        'validation': 'validation',
        'test': 'test',
      },
    ),
  ),
  ('hellaswag', None): (
    Adaptor('hellaswag', {'ctx': 'context'}, lacks=('ctx_a', 'ctx_b')),
  ),
  ('glue', 'mrpc'): (Adaptor('glue/mrpc'),),
  ('glue', 'qqp'): (Adaptor('glue/qqp'),),
  ('paws', 'labeled_final'): (Adaptor('paws_wiki/labeled_final_tokenized'),),
  ('cos_e', 'v1.11'): (Adaptor('cos_e'),),
  ('cosmos_qa', None): (Adaptor('cosmos_qa'),),
  ('qasc', None): (Adaptor('qasc'),),
  ('imdb', None): (Adaptor('imdb_reviews/plain_text'),),
  ('common_gen', None): (Adaptor('gem/common_gen'),),
  ('wiki_bio', None): (Adaptor('wiki_bio'),),
  ('cnn_dailymail', '3.0.0'): (Adaptor('cnn_dailymail'),),
  ('gigaword', None): (Adaptor('gigaword'),),
  ('multi_news', None): (Adaptor('multi_news'),),
  ('samsum', None): (Adaptor('samsum'),),
  ('xsum', None): (Adaptor('xsum'),),
  ('ag_news', None): (
    Adaptor('ag_news_subset', made={'text': _title_and_description}),
  ),
}


# By data set, why tensorflow-datasets is no source of it.
_WHY_NOT = {
  'story_cloze': 'tensorflow-datasets joins its four sentences',
  'trec': 'tensorflow-datasets orders its labels otherwise',
}


@dataclasses.dataclass(frozen=True)
class Tfds:
  """The `data_dir` of tensorflow-datasets."""

  data_dir: epath.Path

  def find(self, dataset: str, subset: str | None) -> dict[str, RawSplit]:
    """Returns the splits of a data set; none if it is not prepared there."""
    found = {}
    for adaptor in ADAPTORS.get((dataset, subset), ()):
      folder = newest_version(self.data_dir / adaptor.builder)
      if folder is None:
        continue
      builder = tfds.builder_from_directory(folder)
      names = adaptor.splits or {split: split for split in builder.info.splits}
      for new, old in names.items():
        if old in builder.info.splits:
          found[new] = RawSplit(
            functools.partial(
              read_tfds, folder, old, dataset=dataset, builder=adaptor.builder
            ),
            tuple(
              epath.Path(path) for path in builder.info.splits[old].filepaths
            ),
            adaptor.lacks,
          )
    return found

  def remedy(self, dataset: str, subset: str | None) -> str:
    """Returns what to do about a data set that is not there."""
    if (dataset, subset) in ADAPTORS:
      builds = ' and '.join(
        f'`tfds build {each.builder} --data_dir={self.data_dir}`'
        for each in ADAPTORS[dataset, subset]
      )
      return f'{builds} prepares it.'
    why = _WHY_NOT.get(
      dataset, 'tensorflow-datasets lacks it, or has it with other fields'
    )
    name = t0_datasets.set_name(dataset, subset)
    files = f'{name}/<split>.jsonl'
    if dataset == 'story_cloze':
      files += f' or {name}/cloze_test_{{val,test}}__spring2016.csv'
    return (
      f"It is not read from there: {why}. With records='jsonl', a folder of raw"
      f' records has it as {files}.'
    )


def read_tfds(
  folder: epath.Path, split: str, *, dataset: str, builder: str
) -> Iterator[Record]:
  """Yields the records of a prepared split, with Hugging Face's names.

  Args:
    folder: of one version of a builder.
    split: its name there.
    dataset: the data set's name on Hugging Face.
    builder: the builder's name in `ADAPTORS`.

  Raises:
    UserError: the records have not the builder's fields.
  """
  adaptor = next(
    each
    for (name, _), adaptors in ADAPTORS.items()
    for each in adaptors
    if name == dataset and each.builder == builder
  )
  examples = tfds.builder_from_directory(folder).as_dataset(
    split=split, shuffle_files=False
  )
  for row, example in enumerate(tfds.as_numpy(examples)):
    origin = f'{folder}, {split}, record {row}'
    try:
      fields = adaptor.adapt(_as_python(example))
    except KeyError as e:
      raise UserError(f'{origin}: there is no field {e}.') from None
    yield Record(origin, fields)


def newest_version(folder: epath.Path) -> epath.Path | None:
  """Returns the folder of a prepared builder's newest version, if any."""
  if not folder.is_dir():
    return None
  there = {
    tuple(int(part) for part in path.name.split('.')): path
    for path in folder.iterdir()
    if path.name.replace('.', '').isdigit()
    and (path / 'dataset_info.json').exists()
  }
  return there[max(there)] if there else None


def _as_python(value: Any) -> Any:
  """Returns a record of arrays and bytes as lists, numbers and texts."""
  if isinstance(value, Mapping):
    return {key: _as_python(each) for key, each in value.items()}
  if isinstance(value, bytes):
    return value.decode('utf-8')
  if isinstance(value, np.ndarray):
    return [_as_python(each) for each in value.tolist()]
  if isinstance(value, np.generic):
    return value.item()
  if hasattr(value, 'to_list'):  # a ragged tensor
    return [_as_python(each) for each in value.to_list()]
  return value
