"""Examples a second: what the input pipeline makes, what a step consumes.

    python -m benchmarks.input --json input.json
    python -m benchmarks.input --data_dir=data_cache --tasks=skills_train_id

Batches come from array_record files through the loader and its reading ahead,
at random places of all tasks; by default from tasks of random tokens that are
written first. `anew` keeps no token in memory, so that every example is read
from its file.
"""

from collections.abc import Sequence
import pathlib
import tempfile
from typing import Any

from benchmarks import machine, options, ours, pipelines, results, rounds
from benchmarks.goals import Goal, Outcome
from benchmarks.prepared import write_tasks
from benchmarks.setting import Setting
from benchmarks.sides import Side
from benchmarks.summaries import compare
from mhr_jax.errors import UserError

_GOAL = 10.0
_STEP = 'training'


def make_sides(
  setting: Setting,
  sources: dict[str, tuple[str, str | list[str]]],
  batches: int,
) -> list[Side]:
  """Returns the training side and two pipelines for each source.

  Args:
    setting: of the step; its batch is what pipelines make.
    sources: the folder and the tasks, by name.
    batches: of a pipeline's run.
  """
  mixture: dict[str, Any] = {
    'batch_size': setting.batch_size,
    'input_length': setting.input_length,
    'target_length': setting.target_length,
  }
  step = {'setting': setting.as_json(), 'method': 'mhr', 'works': [ours.STEP]}
  found = [Side(_STEP, 'benchmarks.ours:train_step', step)]
  for name, (folder, tasks) in sources.items():
    for suffix, extra in (('', {}), (', anew', {'cache_bytes': 0})):
      arguments = {
        'data_dir': folder,
        'tasks': tasks,
        'settings': mixture | extra,
        'batches': batches,
      }
      target = 'benchmarks.pipelines:build'
      found.append(Side(name + suffix, target, arguments))
  return found


def judge(found: rounds.Comparison, batch_size: int) -> list[Outcome]:
  """Returns each pipeline's examples a second over those of training."""
  step = f'{_STEP}: {ours.STEP}'
  outcomes = []
  for name, facts in found.facts.items():
    if name == _STEP:
      continue
    key = f'{name}: {pipelines.BATCHES}'
    ratio = compare(
      [[s / batch_size for s in done] for done in found.works[step].seconds],
      [
        [s / facts['examples'] for s in done]
        for done in found.works[key].seconds
      ],
    )
    goal = Goal(key, step, _GOAL, of='examples a second', at_least=True)
    outcomes.append(Outcome(goal, ratio, ratio.of_medians >= _GOAL))
  return outcomes


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the benchmark."""
  made = options.parser(__doc__, rounds=6, times=1)
  options.add_setting(made)
  made.add_argument(
    '--counts', type=options.positive, nargs='+', default=[46, 313, 1024]
  )
  made.add_argument('--examples', type=options.positive, default=64)
  made.add_argument('--batches', type=options.positive, default=300)
  made.add_argument('--data_dir', help='prepared data, with --tasks')
  made.add_argument('--tasks', nargs='+', help='a mixture, or tasks')
  flags = made.parse_args(argv)
  setting, where = options.read_setting(flags), machine.describe()
  with tempfile.TemporaryDirectory() as folder:
    found = rounds.measure(
      make_sides(setting, _sources(flags, setting, folder), flags.batches),
      rounds=flags.rounds,
      times=flags.times,
      seconds=flags.seconds,
      warm_up=1,
    )
  outcomes = judge(found, setting.batch_size)
  results.print_works(
    found, f'{setting.model}, batches of {setting.batch_size}'
  )
  _print_rates(found, setting.batch_size)
  results.print_outcomes(outcomes)
  results.write_json(
    flags.json,
    {
      'benchmark': 'input',
      'machine': where,
      'setting': setting.as_json(),
      'flags': vars(flags),
      **results.comparison_json(found, outcomes),
    },
  )


def _sources(
  flags: Any, setting: Setting, folder: str
) -> dict[str, tuple[str, str | list[str]]]:
  """Returns what is read: what the flags name, or tasks that it writes."""
  if bool(flags.data_dir) != bool(flags.tasks):
    raise UserError('--data_dir and --tasks go together: name both, or none.')
  if flags.data_dir:
    tasks = flags.tasks[0] if len(flags.tasks) == 1 else flags.tasks
    return {' '.join(flags.tasks): (flags.data_dir, tasks)}
  names = write_tasks(
    pathlib.Path(folder),
    max(flags.counts),
    flags.examples,
    input_length=setting.input_length,
    target_length=setting.target_length,
  )
  return {f'{n} tasks': (folder, names[:n]) for n in flags.counts}


def _print_rates(found: rounds.Comparison, batch_size: int) -> None:
  rows = []
  for key, measured in found.works.items():
    facts = found.facts[key.partition(': ')[0]]
    examples = facts.get('examples', batch_size)
    rows.append((key, f'{examples / measured.time.median:,.0f}'))
  results.print_table('examples a second', ('work', 'median'), rows)


if __name__ == '__main__':
  options.run(main)
