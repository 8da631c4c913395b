"""What README and docs/ say is there: links, commands, gin files, Python."""

import argparse
import ast
import functools
import pathlib
import re
import shlex

import pytest

import mhr_jax
from mhr_jax import cli, configuration

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_PAGES = sorted(
  path.relative_to(_ROOT).as_posix()
  for path in (*_ROOT.glob('*.md'), *(_ROOT / 'docs').glob('*.md'))
)
# Their files are T5X's, or stand for some of a row.
_OPEN = ('train.gin', '{', '…')
_STRANGERS = ('theirs.gin',)


def _text(page: str) -> str:
  return (_ROOT / page).read_text()


def _blocks(page: str) -> list[str]:
  """Returns the page's indented blocks."""
  found = re.findall(r'(?:^ {4}.*\n|^\n(?= {4}))+', _text(page), re.M)
  return [re.sub('^ {4}', '', block.strip('\n'), flags=re.M) for block in found]


@functools.cache
def _anchors(path: pathlib.Path) -> set[str]:
  """Returns the anchors of a page's headings, as they are made for links."""
  headings = re.findall(r'^#+ (.*)$', path.read_text(), re.M)
  return {
    re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')
    for heading in headings
  }


@pytest.mark.parametrize('page', _PAGES)
def test_links_lead_somewhere(page):
  for link in re.findall(r'\]\(([^)\s]+)\)', _text(page)):
    if link.startswith(('http://', 'https://')):
      continue
    name, _, anchor = link.partition('#')
    path = (_ROOT / page).parent / name if name else _ROOT / page
    assert path.exists(), link
    if anchor:
      assert anchor in _anchors(path), link


def _commands(page: str) -> list[str]:
  lines = '\n'.join(_blocks(page)).replace('\\\n', ' ').splitlines()
  found = [re.sub(r'^(\.venv/bin/|.*&& )', '', line) for line in lines]
  return [line for line in found if line.startswith('mhr-jax ')]


@pytest.mark.parametrize('page', [p for p in _PAGES if _commands(p)])
def test_commands_parse_and_their_gin_files_are_there(page):
  for line in _commands(page):
    argv = shlex.split(line.partition(' > ')[0], comments=True)[1:]
    rest, _ = cli.split_bindings([a for a in argv if a != '…'])
    options = cli.build_parser().parse_args(rest)
    files = [*getattr(options, 'gin_file', []), *getattr(options, 'files', [])]
    for file in files:
      if file not in _STRANGERS:
        configuration.find_file(file)


@pytest.mark.parametrize('page', _PAGES)
def test_gin_files_that_are_named_are_there(page):
  for name in re.findall(
    r'`((?:presets|runs|methods|models)/\S+\.gin)`', _text(page)
  ):
    if not any(part in name for part in (*_OPEN, '*')):
      configuration.find_file(name)


@pytest.mark.parametrize('page', _PAGES)
def test_python_blocks_compile(page):
  for block in _blocks(page):
    is_python = re.match(r'(import|from) \w', block) or '\nimport ' in block
    if is_python and ' = @' not in block:  # which is gin
      ast.parse(block)


def test_every_command_and_every_public_name_is_documented():
  (commands,) = (
    action.choices
    for action in cli.build_parser()._actions
    if isinstance(action, argparse._SubParsersAction)
  )
  page = _text('docs/commands.md')
  assert [
    c for c in commands if not re.search(rf'`(mhr-jax )?{c}`', page)
  ] == []
  page = _text('docs/api.md')
  absent = [n for n in mhr_jax.__all__ if f'mhr_jax.{n}' not in page]
  assert absent == []
