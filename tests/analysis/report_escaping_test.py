"""Text from data changes words of the report, never its markup.

The same files are written with harmless texts and with hostile ones of the same
length; the two pages must have the same tags and attributes in the same order.
"""

import html.parser
import re

import numpy as np
import pytest

from mhr_jax import reporting, run_files
from mhr_jax.analysis import report, routing, skills
from mhr_jax.task_table import TaskTable

_PAYLOADS = (
  '</script></style></text></svg></title><img src=x onerror=alert(1)>',
  '" onmouseover="alert(1)" \' onload=\'alert(1)\' x=',
  '<!-- <![CDATA[ ]]> {{ 7 * 7 }} {% raw %} &lt;script&gt; $x$',
)


class _Markup(html.parser.HTMLParser):
  """A page's tags with the names of their attributes, and its text.

  What stands in figures is a set: how wide letters are decides how many ticks
  an axis has.
  """

  def __init__(self, page: str):
    super().__init__()
    self.found: list[tuple[str, ...]] = []
    self.drawn: set[tuple[str, ...]] = set()
    self.text = ''
    self._in_figure = False
    self.feed(page)

  def _add(self, *what: str):
    if self._in_figure:
      self.drawn.add(what)
    else:
      self.found.append(what)

  def handle_starttag(self, tag, attrs):
    self._add(tag, *(name for name, _ in attrs))
    self._in_figure |= tag == 'svg'
    for name, value in attrs:
      assert not name.startswith('on'), (name, value)

  def handle_endtag(self, tag):
    self._in_figure &= tag != 'svg'
    self._add(f'/{tag}')

  def handle_comment(self, data):
    self._add('comment')

  def handle_data(self, data):
    self.text += data


def _write_everything(folder, text):
  """A study of one run in which all that can be a text is `text`."""
  _write_run(folder / 'a', text)
  _write_study(folder, text)
  scores = {'instances': 4, text: 50.0}
  run_files.write_json(
    folder / 'a' / 'few_shot' / run_files.SCORES_FILE,
    {
      'overall': scores,
      'mean_over_tasks': {text: 50.0},
      'tasks': {text: scores},
      'categories': {text: scores},
      'own_metrics': {text: text},
    },
  )
  numbers = {'start': 2.0, 'change': 1.0}
  routed = {'change': 0.25, 'entropy_start': 1.0, 'entropy_end': 0.5}
  moved = {'adapters': {text: numbers}, 'mixing_weights': {text: routed}}
  run_files.write_json(
    folder / 'a' / 'few_shot' / 'm' / 't' / 'seed0' / 'adapted.json',
    {'method': text, 'task': text, 'moved': moved},
  )


def _write_run(folder, text):
  tasks = TaskTable((text, f'{text}2', f'{text}3'))
  params = {'adapters': {text: np.zeros((4, 25), np.float32)}}
  reporting.write_run_folder(
    folder,
    reporting.RunDescription(
      name=text,
      summary=text,
      method=text,
      tasks=tasks,
      parameters=reporting.parameter_rows(params, trains=('adapters',)),
      settings={text: text},
      command=text,
      config_text=text,
    ),
  )
  with reporting.MetricsWriter(folder, writers=()) as writer:
    for step in range(1, 6):
      names = (
        'train/loss',
        f'{text}/loss',
        f'eval/{text}',
        f'alignment/{text}',
      )
      writer.write(step, dict.fromkeys(names, 1 / step))
  weights = np.random.default_rng(0).dirichlet(np.ones(4), (2, 3, 2))
  routing.save_routing(folder, {f'{text}/query': weights}, tasks)
  skills.save_skills(folder, {f'{text}/query': np.ones((2, 2, 4, 4))})


def _write_study(folder, text):
  cell = {
    'mean': 1.0,
    'values': [1.0, 2.0],
    'tasks': {text: 1.0},
    'categories': {text: 1.0},
    'gain': {'mean': 1.0, 'interval': [0.5, 1.5]},
  }
  paired = {
    'mean': 1.0,
    't': [0.5, 1.5],
    'bootstrap': [0.5, 1.5],
    'wins': 2,
    'ties': 0,
    'pairs': 2,
  }
  compared = {
    'phase': 'few_shot',
    'left': text,
    'right': text,
    'over_seeds': paired,
    'over_seeds_and_tasks': paired,
  }
  results = {
    'suite': text,
    'seeds': [text],
    'metric': text,
    'notes': [text],
    'untrained': 0.5,
    'baselines': {text: {'few_shot': 1.0}},
    'methods': {text: {'trainable_parameters': 10, 'few_shot': cell}},
    'comparisons': [compared | {'claim': text}, compared | {'claim': None}],
  }
  run_files.write_json(folder / run_files.RESULTS_FILE, results)


def _page(folder, text) -> str:
  _write_everything(folder / 'x', text)
  return report.write_report(folder / 'x').read_text()


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:constrained_layout')
@pytest.mark.parametrize('payload', _PAYLOADS)
def test_markup_is_the_same_whatever_the_texts_are(payload, tmp_path):
  # Slashes and spaces part names, so that they decide what is drawn.
  plain = re.sub(r'[^/\s]', 'a', payload)
  harmless = _Markup(_page(tmp_path / 'harmless', plain))
  markup = _Markup(_page(tmp_path / 'hostile', payload))
  assert markup.found == harmless.found
  assert markup.drawn == harmless.drawn
  assert len(markup.found) > 200 and len(markup.drawn) > 5
  assert plain in harmless.text and payload in markup.text
