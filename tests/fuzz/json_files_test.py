"""The JSON files of runs, adapters, prepared data and Hugging Face folders."""

import dataclasses
import json
import warnings

from hypothesis import given
import pytest

from mhr_jax import (
  adapter_folder,
  frozen,
  optimizer_state,
  reporting,
  run_files,
  run_folder,
  vocabulary,
)
from mhr_jax.convert import hf_config, hf_vocabulary, peft_lora
from mhr_jax.data import record_format, records
from mhr_jax.optim import OptimizerSettings
from spoiling import answers, spoiled_bytes, spoiled_json, spoiled_json_bytes
import toy_text

_MODEL = run_folder.model_to_json(toy_text.make_model())
_ADAPTER = {
  'format_version': 1,
  'model': _MODEL,
  'tasks': ['copy', 'first', 'upper'],
  'checksum': '0',
  'backbone_checksum': None,
}
_HF = hf_config.to_json(toy_text.CONFIG, dtype='float32')
_OPTIMIZER = {
  'format_version': 1,
  'settings': dataclasses.asdict(OptimizerSettings()),
  'trains': ['adapters'],
}
_MANIFEST = {
  'format_version': record_format.FORMAT_VERSION,
  'task': 't',
  'fingerprint': 'f',
  'vocabulary': {'kind': 'bytes', 'extra_ids': 100, 'fingerprint': 'x'},
  'category': None,
  'splits': {'train': 3},
}
_TOKENIZER = {
  'added_tokens': [{'id': 4, 'content': '<extra_id_0>'}],
  'normalizer': {'type': 'Precompiled', 'precompiled_charsmap': ''},
  'model': {
    'type': 'Unigram',
    'unk_id': 2,
    'vocab': [['<pad>', 0.0], ['</s>', 0], ['<unk>', 0.0], ['a', -1.5]]
    + [['<extra_id_0>', 0.0]],
  },
}
_TOKENIZER_SETTINGS = {
  'tokenizer_class': 'ByT5Tokenizer',
  'extra_ids': 3,
  'added_tokens_decoder': {'0': {'content': '<pad>'}},
  'extra_special_tokens': ['<extra_id_0>', {'content': '<extra_id_1>'}],
}
_LORA = {
  'peft_type': 'LORA',
  'r': 2,
  'lora_alpha': 4,
  'rank_pattern': {'q': 1},
  'alpha_pattern': {'q': 2.0},
  'target_modules': ['q'],
}


@pytest.fixture(autouse=True)
def _quiet():
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # keys that are not known
    yield


@given(spoiled_json_bytes({'a': [1, {'b': None}]}))
def test_any_json_file(folder, data):
  path = folder / 'any.json'
  path.write_bytes(data)
  answers(run_files.read_json, path)
  answers(run_files.read_json, path, list)


@given(spoiled_json_bytes(_MODEL))
def test_the_model_of_a_run(folder, data):
  (folder / run_folder.MODEL_FILE).write_bytes(data)
  answers(run_folder.read_model, folder)


@given(spoiled_json_bytes(['copy', 'first']))
def test_a_table_of_tasks(folder, data):
  (folder / run_files.TASKS_FILE).write_bytes(data)
  answers(run_folder.read_task_table, folder)


@given(spoiled_json(toy_text.VOCABULARY.spec()))
def test_a_description_of_a_vocabulary(folder, spec):
  place = folder / run_folder.VOCABULARY_FOLDER
  place.mkdir(exist_ok=True)
  (place / run_folder.VOCABULARY_FILE).write_text(json.dumps(spec))
  answers(run_folder.read_vocabulary, folder)
  if isinstance(spec, dict):
    answers(vocabulary.from_spec, spec, folder)


@given(spoiled_json_bytes(_ADAPTER))
def test_an_adapter_of_ours(folder, data):
  (folder / adapter_folder.ADAPTER_FILE).write_bytes(data)
  answers(adapter_folder.read_backbone_config, folder)
  answers(adapter_folder.load_adapter, folder)


@given(spoiled_json_bytes({'checksum': '0', 'config': {}, 'parameters': 3}))
def test_what_is_frozen(folder, data):
  (folder / frozen.FROZEN_FILE).write_bytes(data)
  answers(frozen.read_frozen, folder)


@given(spoiled_json_bytes(_OPTIMIZER))
def test_a_description_of_an_optimizer(folder, data):
  (folder / 'optimizer.json').write_bytes(data)
  answers(optimizer_state.read_description, folder / 'optimizer.json')


@given(spoiled_json(_HF), spoiled_json({'pad_token_id': 0, 'eos_token_id': 1}))
def test_a_config_of_transformers(values, generation):
  if isinstance(values, dict) and isinstance(generation, dict):
    answers(hf_config.from_json, values, generation, where='folder')


@given(spoiled_json(_TOKENIZER), spoiled_json(_TOKENIZER_SETTINGS))
def test_a_tokenizer_of_transformers(folder, tokenizer, settings):
  (folder / hf_vocabulary.TOKENIZER_FILE).write_text(json.dumps(tokenizer))
  (folder / hf_vocabulary.SETTINGS_FILE).write_text(json.dumps({}))
  answers(hf_vocabulary.read_vocabulary, folder)
  (folder / hf_vocabulary.SETTINGS_FILE).write_text(json.dumps(settings))
  answers(hf_vocabulary.read_vocabulary, folder)


@given(spoiled_json(_LORA))
def test_settings_of_peft(settings):
  if isinstance(settings, dict):
    answers(
      peft_lora.from_peft, settings, {}, toy_text.CONFIG, None, where='folder'
    )


@given(spoiled_json_bytes(_MANIFEST))
def test_a_manifest_of_prepared_data(folder, data):
  place = record_format.task_folder(folder, 't')
  place.mkdir(parents=True, exist_ok=True)
  (place / record_format.MANIFEST).write_bytes(data)
  task = answers(records.open_task, folder, 't')
  if task is not None:
    answers(lambda: task.vocabulary)
    answers(task.source, 'train')
  answers(records.list_tasks, folder)


@given(spoiled_json_bytes({'tasks': ['a', 'b'], 'rates': [1.0, 2.0]}))
def test_a_prepared_mixture(folder, data):
  place = folder / record_format.MIXTURES
  place.mkdir(exist_ok=True)
  (place / 'mine.json').write_bytes(data)
  answers(records.open_mixture, folder, 'mine')


@given(spoiled_bytes(b'{"step": 1, "loss": 2.5}\n{"step": 2}\n'))
def test_the_metrics_of_a_run(folder, data):
  (folder / run_files.METRICS_FILE).write_bytes(data)
  answers(reporting.read_metrics, folder)
