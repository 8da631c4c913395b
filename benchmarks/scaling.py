"""What a training step costs as tasks, splits and skills grow.

    python -m benchmarks.scaling --json scaling.json
    python -m benchmarks.scaling --rank=16

At rank 1 whole steps are compared. At larger ranks the optimizer's update,
which grows with the inventory by necessity, is measured apart, beside the
least number of bytes it moves over the memory's bandwidth.
"""

from collections.abc import Mapping, Sequence

from benchmarks import bandwidth, machine, options, ours, results, rounds
from benchmarks.goals import Goal, judge
from benchmarks.setting import Setting
from benchmarks.sides import Side

# AdamW reads a parameter, its gradient and two moments, and writes three.
_BYTES_A_PARAMETER = 7 * 4
_MEMORY = 'memory'
_AXES = {
  'n_tasks': (8, 1024, 1.05),
  'n_splits': (1, 64, 1.07),
  'n_skills': (8, 64, 1.10),
}


def make_settings(base: Setting) -> dict[str, Setting]:
  """Returns the settings that are compared, by name; equal ones once."""
  found: dict[Setting, str] = {}
  for axis, (low, high, _) in _AXES.items():
    for value in (low, high):
      setting = base.varied(**{axis: value})
      found.setdefault(setting, _name(axis, value))
  return {name: setting for setting, name in found.items()}


def _name(axis: str, value: int) -> str:
  return f'{value} {axis.removeprefix("n_")}'


def make_sides(
  settings: Mapping[str, Setting], works: Sequence[str]
) -> list[Side]:
  """Returns a side for each setting; each draws its weights.

  Args:
    settings: by name.
    works: of `ours.train_step`.
  """
  return [
    Side(
      name,
      'benchmarks.ours:train_step',
      {'setting': setting.as_json(), 'method': 'mhr', 'works': list(works)},
    )
    for name, setting in settings.items()
  ]


def list_goals(
  base: Setting, names: Mapping[str, Setting], works: Sequence[str]
) -> list[Goal]:
  """Returns a goal for each axis and work; the update has none.

  Args:
    base: what the axes vary.
    names: of `make_settings`.
    works: that were measured.
  """
  by_setting = {setting: name for name, setting in names.items()}
  found = []
  for axis, (low, high, bound) in _AXES.items():
    few, many = (
      by_setting[base.varied(**{axis: value})] for value in (low, high)
    )
    for work in works:
      goal = None if work == ours.UPDATE else bound
      found.append(Goal(f'{many}: {work}', f'{few}: {work}', goal))
  return found


def print_updates(found: rounds.Comparison) -> dict[str, dict[str, float]]:
  """Prints and returns what the updates take, and the least they could."""
  copy = found.works[f'{_MEMORY}: {bandwidth.COPY}'].time.median
  speed = found.facts[_MEMORY]['bytes'] / copy
  rows, numbers = [], {}
  for name, facts in found.facts.items():
    key = f'{name}: {ours.UPDATE}'
    if key not in found.works:
      continue
    trained = {k: v for k, v in facts['parameters'].items() if k != 'backbone'}
    count = sum(trained.values())
    least = count * _BYTES_A_PARAMETER / speed
    taken = found.works[key].time.median
    numbers[name] = {'parameters': count, 'least_seconds': least}
    rows.append(
      (
        name,
        f'{count / 1e6:.1f} M',
        results.seconds(taken),
        results.seconds(least),
        f'{taken / least:.2f}',
      )
    )
  results.print_table(
    f"the optimizer's update, at {speed / 1e9:.1f} GB/s",
    ('side', 'parameters', 'median', 'bytes over bandwidth', 'ratio'),
    rows,
  )
  return numbers


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the benchmark."""
  made = options.parser(__doc__, rounds=8, times=1)
  options.add_setting(made, rank=1)
  flags = made.parse_args(argv)
  base, where = options.read_setting(flags), machine.describe()
  apart = base.rank > 1
  works = [ours.GRADIENTS, ours.UPDATE] if apart else [ours.STEP]
  settings = make_settings(base)
  sides = make_sides(settings, works)
  if apart:
    sides.append(Side(_MEMORY, 'benchmarks.bandwidth:build', {}))
  found = rounds.measure(
    sides, rounds=flags.rounds, times=flags.times, seconds=flags.seconds
  )
  outcomes = judge(found, list_goals(base, settings, works))
  results.print_works(found, f'{base.model}, rank {base.rank}')
  updates = print_updates(found) if apart else {}
  results.print_outcomes(outcomes)
  results.write_json(
    flags.json,
    {
      'benchmark': 'scaling',
      'machine': where,
      'setting': base.as_json(),
      'flags': vars(flags),
      'updates': updates,
      **results.comparison_json(found, outcomes),
    },
  )


if __name__ == '__main__':
  options.run(main)
