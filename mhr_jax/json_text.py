"""JSON that others wrote: whatever is wrong with it, one kind of error.

Python's reader has three more besides its own: of texts that are nested too
deeply, of whole numbers with too many digits, and none at all for half of a
surrogate pair, which then fails where the text is encoded.
"""

import json
import re
from typing import Any

# Half of a pair is legal JSON and no text.
_SURROGATE = re.compile(r'\\u[dD][89a-fA-F]')


def parse(text: str | bytes) -> Any:
  """Returns what a JSON text holds.

  Args:
    text: of one value; bytes are UTF-8.

  Raises:
    json.JSONDecodeError: it is no JSON, or none that can be used.
    UnicodeDecodeError: bytes are no UTF-8.
  """
  if isinstance(text, bytes):
    text = text.decode('utf-8')
  try:
    value = json.loads(text)
  except RecursionError:
    raise json.JSONDecodeError('Nested too deeply', text, 0) from None
  except json.JSONDecodeError:
    raise
  except ValueError:  # Python reads whole numbers of up to 4,300 digits.
    found = re.search(r'\d{4301,}', text)
    at = found.start() if found else 0
    raise json.JSONDecodeError('A number too long', text, at) from None
  half = _SURROGATE.search(text)
  if half and not _is_text(value):
    message = 'Half of a surrogate pair'
    raise json.JSONDecodeError(message, text, half.start())
  return value


def _is_text(value: Any) -> bool:
  """Whether all texts in a value can be encoded."""
  try:
    json.dumps(value, ensure_ascii=False).encode('utf-8')
  except UnicodeEncodeError:
    return False
  return True
