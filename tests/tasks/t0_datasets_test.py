"""The tables of T0's data sets."""

import pytest

from mhr_jax.tasks import t0_datasets
from mhr_jax.tasks.t0_datasets import (
  BLOCKED,
  HELD_OUT_SETS,
  TRAINING_SETS,
  cap,
  find_training_set,
  task_name,
)


def test_there_are_38_sets_and_313_templates():
  assert len(TRAINING_SETS) == 38
  assert sum(each.n_templates for each in TRAINING_SETS) == 313
  assert len({each.name for each in TRAINING_SETS}) == 38
  assert len(BLOCKED) == 24


def test_numbers_of_templates_are_those_of_promptsource():
  # Counted in PromptSource's files, at 7dab96a3.
  n_templates = {
    each.name: each.n_templates for each in (*TRAINING_SETS, *HELD_OUT_SETS)
  }
  for name, n in (
    ('glue_qqp', 6),
    ('paws_labeled_final', 12),
    ('wiki_hop_original', 9),
    ('app_reviews', 4),
    ('trec', 18),
    ('super_glue_copa', 12),
    ('super_glue_wic', 10),
    ('anli_r3', 15),
    ('winogrande_winogrande_xl', 5),
    ('story_cloze_2016', 5),
    ('hellaswag', 4),
  ):
    assert n_templates[name] == n, name


def test_eleven_sets_are_held_out():
  assert len(HELD_OUT_SETS) == len({each.name for each in HELD_OUT_SETS}) == 11
  assert not {e.name for e in HELD_OUT_SETS} & {e.name for e in TRAINING_SETS}
  tests = {each.name: each.test_split for each in HELD_OUT_SETS}
  assert tests['story_cloze_2016'] == 'test'
  assert tests['anli_r3'] == 'test_r3'
  assert tests['super_glue_wsc.fixed'] == 'validation'
  assert sum(each.shots for each in HELD_OUT_SETS) == 32 * 5 + 150 + 50 + 90


@pytest.mark.parametrize(
  ('size', 'n', 'mttl', 't0'),
  (
    # glue/qqp: below 500,000, above what one of six templates may have.
    (363_846, 6, 83_333, 363_846),
    (3_600_000, 9, 55_555, 55_555),
    (3_668, 7, 3_668, 3_668),
    (500_000, 1, 500_000, 500_000),
  ),
)
def test_caps_follow_either_rule(size, n, mttl, t0):
  assert (cap(size, n, 'mttl'), cap(size, n, 't0')) == (mttl, t0)


def test_a_name_is_cleaned_as_t0_cleans_it():
  assert task_name('super_glue', 'copa', 'C1 or C2? premise, so/because…') == (
    'super_glue_copa_C1_or_C2_premise_so_because_'
  )
  assert task_name('cos_e', 'v1.11', 'a-b') == 'cos_e_v1.11_a_b'
  assert task_name('anli', None, 'must be true', '_r2') == (
    'anli_must_be_true_r2'
  )


@pytest.mark.parametrize(
  ('published', 'parts'),
  (
    ('glue_mrpc_generate_paraphrase', ('glue', 'mrpc', 'generate_paraphrase')),
    (
      'super_glue_wsc.fixed_the_pronoun_refers_to',
      ('super_glue', 'wsc.fixed', 'the pronoun refers to'),
    ),
    (
      'winogrande_winogrande_xl_does_underscore_refer_to',
      ('winogrande', 'winogrande_xl', 'does underscore refer to'),
    ),
    (
      'super_glue_wic_question_context_meaning_with_label',
      ('super_glue', 'wic', 'question-context-meaning-with-label'),
    ),
    (
      'super_glue_copa__What_could_happen_next_C1_or_C2_',
      ('super_glue', 'copa', '…What could happen next, C1 or C2?'),
    ),
    (
      'anli_guaranteed_possible_impossible_r1',
      ('anli', None, 'guaranteed/possible/impossible', '_r1'),
    ),
    ('anli_GPT_3_style_r3', ('anli', None, 'GPT-3 style', '_r3')),
    (
      'story_cloze_2016_Choose_Story_Ending',
      ('story_cloze', '2016', 'Choose Story Ending'),
    ),
    (
      'hellaswag_Predict_ending_with_hint',
      ('hellaswag', None, 'Predict ending with hint'),
    ),
  ),
)
def test_tasks_have_their_names_in_p3(published, parts):
  assert task_name(*parts) == published


def test_a_task_of_p3_is_found_by_its_name():
  def found(task):
    one = find_training_set(task)
    return one and one.name

  assert found('adversarial_qa_dbert_answer_the_following_q') == (
    'adversarial_qa_dbert'
  )
  assert found('cnn_dailymail_3.0.0_write_an_outline') == 'cnn_dailymail_3.0.0'
  assert found('glue_mrpc_equivalent') == 'glue_mrpc'
  assert found('super_glue_copa_best_option') is None
  assert found('glue_mrpc_equivalent_score_eval') is None
  assert found('gigaword_summarize_') is None
  assert 'gigaword_summarize_' in t0_datasets.BLOCKED
