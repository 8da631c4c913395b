"""Facts about T0's data sets: which there are, how large, what is held out.

Names are those of Hugging Face and of PromptSource's folders. From the table
`datasets.csv` of T0 (bigscience-workshop/t-zero 7a699e3b, `t0/datasets.csv`;
the copy in microsoft/mttl, branch mhr_camera_ready, has the same rows): the 38
sets marked BASE under `do_train` with their sizes, and those marked BASE under
`do_eval`. Numbers of templates: counted in PromptSource at 7dab96a3; less the
blocked ones they are 313. Blocked templates, names of tasks and caps: T0's
`t0/seqio_tasks/tasks.py` and `utils.py`, and mttl's
`mttl/dataloader/t0_dataset_readers.py`. What is held out, its splits and how
many few-shot examples there are: the same file of mttl, and the folders of
r-three/t-few 114deced, `data/few_shot`. Of ANLI these have 50, while mttl asks
for 32, finds no such file and draws its own.
"""

from collections.abc import Sequence
import dataclasses
from typing import Literal, TypeVar

from mhr_jax.errors import UserError, nearest
from mhr_jax.tasks.promptsource import clean

# Of a data set, over all of its templates.
MAX_EXAMPLES = 500_000
# Of each template, for validation (mttl's t0_data_module.py).
VALIDATION_EXAMPLES = 100

CapRule = Literal['mttl', 't0']


@dataclasses.dataclass(frozen=True)
class TrainingSet:
  """A data set of the multi-task training.

  Attributes:
    dataset: its name.
    subset: the name of its configuration, if it has one.
    n_templates: how many templates PromptSource has for it.
    train_size: examples of its training split.
  """

  dataset: str
  subset: str | None
  n_templates: int
  train_size: int

  @property
  def name(self) -> str:
    """Data set and subset as one word."""
    return set_name(self.dataset, self.subset)


@dataclasses.dataclass(frozen=True)
class HeldOutSet:
  """A data set that T0 is tested on, and its few-shot protocol.

  Attributes:
    dataset: its name.
    subset: the name of its configuration, if it has one.
    train_split: where few-shot examples are drawn from.
    test_split: what is scored.
    n_templates: how many of PromptSource's templates are for its task.
    used_templates: how many of these are used, in the order of their names.
    shots: few-shot examples of T-Few's draws.
    labels: what its field `label_field` may hold; nothing else is a label.
    label_field: what its templates take the right answer from.
    t_few: its name in T-Few.
    suffix: of the names of its tasks and split files; ANLI's round.
  """

  dataset: str
  subset: str | None
  train_split: str
  test_split: str
  n_templates: int
  shots: int
  t_few: str
  labels: tuple[int | str, ...]
  label_field: str = 'label'
  suffix: str = ''
  used_templates: int | None = None

  @property
  def name(self) -> str:
    """Data set, subset and round as one word."""
    return set_name(self.dataset, self.subset) + self.suffix


TRAINING_SETS: tuple[TrainingSet, ...] = (
  TrainingSet('glue', 'mrpc', 7, 3_668),
  TrainingSet('glue', 'qqp', 6, 363_846),
  TrainingSet('paws', 'labeled_final', 12, 49_401),
  TrainingSet('kilt_tasks', 'hotpotqa', 5, 88_869),
  TrainingSet('wiki_qa', None, 11, 20_360),
  TrainingSet('adversarial_qa', 'dbidaf', 5, 10_000),
  TrainingSet('adversarial_qa', 'dbert', 5, 10_000),
  TrainingSet('adversarial_qa', 'droberta', 5, 10_000),
  TrainingSet('duorc', 'SelfRC', 9, 60_721),
  TrainingSet('duorc', 'ParaphraseRC', 9, 69_524),
  TrainingSet('ropes', None, 12, 10_924),
  TrainingSet('quoref', None, 11, 19_399),
  TrainingSet('cos_e', 'v1.11', 11, 9_741),
  TrainingSet('cosmos_qa', None, 13, 25_262),
  TrainingSet('dream', None, 5, 6_116),
  TrainingSet('qasc', None, 8, 8_134),
  TrainingSet('quail', None, 13, 10_246),
  TrainingSet('quarel', None, 5, 1_941),
  TrainingSet('quartz', None, 8, 2_696),
  TrainingSet('sciq', None, 5, 11_679),
  TrainingSet('social_i_qa', None, 6, 33_410),
  TrainingSet('wiki_hop', 'original', 9, 43_738),
  TrainingSet('wiqa', None, 8, 29_808),
  TrainingSet('amazon_polarity', None, 9, 3_600_000),
  TrainingSet('app_reviews', None, 4, 288_065),
  TrainingSet('imdb', None, 11, 25_000),
  TrainingSet('rotten_tomatoes', None, 10, 8_530),
  TrainingSet('yelp_review_full', None, 7, 650_000),
  TrainingSet('common_gen', None, 9, 67_389),
  TrainingSet('wiki_bio', None, 5, 582_659),
  TrainingSet('cnn_dailymail', '3.0.0', 9, 287_113),
  TrainingSet('gigaword', None, 9, 3_803_957),
  TrainingSet('multi_news', None, 6, 44_972),
  TrainingSet('samsum', None, 7, 14_732),
  TrainingSet('xsum', None, 10, 204_045),
  TrainingSet('ag_news', None, 7, 120_000),
  TrainingSet('dbpedia_14', None, 4, 560_000),
  TrainingSet('trec', None, 18, 5_452),
)

HELD_OUT_SETS: tuple[HeldOutSet, ...] = (
  HeldOutSet('super_glue', 'rte', 'train', 'validation', 10, 32, 'rte', (0, 1)),
  HeldOutSet(
    'super_glue', 'cb', 'train', 'validation', 15, 32, 'cb', (0, 1, 2)
  ),
  *(
    HeldOutSet(
      'anli',
      None,
      f'train_r{i}',
      f'test_r{i}',
      15,
      50,
      f'anli-r{i}',
      (0, 1, 2),
      suffix=f'_r{i}',
    )
    for i in (1, 2, 3)
  ),
  HeldOutSet(
    'super_glue', 'wsc.fixed', 'train', 'validation', 10, 32, 'wsc', (0, 1)
  ),
  HeldOutSet(
    'winogrande',
    'winogrande_xl',
    'train',
    'validation',
    5,
    50,
    'winogrande',
    ('1', '2'),
    label_field='answer',
  ),
  HeldOutSet(
    'super_glue',
    'copa',
    'train',
    'validation',
    12,
    32,
    'copa',
    (0, 1),
    used_templates=8,
  ),
  HeldOutSet(
    'story_cloze',
    '2016',
    'validation',
    'test',
    5,
    70,
    'storycloze',
    (1, 2),
    label_field='answer_right_ending',
  ),
  # Texts on Hugging Face, numbers in T-Few's draws and tensorflow-datasets;
  # the templates take either.
  HeldOutSet(
    'hellaswag',
    None,
    'train',
    'validation',
    4,
    20,
    'h-swag',
    (0, 1, 2, 3, '0', '1', '2', '3'),
  ),
  HeldOutSet('super_glue', 'wic', 'train', 'validation', 10, 32, 'wic', (0, 1)),
)

# Tasks whose inputs are mostly longer than 1,024 tokens; the last, whose
# published file is broken. None of them is a task of the 38 sets today.
BLOCKED: frozenset[str] = frozenset(
  {
    'ecthr_cases_alleged_violation_prediction_silver_rationales',
    'gigaword_summarize_',
    'narrativeqa_Template_05',
    'wiki_hop_masked_Choose_Best_Object_Candidate',
    'wiki_hop_masked_Indirect_Question_about_Birthplace_Citizenship_Place_of_'
    'Death',
  }
  | {f'tab_fact_tab_fact_tab_fact_{i}' for i in range(1, 8)}
  | {
    f'hotpot_qa_{subset}_Generate_{what}'
    for subset in ('distractor', 'fullwiki')
    for what in (
      'Answer',
      'Answer_and_Explanations',
      'Explanations',
      'Question',
      'Title_1',
      'Title_2',
    )
  }
)


def set_name(dataset: str, subset: str | None) -> str:
  """Returns data set and subset as one word."""
  return f'{dataset}_{subset}' if subset else dataset


def task_name(
  dataset: str, subset: str | None, template: str, suffix: str = ''
) -> str:
  """Returns the name that T0 and P3 give to a task.

  >>> task_name('anli', None, 'must be true', '_r1')
  'anli_must_be_true_r1'
  """
  return clean(f'{set_name(dataset, subset)}_{template}') + suffix


def cap(train_size: int, n_templates: int, rule: CapRule) -> int:
  """Returns how many examples of a data set each template has at most.

  Args:
    train_size: examples of the data set's training split.
    n_templates: how many templates it has.
    rule: 'mttl' caps where the size is above the share of a template, 't0'
      only where it is above what a whole data set may have.
  """
  share = MAX_EXAMPLES // n_templates
  limit = share if rule == 'mttl' else MAX_EXAMPLES
  return share if train_size > limit else train_size


_Set = TypeVar('_Set', TrainingSet, HeldOutSet)


def choose_training_sets(names: Sequence[str] | None) -> list[TrainingSet]:
  """Returns the training sets of these names, or all; see `_choose`."""
  return _choose('training', TRAINING_SETS, names)


def choose_held_out_sets(names: Sequence[str] | None) -> list[HeldOutSet]:
  """Returns the held-out sets of these names, or all; see `_choose`."""
  return _choose('held-out', HELD_OUT_SETS, names)


def _choose(
  kind: str, sets: Sequence[_Set], names: Sequence[str] | None
) -> list[_Set]:
  """Returns the sets of these names, in their order, or all.

  Raises:
    UserError: there is none of a name.
  """
  known = {each.name: each for each in sets}
  for name in names or ():
    if name not in known:
      raise UserError(
        f'T0 has no {kind} data set {name!r}.{nearest(name, known)}'
      )
  return list(sets) if names is None else [known[name] for name in names]


def find_training_set(task: str) -> TrainingSet | None:
  """Returns the training set that a task of P3 is of, by its name.

  Blocked tasks, and P3's tasks for scoring (`…_score_eval`), are of none.
  """
  if task in BLOCKED or task.endswith('_score_eval'):
    return None
  found = [
    each for each in TRAINING_SETS if task.startswith(clean(each.name) + '_')
  ]
  return max(found, key=lambda each: len(each.name), default=None)
