"""The table of methods for people: what each is made of, and how many numbers.

`mhr-jax methods` prints it. Nothing is allocated: parameters are counted by
their abstract shapes (`methods.parameter_counts`), so XXL takes as long as
tiny.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import sys
from typing import Any, Literal, NamedTuple, get_args

from rich import console as rich_console

from mhr_jax import configuration, methods, printed_tables
from mhr_jax.adapters import AdapterConfig
from mhr_jax.analysis.report_tables import Table
from mhr_jax.methods import Method
from mhr_jax.model import RoutedT5
from mhr_jax.t5.config import T5Config, list_linears, t5_config

Format = Literal['table', 'markdown', 'json']
FORMATS: tuple[str, ...] = get_args(Format)
MODELS = ('t5_1_1_large', 't5_1_1_xl', 't5_1_1_xxl')
"""The models of the paper, which are counted when none is asked for."""
IA3_TARGETS = ('.*/(key|value|wi_1)',)
"""What (IA)³ scales by its authors' recipe (T-Few)."""

N_SPLITS = 8
"""Of the multi-head methods where nothing says it, as in methods/mhr.gin."""

_EVERYTHING = ('.*',)
_PIPE_WIDTH = 160
_KINDS = {'low_rank': 'low-rank', 'ia3': '(IA)³'}
_STARTS = {
  'as_is': 'the model as it is',
  'inventory': 'the inventory, new routing',
  'redrawn': 'an inventory drawn anew',
  'average': 'the average adapter',
  'soup': "the nearest tasks' average",
  'fresh': 'a fresh adapter',
}
_ZERO_SHOT = {
  None: '–',
  'as_is': 'the model as it is',
  'average': 'the average adapter',
  'average_after_training': 'the average, trained on',
  'soup': "the nearest tasks' average",
}


class Counts(NamedTuple):
  """Parameters of one method over one backbone.

  Attributes:
    adapters: of all training tasks together.
    routers: routing logits of all training tasks together.
    pretrain: how many train in pre-training.
    average: in training the averaged adapter; None where nobody does.
    adapt: in few-shot adaptation to one task.
  """

  adapters: int
  routers: int
  pretrain: int
  average: int | None
  adapt: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counted:
  """A row of the table.

  Attributes:
    method: of the table of methods.
    config: of its adapters in pre-training; None without adapters.
    counts: by the backbone's name.
  """

  method: Method
  config: AdapterConfig | None
  counts: Mapping[str, Counts]


def count_methods(
  models: Mapping[str, T5Config], base: AdapterConfig
) -> list[Counted]:
  """Counts the parameters of every method.

  Args:
    models: backbones by name.
    base: what the methods share; its `n_tasks` are the training tasks. Where
      its targets are all linears, (IA)³ has `IA3_TARGETS`.

  Raises:
    UserError: a target matches no linear, or the splits do not divide one.
  """
  rows = []
  for method in methods.METHODS.values():
    of_method = base
    if method.adapter == 'ia3' and base.targets == _EVERYTHING:
      of_method = dataclasses.replace(base, targets=IA3_TARGETS)
    counts = {
      name: _count(method, backbone, of_method)
      for name, backbone in models.items()
    }
    config = methods.adapter_config(method, of_method)
    rows.append(Counted(method=method, config=config, counts=counts))
  return rows


def _count(method: Method, backbone: T5Config, base: AdapterConfig) -> Counts:
  def count(phase: methods.Phase, n_tasks: int) -> dict[str, int]:
    found = methods.parameter_counts(
      method, list_linears(backbone), base, phase=phase, n_tasks=n_tasks
    )
    if 'backbone' in methods.trained_labels(method, phase):
      found['trainable'] += RoutedT5(backbone).count_parameters()['backbone']
    return found

  before = count('pretrain', base.n_tasks)
  return Counts(
    adapters=before['adapters'],
    routers=before['routers'],
    pretrain=before['trainable'],
    average=count('average', 1)['trainable'] if method.trains_average else None,
    adapt=count('adapt', 1)['trainable'],
  )


def to_tables(rows: Sequence[Counted], n_tasks: int) -> list[Table]:
  """Returns what methods are made of, and a table of counts a model."""
  words = Table(
    title='Methods',
    header=(
      'method',
      'adapters of a linear',
      'routing',
      'pre-training trains',
      'a new task starts from',
      'and trains',
      'unseen tasks, zero-shot',
    ),
    rows=[_words(row) for row in rows],
    note=f'Linears: {_targets(rows)}.',
  )
  tasks = '1 task' if n_tasks == 1 else f'{n_tasks:,} tasks'
  numbers = [
    Table(
      title=f'Parameters beside {model}',
      header=(
        'method',
        'adapters',
        f'routers, {tasks}',
        'pre-training trains',
        'averaging trains',
        'a new task trains',
      ),
      rows=[_numbers(row.method.name, row.counts[model]) for row in rows],
    )
    for model in rows[0].counts
  ]
  return [words, *numbers]


def _targets(rows: Sequence[Counted]) -> str:
  """Says which linears each kind of adapter has."""
  found = {
    _KINDS[row.config.kind]: ', '.join(row.config.targets)
    for row in rows
    if row.config is not None
  }
  return '; '.join(f'{kind} {targets}' for kind, targets in found.items())


def _words(row: Counted) -> list[str]:
  method = row.method
  before = ', '.join(method.pretrain_trains)
  if method.shares_pretraining:
    unused = ', not used' if method.adapt_from == 'redrawn' else ''
    before = f'(that of {method.pretrain_as}{unused})'
  return [
    method.name,
    _inventory(row),
    _routing(row),
    before,
    _STARTS[method.adapt_from],
    ', '.join(method.adapt_trains),
    _ZERO_SHOT[method.zero_shot],
  ]


def _inventory(row: Counted) -> str:
  config = row.config
  if config is None:
    return '–'
  kind = _KINDS[config.kind]
  if config.kind == 'low_rank':
    kind += f', rank {config.rank}'
  number = {'single': '1', 'per_task': '1 a task'}.get(row.method.inventory)
  return f'{number or config.n_skills} × {kind}'


def _routing(row: Counted) -> str:
  config, routing = row.config, row.method.routing
  if config is None or routing == 'none':
    return '–'
  if routing == 'private':
    return 'its own'
  splits = f'{config.n_splits} splits' if config.n_splits > 1 else '1 split'
  return f'{routing}, {splits}'


def _numbers(name: str, counts: Counts) -> list[str]:
  return [name, *('–' if n is None else f'{n:,}' for n in counts)]


def to_json(rows: Sequence[Counted]) -> list[dict[str, Any]]:
  """Returns the rows with all that the table of methods says of them."""
  return [
    {
      **dataclasses.asdict(row.method),
      'config': row.config and dataclasses.asdict(row.config),
      'parameters': {
        model: counts._asdict() for model, counts in row.counts.items()
      },
    }
    for row in rows
  ]


def print_methods(
  models: Mapping[str, T5Config], base: AdapterConfig, format: Format
) -> None:
  """Prints the table of methods; see `count_methods`."""
  rows = count_methods(models, base)
  if format == 'json':
    print(json.dumps(to_json(rows), indent=2, ensure_ascii=False))
    return
  tables = to_tables(rows, base.n_tasks)
  # Of the first table all columns are texts.
  lefts = [len(tables[0].header), *[1] * (len(tables) - 1)]
  shown = list(zip(tables, lefts, strict=True))
  if format == 'markdown':
    print('\n'.join(printed_tables.to_markdown(x, left=n) for x, n in shown))
    return
  width = None if sys.stdout.isatty() else _PIPE_WIDTH
  console = rich_console.Console(width=width)
  for table, left in shown:
    console.print(printed_tables.to_rich(table, left=left))


def choose_settings(
  models: Sequence[str],
  given: Mapping[str, Any],
  configured: configuration.Configuration | None,
) -> tuple[dict[str, T5Config], AdapterConfig]:
  """Returns what is counted: names and settings before gin before defaults.

  Args:
    models: names of published models; gin's by default, or `MODELS`.
    given: fields of `AdapterConfig`, with `n_tasks`.
    configured: gin's files and bindings, if any.

  Raises:
    UserError: there is no such model, or a setting is not possible.
  """
  if configured is None:
    found = {name: t5_config(name) for name in models or MODELS}
    settings: dict[str, Any] = {'n_splits': N_SPLITS, **given}
    return found, AdapterConfig(**settings)
  base = configured.call(AdapterConfig, **given)
  if models or not configured.bound((t5_config,)):
    return {name: t5_config(name) for name in models or MODELS}, base
  name = configured.resolve(t5_config).to_dict()['config.t5_config.name']
  return {name.strip("'"): configured.call(t5_config)}, base
