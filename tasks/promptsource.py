"""PromptSource templates: read as data, rendered in a sandbox.

A file `templates.yaml` holds the templates of one data set
(github.com/bigscience-workshop/promptsource). It is YAML with the tags
`!Template` and `!TemplateMetadata`; here both are plain mappings, no class is
looked up by name, and any other tag is an error. The Jinja of a template runs
in jinja2's sandbox.

Rendering does what `promptsource.templates.Template.apply` and the code of T0
around it do (commits 7dab96a3 and bigscience-workshop/t-zero):

  * hyphens in field names become underscores;
  * `|||` separates input and target, and the answer choices; a `|||` in a
    text field does not count, in a list it does;
  * every `{{ expression }}` of a template is cut to 2,048 characters, at a
    word; answer choices themselves are not;
  * `answer_choices` is a list of stripped texts, or none;
  * the filters `choice` and `most_frequent` and the function `zip` are there.

Two things differ. `choice` is drawn from a seed that is given, so that data is
the same at every preparation. A field that a template names and a record lacks
is an error, where Jinja would write nothing in its place.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
import dataclasses
import functools
import hashlib
import random
import re
from typing import Any, Literal, NamedTuple, cast

from etils import epath
import jinja2
from jinja2 import meta, sandbox
import yaml

from mhr_jax.errors import UserError, nearest

# What a record and a template can make instead of an example.
Drop = Literal[
  'the template does not apply',
  'the template gives more than one target',
  'the input is empty',
  'the target is empty',
]

_SEPARATOR = '|||'
# PromptSource's own stand-in: the templates of multi_news name it.
_PROTECTED = '3ed2dface8203c4c9dfb1a5dc58e41e0'
_LONGEST_VALUE = 2048
_RANDOM = '_mhr_jax_random'
_CHOICES = 'answer_choices'


class Rendered(NamedTuple):
  """One example: a template applied to a record.

  `label` is the index of `targets` in `choices`, if it is one of them.
  """

  inputs: str
  targets: str
  choices: tuple[str, ...] = ()
  label: int | None = None


@dataclasses.dataclass(frozen=True)
class Template:
  """One template of a file.

  Attributes:
    name: as in the file, unique in it.
    jinja: makes input and target, separated by `|||`.
    answer_choices: Jinja for the choices, separated by `|||`, if there are
      any.
    task: whether it asks for the data set's original task.
    file: where it is from, for messages.
    line: the line of the file where it begins.
  """

  name: str
  jinja: str
  answer_choices: str | None
  task: Literal['original', 'other']
  file: str = ''
  line: int = 0

  @property
  def fingerprint(self) -> str:
    """The sha256 of all that decides what it renders."""
    parts = (self.name, self.jinja, self.answer_choices, self.task)
    return hashlib.sha256(repr(parts).encode()).hexdigest()

  @property
  def slug(self) -> str:
    """The name with everything but letters, digits, `.`, `_` replaced."""
    return clean(self.name)

  def fields(self) -> frozenset[str]:
    """Returns the names of the fields that it reads.

    Raises:
      UserError: its Jinja cannot be read.
    """
    return frozenset().union(*(_fields(self, text) for text in self._sources()))

  def render(self, record: Mapping[str, Any], *, seed: str) -> Rendered | Drop:
    """Applies the template to a record.

    Args:
      record: fields by name, with the Hugging Face data set's names.
      seed: decides what the filter `choice` draws.

    Returns:
      An example, or why there is none.

    Raises:
      UserError: the record lacks a field, or the template fails on it.
    """
    fields = {
      key.replace('-', '_'): _protect(value) for key, value in record.items()
    }
    lacking = sorted(self.fields() - fields.keys())
    if lacking:
      raise self.error(
        f'it needs a field {lacking[0]!r}, which the record lacks.'
        f'{nearest(lacking[0], fields)}'
      )
    if _CHOICES in fields:
      raise self.error(f'a record may not have a field {_CHOICES!r}.')
    fields[_RANDOM] = random.Random(seed)
    choices = None
    if self.answer_choices:
      choices = _parts(self._run(self.answer_choices, fields))
    parts = _parts(
      self._run(_with_limit(self.jinja), {**fields, _CHOICES: choices})
    )
    return _example(parts, tuple(choices or ()))

  def error(self, problem: str) -> UserError:
    """Returns an error that names the file and the template."""
    return UserError(
      f'{self.file}:{self.line}: template {self.name!r}: {problem}'
    )

  def _sources(self) -> tuple[str, ...]:
    return (_with_limit(self.jinja), self.answer_choices or '')

  def _run(self, source: str, fields: Mapping[str, Any]) -> str:
    try:
      return _compiled(source).render(**fields)
    except Exception as e:  # a template may do anything that an expression can
      raise self.error(f'{type(e).__name__}: {e}.') from e


def read_templates(path: epath.PathLike) -> list[Template]:
  """Returns the templates of a file, in the order of their names.

  Raises:
    UserError: the file is absent, is no YAML or has not PromptSource's form,
      or the Jinja of a template cannot be read; the message has the line.
  """
  path = epath.Path(path)
  if not path.exists():
    raise UserError(
      f'There is no {path}: it should hold PromptSource templates.'
    )
  try:
    nodes = yaml.load(
      path.read_bytes().decode('utf-8'), _Loader
    )  # builds mappings, texts, lists
  except yaml.MarkedYAMLError as e:
    mark = e.problem_mark or e.context_mark
    line = mark.line + 1 if mark else 1
    raise UserError(f'{path}:{line}: not YAML: {e.problem or e}.') from None
  except (yaml.YAMLError, ValueError, UnicodeDecodeError) as e:
    raise UserError(f'{path}: not YAML: {e}.') from None
  except RecursionError:
    raise UserError(f'{path}: not YAML: nested too deeply.') from None
  templates = nodes.get('templates') if isinstance(nodes, dict) else None
  if not isinstance(templates, dict) or not templates:
    raise UserError(f'{path}:1: there is no mapping `templates` of templates.')
  made = [_make_template(path, each) for each in templates.values()]
  made.sort(key=lambda template: template.name)
  for one, other in zip(made, made[1:], strict=False):
    if one.name == other.name:
      raise other.error('another template of this file has the same name.')
  return made


def clean(text: str) -> str:
  """Returns a text as T0 puts it into the name of a task."""
  return re.sub(r'[^\w\d\._]+', '_', text)


class _Loader(yaml.SafeLoader):
  """YAML's safe loader, with templates as mappings that know their line."""


def _construct(loader: Any, node: yaml.MappingNode) -> dict[str, Any]:
  if not isinstance(node, yaml.MappingNode):
    raise yaml.constructor.ConstructorError(
      None, None, f'{node.tag} is no mapping', node.start_mark
    )
  return {
    **loader.construct_mapping(node, deep=True),
    '__line__': node.start_mark.line + 1,
  }


for _tag in ('!Template', '!TemplateMetadata'):
  _Loader.add_constructor(_tag, _construct)


def _make_template(path: epath.Path, node: Any) -> Template:
  """Checks one entry of a file.

  Raises:
    UserError: something is missing, or of another type.
  """
  if not isinstance(node, dict) or '__line__' not in node:
    raise UserError(f'{path}: an entry of `templates` is no `!Template`.')
  line = node['__line__']
  for key, types in (
    ('name', str),
    ('jinja', str),
    ('answer_choices', (str, type(None))),
    ('metadata', (dict, type(None))),
  ):
    if key in ('name', 'jinja') and key not in node:
      raise UserError(f'{path}:{line}: the template has no {key!r}.')
    if not isinstance(node.get(key), types):
      raise UserError(
        f'{path}:{line}: {key!r} of the template is {node[key]!r}, which is no'
        f' {"mapping" if key == "metadata" else "text"}.'
      )
  template = Template(
    name=node['name'],
    jinja=node['jinja'],
    answer_choices=node.get('answer_choices') or None,
    task='original'
    if (node.get('metadata') or {}).get('original_task')
    else 'other',
    file=str(path),
    line=line,
  )
  if _SEPARATOR not in template.jinja:
    raise template.error(f'there is no {_SEPARATOR} between input and target.')
  template.fields()  # reads its Jinja, so that a mistake is found here
  return template


def _fields(template: Template, source: str) -> frozenset[str]:
  try:
    return _undeclared(source)
  except jinja2.TemplateSyntaxError as e:
    raise template.error(
      f'line {e.lineno} of its Jinja: {e.message}.'
    ) from None
  except RecursionError:
    raise template.error('its Jinja is nested too deeply.') from None


@functools.lru_cache(maxsize=4096)
def _undeclared(source: str) -> frozenset[str]:
  names = meta.find_undeclared_variables(_ENVIRONMENT.parse(source))
  return frozenset(names - _ENVIRONMENT.globals.keys() - {_CHOICES})


@functools.lru_cache(maxsize=4096)
def _compiled(source: str) -> jinja2.Template:
  return _ENVIRONMENT.from_string(source)


def _with_limit(jinja: str) -> str:
  """Cuts the value of every expression, the way PromptSource does: as text."""
  return jinja.replace('}}', f' | string | truncate({_LONGEST_VALUE}) }}}}')


def _protect(value: Any) -> Any:
  if isinstance(value, str):
    return value.replace(_SEPARATOR, _PROTECTED)
  return value


def _parts(text: str) -> list[str]:
  return [
    part.replace(_PROTECTED, _SEPARATOR).strip()
    for part in text.split(_SEPARATOR)
  ]


def _example(parts: Sequence[str], choices: tuple[str, ...]) -> Rendered | Drop:
  if len(parts) < 2:
    return 'the template does not apply'
  if len(parts) > 2:
    return 'the template gives more than one target'
  inputs, targets = parts
  if not inputs:
    return 'the input is empty'
  if not targets:
    return 'the target is empty'
  label = choices.index(targets) if targets in choices else None
  return Rendered(inputs, targets, choices, label)


@jinja2.pass_context
def _choice(context: Mapping[str, Any], options: Sequence[Any]) -> Any:
  """PromptSource's filter `choice`; the context holds the source of draws."""
  return context[_RANDOM].choice(options)


def _most_frequent(items: Sequence[Any]) -> list[Any] | None:
  """Returns those that occur most often, in the order of first occurrence."""
  if not items:
    return None
  counts = Counter(items)
  return [item for item in counts if counts[item] == max(counts.values())]


def _make_environment() -> sandbox.SandboxedEnvironment:
  environment = sandbox.SandboxedEnvironment()
  environment.globals['zip'] = cast(Any, zip)
  environment.filters['choice'] = _choice
  environment.filters['most_frequent'] = _most_frequent
  return environment


_ENVIRONMENT = _make_environment()
