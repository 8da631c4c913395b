"""Official scores of Super-NaturalInstructions, by track, category and task.

As `compute_metrics.py` of allenai/natural-instructions has them: an instance
without a prediction counts as an empty one, and every number is a mean over
instances. What a published category is measured by is in `category_metric`.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import types
from typing import Any

from etils import epath
import numpy as np
from rouge_score import rouge_scorer

from mhr_jax import metrics
from mhr_jax.errors import UserError
from mhr_jax.metric_forms import best_over_references
from mhr_jax.scores import Prediction
from mhr_jax.tasks import ni_files
from mhr_jax.tasks.ni_files import Reference, Track

CATEGORY_METRICS: Mapping[str, str] = types.MappingProxyType(
  {
    'Answerability Classification': 'exact_match',
    'Cause Effect Classification': 'exact_match',
    'Coreference Resolution': 'exact_match',
    'Data to Text': 'rouge_l',
    'Dialogue Act Recognition': 'exact_match',
    'Grammar Error Correction': 'rouge_l',
    'Keyword Tagging': 'rouge_l',
    'Overlap Extraction': 'rouge_l',
    'Question Rewriting': 'rouge_l',
    'Textual Entailment': 'exact_match',
    'Title Generation': 'rouge_l',
    'Word Analogy': 'exact_match',
  }
)
"""How the 12 categories of English test tasks are reported: yizhongw/
Tk-Instruct, `src/compute_metrics.py`. All others: ROUGE-L."""

Tokenize = Callable[[str], Sequence[str]]


def category_metric(category: str | None) -> str:
  """Returns the metric that a category is reported by."""
  return CATEGORY_METRICS.get(category or '', 'rouge_l')


@dataclasses.dataclass(frozen=True)
class TrackScores:
  """Scores of one track, each from 0 to 100.

  Attributes:
    overall: `exact_match` and `rouge_l` over all instances, and `instances`.
    categories: as `overall`, by category, with `reported`: that of the two
      which the category is reported by.
    tasks: as `overall`, by task.
    missing: instances without a prediction, which counted as empty.
  """

  overall: Mapping[str, float]
  categories: Mapping[str, Mapping[str, float]]
  tasks: Mapping[str, Mapping[str, float]]
  missing: int


def official_scores(
  predictions: Sequence[Prediction],
  references: Mapping[str, Reference],
  *,
  track: Track = 'default',
  tokenize: Tokenize | None = None,
) -> TrackScores:
  """Scores predictions as the official evaluation does.

  Args:
    predictions: of `scores.read_predictions`; those of instances that are not
      in the references are left out.
    references: of `ni_files.read_references` or `make_references`.
    track: 'xlingual' scores its ROUGE-L by other tokens.
    tokenize: for 'xlingual' alone: GPT-2's byte-level tokens of a text, each
      without the mark of a leading space, such as
      `lambda text: [t.lstrip('Ġ') for t in gpt2.tokenize(text)]` with
      transformers' `gpt2 = AutoTokenizer.from_pretrained('gpt2')`.

  Raises:
    UserError: the track has no references, or needs a tokenizer.
  """
  if track == 'xlingual' and tokenize is None:
    raise UserError(
      "ROUGE-L of the track 'xlingual' is over GPT-2's tokens, which are not"
      ' part of this package: give tokenize, such as that of'
      " transformers.AutoTokenizer.from_pretrained('gpt2') (see"
      ' ni_scores.official_scores).'
    )
  wanted = {id_: one for id_, one in references.items() if one.track == track}
  if not wanted:
    tracks = sorted({one.track for one in references.values()})
    raise UserError(
      f'There are no references of the track {track!r}, only of'
      f' {", ".join(tracks) or "none"}.'
    )
  given = {one.example_id: one.prediction for one in predictions}
  texts = [given.get(id_, '').strip() for id_ in wanted]
  choices = [one.references for one in wanted.values()]
  values = {
    'exact_match': metrics.exact_match(texts, choices),
    'rouge_l': _rouge_l(texts, choices, tokenize),
  }
  categories = _grouped(values, [one.category for one in wanted.values()])
  for category, numbers in categories.items():
    numbers['reported'] = numbers[category_metric(category)]
  return TrackScores(
    overall=_grouped(values, [track] * len(wanted))[track],
    categories=categories,
    tasks=_grouped(values, [one.task for one in wanted.values()]),
    missing=sum(id_ not in given for id_ in wanted),
  )


def make_references(
  folder: epath.PathLike, track: Track = 'default'
) -> dict[str, Reference]:
  """Makes the references of a track from its test tasks' files.

  Raises:
    UserError: the folder has no lists of that track, or a file is malformed.
  """
  folder = ni_files.absolute(folder)
  found = {}
  for path in ni_files.list_tasks(folder, 'test', track):
    task = ni_files.read_task_file(path)
    for instance in task['Instances'][: ni_files.OFFICIAL_TEST]:
      found[instance['id']] = Reference(
        ni_files.references_of(instance),
        path.stem,
        ni_files.category_of(task),
        track,
        len(found) + 1,
      )
  return found


def _rouge_l(texts, choices, tokenize: Tokenize | None) -> np.ndarray:
  if tokenize is None:
    return metrics.rouge_l(texts, choices)
  tokenizer = types.SimpleNamespace(tokenize=tokenize)
  scorer = rouge_scorer.RougeScorer(['rougeL'], tokenizer=tokenizer)
  return best_over_references(
    texts,
    choices,
    lambda a, b: scorer.score(target=b, prediction=a)['rougeL'].fmeasure,
  )


def _grouped(
  values: Mapping[str, np.ndarray], groups: Sequence[str | None]
) -> dict[Any, dict[str, float]]:
  """Returns the means of each group; what has no group is left out."""
  members: dict[str, list[int]] = {}
  for index, group in enumerate(groups):
    if group is not None:
      members.setdefault(group, []).append(index)
  return {
    group: {'instances': len(rows)}
    | {name: float(of[rows].mean()) for name, of in values.items()}
    for group, rows in members.items()
  }
