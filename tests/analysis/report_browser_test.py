"""The report in a real browser, from a file: Chromium, driven by playwright."""

import os
import shutil

import pytest

from mhr_jax import run_files
from mhr_jax.analysis import report
import run_folders

pytestmark = pytest.mark.slow

_CHROMIUM = os.environ.get('CHROMIUM') or next(
  filter(None, map(shutil.which, ('chromium', 'chromium-browser'))), None
)
_RESULTS = {
  'suite': 'skills',
  'metric': 'exact_match',
  'seeds': [0, 1],
  'untrained': 0.25,
  'methods': {
    name: {
      'trainable_parameters': parameters,
      'few_shot': {
        'mean': mean,
        'values': [mean - 1, mean + 1],
        'tasks': {'a': mean, 'b': mean / 2},
      },
    }
    for name, parameters, mean in (
      ('lora', 964, 28.4),
      ('mhr', 174_336, 72.7),
      ('mhr_z', 2_304, 9.5),
    )
  },
}


@pytest.fixture(scope='module')
def browser():
  if _CHROMIUM is None:
    pytest.skip('no Chromium: apt-get install chromium, or CHROMIUM=<path>')
  sync_api = pytest.importorskip('playwright.sync_api')
  with sync_api.sync_playwright() as playwright:
    found = playwright.chromium.launch(
      executable_path=_CHROMIUM, args=['--no-sandbox']
    )
    yield found
    found.close()


@pytest.fixture(scope='module')
def report_file(tmp_path_factory):
  folder = tmp_path_factory.mktemp('study')
  run_files.write_json(folder / run_files.RESULTS_FILE, _RESULTS)
  for name in ('lora', 'mhr'):
    run_folders.write_run(folder / name / 'seed0', method=name)
  return report.write_report(folder)


@pytest.fixture
def page(browser, report_file):
  """The report, opened without a network; fails on whatever it complains of."""
  context = browser.new_context(offline=True, color_scheme='light')
  page = context.new_page()
  page.set_default_timeout(5000)
  complaints, requests = [], []
  page.on('console', lambda message: complaints.append(message.text))
  page.on('pageerror', lambda error: complaints.append(str(error)))
  page.on('request', lambda request: requests.append(request.url))
  page.goto(report_file.as_uri())
  yield page
  assert complaints == []
  assert [url for url in requests if not url.startswith('data:')] == [
    report_file.as_uri()
  ]
  context.close()


def _column(page, index: int) -> list[str]:
  """Returns the first lines of a column of the first table."""
  cells = page.locator(f'#scores table >> nth=0 >> tbody td:nth-child({index})')
  return [text.splitlines()[0] for text in cells.all_inner_texts()]


def test_a_click_on_a_name_sorts_by_it(page):
  first = ['untrained', 'lora', 'mhr', 'mhr_z']
  assert _column(page, 1) == first
  heads = page.locator('#scores table >> nth=0 >> th')
  trained = heads.nth(1).locator('button')
  trained.click()
  # 174,336 is more than 964, and what has no number comes last.
  assert _column(page, 1) == ['mhr', 'mhr_z', 'lora', 'untrained']
  assert heads.nth(1).get_attribute('aria-sort') == 'descending'
  trained.click()
  assert _column(page, 1) == ['lora', 'mhr_z', 'mhr', 'untrained']
  trained.click()
  assert _column(page, 1) == first
  assert heads.nth(1).get_attribute('aria-sort') is None


def test_words_sort_by_letters_and_intervals_by_their_mean(page):
  heads = page.locator('#scores table >> nth=0 >> th')
  heads.nth(0).locator('button').click()
  assert _column(page, 1) == ['lora', 'mhr', 'mhr_z', 'untrained']
  heads.nth(4).locator('button').click()
  assert [text.split()[0] for text in _column(page, 5)] == [
    '72.7',
    '28.4',
    '9.5',
    '0.25',
  ]
  assert heads.nth(0).get_attribute('aria-sort') is None


def test_totals_stay_at_the_end(page):
  table = page.locator('#parameters table >> nth=0')
  assert table.locator('tfoot td').first.inner_text() == 'all'
  assert 'all' not in table.locator('tbody').inner_text().split()


def test_sorting_by_keyboard(page):
  page.locator('#scores table >> nth=0 >> th >> nth=1 >> button').focus()
  page.keyboard.press('Enter')
  assert _column(page, 1)[0] == 'mhr'


def test_the_theme_button_overrides_the_system(page):
  def colour(name):
    return page.evaluate(f'getComputedStyle(document.body).{name}')

  def text_of_a_figure():
    return page.evaluate(
      "getComputedStyle(document.querySelector('svg text')).fill"
    )

  button = page.get_by_role('button', name='theme')
  white = 'rgb(255, 255, 255)'
  assert colour('backgroundColor') == white
  page.emulate_media(color_scheme='dark')
  dark, ink = colour('backgroundColor'), colour('color')
  assert dark != white and text_of_a_figure() == ink
  button.click()
  assert button.inner_text() == 'theme: light'
  assert colour('backgroundColor') == white
  button.click()
  assert colour('backgroundColor') == dark
  button.click()
  assert button.inner_text() == 'theme: auto'


def test_a_narrow_window_scrolls_tables_and_not_the_page(page):
  page.set_viewport_size({'width': 380, 'height': 800})
  across = page.evaluate('[document.documentElement.scrollWidth, innerWidth]')
  assert across[0] <= across[1]


def test_it_reads_without_its_script(browser, report_file):
  context = browser.new_context(java_script_enabled=False)
  page = context.new_page()
  page.goto(report_file.as_uri())
  assert not page.locator('#theme').is_visible()
  assert 'mhr_z' in page.locator('#scores').inner_text()
  context.close()


def test_text_from_data_cannot_run(browser, tmp_path):
  hostile = '<script>document.title = "taken"</script>'
  image = '<img src=x onerror="document.title = \'taken\'">'
  run_folders.write_run(tmp_path, method=hostile + image)
  path = report.write_report(tmp_path)
  # Even where a page is tampered with, the policy stops the script.
  tampered = tmp_path / 'tampered.html'
  tampered.write_text(path.read_text().replace('</header>', hostile + image))
  for file in (path, tampered):
    page = browser.new_page()
    page.goto(file.as_uri())
    assert page.title() != 'taken'
    page.close()
