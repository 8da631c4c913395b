"""Files of arrays: safetensors, .npz, torch's, T5X's msgpack, vocabularies.

A header that promises more than the file holds costs no memory.
"""

import io
import json
import tracemalloc

from flax import serialization
from hypothesis import example, given
from hypothesis import strategies as st
import numpy as np
import pytest
import safetensors.numpy

from mhr_jax import adapter_folder, npz_files
from mhr_jax.convert import (
  hf_t5,
  mttl,
  peft,
  safetensors_files,
  t5x_files,
  tensor_files,
  torch_files,
)
from mhr_jax.vocabulary import SentencePieceVocabulary
from spoiling import answers, spoiled_bytes, spoiled_json
import toy_text

_ARRAYS = {
  'a': np.arange(6, dtype=np.float32).reshape(2, 3),
  'b': np.zeros((), np.float32),
}
_MODULE = 'encoder.block.0.layer.0.SelfAttention.q'
_NAMES = {'lora_A.weight': (2, 16), 'lora_B.weight': (16, 2)}
_LORA = {
  f'base_model.model.{_MODULE}.{name}': np.ones(shape, np.float32)
  for name, shape in _NAMES.items()
}
_MTTL = {
  f'{_MODULE}.lora_a': np.ones((1, 1, 16, 2), np.float32),
  f'{_MODULE}.lora_b': np.ones((1, 1, 2, 16), np.float32),
  f'{_MODULE}.selector.module_logits': np.ones((3, 1), np.float32),
}
_MEGABYTES = 2**20


def _to_npz(arrays):
  buffer = io.BytesIO()
  np.savez(buffer, **arrays)
  return buffer.getvalue()


def _header_of(arrays):
  data = safetensors.numpy.save(arrays)
  length = int.from_bytes(data[:8], 'little')
  return json.loads(data[8 : 8 + length]), data[8 + length :]


def _with_header(header, rest):
  text = json.dumps(header).encode()
  return len(text).to_bytes(8, 'little') + text + rest


_HEADER, _REST = _header_of(_ARRAYS)


@given(spoiled_bytes(safetensors.numpy.save(_ARRAYS)))
def test_a_safetensors_file(folder, data):
  (folder / 'x.safetensors').write_bytes(data)
  answers(tensor_files.read_tensors, folder / 'x.safetensors')


@given(spoiled_json(_HEADER), st.binary(max_size=4))
@example(
  {'a': {'dtype': 'F32', 'shape': [-1, -4], 'data_offsets': [0, 16]}}, b''
)
@example({'a': {'dtype': 'F32', 'shape': [2.5], 'data_offsets': [0, 10]}}, b'')
@example(
  {'a': {'dtype': 'F32', 'shape': [0, 2**62], 'data_offsets': [0, 0]}}, b''
)
@example(
  {'a': {'dtype': 'F32', 'shape': [1] * 80, 'data_offsets': [0, 4]}}, b''
)
def test_a_header_that_lies_costs_no_memory(folder, header, more):
  path = folder / 'lies.safetensors'
  path.write_bytes(_with_header(header, _REST + more))
  tracemalloc.start()
  answers(tensor_files.read_tensors, path)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 8 * _MEGABYTES


@given(spoiled_json({'weight_map': {'a': 'x.safetensors'}}))
def test_an_index_of_shards(folder, index):
  (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
  answers(safetensors_files.find_files, folder, 'model.safetensors')


@given(spoiled_bytes(_to_npz(_ARRAYS)))
def test_an_npz_file(folder, data):
  (folder / 'x.npz').write_bytes(data)
  answers(npz_files.read_arrays, folder / 'x.npz', 'arrays')


@pytest.mark.parametrize('shape', [(2**40,), (2**62, 4), (10**6, 10**3)])
def test_an_npz_file_that_lies_costs_no_memory(folder, shape):
  data = io.BytesIO()
  np.lib.format.write_array(data, np.zeros(3, np.float32))
  text = data.getvalue().replace(b'(3,)', str(shape).encode())
  spare = len(text) - len(data.getvalue())
  text = text.replace(b' ' * spare, b'', 1)
  path = folder / 'lies.npz'
  import zipfile

  with zipfile.ZipFile(path, 'w') as entries:
    entries.writestr('a.npy', text)
  tracemalloc.start()
  assert answers(npz_files.read_arrays, path, 'arrays') is None
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 8 * _MEGABYTES


@given(
  spoiled_bytes(
    serialization.msgpack_serialize(
      {'optimizer': {'target': _ARRAYS, 'state': {'step': np.int32(3)}}}
    )
  )
)
def test_the_older_form_of_a_t5x_checkpoint(folder, data):
  place = folder / 'checkpoint_3'
  place.mkdir(exist_ok=True)
  (place / 'checkpoint').write_bytes(data)

  def read(part):
    with t5x_files.open_part(place, part) as opened:
      return {name: opened.read(name) for name in opened.shapes}

  answers(read, 'target')
  answers(read, 'state')


@given(spoiled_json({'r': 2, 'lora_alpha': 4, 'peft_type': 'LORA'}), st.data())
def test_a_folder_of_peft(folder, settings, data):
  (folder / 'adapter_config.json').write_text(json.dumps(settings))
  kept = data.draw(st.sets(st.sampled_from([*_LORA])))
  tensors = {name: _LORA[name] for name in kept} | _ARRAYS
  tensor_files.write_tensors(folder / 'adapter_model.safetensors', tensors)
  answers(peft.read_adapter, folder, toy_text.CONFIG)


@given(st.data())
def test_tensors_of_mttl_of_any_shape(folder, data):
  shapes = st.lists(st.integers(0, 3), max_size=4)
  tensors = {
    name: np.zeros(data.draw(shapes), np.float32)
    if data.draw(st.booleans())
    else array
    for name, array in _MTTL.items()
    if data.draw(st.integers(0, 4))
  }
  path = folder / 'mttl.safetensors'
  tensor_files.write_tensors(path, tensors | {'c': np.zeros(1, np.float32)})
  answers(
    mttl.read_adapter, path, toy_text.CONFIG, on_message=lambda message: None
  )


@given(spoiled_bytes(safetensors.numpy.save(_ARRAYS)))
def test_the_arrays_of_an_adapter_of_ours(folder, data):
  place = folder / 'ours'
  if not place.exists():
    model = toy_text.make_model()
    params = toy_text.make_params(model)
    del params['backbone']
    bundle = adapter_folder.AdapterBundle(
      model.adapters, params, toy_text.TASKS, model.config
    )
    adapter_folder.save_adapter(place, bundle)
  (place / adapter_folder.ARRAYS_FILE).write_bytes(data)
  answers(adapter_folder.load_adapter, place)


@given(st.data())
def test_a_folder_of_transformers(folder, data):
  place = folder / 'hf'
  if not place.exists():
    model = toy_text.make_model()
    params = toy_text.make_params(model)
    hf_t5.write_backbone(place, model.config, params['backbone'])
  good = json.loads((place / 'config.json').read_text())
  spoiled = data.draw(spoiled_json(good))
  path = place / 'config.json'
  path.write_text(json.dumps(spoiled))
  answers(hf_t5.read_backbone, place)
  path.write_text(json.dumps(good))


@pytest.mark.interop
@given(st.data())
def test_a_pickle_of_torch(folder, data):
  import torch

  buffer = io.BytesIO()
  torch.save({'a': torch.ones(2, 3), 'hyper_parameters': {'x': 1}}, buffer)
  path = folder / 'x.bin'
  path.write_bytes(data.draw(spoiled_bytes(buffer.getvalue())))
  for mapped in (False, torch_files.can_map(path)):
    answers(torch_files.read_state_dict, path, allow_pickle=True, mapped=mapped)


@given(spoiled_bytes(b'\n\x0e\n\x05<pad>\x15\x00\x00\x00\x00\x18\x03' * 4))
def test_a_model_of_sentencepiece(folder, data):
  (folder / 'x.model').write_bytes(data)
  answers(SentencePieceVocabulary, folder / 'x.model')
