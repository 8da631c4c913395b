"""The command line: `mhr-jax train --gin_file=… --gin.NAME=…`, and the rest.

gin's flags are spelled as T5X spells them. What a person can mend ends with
exit code 2 and a short message; everything else is a bug and has a traceback.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
import logging
import os
import pathlib
import shlex
import sys
from typing import Any, NoReturn

from mhr_jax import command_examples, command_flags
from mhr_jax.errors import UserError, shorten
from mhr_jax.setting_checks import check_count

_TASKS_FILE = 'runs/tasks.gin'
_EXAMPLES = """\
three commands to begin with:
  mhr-jax study --gin_file=presets/quickstart.gin
  mhr-jax show runs/multi_task.gin
  mhr-jax train --gin_file=models/t5_1_1_small.gin --gin_file=methods/mhr.gin \\
    --gin_file=presets/natural_instructions.gin --gin.RUN_DIR='"runs/ni"' --dry_run
"""


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command; returns the exit code."""
  argv = list(sys.argv[1:] if argv is None else argv)
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  _keep_compiled_programs()
  # Orbax warns at every restore of what we store on purpose, and logs the
  # traceback of what it then raises.
  logging.getLogger('absl').setLevel(logging.CRITICAL)
  try:
    rest, bindings = split_bindings(argv)
    options = build_parser().parse_args(rest)
    options.bindings = bindings
    options.command_line = shlex.join(['mhr-jax', *argv])
    options.run(options)
  except UserError as error:
    print(f'mhr-jax: {shorten(str(error))}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('mhr-jax: interrupted.', file=sys.stderr)
    return 130
  except BrokenPipeError:  # `mhr-jax tasks | head`
    sys.stderr.close()
  except OSError as error:
    named = f'{error.filename}: ' if error.filename else ''
    said = str(error.strerror or error).partition('\n')[0]
    print(f'mhr-jax: {named}{said}.', file=sys.stderr)
    return 2
  return 0


def _keep_compiled_programs() -> None:
  """Lets jax keep compiled programs, so that only a first run waits for them.

  $JAX_COMPILATION_CACHE_DIR says where; an empty one keeps nothing.
  """
  name = 'JAX_COMPILATION_CACHE_DIR'
  folder = pathlib.Path('~/.cache/mhr_jax/compiled').expanduser()
  os.environ.setdefault(name, str(folder))
  if 'jax' in sys.modules:  # It has read the environment already.
    sys.modules['jax'].config.update(name.lower(), os.environ[name] or None)


def split_bindings(argv: Sequence[str]) -> tuple[list[str], list[str]]:
  """Takes the `--gin.NAME=value` flags out, as `NAME = value` statements.

  >>> split_bindings(['train', '--gin.SEED=3', '--dry_run'])
  (['train', '--dry_run'], ['SEED = 3'])

  Raises:
    UserError: a binding has no value.
  """
  rest, bindings = [], []
  for argument in argv:
    if not argument.startswith('--gin.'):
      rest.append(argument)
      continue
    name, equals, value = argument.removeprefix('--gin.').partition('=')
    if not equals or not value.strip():
      raise UserError(f'{argument}: a binding is --gin.NAME=value.')
    bindings.append(f'{name} = {value}')
  return rest, bindings


class _Parser(argparse.ArgumentParser):
  """Raises `UserError` for a mistake, so that it is reported like all others."""

  def error(self, message: str) -> NoReturn:
    raise UserError(f'{message}. `{self.prog} --help` lists what there is.')


def build_parser() -> argparse.ArgumentParser:
  """Returns the parser of the whole program."""
  parser = _Parser(
    prog='mhr-jax',
    description='Multi-Head Adapter Routing for JAX.',
    epilog=_EXAMPLES,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  commands = parser.add_subparsers(
    metavar='COMMAND', required=True, parser_class=_Parser
  )

  def add(name: str, run: Callable[[Any], None], text: str, *, gin: bool):
    command = commands.add_parser(
      name,
      help=text,
      description=text,
      epilog=command_examples.examples_of(name),
      formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run)
    if gin:
      _add_gin_flags(command)
    return command

  _add_data_commands(add)
  _add_run_commands(add)
  command_flags.add_conversion_commands(add, _run_conversion)
  return parser


def _add_gin_flags(command: argparse.ArgumentParser) -> None:
  group = command.add_argument_group(
    'configuration', 'also --gin.NAME=value, such as --gin.RUN_DIR=\'"runs/a"\''
  )
  group.add_argument(
    '--gin_file', action='append', default=[], metavar='FILE', help='repeatable'
  )
  group.add_argument(
    '--gin_search_paths',
    default='',
    metavar='A,B',
    help='folders to search first',
  )
  group.add_argument(
    '--safe_config',
    action='store_true',
    help='gin files may name settings of mhr_jax alone (docs/safety.md)',
  )


def _add_data_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
  tasks = add('tasks', _run_tasks, 'list tasks, or show examples', gin=True)
  tasks.add_argument('--show', metavar='TASK', help='print examples of a task')
  tasks.add_argument('--split', default='train', help='of the task to show')
  tasks.add_argument('--n', type=int, default=3, help='how many to show')
  prepare = add(
    'prepare', _run_prepare, 'tokenise tasks once and store them', gin=True
  )
  prepare.add_argument('names', nargs='*', help='tasks and mixtures')
  prepare.add_argument(
    '--remake',
    choices=('stale', 'all'),
    default='stale',
    help='make again what is stale, or everything',
  )
  for command in (tasks, prepare):
    command.add_argument('--data_dir', help='the folder of prepared data')
    command.add_argument(
      '--module',
      action='append',
      default=[],
      help='registers tasks, such as mhr_jax.tasks.skills; repeatable',
    )


def _add_run_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
  train = add('train', _run_train, 'train on many tasks; resumes', gin=True)
  train.add_argument(
    '--allow_config_change',
    action='store_true',
    help='resume although settings differ',
  )
  train.add_argument(
    '--resume_from',
    type=int,
    metavar='STEP',
    help='of an older checkpoint, where the last one is damaged; 0: anew',
  )
  adapt = add(
    'adapt', _run_adapt, 'adapt a run to new tasks (few-shot)', gin=True
  )
  evaluate = add('evaluate', _run_evaluate, 'score a run on tasks', gin=True)
  for command in (train, adapt, evaluate):
    command_flags.add_dry_run_flag(command)
  for command in (train, evaluate):
    command_flags.add_process_flags(command)
  add('align', _run_align, "measure how far tasks' gradients agree", gin=True)
  predict = add(
    'predict', _run_predict, 'write a text for each line', gin=False
  )
  predict.add_argument('path', metavar='RUN', help='or a backbone')
  predict.add_argument('--adapter', help='to put on a backbone')
  predict.add_argument('--task', help="a name, an id, or 'average'")
  predict.add_argument(
    '--input',
    metavar='FILE',
    default='-',
    help='one text a line; default: standard input',
  )
  predict.add_argument('--max_new_tokens', type=int, default=64)
  predict.add_argument('--num_beams', type=int, default=1)
  report = add(
    'report', _run_report, 'draw a run or a study, or compare some', gin=False
  )
  report.add_argument('folders', nargs='+', metavar='RUN', help='or a study')
  report.add_argument(
    '--output',
    metavar='FILE',
    help='default: report.html in RUN; of several, comparison.html here',
  )
  report.add_argument(
    '--figures', metavar='FOLDER', help='for each figure as PNG, too'
  )
  show = add('show', _run_show, 'print the resolved configuration', gin=True)
  show.add_argument('files', nargs='*', metavar='FILE.gin')
  study = add(
    'study', _run_study, 'compare methods: train, adapt, report', gin=True
  )
  study.add_argument('files', nargs='*', metavar='STUDY.gin')
  completion = add(
    'completion', _run_completion, 'print completion for a shell', gin=False
  )
  completion.add_argument('shell', choices=('bash', 'zsh', 'tcsh'))
  command_flags.add_plan_flags(
    add('plan', _run_plan, 'say what a run would take on a pod', gin=True)
  )
  add('doctor', _run_doctor, 'say what this environment can do', gin=False)
  command_flags.add_methods_flags(
    add('methods', _run_methods, 'list methods; count parameters', gin=True)
  )


def _configure(options: argparse.Namespace, files: Sequence[str] = ()) -> Any:
  """Parses what the flags say; everything of ours can be named in bindings."""
  from mhr_jax import configurables, configuration

  if not (files or options.gin_file or options.bindings):
    raise UserError('Which gin file? --gin_file=runs/multi_task.gin, say.')
  return configuration.parse(
    [*files, *options.gin_file],
    options.bindings,
    search_paths=[path for path in options.gin_search_paths.split(',') if path],
    configurables=configurables.all_configurables(),
    limits=configurables.safe_limits() if options.safe_config else None,
  )


def _task_data(options: argparse.Namespace, names: Sequence[str]) -> Any:
  """Returns the `TaskData` of the gin files, with what flags replace."""
  import dataclasses

  from mhr_jax.task_data import TaskData, TaskModule

  data = TaskData(tasks=())
  if options.gin_file or options.bindings:
    data = _configure(options, [_TASKS_FILE]).call(
      TaskData, **({'tasks': names} if names else {})
    )
  modules = tuple(TaskModule(name) for name in options.module)
  return dataclasses.replace(
    data,
    tasks=tuple(names) or data.tasks,
    data_dir=options.data_dir or data.data_dir,
    modules=modules or data.modules,
  )


def _run_tasks(options: argparse.Namespace) -> None:
  from mhr_jax import task_listing

  data = _task_data(options, ())
  if options.show:
    check_count('--n', options.n)
    print(
      task_listing.show_examples(
        data, options.show, split=options.split, n=options.n
      )
    )
  else:
    print(task_listing.list_all(data))


def _run_prepare(options: argparse.Namespace) -> None:
  from mhr_jax import task_data

  data = _task_data(options, options.names)
  if not data.names:
    raise UserError('Which tasks? Name them, or a gin file with TaskData.')
  for row in task_data.prepare_tasks(data, remake=options.remake):
    splits = ', '.join(f'{name} {n:,}' for name, n in row.splits.items())
    print(f'{row.outcome:14}  {row.task}  ({splits})')


def _join_processes(options: argparse.Namespace) -> None:
  """Joins the other processes where the flags say that there are some."""
  if options.distributed is None:
    return
  from mhr_jax import processes

  processes.join(
    options.distributed, heartbeat_seconds=options.heartbeat_seconds
  )


def _say(text: str) -> None:
  """Prints, of several processes in the first."""
  from mhr_jax import processes

  if processes.is_first():
    print(text)


def _run_train(options: argparse.Namespace) -> None:
  _join_processes(options)
  from mhr_jax import train

  configuration = _configure(options)
  given = {
    'mode': 'dry_run' if options.dry_run else 'train',
    'config_change': 'allow' if options.allow_config_change else 'refuse',
    'resume_from': options.resume_from,
    'command': options.command_line,
  }
  resolved = configuration.resolve(train.train, given=(*given, 'config_text'))
  trained = configuration.call(
    train.train, config_text=resolved.to_text(), **given
  )
  if trained is not None:
    _say(f'{trained.run_dir} is trained: {trained.step} steps.')


def _run_adapt(options: argparse.Namespace) -> None:
  from mhr_jax import commands

  mode = 'dry_run' if options.dry_run else 'adapt'
  results = _configure(options).call(commands.adapt, mode=mode)
  if results is not None:
    print(commands.adaptation_table(results))


def _run_evaluate(options: argparse.Namespace) -> None:
  _join_processes(options)
  from mhr_jax import commands

  mode = 'dry_run' if options.dry_run else 'evaluate'
  scores = _configure(options).call(commands.evaluate, mode=mode)
  if scores is not None:
    _say(commands.score_table(scores))


def _run_align(options: argparse.Namespace) -> None:
  from mhr_jax import commands

  print(commands.alignment_table(_configure(options).call(commands.align)))


def _read_lines(path: str) -> list[str]:
  """Returns the lines of a text file, or of standard input for '-'."""
  try:
    if path == '-':
      return sys.stdin.read().splitlines()
    return pathlib.Path(path).read_text(encoding='utf-8').splitlines()
  except OSError as error:
    raise UserError(f'{path}: {error.strerror}.') from error
  except UnicodeDecodeError as error:
    where = 'Standard input' if path == '-' else path
    raise UserError(
      f'{where} is no text in UTF-8: {error.reason} at byte {error.start}.'
    ) from error


def _run_predict(options: argparse.Namespace) -> None:
  from mhr_jax import commands
  from mhr_jax.t5.decoding import DecodingSettings

  decoding = DecodingSettings(
    max_new_tokens=options.max_new_tokens, num_beams=options.num_beams
  )
  for text in commands.predict(
    options.path,
    _lines_when_asked(options.input),
    adapter=options.adapter,
    task=options.task,
    decoding=decoding,
  ):
    print(text)


def _lines_when_asked(path: str) -> Iterator[str]:
  """Reads after the model, whose mistakes need no input to be told."""
  yield from _read_lines(path)


def _run_conversion(options: argparse.Namespace) -> None:
  from mhr_jax import conversion

  given = vars(options)
  names = ('adapter', 'task', 'dtype', 'base_model', 'vocabulary')
  settings = {name: given[name] for name in names if given.get(name)}
  if options.step is not None:
    settings['step'] = options.step
  if options.tasks:
    settings['tasks'] = _read_lines(options.tasks)
  for name in ('allow_pickle', 'with_optimizer'):
    if given.get(name):
      settings[name] = True
  call = conversion.export if options.is_export else conversion.convert
  call(options.source, options.target, options.format, **settings)


def _run_report(options: argparse.Namespace) -> None:
  from mhr_jax.analysis import report

  to = {'output': options.output, 'figures_folder': options.figures}
  if len(options.folders) == 1:
    print(report.write_report(options.folders[0], **to))
  else:
    print(report.write_comparison(options.folders, **to))


def _run_show(options: argparse.Namespace) -> None:
  from mhr_jax import configurables

  configuration = _configure(options, options.files)
  given = configurables.roots()
  roots = configuration.bound(given)
  if not roots:
    raise UserError(
      f'{", ".join(configuration.files)} binds no parameter of a command;'
      f' show it together with a run: mhr-jax show runs/multi_task.gin'
      f' {configuration.files[0]}'
    )
  for root in roots:
    resolved = configuration.resolve(root, given=given[root], missing='show')
    print(resolved.to_text())


def _run_study(options: argparse.Namespace) -> None:
  from mhr_jax import study

  configuration = _configure(options, options.files)
  given = {'command': options.command_line}
  resolved = configuration.resolve(study.study, given=(*given, 'config_text'))
  configuration.call(study.study, config_text=resolved.to_text(), **given)


def _run_completion(options: argparse.Namespace) -> None:
  from mhr_jax import completion

  print(completion.write_script(build_parser(), options.shell))


def _run_plan(options: argparse.Namespace) -> None:
  from mhr_jax import plan_command

  plan_command.plan(_configure(options), options)


def _run_doctor(options: argparse.Namespace) -> None:
  del options
  from mhr_jax import doctor

  for line in doctor.to_text(doctor.examine()):
    print(line, flush=True)


def _run_methods(options: argparse.Namespace) -> None:
  from mhr_jax import method_table

  gin = options.gin_file or options.bindings
  models, base = method_table.choose_settings(
    options.model,
    command_flags.given_settings(options),
    _configure(options) if gin else None,
  )
  method_table.print_methods(models, base, options.format)


if __name__ == '__main__':
  sys.exit(main())
