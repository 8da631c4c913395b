"""The report's figures of numbers along training, from `metrics.jsonl`."""

from collections.abc import Callable, Iterator, Sequence

from mhr_jax.analysis import figures, gradients, report_tables, run_reading
from mhr_jax.analysis import routing_statistics as statistics

Runs = Sequence[run_reading.RunFacts]
Panels = dict[str, list[figures.Curve]]

_FIRST = ('loss', 'exact_match', 'rouge_l', 'learning_rate', 'grad_norm')
# Written for programs: they follow from other numbers, or say nothing here.
_LEFT_OUT = ('examples', 'tokens', 'seconds_left', 'seconds_per_step')
# These have figures of their own.
_OTHER_PARTS = (gradients.PART, statistics.PART)
_MAX_PANELS = 6

_ALL = 'all parameters'
# Of a backbone: a handful of parameters each.
_SMALL_GROUPS = ('layer_norm', 'relpos_bias')
_STATISTICS = {
  'entropy': 'entropy of the weights',
  'evenness': 'evenness of use',
  'discreteness': 'indecision of the gates',
  'active': 'share of gates that are on',
}


def curve_figures(runs: Runs) -> list[figures.Figure]:
  """One figure of the runs over a frozen backbone, one of the others."""
  routed = [run for run in runs if not run.trains_backbone]
  others = [run for run in runs if run.trains_backbone]
  drawn = []
  for index, of in enumerate((routed, others)):
    panels = _learning_panels(of)
    if panels:
      title = f'Learning curves: {", ".join(_groups(of))}'
      drawn.append(
        figures.draw_curves(panels, title=title, name=f'curves{index}')
      )
  return drawn


def _groups(runs: Runs) -> list[str]:
  return list(dict.fromkeys(run.group for run in runs))


def _series(
  run: run_reading.RunFacts, wanted: Callable[[str], bool]
) -> Iterator[tuple[str, list[float], list[float]]]:
  """Yields (name, steps, values) of the numbers whose name is wanted."""
  points: dict[str, list[tuple[float, float]]] = {}
  for line in run.metrics:
    for name, value in line.items():
      number = isinstance(value, (int, float)) and not isinstance(value, bool)
      if '/' in name and number and wanted(name):
        points.setdefault(name, []).append((line['step'], value))
  for name, pairs in points.items():
    pairs.sort()
    yield name, [step for step, _ in pairs], [value for _, value in pairs]


def _learning_panels(runs: Runs) -> Panels:
  """Curves by name of the number: 'train/loss' is part 'train' of 'loss'."""
  found: Panels = {}
  for run in runs:
    for name, steps, values in _series(run, lambda name: name.count('/') == 1):
      part, _, number = name.partition('/')
      if part not in _OTHER_PARTS:
        found.setdefault(number, []).append(
          figures.Curve(steps, values, group=run.group, part=part)
        )
  if _same_curves(found.get('nll'), found.get('loss')):
    del found['nll']  # No smoothing and no z-loss.
  shown = [number for number in found if number not in _LEFT_OUT]
  order = sorted(shown, key=lambda n: (_rank(n), n))[:_MAX_PANELS]
  return {report_tables.to_words(number): found[number] for number in order}


def _same_curves(some, others) -> bool:
  if not some or not others:
    return False
  trained = [curve.values for curve in others if curve.part == 'train']
  return [curve.values for curve in some] == trained


def _rank(number: str) -> int:
  return _FIRST.index(number) if number in _FIRST else len(_FIRST)


def alignment_figures(runs: Runs) -> list[figures.Figure]:
  """Returns the gradients' alignment along training, by group of layers."""
  found: Panels = {}
  for run in runs:
    for name, steps, values in _series(run, _is_alignment):
      _, kind, *group = name.split('/')
      title = '/'.join(group) or _ALL
      title = title if len(group) != 1 or '/' in title else f'all {title}'
      found.setdefault(title, []).append(
        figures.Curve(steps, values, group=run.group, part=kind)
      )
  if not found:
    return []
  # Everything first, a and b last, layers in between.
  order = sorted(
    figures.encoder_first(found),
    key=lambda title: (title != _ALL, '/' not in title),
  )
  return [
    figures.draw_curves(
      {title: found[title] for title in order},
      title='Gradient alignment between tasks',
      name='alignment',
      ylabel='mean cosine',
      caption='Mean over pairs of training tasks of the cosine of their'
      ' gradients, routing as in evaluation. inventories: with respect to what'
      ' the tasks share; effective: to each task’s own mixed pair (a, b);'
      f' backbone: where there are no adapters. 0 is orthogonal, 1 the same'
      f' direction.{_zero_gradients(runs)}',
    )
  ]


def _is_alignment(name: str) -> bool:
  part, kind, *group = name.split('/')
  counts = kind in (gradients.ZERO, 'tasks')
  small = bool(group) and group[-1].endswith(_SMALL_GROUPS)
  return part == gradients.PART and not counts and not small


def _zero_gradients(runs: Runs) -> str:
  """Says how many tasks had no gradient, where some had none."""
  name = f'{gradients.PART}/{gradients.ZERO}'
  most = max(line.get(name) or 0 for run in runs for line in run.metrics)
  if not most:
    return ''
  return f' Up to {most:.0f} tasks had a gradient of 0 and are left out.'


def _decoder_last(series: tuple[str, list[float], list[float]]) -> bool:
  return series[0].endswith('/decoder')


def routing_curves(runs: Runs) -> list[figures.Figure]:
  """Returns what the routers do along training, by stack."""
  found: Panels = {}
  for run in runs:
    named = list(_series(run, lambda n: n.startswith(f'{statistics.PART}/')))
    stacked = any(name.count('/') == 2 for name, _, _ in named)
    for name, steps, values in sorted(named, key=_decoder_last):
      _, number, *stack = name.split('/')
      if number in _STATISTICS and bool(stack) == stacked:
        found.setdefault(_STATISTICS[number], []).append(
          figures.Curve(
            steps, values, group=run.group, part=stack[0] if stack else 'all'
          )
        )
  if not found:
    return []
  order = [title for title in _STATISTICS.values() if title in found]
  return [
    figures.draw_curves(
      {title: found[title] for title in order},
      title='Routing along training',
      name='statistics',
      caption='All between 0 and 1. Entropy of a task’s weights over the'
      ' skills: 1 is indifference, 0 one skill. Evenness: entropy of the use of'
      ' all skills by all tasks; 1 is alike, 0 one skill for everything.'
      ' Indecision: mean Bernoulli entropy of the gates; 1 undecided, 0 on or'
      ' off. On: a gate of at least 1/2.',
    )
  ]
