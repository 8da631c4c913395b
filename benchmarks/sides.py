"""The processes of a comparison, from the side of who compares."""

from collections.abc import Mapping
import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any, Self

from mhr_jax.errors import UserError

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_TICKS = os.sysconf('SC_CLK_TCK')
_LAST_LINES = 15


@dataclasses.dataclass(frozen=True)
class Side:
  """How to build one side.

  Attributes:
    name: in tables.
    target: 'module:function', which returns `works.Works`.
    arguments: of the function; JSON.
    environment: beside that of this process.
  """

  name: str
  target: str
  arguments: Mapping[str, Any]
  environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


class SideProcess:
  """A side's process; see `benchmarks.worker`. Use it as a context manager."""

  def __init__(self, side: Side, *, warm_up: int = 2):
    """Starts the process; `wait` waits until it is built and warm."""
    self.side = side
    # Closed in __exit__, as the process is.
    self._errors = tempfile.TemporaryFile('w+')  # noqa: SIM115
    self._process = subprocess.Popen(
      [
        sys.executable,
        '-m',
        'benchmarks.worker',
        side.target,
        json.dumps(side.arguments),
        str(warm_up),
      ],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._errors,
      text=True,
      cwd=_ROOT,
      env={**os.environ, **side.environment},
    )

  def wait(self) -> dict[str, Any]:
    """Returns the side's facts and first runs.

    Raises:
      UserError: it could not be built.
      RuntimeError: it ended without a word; the message has its last ones.
    """
    return self._read()

  def run(self, name: str, times: int) -> dict[str, Any]:
    """Runs a work so many times and returns what the worker measured."""
    assert self._process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # reading tells why it ended
      command = json.dumps({'run': name, 'times': times})
      self._process.stdin.write(command + '\n')
      self._process.stdin.flush()
    return self._read()

  def kill(self) -> None:
    """Ends the process at once; who waits for it gets an error."""
    self._process.kill()

  def cpu_seconds(self) -> float:
    """Returns the processor time used so far; 0 without /proc."""
    try:
      stat = pathlib.Path(f'/proc/{self._process.pid}/stat').read_text()
    except OSError:
      return 0.0
    fields = stat.rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS

  def _read(self) -> dict[str, Any]:
    assert self._process.stdout is not None
    line = self._process.stdout.readline()
    if not line:
      self._errors.seek(0)
      last = self._errors.read().splitlines()[-_LAST_LINES:]
      raise RuntimeError(f'{self.side.name} ended:\n' + '\n'.join(last))
    message = json.loads(line)
    if 'error' in message:
      raise UserError(f'{self.side.name}: {message["error"]}')
    return message

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exc_info: object) -> None:
    for pipe in (self._process.stdin, self._process.stdout):
      if pipe is not None:
        pipe.close()
    self._process.terminate()
    self._process.wait()
    self._errors.close()
