"""Flags and whole commands, without what the commands import."""

import argparse
from collections.abc import Callable
from typing import Any

FORMATS = (
  'native',
  'peft-poly',
  'peft-lora',
  'peft-ia3',
  'hf (transformers)',
  't5x',
  'stablehlo',
  'run (for our trainer)',
)
_SETTINGS = {
  'n_tasks': 'in pre-training; default: 1',
  'rank': 'of a low-rank adapter; default: 1',
  'n_skills': 'adapters of an inventory; default: 8',
  'n_splits': 'of multi-head routing; default: 8',
}


def add_dry_run_flag(command: argparse.ArgumentParser) -> None:
  """Adds that of the commands which can say what they would do."""
  command.add_argument(
    '--dry_run', action='store_true', help='say what would happen, and stop'
  )


def add_conversion_commands(
  add: Callable[..., argparse.ArgumentParser], run: Callable[[Any], None]
) -> None:
  """Adds `convert` and `export`, which both call `run`."""
  convert = add(
    'convert',
    run,
    'write a run, a backbone or an adapter in another format',
    gin=False,
  )
  convert.add_argument('source', metavar='SOURCE', help='its format is found')
  convert.add_argument('target', metavar='TARGET', help='a new folder')
  convert.add_argument('--adapter', help='to put on the backbone at SOURCE')
  convert.add_argument(
    '--allow_pickle', action='store_true', help='read files that are pickles'
  )
  export = add('export', run, 'convert, for a run of ours', gin=False)
  export.add_argument('source', metavar='RUN')
  export.add_argument('target', metavar='TARGET', help='a new folder')
  for command, is_export in ((convert, False), (export, True)):
    command.set_defaults(is_export=is_export)
    command.add_argument('--format', required=True, help=', '.join(FORMATS))
    command.add_argument('--task', help="a name, an id, or 'average'")
    command.add_argument(
      '--step', type=int, help='of which checkpoint of a run; default: the last'
    )
    command.add_argument('--dtype', help='float32 or bfloat16, of a backbone')
    command.add_argument(
      '--vocabulary', help='a model file, a folder, or bytes'
    )
    command.add_argument(
      '--tasks', metavar='FILE', help='names for the tasks, one a line'
    )
    command.add_argument('--base_model', help="the backbone's name, for PEFT")
    command.add_argument(
      '--with_optimizer',
      action='store_true',
      help='t5x: its state too, to resume from; run has it anyway',
    )


def add_process_flags(command: argparse.ArgumentParser) -> None:
  """Adds those of the commands that several processes can share."""
  command.add_argument(
    '--distributed',
    nargs='?',
    const='',
    metavar='ADDRESS:PORT,COUNT,INDEX',
    help='one of several processes; TPU pods and Slurm need no more than that',
  )
  command.add_argument(
    '--heartbeat_seconds',
    type=int,
    default=100,
    metavar='N',
    help='end when another process has not been heard of so long; default: 100',
  )


def add_methods_flags(command: argparse.ArgumentParser) -> None:
  """Adds those of `mhr-jax methods`."""
  command.add_argument(
    '--model',
    action='append',
    default=[],
    metavar='NAME',
    help='such as t5_1_1_xl; repeatable; default: Large, XL and XXL',
  )
  for name, text in _SETTINGS.items():
    command.add_argument(f'--{name}', type=int, help=text)
  command.add_argument(
    '--targets',
    action='append',
    metavar='REGEX',
    help='linears to adapt; repeatable; default: all',
  )
  command.add_argument(
    '--format', choices=('table', 'markdown', 'json'), default='table'
  )


def add_plan_flags(command: argparse.ArgumentParser) -> None:
  """Adds those of `mhr-jax plan`."""
  command.add_argument(
    '--topology',
    required=True,
    metavar='CHIP:SHAPE',
    help='such as v5e:16x16, v4:4x4x8, v5p:4x4x4, h100:64, cpu:256',
  )
  command.add_argument(
    '--mesh',
    type=_mesh,
    action='append',
    default=[],
    metavar='DATAxMODEL',
    help='to try; repeatable; default: the two smallest that have room',
  )
  command.add_argument(
    '--batch',
    type=int,
    action='append',
    default=[],
    metavar='ROWS',
    help="of the global batch; repeatable; default: the configuration's",
  )
  command.add_argument(
    '--mix_in',
    action='append',
    default=[],
    choices=('front', 'layer'),
    help='where to mix adapters; repeatable; default: both',
  )
  command.add_argument(
    '--n_tasks',
    type=int,
    default=64,
    help='how many tasks there are, since no data is read; default: 64',
  )
  command.add_argument(
    '--shapes_only',
    action='store_true',
    help='what lies on a device and arithmetic alone; compiles nothing',
  )
  command.add_argument('--json', metavar='FILE', help='write the plan there')


def _mesh(text: str) -> tuple[int, int]:
  """Reads 'DATAxMODEL'."""
  data, _, model = text.partition('x')
  if not (data.isdecimal() and model.isdecimal()):
    raise argparse.ArgumentTypeError(f'{text} is not DATAxMODEL, such as 16x4')
  return int(data), int(model)


def given_settings(options: argparse.Namespace) -> dict[str, Any]:
  """Returns the fields of `AdapterConfig` that flags of ours say."""
  names = (*_SETTINGS, 'targets')
  given = {name: getattr(options, name) for name in names}
  said = {name: value for name, value in given.items() if value is not None}
  return {'n_tasks': 1} | said
