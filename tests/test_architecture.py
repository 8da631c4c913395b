"""Who may import whom, how long things are, what an import must not bring.

The table is also in docs/architecture.md: a module may import modules of rows
above its own, or of its own row, and there are no circles.
"""

import ast
import fnmatch
import functools
import graphlib
import pathlib
import re
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[1]

# Patterns of module names, `mhr_jax.` left out, from the foundations upwards.
_ROWS = (
  (
    'errors',
    'json_text',
    'orbax_reports',
    'setting_checks',
    'startup_lines',
    'tree_paths',
  ),
  (
    'adafactor',
    'aggregation',
    'checksums',
    'choice_losses',
    'configuration*',
    'crossfit_metrics',
    'data.mixing',
    'data.record_format',
    'file_names',
    'inventories',
    'losses',
    'metric_forms',
    'metrics',
    'npz_files',
    'placement',
    'processes',
    'progress',
    'routing',
    'run_files',
    't5.config',
    'task_table',
    'vocabulary',
  ),
  ('adapters', 'methods', 'optim', 'partitioning', 't5.*'),
  ('fusing', 'interception', 'model', 'model_card', 'modules'),
  (
    'adapter_folder',
    'backbones',
    'checkpoints',
    'convert.*',
    'data.*',
    'frozen',
    'optimizer_state',
    'run_folder',
    'run_writing',
    'tree_check',
  ),
  ('metric_writers', 'reporting'),
  ('evaluation', 'ranking', 'scores'),
  (
    'api',
    'compiled_model',
    'loading',
    'logits_checksum',
    'model_inputs',
    'save_cards',
    'saving',
    'serving*',
    'task_choice',
  ),
  (
    'meter',
    'prefetch',
    'run_lock',
    'run_signals',
    'saved_run',
    'train_settings',
    'train_state',
    'trainer',
  ),
  (
    'adaptation',
    'adapter_soup',
    'few_shot',
    'movement',
    'side_by_side',
    'task_embeddings',
  ),
  ('analysis.*',),
  (
    'data.registry',
    'data.prepare',
    'data.preprocessors',
    'data.sources',
    'tasks.*',
  ),
  ('task_data', 'task_listing'),
  ('dry_run', 'jobs', 'train'),
  (
    'commands',
    'conversion',
    'doctor',
    'dry_run_commands',
    'method_table',
    'plan*',
    'printed_tables',
    'study*',
  ),
  ('configurables',),
  ('cli', 'command_examples', 'command_flags', 'completion'),
  ('t5x.*',),
)
# The only modules that import seqio or TensorFlow. Others may import these
# inside a function only.
_SEQIO = tuple(
  name
  for row in _ROWS
  if 'data.registry' in row or 't5x.*' in row
  for name in row
)
_LAZY = ('matplotlib', 'torch', 'transformers', 'peft', 'wandb')
_MAX_FILE, _MAX_FUNCTION = 500, 80


def _files() -> dict[str, pathlib.Path]:
  """Returns each module's file by its name without `mhr_jax.`."""
  found = {}
  for folder, prefix in (('mhr_jax', ''), ('tasks', 'tasks.')):
    for path in sorted((_ROOT / folder).rglob('*.py')):
      parts = path.relative_to(_ROOT / folder).with_suffix('').parts
      found[prefix + '.'.join(parts)] = path
  return {
    name: path for name, path in found.items() if not name.endswith('__init__')
  }


_FILES = _files()
_PYTHON = [
  path
  for folder in ('mhr_jax', 'tasks', 'tests', 'configs', 'benchmarks')
  for path in sorted((_ROOT / folder).rglob('*.py'))
]


@functools.cache
def _tree(path: pathlib.Path) -> ast.Module:
  return ast.parse(path.read_text())


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
  return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _row(name: str) -> int | None:
  """Returns the row of a module: of an exact name first, then of a pattern."""
  exact = [row for row, names in enumerate(_ROWS) if name in names]
  loose = [row for row, names in enumerate(_ROWS) if _matches(name, names)]
  return (exact or loose or [None])[0]


def _imports(path: pathlib.Path, *, lazy: bool = True) -> set[str]:
  """Returns the full names of imported modules and of names from modules.

  Args:
    path: a Python file.
    lazy: whether imports inside functions count too.
  """
  names = set()
  tree = _tree(path)
  inner = {
    id(node)
    for function in ast.walk(tree)
    if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
    for node in ast.walk(function)
  }
  # What a module does as a program is no import of the module.
  inner_of_program = {
    id(node)
    for block in tree.body
    if isinstance(block, ast.If) and '__main__' in ast.unparse(block.test)
    for node in ast.walk(block)
  }
  for node in ast.walk(tree):
    if id(node) in inner_of_program or (not lazy and id(node) in inner):
      continue
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}:{node.lineno}: imports are absolute'
      names |= {f'{node.module}.{alias.name}' for alias in node.names}
  return names


def _own(path: pathlib.Path, *, lazy: bool = True) -> set[str]:
  """Returns the modules of ours that a file imports, `mhr_jax.` left out."""
  found = set()
  for name in _imports(path, lazy=lazy):
    name = name.removeprefix('mhr_jax.')
    candidates = (name, name.rpartition('.')[0])
    found |= {module for module in candidates[:2] if module in _FILES}
  return found


def test_the_table_is_the_documented_one_and_has_no_empty_name():
  text = (_ROOT / 'docs' / 'architecture.md').read_text()
  text = text.partition('## Who may import whom')[2]
  rows = re.findall(r'^ {4}(\S.*(?:\n {6}\S.*)*)', text, re.MULTILINE)
  assert tuple(tuple(re.split(r',\s+', row)) for row in rows) == _ROWS
  for names in _ROWS:
    assert [name for name in names if not fnmatch.filter(_FILES, name)] == []


@pytest.mark.parametrize('name', _FILES)
def test_imports_follow_the_table(name):
  row = _row(name)
  assert row is not None, f'{name}: give it a row in {__file__}'
  for other in _own(_FILES[name]):
    other_row = _row(other)
    assert other_row is not None
    assert other_row <= row, f'{name} may not import {other}'


def test_nothing_imports_the_benchmarks():
  for path in _FILES.values():
    tops = {item.partition('.')[0] for item in _imports(path)}
    assert 'benchmarks' not in tops


def test_imports_have_no_circles():
  graph = {name: _own(path) - {name} for name, path in _FILES.items()}
  tuple(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize('name', _FILES)
def test_heavy_imports_stay_where_they_belong(name):
  path = _FILES[name]
  if not _matches(name, _SEQIO):
    eager = {other for other in _own(path, lazy=False) if other in _FILES}
    assert not [other for other in eager if _matches(other, _SEQIO)]
    tops = {item.partition('.')[0] for item in _imports(path)}
    assert not tops & {'seqio', 'tensorflow', 'tensorflow_text'}
  eager_tops = {item.partition('.')[0] for item in _imports(path, lazy=False)}
  assert not eager_tops & set(_LAZY)


@pytest.mark.parametrize(
  'path', _PYTHON, ids=lambda path: str(path.relative_to(_ROOT))
)
def test_files_and_functions_are_short(path):
  assert len(path.read_text().splitlines()) <= _MAX_FILE
  for node in ast.walk(_tree(path)):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      length = (node.end_lineno or 0) - node.lineno + 1
      assert length <= _MAX_FUNCTION, f'{node.name}: {length} lines'


def test_subprocess_imports_bring_no_heavy_library():
  modules = [
    name
    for name in _FILES
    if not _matches(name, _SEQIO) and (_row(name) or 0) <= _row('cli')
  ]
  lines = [f'import mhr_jax.{name}' for name in modules]
  heavy = ('tensorflow', 'seqio', 'torch', 'matplotlib', 'transformers')
  code = (
    'import sys, mhr_jax\n'
    + '\n'.join(lines)
    + f'\nprint([name for name in {heavy} if name in sys.modules])'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=False
  )
  assert done.stdout.strip() == '[]', done.stdout + done.stderr
