"""A plan as tables for people and as JSON."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import jax
from rich import console as rich_console

from mhr_jax import printed_tables
from mhr_jax.analysis.report_tables import Table
from mhr_jax.plan import Result, choose_best
from mhr_jax.plan_collectives import KINDS, Collective
from mhr_jax.plan_devices import Target
from mhr_jax.plan_program import Setup

_GIB = 2**30
_PIPE_WIDTH = 160
_FITS = {True: 'yes', False: 'no', None: '?'}
_OPTIMISATION = "Compiled at XLA's level O1; a run's own program may need less."


def to_tables(
  setup: Setup, target: Target, results: Sequence[Result]
) -> list[Table]:
  """Returns what a plan found: memory, collectives, time."""
  exact = _OPTIMISATION if target.is_exact else ''
  tables = [_memory_table(target, results, note=exact)]
  if any(each.program.is_compiled for each in results):
    tables.append(_collective_table(results))
  return [*tables, _time_table(setup, target, results)]


def _way(result: Result) -> tuple[str, str, str]:
  candidate = result.candidate
  mesh = f'{candidate.data}×{candidate.model}'
  return mesh, str(candidate.batch), candidate.mix_in


_WAY = ('data×model', 'batch', 'mix in')


def _memory_table(
  target: Target, results: Sequence[Result], note: str
) -> Table:
  kinds = list(results[0].program.arguments) if results else []
  memory = target.topology.chip.memory
  of = f' of {memory / _GIB:.0f}' if memory else ''
  rows = []
  for each in results:
    program = each.program
    rough = '' if target.is_exact else '~'
    rows.append(
      (
        *_way(each),
        _FITS[each.fits],
        *(_gib(program.arguments[kind]) for kind in kinds),
        _gib(program.temporaries, rough),
        _gib(program.total, rough),
      )
    )
  return Table(
    title=f'GiB a device{of}',
    header=(*_WAY, 'fits', *kinds, 'temporaries', 'all'),
    rows=rows,
    note=note,
  )


def _gib(size: int | None, rough: str = '') -> str:
  return '?' if size is None else f'{rough}{size / _GIB:.2f}'


def sum_collectives(
  collectives: Sequence[Collective],
) -> dict[str, tuple[int, float]]:
  """Returns how many run in a step and the bytes a device sends, by kind."""
  sums = {}
  for kind in KINDS:
    found = [each for each in collectives if each.kind == kind]
    sums[kind] = (
      sum(each.times for each in found),
      sum(each.sent_bytes for each in found),
    )
  return sums


def _collective_table(results: Sequence[Result]) -> Table:
  rows = []
  for each in results:
    sums = sum_collectives(each.program.collectives)
    cells = [
      f'{count} · {_gib(int(size))}' if count else '–'
      for count, size in sums.values()
    ]
    sent = sum(size for _, size in sums.values())
    unknown = each.program.refused or not each.program.is_compiled
    rows.append(
      (*_way(each), *(['?'] * 6 if unknown else [*cells, _gib(int(sent))]))
    )
  return Table(
    title='Collectives of a step: how many · GiB that a device sends',
    header=(*_WAY, *KINDS, 'all'),
    rows=rows,
    note='Those in a loop over layers count once a turn.',
  )


def _time_table(
  setup: Setup, target: Target, results: Sequence[Result]
) -> Table:
  rows = []
  for each in results:
    times = (each.compute_seconds, each.memory_seconds, each.network_seconds)
    known = bool(target.topology.chip.flops)
    ran = known and each.program.is_compiled and not each.program.refused
    times = (*times, each.step_seconds)
    sure = (known, known, ran, ran)
    rows.append(
      (
        *_way(each),
        f'{each.flops.total / 1e12:,.1f}',
        f'{each.flops.again / each.flops.total:.0%}',
        *(
          f'{1e3 * t:.1f}' if is_sure else '?'
          for t, is_sure in zip(times, sure, strict=True)
        ),
        f'{each.tokens_per_second:,.0f}' if ran else '?',
      )
    )
  lengths = f'{setup.mixture.input_length} + {setup.mixture.target_length}'
  return Table(
    title=f'A step of {lengths} tokens a row: ms at least',
    header=(
      *_WAY,
      'TFLOP',
      'done again',
      'arithmetic',
      'memory',
      'network',
      'bound',
      'tokens/s',
    ),
    rows=rows,
    note=(
      'The bound is the longest of the three, each at the peak of its chip:'
      ' weights and state read once a pass, collectives at all links.'
      ' Measured steps take longer.'
    ),
  )


def best_line(results: Sequence[Result]) -> str:
  """Says which candidate is best of those tried."""
  best = choose_best(results)
  if best is None:
    return 'None of those tried fits: more devices along model, or more chips.'
  sure = {True: '', None: ', as far as can be told', False: ''}[best.fits]
  return f'Best of {len(results)} tried{sure}: {best.candidate}.'


def print_plan(
  setup: Setup, target: Target, results: Sequence[Result], summary: str
) -> None:
  """Prints a plan."""
  console = rich_console.Console()
  if not console.is_terminal:
    console = rich_console.Console(width=_PIPE_WIDTH)

  def say(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)

  say(summary)
  for table in to_tables(setup, target, results):
    say('')
    console.print(printed_tables.to_rich(table, left=3))
  for note in dict.fromkeys(n for each in results for n in each.program.notes):
    say(note)
  say(best_line(results))
  if note := _say_unknown(target, results):
    say(note)


def _say_unknown(target: Target, results: Sequence[Result]) -> str:
  """Says what the plan cannot tell; '' where it tells everything."""
  if any(each.program.is_compiled for each in results):
    return target.note
  return (
    'Nothing was compiled: temporaries, collectives and so whether a step fits'
    ' are not known.'
  )


def summary_line(setup: Setup, target: Target, n_tasks: int) -> str:
  """Says in a line what is planned."""
  config = setup.backbone
  counts = {
    label: sum(x.size for x in jax.tree.leaves(tree))
    for label, tree in setup.params.items()
  }
  parts = ', '.join(f'{count:,} of {label}' for label, count in counts.items())
  return (
    f'{setup.method.name} on {target.topology} ({target.topology.size}'
    f' devices), {n_tasks} tasks: {parts}; {config.dtype}, remat'
    f' {config.remat}, {setup.optimizer.name}'
  )


def to_json(
  setup: Setup, target: Target, results: Sequence[Result], summary: str
) -> dict[str, Any]:
  """Returns a plan as plain values; sizes in bytes, times in seconds."""
  best = choose_best(results)
  return {
    'summary': summary,
    'topology': str(target.topology),
    'compiled_for': target.devices[0].device_kind,
    'exact': target.is_exact,
    'note': _say_unknown(target, results),
    'trains': list(setup.trains),
    'best': None if best is None else dataclasses.asdict(best.candidate),
    'candidates': [_result_json(each) for each in results],
  }


def _result_json(result: Result) -> Mapping[str, Any]:
  program = result.program
  is_known = program.is_compiled and not program.refused
  sums = sum_collectives(program.collectives)
  return {
    **dataclasses.asdict(result.candidate),
    'fits': result.fits,
    'bytes': {**program.arguments, 'temporaries': program.temporaries},
    'collectives': {
      kind: {'count': count, 'sent_bytes': int(size)}
      for kind, (count, size) in sums.items()
    }
    if is_known
    else None,
    'flops': dataclasses.asdict(result.flops),
    'seconds': {
      'arithmetic': result.compute_seconds,
      'memory': result.memory_seconds,
      'network': result.network_seconds if is_known else None,
      'bound': result.step_seconds if is_known else None,
    },
    'tokens': result.tokens,
    'compile_seconds': round(program.seconds, 1),
    'notes': list(program.notes),
  }
