"""How long to train, what trains, and when to look and save."""

import dataclasses

from mhr_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class TrainSettings:
  """The settings of a training run, but for the optimizer's.

  Attributes:
    steps: in all; also where the learning-rate schedule ends.
    seed: of dropout and routing noise.
    trains: labels of the subtrees that train; the others are frozen.
    accumulation: micro-batches a step.
    label_smoothing: share of the loss spread over the vocabulary.
    z_loss: weight of the squared log-partition.
    log_every: steps between calls of `on_log`.
    eval_every: steps between evaluations, one more at the end; 0 for none.
    save_every: steps between checkpoints, one more at the end.
    keep: how many of the last checkpoints to keep.
    keep_every: keep also the checkpoints of steps this divides, for good.

  Raises:
    UserError: a number is out of range.
  """

  steps: int
  seed: int = 0
  trains: tuple[str, ...] = ('adapters', 'routers')
  accumulation: int = 1
  label_smoothing: float = 0.0
  z_loss: float = 0.0
  log_every: int = 50
  eval_every: int = 0
  save_every: int = 1000
  keep: int = 3
  keep_every: int | None = None

  def __post_init__(self):
    object.__setattr__(self, 'trains', tuple(self.trains))
    for name in ('steps', 'accumulation', 'log_every', 'save_every', 'keep'):
      if getattr(self, name) < 1:
        raise UserError(f'{name} is {getattr(self, name)}; at least 1.')
    if not self.trains:
      raise UserError('Nothing trains: `trains` is empty.')

  def is_due(self, done: int, every: int) -> bool:
    """Whether something done every so many steps, and at the end, is due."""
    return every > 0 and (done % every == 0 or done == self.steps)
