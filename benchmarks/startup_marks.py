"""`mhr-jax` with a note of when it imports, traces and compiles.

    python -m benchmarks.startup_marks FILE train --gin_file=…

is that command, and writes a JSON line to FILE for each of these.
"""

import json
import sys
import time

_STARTED = time.time()


def main(path: str, *argv: str) -> int:
  """Runs the command; returns its exit code."""
  with open(path, 'w', buffering=1) as file:

    def note(name: str, seconds: float) -> None:
      line = {'name': name, 'end': time.time(), 'seconds': seconds}
      file.write(json.dumps(line) + '\n')

    note('started', 0.0)
    from mhr_jax import cli

    # What the command imports when it runs, here apart from its work.
    import mhr_jax.configurables
    import mhr_jax.train  # noqa: F401

    note('imports', time.time() - _STARTED)
    from jax import monitoring

    def listen(event: str, duration_secs: float, **_: object) -> None:
      note(event, duration_secs)

    monitoring.register_event_duration_secs_listener(listen)
    return cli.main(argv)


if __name__ == '__main__':
  sys.exit(main(*sys.argv[1:]))
