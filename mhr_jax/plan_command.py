"""`mhr-jax plan`: from gin files and flags to a printed plan."""

from collections.abc import Sequence
import json
import pathlib
import sys
from typing import Protocol

from mhr_jax import plan as planning
from mhr_jax import plan_devices, plan_report, train
from mhr_jax.configuration import Configuration
from mhr_jax.errors import UserError
from mhr_jax.model import MixIn
from mhr_jax.plan_chips import parse_topology


class PlanOptions(Protocol):
  """The flags of `mhr-jax plan` (`command_flags.add_plan_flags`)."""

  topology: str
  mesh: Sequence[tuple[int, int]]
  batch: Sequence[int]
  mix_in: Sequence[MixIn]
  n_tasks: int
  shapes_only: bool
  json: str | None


def plan(configuration: Configuration, options: PlanOptions) -> None:
  """Plans the training run of a configuration and prints what it takes.

  Of what `mhr-jax train` reads only the model, the method, the batch and the
  optimizer are needed: no task, no run folder, no backbone.

  Raises:
    UserError: the configuration is of no training run, or a flag is wrong.
  """
  if options.n_tasks < 1:
    raise UserError(f'--n_tasks={options.n_tasks}: at least 1.')
  topology = parse_topology(options.topology)
  setup, mix_in = configuration.lend(train.train, planning.build_setup).call(
    planning.build_setup,
    n_tasks=options.n_tasks,
  )
  target = plan_devices.open_target(topology)
  candidates = planning.choose_candidates(
    setup,
    target,
    meshes=planning.check_meshes(options.mesh, target),
    batches=options.batch,
    mix_in=options.mix_in or (mix_in,),
  )
  results = list(
    planning.try_candidates(
      setup,
      target,
      candidates,
      _say_progress,
      shapes_only=options.shapes_only,
    )
  )
  summary = plan_report.summary_line(setup, target, options.n_tasks)
  plan_report.print_plan(setup, target, results, summary)
  if options.json:
    found = plan_report.to_json(setup, target, results, summary)
    text = json.dumps(found, indent=1)
    pathlib.Path(options.json).write_text(f'{text}\n')


def _say_progress(line: str) -> None:
  print(line, file=sys.stderr, flush=True)
