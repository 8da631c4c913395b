"""tensorflow-datasets: the names of builders and fields, and a prepared one."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from mhr_jax.data import registry, sources
from mhr_jax.errors import UserError
from mhr_jax.tasks import (
  promptsource,
  t0,
  t0_datasets,
  t0_raw,
  t0_tfds,
  t0_training,
)
from tests import toy_t0

# What PromptSource's templates of some sets read (at 7dab96a3): those whose
# fields have other names in tensorflow-datasets, and some that have not.
_READ = {
  ('anli', None): {'premise', 'hypothesis', 'label'},
  ('winogrande', 'winogrande_xl'): {'sentence', 'option1', 'option2', 'answer'},
  ('hellaswag', None): {'ctx', 'ctx_a', 'ctx_b', 'endings', 'label'},
  ('super_glue', 'wsc.fixed'): {'text', 'span1_text', 'span2_text', 'label'},
  ('super_glue', 'copa'): {'premise', 'choice1', 'choice2', 'question'},
  ('ag_news', None): {'text', 'label'},
  ('qasc', None): {'choices', 'answerKey', 'combinedfact', 'question'},
  ('cos_e', 'v1.11'): {'abstractive_explanation', 'choices', 'answer'},
  ('wiki_bio', None): {'input_text', 'target_text'},
  ('common_gen', None): {'concepts', 'target'},
}


def test_all_sets_are_sets_of_t0():
  known = {
    (each.dataset, each.subset)
    for each in (*t0_datasets.TRAINING_SETS, *t0_datasets.HELD_OUT_SETS)
  }
  assert set(t0_tfds.ADAPTORS) <= known


def test_builders_declare_the_fields_that_are_adapted(tmp_path):
  for (dataset, subset), adaptors in t0_tfds.ADAPTORS.items():
    for adaptor in adaptors:
      features = tfds.builder(adaptor.builder, data_dir=tmp_path).info.features
      record = {
        key: 0 if 'int' in str(feature.dtype) else key
        for key, feature in features.items()
      }
      fields = adaptor.adapt(record)
      lacking = _READ.get((dataset, subset), set()) - fields.keys()
      assert lacking == set(adaptor.lacks), adaptor.builder
      for new, old in adaptor.renamed.items():
        assert fields[new] == old and old not in fields


def test_values_are_those_of_hugging_face():
  (winogrande,) = t0_tfds.ADAPTORS['winogrande', 'winogrande_xl']
  assert winogrande.adapt({'label': 1})['answer'] == '2'
  assert winogrande.adapt({'label': -1})['answer'] == ''
  (ag_news,) = t0_tfds.ADAPTORS['ag_news', None]
  made = ag_news.adapt({'title': 'A', 'description': 'b', 'label': 3})
  assert made['text'] == 'A b'


def _write_builder(folder, records):
  """Prepares a builder of COPA's name and features."""
  version = folder / 'super_glue/copa/1.0.2'
  version.mkdir(parents=True)
  text = tfds.features.Text()
  features = tfds.features.FeaturesDict(
    {
      **dict.fromkeys(('premise', 'choice1', 'choice2', 'question'), text),
      'label': tfds.features.ClassLabel(num_classes=2),
      'idx': tfds.features.Scalar(dtype=np.int32),
    }
  )
  identity = tfds.core.dataset_info.DatasetIdentity(
    name='super_glue',
    config_name='copa',
    version=tfds.core.Version('1.0.2'),
    data_dir=str(version),
    module_name='',
  )
  info = tfds.core.DatasetInfo(builder=identity, features=features)
  writer = tfds.core.SequentialWriter(info, max_examples_per_shard=4)
  writer.initialize_splits(['train', 'validation'])
  writer.add_examples({'validation': records, 'train': records[:1]})
  writer.close_all()


def test_a_prepared_builder_gives_what_json_lines_give(tmp_path):
  raw = toy_t0.write_copa(tmp_path / 'raw')
  _write_builder(tmp_path / 'tfds', [toy_t0.copa_record(i) for i in range(6)])
  templates = tmp_path / 'templates/super_glue/copa/templates.yaml'
  templates.parent.mkdir(parents=True)
  templates.write_text((raw / 'templates.yaml').read_text())
  t0.register(tmp_path / 'raw', vocabulary='bytes', name='lines')
  mixtures = t0.register(
    tmp_path / 'tfds',
    vocabulary='bytes',
    name='tfds',
    records='tfds',
    templates=tmp_path / 'templates',
  )
  assert mixtures['tfds_heldout'] == (
    'tfds_super_glue_copa_a_plain',
    'tfds_super_glue_copa_b_best',
  )

  made = toy_t0.load_task('tfds_super_glue_copa_b_best')
  assert made == toy_t0.load_task('lines_super_glue_copa_b_best')
  files = sources.source_files(registry.get_task(mixtures['tfds_heldout'][0]))
  assert len(files) == 2
  assert set(registry.get_task('tfds_super_glue_copa').splits) == {
    'train',
    'test_one_template',
  }


def test_a_folder_without_a_prepared_builder_is_an_error(tmp_path):
  (tmp_path / 'super_glue/copa/incomplete.1').mkdir(parents=True)
  with pytest.raises(UserError, match='none of the held-out data sets'):
    t0.register(tmp_path, vocabulary='bytes', records='tfds')


@pytest.mark.parametrize(
  ('register', 'name', 'message'),
  (
    (t0.register, 'story_cloze_2016', r'joins .*cloze_test_\{val,test\}__spr'),
    (t0.register, 'super_glue_copa', 'tfds build super_glue/copa --data_dir='),
    (t0_training.register, 'trec', 'labels otherwise.*trec/<split>.jsonl'),
    (t0_training.register, 'ropes', 'lacks it.*ropes/<split>.jsonl'),
  ),
)
def test_what_is_not_read_from_there_is_said(tmp_path, register, name, message):
  with pytest.raises(UserError, match=message):
    register(tmp_path, vocabulary='bytes', records='tfds', datasets=[name])


def test_templates_that_hellaswag_has_no_fields_for_are_counted(caplog):
  (adaptor,) = t0_tfds.ADAPTORS['hellaswag', None]
  split = t0_raw.RawSplit(lambda: iter(()), (), adaptor.lacks)
  templates = [
    promptsource.Template(name, jinja, None, 'original')
    for name, jinja in (
      ('whole', '{{ctx}} ||| {{label}}'),
      ('parts', '{{ctx_a.lower()}}, {{ctx_b}} ||| {{label}}'),
    )
  ]
  usable = t0_raw.usable_templates(templates, split, 'hellaswag')
  assert [one.name for one in usable] == ['whole']
  assert '1 of 2 templates are left out' in caplog.text
  assert "'parts' reads ctx_a, ctx_b" in caplog.text
