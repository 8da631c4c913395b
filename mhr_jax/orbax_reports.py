"""What Orbax's threads say of files beside one that failed."""

from collections.abc import Callable
import functools
import logging
import sys
import traceback
from typing import Any


def silence_given_up() -> None:
  """Lets files that Orbax gave up say nothing, from here on.

  Where one file of several cannot be read or written, Orbax reports that one
  and ends the loop in which the others still are. Each of them prints a
  traceback of that, or of its own failure, some time later: nobody can say
  when, so hook and filter stay.
  """
  report = sys.unraisablehook
  if getattr(report, 'func', None) is not _report:
    sys.unraisablehook = functools.partial(_report, report)
  logging.getLogger('asyncio').addFilter(_is_news)


def _report(report: Callable[[Any], None], raised: Any):
  """Reports what nobody can catch, but for what was given up."""
  if 'Event loop is closed' not in str(raised.exc_value):
    report(raised)


def _is_news(record: logging.LogRecord) -> bool:
  """Whether a record tells more than that another of Orbax's files failed."""
  if not record.exc_info or 'never retrieved' not in record.getMessage():
    return True
  frames = traceback.extract_tb(record.exc_info[2])
  return not any('orbax' in frame.filename for frame in frames)
