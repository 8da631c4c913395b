"""How far a run is: a bar on a terminal, a line every few seconds elsewhere.

Used by the training loop, evaluation and few-shot adaptation; knows nothing
of models or data.
"""

import collections
import time
from typing import Any

from rich import console as rich_console
from rich import progress as rich_progress

# Rates are those of this many last seconds, so that the compilation of the
# first step does not stay in them.
_WINDOW_SECONDS = 20.0


def format_duration(seconds: float) -> str:
  """Returns a duration as hours, minutes and seconds.

  >>> format_duration(62)
  '1:02'
  >>> format_duration(3_723)
  '1:02:03'
  """
  minutes, rest = divmod(max(round(seconds), 0), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f'{hours}:{minutes:02d}:{rest:02d}'
  return f'{minutes}:{rest:02d}'


def format_rate(value: float) -> str:
  """Returns a rate with three significant digits.

  >>> format_rate(12.345), format_rate(123.4), format_rate(51_234)
  ('12.3', '123', '51.2k')
  """
  if value >= 1e6:
    return f'{value / 1e6:.3g}M'
  if value >= 1e3:
    return f'{value / 1e3:.3g}k'
  return f'{value:.3g}'


def stderr_console() -> rich_console.Console:
  """Returns standard error; in a notebook too, where it is no terminal."""
  console = rich_console.Console(stderr=True)
  if console.is_jupyter:
    return rich_console.Console(
      stderr=True, force_jupyter=False, force_terminal=False
    )
  return console


class _Rates:
  """Steps, examples and tokens a second over the last seconds."""

  def __init__(self, step: int, now: float):
    self._totals = [float(step), 0.0, 0.0]
    self._marks = collections.deque([(now, *self._totals)])

  def add(self, step: int, examples: float, tokens: float, now: float):
    self._totals = [
      float(step),
      self._totals[1] + examples,
      self._totals[2] + tokens,
    ]
    self._marks.append((now, *self._totals))
    while len(self._marks) > 2 and self._marks[1][0] < now - _WINDOW_SECONDS:
      self._marks.popleft()

  def a_second(self) -> tuple[float, float, float]:
    first, last = self._marks[0], self._marks[-1]
    seconds = max(last[0] - first[0], 1e-9)
    steps, examples, tokens = (
      (b - a) / seconds for a, b in zip(first[1:], last[1:], strict=True)
    )
    return steps, examples, tokens


class Progress:
  """Shows step, loss, examples/s, tokens/s and the time left.

  A context manager. On a terminal it is one bar that is drawn over; without
  one (a log file, CI) it prints one line at the first update, then one every
  `every_seconds`, and one at the end.

  Attributes:
    total: number of steps of the whole run.
    examples_per_second: over the last 20 seconds; also what is shown.
    tokens_per_second: likewise.
  """

  def __init__(
    self,
    total: int,
    *,
    start: int = 0,
    label: str = 'train',
    every_seconds: float = 10.0,
    console: rich_console.Console | None = None,
    enabled: bool = True,
  ):
    """Prepares the display; nothing is shown before `__enter__`.

    Args:
      total: number of steps of the whole run.
      start: the step a resumed run starts from.
      label: first word of the bar or of each line.
      every_seconds: time between lines without a terminal.
      console: where to; standard error by default.
      enabled: False shows nothing (processes other than the first).
    """
    self.total = total
    self._step = start
    self._label = label
    self._every_seconds = every_seconds
    self._console = console or stderr_console()
    self._enabled = enabled
    self._rates = _Rates(start, time.monotonic())
    self._last_line: float | None = None
    self._line = ''
    self._bar: rich_progress.Progress | None = None
    self.examples_per_second = 0.0
    self.tokens_per_second = 0.0

  def __enter__(self) -> 'Progress':
    if self._enabled and self._console.is_terminal:
      self._bar = rich_progress.Progress(
        rich_progress.TextColumn('{task.description}'),
        rich_progress.BarColumn(bar_width=24),
        rich_progress.TextColumn('{task.fields[line]}'),
        console=self._console,
      )
      self._bar.start()
      # Until the first update: data is opened, and the step is compiled.
      line = f'{self._step}/{self.total}  starting'
      self._task = self._bar.add_task(
        self._label, total=self.total, completed=self._step, line=line
      )
    return self

  def __exit__(self, *exc_info: Any):
    if self._bar is not None:
      self._bar.stop()
    elif self._line:
      self._print()

  def update(
    self,
    step: int,
    *,
    loss: float | None = None,
    examples: float = 0,
    tokens: float = 0,
    seconds_left: float | None = None,
  ):
    """Says that `step` steps of the run are done.

    Args:
      step: steps done, counted from the start of the whole run.
      loss: shown as it is; None leaves it out.
      examples: how many since the last update.
      tokens: how many since the last update.
      seconds_left: where it is known; estimated by default.
    """
    now = time.monotonic()
    self._step = step
    self._rates.add(step, examples, tokens, now)
    steps, self.examples_per_second, self.tokens_per_second = (
      self._rates.a_second()
    )
    if not self._enabled:
      return
    self._line = self._text(loss, steps, seconds_left)
    if self._bar is not None:
      self._bar.update(self._task, completed=step, line=self._line)
    elif (
      self._last_line is None or now - self._last_line >= self._every_seconds
    ):
      self._print()
      self._last_line = now

  def say(self, text: str):
    """Prints a line, above the bar where there is one."""
    if self._enabled:
      self._console.print(text, markup=False, highlight=False, soft_wrap=True)

  def _text(
    self,
    loss: float | None,
    steps_per_second: float,
    seconds_left: float | None,
  ) -> str:
    parts = [f'{self._step}/{self.total}']
    if loss is not None:
      parts.append(f'loss {loss:.4g}')
    if self.examples_per_second:
      parts.append(f'{format_rate(self.examples_per_second)} examples/s')
    if self.tokens_per_second:
      parts.append(f'{format_rate(self.tokens_per_second)} tokens/s')
    left = self.total - self._step
    if seconds_left is None and steps_per_second > 0:
      seconds_left = left / steps_per_second
    if left and seconds_left is not None:
      parts.append(f'{format_duration(seconds_left)} left')
    return '  '.join(parts)

  def _print(self):
    self.say(f'{self._label}  {self._line}')
    self._line = ''
