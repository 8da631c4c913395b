"""T5X's partitioner for routed models: our axes, and meshes on any platform."""

from collections.abc import Sequence
import functools

from absl import logging
import jax
from t5x import adafactor
from t5x import partitioning as t5x_partitioning

from mhr_jax import partitioning

_OUR_AXES = ('task', 'split', 'skill', 'rank')


def logical_axis_rules(
  activation_partitioning_dims: int = 1,
  parameter_partitioning_dims: int = 1,
  additional_rules: Sequence[tuple[str, str | None]] = (),
):
  """Returns T5X's standard rules, with those of adapters and routers.

  Args:
    activation_partitioning_dims: 1 or 2, as T5X.
    parameter_partitioning_dims: 1 or 2, as T5X.
    additional_rules: more rules, which count before ours.
  """
  ours = [(axis, None) for axis in _OUR_AXES]
  return t5x_partitioning.standard_logical_axis_rules(
    activation_partitioning_dims=activation_partitioning_dims,
    parameter_partitioning_dims=parameter_partitioning_dims,
    additional_rules=[*additional_rules, *ours],
  )


def logical_factor_rules():
  """Returns T5X's factor rules for Adafactor, with those of our axes.

  An inventory's pair of each layer, split and skill is factored by itself over
  its features and its rank; routing logits over tasks and skills, for each
  layer and split.
  """
  dim = adafactor.FactorDim
  return adafactor.standard_logical_factor_rules().copy(
    {
      'task': dim.ROW,
      'split': dim.BATCH,
      'skill': dim.COLUMN,
      'rank': dim.COLUMN,
    }
  )


class Partitioner(t5x_partitioning.PjitPartitioner):
  """T5X's partitioner; on CPUs it too has `num_partitions` along `model`.

  T5X's own puts all CPU devices of a process along `model`, whatever
  `num_partitions` says.
  """

  @functools.cached_property
  def mesh(self) -> jax.sharding.Mesh:
    """The mesh of axes `data` and `model`."""
    platform = jax.devices(self._backend)[0].platform
    if platform != 'cpu' or self._model_parallel_submesh:
      return super().mesh
    mesh = partitioning.make_mesh(
      -1, self._num_partitions or 1, devices=jax.devices(self._backend)
    )
    logging.info('mesh: %s', dict(mesh.shape))
    return mesh
