"""Every number of every settings class is refused where it cannot be."""

import dataclasses
import math
from typing import Literal

import numpy as np
import pytest

from mhr_jax import choice_losses, ranking, side_by_side, train_settings
from mhr_jax.adaptation import AdaptationSettings
from mhr_jax.adapter_soup import SoupSettings
from mhr_jax.adapters import AdapterConfig
from mhr_jax.analysis.gradients import AlignmentSettings
from mhr_jax.analysis.routing_statistics import RoutingStatisticsSettings
from mhr_jax.data.mixture_settings import MixtureSettings
from mhr_jax.errors import UserError
from mhr_jax.evaluation import EvaluationSettings
from mhr_jax.few_shot import FewShotSettings
from mhr_jax.jobs import HeldBackSettings
from mhr_jax.optim import OptimizerSettings, PerLabel
from mhr_jax.setting_checks import check_count, check_fields
from mhr_jax.t5.config import T5Config
from mhr_jax.t5.decoding import DecodingSettings
import toy_text

_WIDTHS = {'input_length': 8, 'target_length': 8}
# Each with what it needs, and the fields that may be negative.
_SETTINGS = (
  (AdaptationSettings, {}, ()),
  (AdapterConfig, {'n_tasks': 2}, ()),
  (AlignmentSettings, {}, ()),
  (DecodingSettings, {'max_new_tokens': 4}, ('length_exponent',)),
  (EvaluationSettings, {'decoding': DecodingSettings(4)}, ()),
  (FewShotSettings, _WIDTHS, ()),
  (HeldBackSettings, {}, ()),
  (MixtureSettings, {'batch_size': 4, **_WIDTHS}, ()),
  (OptimizerSettings, {}, ('decay_rate',)),
  (PerLabel, {'backbone': 1.0, 'adapters': 1.0, 'routers': 1.0}, ()),
  (RoutingStatisticsSettings, {}, ()),
  (SoupSettings, {}, ()),
  (T5Config, dataclasses.asdict(toy_text.CONFIG), ()),
  (choice_losses.ChoiceLoss, {}, ()),
  (ranking.ChoiceSettings, {}, ()),
  (side_by_side.LossSettings, {}, ()),
  (train_settings.TrainSettings, {'steps': 9}, ()),
)


def _numbers():
  for cls, given, signed in _SETTINGS:
    for field in dataclasses.fields(cls):
      if field.type in (int, float, int | None, float | None):
        for value in (-1, math.nan, math.inf, 'x', True):
          if not (value == -1 and field.name in signed and value is not True):
            yield cls, given, field, value


def test_no_number_of_settings_is_negative_infinite_or_no_number():
  seen = 0
  for cls, given, field, value in _numbers():
    name = f'{cls.__name__}.{field.name} is '
    with pytest.raises(UserError, match=name):
      cls(**{**given, field.name: value})
    seen += 1
  assert seen > 250


@dataclasses.dataclass(frozen=True)
class _Toy:
  count: int = 1
  share: float | None = 0.5
  kind: Literal['a', 'b'] = 'a'
  flag: bool = False
  names: tuple[str, ...] = ()
  pairs: tuple[tuple[int, int], ...] = ()
  other: object = None

  def __post_init__(self):
    check_fields(
      self, least={'count': 1}, most={'share': 1}, above={'pairs': 2}
    )


@pytest.mark.parametrize(
  'given, message',
  [
    ({'count': 0}, '_Toy.count is 0; at least 1.'),
    ({'count': 1.0}, '_Toy.count is 1.0; a whole number is wanted.'),
    ({'count': None}, '_Toy.count is None; a whole number is wanted.'),
    ({'share': 2}, '_Toy.share is 2; at most 1.'),
    ({'share': math.nan}, '_Toy.share is nan; a finite number is wanted.'),
    ({'kind': 'c'}, "_Toy.kind is 'c'; one of 'a', 'b' is wanted."),
    ({'kind': ['a']}, "_Toy.kind is ['a']; one of 'a', 'b' is wanted."),
    ({'flag': 1}, '_Toy.flag is 1; True or False is wanted.'),
    ({'names': 'abc'}, "_Toy.names is 'abc'; a list is wanted."),
    ({'names': ('a', 2)}, "_Toy.names is ('a', 2); of 2: a text is wanted."),
    (
      {'pairs': ((3, 2),)},
      '_Toy.pairs is ((3, 2),); of (3, 2): of 2: above 2.',
    ),
  ],
)
def test_the_message_names_class_field_value_and_what_is_wanted(given, message):
  with pytest.raises(UserError) as caught:
    _Toy(**given)
  assert str(caught.value) == message


def test_what_fits_passes():
  _Toy(np.int64(3), np.float32(0.25), 'b', True, ('a',), ((3, 4),), object())
  assert _Toy(share=None).share is None


def test_arguments_are_checked_by_the_name_that_is_given():
  check_count('limit', None)
  check_count('limit', 3)
  with pytest.raises(UserError, match='limit is 0; at least 1'):
    check_count('limit', 0)
  with pytest.raises(UserError, match='a finite number is wanted'):
    check_count('limit', 10**400)
