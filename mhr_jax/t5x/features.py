"""seqio's encoder-decoder features, with the task of every example."""

from collections.abc import Mapping

import seqio
import tensorflow as tf

from mhr_jax.errors import UserError

TASK_IDS = 'task_ids'


class RoutedFeatureConverter(seqio.EncDecFeatureConverter):
  """Converts inputs, targets and `task_ids`, a feature of length 1.

  The batch has T5X's features and `task_ids` [batch, 1]. Packing would put
  examples of several tasks in one row, so it is refused.
  """

  TASK_FEATURES = {
    **seqio.EncDecFeatureConverter.TASK_FEATURES,
    TASK_IDS: seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
  }
  MODEL_FEATURES = {
    **seqio.EncDecFeatureConverter.MODEL_FEATURES,
    TASK_IDS: seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
  }

  def __init__(self, pack: bool = False, **settings):
    if pack:
      raise UserError(
        'A routed model needs one task a row, and packing mixes tasks: set'
        ' DatasetConfig.pack = False.'
      )
    super().__init__(pack=pack, **settings)

  def _convert_example(
    self, features: Mapping[str, tf.Tensor]
  ) -> Mapping[str, tf.Tensor]:
    converted = super()._convert_example(features)
    return {**converted, TASK_IDS: features[TASK_IDS]}

  def get_model_feature_lengths(
    self, task_feature_lengths: Mapping[str, int]
  ) -> Mapping[str, int]:
    """Returns the length of every feature of the batch."""
    lengths = super().get_model_feature_lengths(task_feature_lengths)
    return {**lengths, TASK_IDS: 1}
