"""What `benchmarks.gpu` measures in processes of their own, on our side.

A process measures while it is built and returns facts alone; settings are
tried one after the other, and one that does not fit the device is noted.
"""

from collections.abc import Callable, Mapping, Sequence
import gc
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import ours
from benchmarks.works import Works

_WARM_UP = 2
_NO_SPACE = 'RESOURCE_EXHAUSTED'


def ceiling(sizes: Sequence[int], times: int) -> Works:
  """Measures bfloat16 products of square matrices, and names the device.

  Args:
    sizes: of the matrices; the fastest counts.
    times: products that are timed together.
  """
  device = jax.devices()[0]
  multiply = jax.jit(lambda x, y: x @ y)
  best = 0.0
  for n in sizes:
    x = jax.random.normal(jax.random.key(0), (n, n), jnp.bfloat16)
    jax.block_until_ready(multiply(x, x))
    start = time.perf_counter()
    product = x
    for _ in range(times):
      product = multiply(x, x)
    jax.block_until_ready(product)
    best = max(best, 2 * n**3 * times / (time.perf_counter() - start))
  facts = {
    'device': device.device_kind,
    'platform': device.platform,
    'flops': best,
  }
  return Works({}, facts)


def train(settings: Sequence[Mapping[str, Any]], times: int) -> Works:
  """Measures a training step of MHR at each setting.

  Args:
    settings: of `Setting.as_json`.
    times: steps that are timed, each to its end.
  """
  return _try_all(
    settings,
    times,
    lambda setting: ours.train_step(setting, 'mhr', [ours.STEP]),
    ours.STEP,
  )


def decode(settings: Sequence[Mapping[str, Any]], times: int) -> Works:
  """Measures greedy decoding with MHR at each setting.

  Args:
    settings: of `Setting.as_json`.
    times: batches that are timed.
  """
  return _try_all(
    settings,
    times,
    lambda setting: ours.decode(setting, 'mhr'),
    ours.DECODE,
  )


def _try_all(
  settings: Sequence[Mapping[str, Any]],
  times: int,
  build: Callable[[Mapping[str, Any]], Works],
  name: str,
) -> Works:
  tried = []
  for setting in settings:
    try:
      measured = _measure(build(setting).runs[name], times)
    except jax.errors.JaxRuntimeError as error:
      if _NO_SPACE not in str(error):
        raise
      measured = {'failed': 'does not fit the memory of the device'}
    tried.append({'setting': dict(setting), **measured})
    # What the setting held goes before the next one comes.
    jax.clear_caches()
    gc.collect()
  return Works({}, {'tried': tried})


def _measure(run: Any, times: int) -> dict[str, Any]:
  """Returns the seconds of each run, and what the last one said of memory."""
  start = time.perf_counter()
  for _ in range(_WARM_UP):
    run()
  warm = time.perf_counter() - start
  seconds, numbers = [], {}
  for _ in range(times):
    start = time.perf_counter()
    numbers = run() or {}
    seconds.append(time.perf_counter() - start)
  median = statistics.median(seconds)
  return {
    'seconds': median,
    'rounds': seconds,
    'warm_up_seconds': warm,
    **dict(numbers),
  }
