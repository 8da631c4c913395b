"""`python -m mhr_jax.t5x --gin_file=… --run_mode=train|eval|infer`.

Runs T5X's own main, unchanged, as the program: gin files that say
`import __main__ as train_script` find what they expect. The flags are T5X's,
and `--distributed[=ADDRESS:PORT,COUNT,INDEX]` as of `mhr-jax train`: T5X's main
joins no processes by itself.
"""

import os
import pathlib
import runpy
import sys

from mhr_jax import processes
from mhr_jax.errors import UserError
from mhr_jax.t5x import installation

_DISTRIBUTED = '--distributed'


def main() -> int:
  """Runs T5X's main; returns the exit code of what went wrong before it."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  try:
    installation.prepare_imports()
    _join_processes()
  except UserError as error:
    print(f'mhr_jax.t5x: {error}', file=sys.stderr)
    return 2
  import gin

  from mhr_jax import configs

  for folder in configs.__path__:
    gin.add_config_file_search_path(str(pathlib.Path(folder)))
  sys.argv[0] = 'mhr_jax.t5x'
  runpy.run_module('t5x.main', run_name='__main__', alter_sys=True)
  return 0


def _join_processes() -> None:
  """Takes our flag out of T5X's, and does what it says."""
  for argument in sys.argv[1:]:
    name, _, where = argument.partition('=')
    if name == _DISTRIBUTED:
      sys.argv.remove(argument)
      processes.join(where)


if __name__ == '__main__':
  sys.exit(main())
