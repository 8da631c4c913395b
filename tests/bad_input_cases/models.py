"""Runs, backbones and adapters that are damaged, foreign or do not fit."""

import json
import pathlib

from bad_input_cases.case import (
  Case,
  Spoil,
  both,
  cut,
  edit,
  edit_json,
  evaluate,
  remove,
  train,
  write,
)

_HF_CONFIG = 'hf/config.json'
_TENSORS = 'hf/model.safetensors'
_ARRAYS = 'adapter/adapter.safetensors'


def _convert(source: str, *more: str, format: str = 'native'):
  return ('convert', source, 'out', f'--format={format}', *more)


def _adapt_to(adapter: str, *more: str):
  return _convert('backbone', f'--adapter={adapter}', *more)


def _predict(run: str = 'run'):
  return ('predict', run, '--task=copy', '--input=texts.txt')


def _header_that_lies(data: bytes) -> bytes:
  header = {
    'a': {
      'dtype': 'F32',
      'shape': [10**6, 10**6],
      'data_offsets': [0, 4 * 10**12],
    }
  }
  text = json.dumps(header).encode()
  return len(text).to_bytes(8, 'little') + text + data[-8:]


def _settings_of_a_run(**changes: str) -> Spoil:
  def spoil(folder: pathlib.Path) -> None:
    values = {'method': "'mhr'", 'split': "'train'", 'settings.steps': '3'}
    text = json.dumps(values | changes)
    (folder / 'run' / 'settings.json').write_text(text)

  return spoil


_CONVERSIONS = (
  Case('nothing there', _convert('backbon'), ("'backbone'",)),
  Case('a folder of no format', _convert('ni'), ('of no format that is read',)),
  Case(
    'a file of no format', _convert('texts.txt'), ('texts.txt is a file of no',)
  ),
  Case('no such format', _convert('backbone', format='tf'), ("'tf'", 'hf')),
  Case(
    'half precision',
    _convert('backbone', '--dtype=float16'),
    ('float16', '65,504', 'bfloat16'),
    sample=True,
  ),
  Case(
    'a folder that is taken',
    ('convert', 'backbone', 'ni', '--format=native'),
    ('ni', 'new or empty folder'),
  ),
  Case(
    'a task of a bare model',
    _convert('backbone', '--task=copy', format='hf'),
    ('no adapters, so no tasks',),
  ),
  Case('a step of a backbone', _convert('backbone', '--step=3'), ('step',)),
  Case(
    'adapters without a backbone',
    _convert('lora', format='hf'),
    ('mhr-jax convert BACKBONE',),
  ),
  Case(
    'names of tasks, twice the same',
    _adapt_to('poly', '--tasks=names.txt'),
    ("'a'", 'twice'),
    both(write('names.txt', 'a\na\nb\n'), remove('poly/tasks.json')),
  ),
  Case(
    'too few names of tasks',
    _adapt_to('poly', '--tasks=names.txt'),
    ('2', '3'),
    both(write('names.txt', 'a\nb\n'), remove('poly/tasks.json')),
  ),
  Case(
    'a vocabulary that is not there',
    _convert('backbone', '--vocabulary=none.model', format='hf'),
    ('none.model',),
  ),
  Case(
    'export of what is no run',
    ('export', 'backbone', 'out', '--format=hf'),
    ('no run', 'mhr-jax convert backbone'),
  ),
  Case(
    'export of a step that is not there',
    ('export', 'run', 'out', '--format=native', '--step=8'),
    ('8', '7'),
  ),
  Case(
    'export without a task',
    ('export', 'run', 'out', '--format=peft-lora'),
    ('Which task?', 'copy'),
  ),
)
_HF = (
  Case(
    'transformers: config.json cut',
    _convert('hf'),
    ('config.json', 'line'),
    cut(_HF_CONFIG),
  ),
  Case(
    'transformers: a key is missing',
    _convert('hf'),
    ('config.json', 'd_model'),
    edit_json(_HF_CONFIG, d_model=None),
  ),
  Case(
    'transformers: a wrong type',
    _convert('hf'),
    ('config.json: d_ff', "'x'"),
    edit_json(_HF_CONFIG, d_ff='x'),
  ),
  Case(
    'transformers: another model',
    _convert('hf'),
    ("'bert'", 't5'),
    edit_json(_HF_CONFIG, model_type='bert'),
  ),
  Case(
    'transformers: another activation',
    _convert('hf'),
    ("'elu'", 'known'),
    edit_json(_HF_CONFIG, dense_act_fn='elu'),
  ),
  Case(
    'transformers: a size of the moon',
    _convert('hf'),
    ('num_encoder_layers is 1',),
    edit_json(_HF_CONFIG, num_layers=10**9),
  ),
  Case(
    'transformers: other sizes',
    _convert('hf'),
    ('hf', '(32, 16)', '(16, 16)'),
    edit_json(_HF_CONFIG, d_ff=32),
    sample=True,
  ),
  Case(
    'transformers: no weights',
    _convert('hf'),
    ('no weights',),
    remove(_TENSORS),
  ),
  Case(
    'transformers: weights cut',
    _convert('hf'),
    ('model.safetensors is cut short',),
    cut(_TENSORS, 0.9),
    sample=True,
  ),
  Case(
    'transformers: no safetensors',
    _convert('hf'),
    ('no safetensors file',),
    write(_TENSORS, 'x' * 40),
  ),
  Case(
    'transformers: a header that lies',
    _convert('hf'),
    ('model.safetensors is cut',),
    edit(_TENSORS, _header_that_lies),
  ),
  Case(
    'transformers: a shard is missing',
    _convert('hf'),
    ('b.safetensors', 'absent'),
    both(
      remove(_TENSORS),
      write(
        'hf/model.safetensors.index.json',
        '{"weight_map": {"a": "b.safetensors"}}',
      ),
    ),
  ),
  Case(
    'transformers: a pickle unasked',
    _convert('hf'),
    ('a program', '--allow_pickle'),
    both(remove(_TENSORS), write('hf/pytorch_model.bin', b'\x80\x02.')),
  ),
  Case(
    'transformers: a tokenizer of another kind',
    _convert('hf'),
    ('tokenizer.json', 'BPE'),
    both(
      remove('hf/tokenizer_config.json'),
      write('hf/tokenizer.json', '{"model": {"type": "BPE"}}'),
    ),
  ),
  Case(
    'a pickle without torch',
    _adapt_to('torch', '--allow_pickle'),
    ("pip install 'mhr_jax[interop]'", 'safetensors'),
    absent=('torch',),
    sample=True,
  ),
  Case(
    'mttl: a pickle unasked',
    _adapt_to('torch'),
    ('mttl.ckpt', '--allow_pickle'),
  ),
)
_T5X = (
  Case(
    'T5X: no state',
    _convert('t5x'),
    ('t5x',),
    remove('t5x/checkpoint_0/state/manifest.ocdbt'),
  ),
  Case(
    'T5X: the list of arrays cut',
    _convert('t5x'),
    ('t5x/checkpoint_0/state', 'copy it again'),
    cut('t5x/checkpoint_0/state/_METADATA'),
  ),
  Case(
    'T5X: msgpack that is none',
    _convert('old'),
    ('checkpoint_3/checkpoint',),
    write('old/checkpoint_3/checkpoint', b'\x81\xa3abc'),
  ),
  Case(
    "TensorFlow's checkpoint",
    _convert('old'),
    ('old',),
    write('old/checkpoint', 'model_checkpoint_path: "x"'),
  ),
)
_ADAPTERS = (
  Case(
    'PEFT: settings cut',
    _adapt_to('lora'),
    ('adapter_config.json', 'line'),
    cut('lora/adapter_config.json'),
  ),
  Case(
    'PEFT: another type',
    _adapt_to('lora'),
    ("'LOHA'", "'LORA'"),
    edit_json('lora/adapter_config.json', peft_type='LOHA'),
  ),
  Case(
    'PEFT: a setting without equivalent',
    _adapt_to('lora'),
    ('use_dora=True',),
    edit_json('lora/adapter_config.json', use_dora=True),
  ),
  Case(
    'PEFT: no rank',
    _adapt_to('lora'),
    ('r=0', 'positive whole number'),
    edit_json('lora/adapter_config.json', r=0),
  ),
  Case(
    'PEFT: no tensors',
    _adapt_to('lora'),
    ('adapter_model.safetensors',),
    remove('lora/adapter_model.safetensors'),
  ),
  Case(
    'PEFT: tensors cut',
    _adapt_to('poly'),
    ('is cut short',),
    cut('poly/adapter_model.safetensors', 0.9),
  ),
  Case(
    'PEFT: splits that do not fit',
    _adapt_to('poly'),
    ('the shape',),
    edit_json('poly/adapter_config.json', n_splits=4),
  ),
  Case(
    'mttl: cut',
    _adapt_to('mttl.safetensors'),
    ('mttl.safetensors is cut',),
    cut('mttl.safetensors', 0.9),
  ),
  Case(
    'an adapter of another backbone',
    _convert('hf', '--adapter=adapter'),
    ('adapter', 'backbone'),
    both(
      edit_json(_HF_CONFIG, num_layers=2),
      edit_json('adapter/adapter.json', x=1),
    ),
  ),
  Case(
    'an adapter that is cut',
    _adapt_to('adapter'),
    (_ARRAYS, 'is cut short'),
    cut(_ARRAYS, 0.9),
  ),
  Case(
    'an adapter that was altered',
    _adapt_to('adapter'),
    ('checksum', 'Copy it again'),
    edit(_ARRAYS, lambda data: data[:-4] + b'\0\0\0\x40'),
    sample=True,
  ),
  Case(
    'an adapter of a newer format',
    _adapt_to('adapter'),
    ('format 9', 'Install a newer'),
    edit_json('adapter/adapter.json', format_version=9),
  ),
  Case(
    'an adapter without its checksum',
    _adapt_to('adapter'),
    ('lacks checksum',),
    edit_json('adapter/adapter.json', checksum=None),
  ),
)
_RUNS = (
  Case(
    'a run without a model',
    _predict(),
    ('run', 'model.json'),
    remove('run/model.json'),
  ),
  Case(
    'a model that is cut',
    _predict(),
    ('model.json', 'line'),
    cut('run/model.json'),
  ),
  Case(
    'a model of a newer format',
    _predict(),
    ('format 9',),
    edit_json('run/model.json', format_version=9),
  ),
  Case(
    'a model that cannot be',
    _predict(),
    ('model.json: adapters', 'rank is 0'),
    edit(
      'run/model.json', lambda data: data.replace(b'"rank": 2', b'"rank": 0')
    ),
  ),
  Case(
    'a table of the same tasks',
    _predict(),
    ('tasks.json', "'copy'", 'twice'),
    write('run/tasks.json', '["copy", "copy", "upper"]'),
  ),
  Case(
    'a vocabulary that is no more',
    _predict(),
    ('spec.json', 'kind'),
    write('run/vocabulary/spec.json', '{"kind": 3}'),
  ),
  Case(
    'a run without a checkpoint',
    _predict(),
    ('does not have a checkpoint',),
    lambda folder: (folder / 'run/checkpoints/7').rename(folder / 'gone'),
  ),
  Case(
    'a checkpoint without metadata',
    _predict(),
    ('metadata', 'copy it again'),
    remove('run/checkpoints/7/metadata/metadata'),
  ),
  Case(
    'a checkpoint that is cut',
    _predict(),
    ('run/checkpoints/7/trainable',),
    cut('run/checkpoints/7/trainable/_METADATA'),
  ),
  Case(
    'a frozen backbone that is another',
    _predict(),
    ('checksum', 'backbone'),
    edit_json('run/backbone/frozen.json', checksum='0'),
  ),
  Case(
    'a frozen backbone that is cut',
    _predict(),
    ('frozen.json', 'line'),
    cut('run/backbone/frozen.json'),
  ),
  Case(
    'evaluate what is no run', evaluate(RUN_DIR='"ni"'), ('ni', 'model.json')
  ),
  Case(
    'a backbone that is not there',
    train(BACKBONE_FROM='"bakbone"'),
    ('backbone_from', 'bakbone'),
  ),
  Case(
    'a backbone of other sizes',
    train(**{'T5Config.mlp_dim': '32'}),
    ('mlp_dim', '16', '32'),
    sample=True,
  ),
  Case(
    'a start that is no run',
    train(BACKBONE_FROM='None', **{'train.train.start_from': '"ni"'}),
    ('ni', 'model.json'),
  ),
  Case(
    'a backbone and a start',
    train(**{'train.train.start_from': '"run"'}),
    ('backbone_from or start_from, not both',),
  ),
  Case(
    'other settings on resuming',
    train(RUN_DIR='"run"'),
    (
      'run holds a run with other settings',
      'settings.steps: 5 -> 3',
      '--allow_config_change',
    ),
    _settings_of_a_run(**{'settings.steps': '5'}),
    sample=True,
  ),
  Case(
    'other tasks on resuming',
    train('--allow_config_change', RUN_DIR='"run"'),
    ('run/', 'another model', 'Choose another run folder'),
    _settings_of_a_run(),
  ),
)
CASES = (*_CONVERSIONS, *_HF, *_T5X, *_ADAPTERS, *_RUNS)
