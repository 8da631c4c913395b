"""PEFT's adapter folders, read and written: `POLY`, `LORA` and `IA3`.

Neither torch nor PEFT is needed, but for folders whose tensors are pickled.
"""

from typing import Any

from etils import epath

from mhr_jax import checkpoints
from mhr_jax.adapter_folder import AdapterBundle
from mhr_jax.convert import peft_files, peft_ia3, peft_lora, peft_poly
from mhr_jax.errors import UserError, nearest
from mhr_jax.t5.config import T5Config

_KINDS: dict[str, Any] = {
  'IA3': peft_ia3,
  'LORA': peft_lora,
  'POLY': peft_poly,
}


def read_adapter(
  folder: epath.PathLike, backbone: T5Config, *, allow_pickle: bool = False
) -> AdapterBundle:
  """Reads a folder that PEFT, or we, wrote.

  Every tensor is accounted for, and every setting: what has no equivalent
  here is refused by name.

  Args:
    folder: with `adapter_config.json` and the tensors.
    backbone: that the adapters are for.
    allow_pickle: whether tensors may be read from `adapter_model.bin`.

  Returns:
    The adapters in float32, with the task table where we wrote it.

  Raises:
    UserError: the folder is none, or has something without an equivalent.
  """
  folder = checkpoints.absolute(folder)
  settings = peft_files.read_settings(folder)
  kind = settings.get('peft_type')
  if not isinstance(kind, str) or kind not in _KINDS:
    raise UserError(
      f'{folder} holds a PEFT adapter of the type {kind!r}, which has no'
      f' equivalent here.{nearest(str(kind), _KINDS)}'
    )
  return _KINDS[kind].from_peft(
    settings,
    peft_files.read_tensors(folder, allow_pickle=allow_pickle),
    backbone,
    peft_files.read_tasks(folder),
    where=str(folder),
  )


def write_poly(
  folder: epath.PathLike,
  bundle: AdapterBundle,
  *,
  base_model: str | None = None,
) -> None:
  """Writes a POLY folder for `peft.PeftModel.from_pretrained`.

  Args:
    folder: absent or empty.
    bundle: with routing that PEFT has; see `peft_poly.to_peft`.
    base_model: the backbone's name on a hub, or its path.

  Raises:
    UserError: the routing has no equivalent in PEFT; the message names the
      setting. Or the folder holds something.
  """
  _write(folder, peft_poly, bundle, base_model)


def write_lora(
  folder: epath.PathLike,
  bundle: AdapterBundle,
  *,
  base_model: str | None = None,
) -> None:
  """Writes a LORA folder for `peft.PeftModel.from_pretrained`.

  Args:
    folder: absent or empty.
    bundle: one adapter without routing, such as
      `adapter_folder.effective_bundle` returns.
    base_model: the backbone's name on a hub, or its path.

  Raises:
    UserError: there are skills to mix, or the folder holds something.
  """
  _write(folder, peft_lora, bundle, base_model)


def write_ia3(
  folder: epath.PathLike,
  bundle: AdapterBundle,
  *,
  base_model: str | None = None,
) -> None:
  """Writes an IA3 folder for `peft.PeftModel.from_pretrained`.

  Args:
    folder: absent or empty.
    bundle: one (IA)³ adapter without routing, such as
      `adapter_folder.effective_bundle` returns.
    base_model: the backbone's name on a hub, or its path.

  Raises:
    UserError: there are skills to mix, or the folder holds something.
  """
  _write(folder, peft_ia3, bundle, base_model)


def _write(folder, kind, bundle, base_model):
  settings, tensors = kind.to_peft(bundle)
  settings['base_model_name_or_path'] = base_model
  peft_files.write_folder(
    checkpoints.absolute(folder), settings, tensors, bundle.task_table
  )
