"""Model cards of what is saved: a README beside the files of every format."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from etils import epath

from mhr_jax import checkpoints, run_files
from mhr_jax.adapters import AdapterConfig
from mhr_jax.model_card import RunDescription, model_card, parameter_rows
from mhr_jax.task_table import TaskTable

_ADAPTER = """```python
import mhr_jax

model = mhr_jax.load('path/to/the/backbone', adapter={path!r})
```"""
_WHOLE = """```python
import mhr_jax

model = mhr_jax.load({path!r})
```"""
_USE = {
  'native': _ADAPTER,
  'peft-poly': f'{_ADAPTER}\n\nPEFT reads the folder too.',
  'peft-lora': f'{_ADAPTER}\n\nPEFT reads the folder too.',
  'peft-ia3': f'{_ADAPTER}\n\nPEFT reads the folder too.',
  'hf': f'{_WHOLE}\n\ntransformers reads the folder too.',
  'run': f'{_WHOLE}\n\nTraining goes on from it: `start_from = {{path!r}}`.',
  'stablehlo': '`python run.py request.json`; `run.py` says what a request is.',
}


def write_card(
  folder: epath.PathLike,
  format: str,
  params: Mapping[str, Any],
  *,
  what: str,
  adapters: AdapterConfig | None = None,
  task_table: TaskTable | None = None,
) -> None:
  """Writes `README.md` into a folder that was just saved.

  A T5X checkpoint gets none: its folder is T5X's, one for all steps.

  Args:
    folder: what was saved.
    format: one of `saving.SAVE_FORMATS`.
    params: what it holds, by label.
    what: that in a few words.
    adapters: the configuration of its adapters, if it has some.
    task_table: the names of its tasks, where they have some.
  """
  if format not in _USE:
    return
  folder = checkpoints.absolute(folder)
  use = _WHOLE if format == 'native' and 'backbone' in params else _USE[format]
  description = RunDescription(
    name=folder.name,
    summary=f'{what[0].upper()}{what[1:]}; written as `{format}` by mhr_jax.',
    tasks=task_table,
    parameters=parameter_rows(params),
    settings={} if adapters is None else dataclasses.asdict(adapters),
  )
  run_files.write_text(
    folder / run_files.CARD_FILE,
    model_card(description, path=str(folder), use=use),
  )
