"""How long to train, what trains, and when to look and save."""

from collections.abc import Callable
import dataclasses
import functools

import jax

from mhr_jax import routing
from mhr_jax.errors import UserError
from mhr_jax.metric_writers import Writer, check_names
from mhr_jax.setting_checks import check_fields
from mhr_jax.train_state import LossNormalisation, check_normalisation


@dataclasses.dataclass(frozen=True)
class TrainSettings:
  """The settings of a training run, but for the optimizer's.

  Attributes:
    steps: in all; also where the learning-rate schedule ends.
    seed: of dropout and routing noise.
    trains: labels of the subtrees that train; the others are frozen.
    accumulation: micro-batches a step.
    anneal_steps: in the last so many steps the mixing weights go from what the
      tasks learned to uniform (`routing.uniform_share`), so that the average
      adapter is trained too; 0 for none. Evaluation routes as ever: the
      annealed model is `adapter='average'`. In `train.train` for methods with
      routers only: `private`, `lora` and `full` train as if it were 0.
    label_smoothing: share of the loss spread over the vocabulary.
    z_loss: weight of the squared log-partition.
    loss_normalisation: what the summed loss of a batch is divided by before
      its gradients are taken: its target tokens, or its examples (the loss of
      the paper's code on SuperNI; gradients and clipping then grow with the
      targets' length). Losses are logged a token either way.
    log_every: steps between calls of `on_log`.
    eval_every: steps between evaluations, one more at the end; 0 for none.
    save_every: steps between checkpoints, one more at the end.
    keep: how many of the last checkpoints to keep.
    keep_every: keep also the checkpoints of steps this divides, for good.
    writers: who gets a run's numbers beside its metrics.jsonl: 'tensorboard',
      'wandb'.

  Raises:
    UserError: a number is out of range.
  """

  steps: int
  seed: int = 0
  trains: tuple[str, ...] = ('adapters', 'routers')
  accumulation: int = 1
  anneal_steps: int = 0
  label_smoothing: float = 0.0
  z_loss: float = 0.0
  loss_normalisation: LossNormalisation = 'tokens'
  log_every: int = 50
  eval_every: int = 0
  save_every: int = 1000
  keep: int = 3
  keep_every: int | None = None
  writers: tuple[Writer, ...] = ('tensorboard',)

  def __post_init__(self):
    object.__setattr__(self, 'trains', tuple(self.trains))
    counts = ('steps', 'accumulation', 'log_every', 'save_every', 'keep')
    check_fields(
      self,
      least=dict.fromkeys((*counts, 'keep_every'), 1),
      below={'label_smoothing': 1},
    )
    if not 0 <= self.anneal_steps <= self.steps:
      raise UserError(
        f'anneal_steps is {self.anneal_steps}; from 0 to all {self.steps} steps.'
      )
    check_normalisation(self.loss_normalisation)
    object.__setattr__(self, 'writers', check_names(self.writers))
    if not self.trains:
      raise UserError('Nothing trains: `trains` is empty.')

  @property
  def uniform_share(self) -> Callable[[jax.Array], jax.Array] | None:
    """How much of the mixing weights is uniform, of the steps done before."""
    if not self.anneal_steps:
      return None
    return functools.partial(
      routing.uniform_share, steps=self.steps, anneal_steps=self.anneal_steps
    )

  def is_due(self, done: int, every: int) -> bool:
    """Whether something done every so many steps, and at the end, is due."""
    return every > 0 and (done % every == 0 or done == self.steps)
