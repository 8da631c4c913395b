"""A folder with one good thing of every kind, for cases to spoil.

data_cache/  prepared: one, two, new and the run's, the mixture both
backbone/ adapter/ run/            of ours, of one toy model
hf/ t5x/ poly/ lora/ mttl.safetensors torch.bin
ni/ crossfit/ t0/ p3/              task files
spiece.model toy.gin sizes.gin texts.txt
"""

import pathlib

import numpy as np
import sentencepiece

from mhr_jax import run_files
from mhr_jax.convert import tensor_files
import toy_models
import toy_t0
import toy_text

TOY_GIN = f"""\
from __gin__ import dynamic_registration
from mhr_jax import adapters
from mhr_jax.t5 import config

BACKBONE = @config.T5Config()
config.T5Config:
  vocab_size = {toy_text.CONFIG.vocab_size}
  emb_dim = 16
  num_heads = 2
  head_dim = 8
  mlp_dim = 16
  num_encoder_layers = 1
  num_decoder_layers = 1
  relative_attention_num_buckets = 4
  relative_attention_max_distance = 8
"""
SIZES_GIN = """\
from __gin__ import dynamic_registration
from mhr_jax import adapters

adapters.AdapterConfig.n_splits = 2
adapters.AdapterConfig.n_skills = 3
STEPS = 3
BATCH_SIZE = 4
INPUT_LENGTH = 8
TARGET_LENGTH = 6
"""
NI_TASK = {
  'Definition': ['Say the capital.'],
  'Positive Examples': [{'input': 'a', 'output': 'b', 'explanation': ''}],
  'Instances': [
    {'id': f'task1-{i}', 'input': f'in {i}', 'output': [f'out {i}']}
    for i in range(6)
  ],
  'Categories': ['Capitals'],
  'Input_language': ['English'],
}


def build(folder: pathlib.Path, write_task, write_mixture) -> None:
  """Writes everything; `write_task` and `write_mixture` are fixtures."""
  _write_prepared(folder / 'data_cache', write_task, write_mixture)
  _write_models(folder)
  _write_tasks(folder)
  (folder / 'toy.gin').write_text(TOY_GIN)
  (folder / 'sizes.gin').write_text(SIZES_GIN)
  (folder / 'texts.txt').write_text('abc\n')


def _write_prepared(folder, write_task, write_mixture):
  sizes = {'train': 12, 'validation': 4, 'test': 4, 'few_shot': 8}
  for name in ('one', 'two', 'new', *toy_text.TASKS.names):
    write_task(folder, name, vocabulary=toy_text.VOCABULARY, **sizes)
  write_mixture(folder, 'both', ('one', 'two'), (1.0, 1.0))


def _write_models(folder):
  model = toy_models.make_model()
  toy_models.write_run(folder / 'run', model)
  (folder / 'run' / 'run.json').write_text('{"method": "mhr", "n_tasks": 3}')
  (folder / 'run' / 'metrics.jsonl').write_text('{"step": 1, "loss": 2.0}\n')
  bare = toy_models.without_adapters(model, vocabulary=toy_text.VOCABULARY)
  bare.save(folder / 'backbone')
  bare.save(folder / 'hf', 'hf')
  bare.save(folder / 't5x', 't5x')
  model.save(folder / 'adapter')
  model.save(folder / 'poly', 'peft-poly')
  model.save(folder / 'lora', 'peft-lora', task='copy')
  module = 'encoder.block.0.layer.0.SelfAttention.q'
  tensors = {
    f'{module}.lora_a': np.ones((2, 3, 8, 2), np.float32),
    f'{module}.lora_b': np.ones((2, 3, 2, 8), np.float32),
    f'{module}.selector.module_logits': np.ones((3, 6), np.float32),
  }
  tensor_files.write_tensors(folder / 'mttl.safetensors', tensors)
  (folder / 'torch').mkdir()
  (folder / 'torch' / 'mttl.ckpt').write_bytes(b'PK\x03\x04 and no more')


def _write_tasks(folder):
  ni = folder / 'ni'
  for part, task in (('train', 'task1_capitals'), ('test', 'task2_rivers')):
    path = ni / 'splits' / 'default' / f'{part}_tasks.txt'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{task}\n')
    run_files.write_json(ni / 'tasks' / f'{task}.json', NI_TASK)
  for seed in (13, 21):
    for part in ('train', 'dev', 'test'):
      path = folder / 'crossfit' / 'copa' / f'copa_16_{seed}_{part}.tsv'
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text('in\tout\nanother\tone\n')
  toy_t0.write_copa(folder / 't0')
  example = {
    'inputs_pretokenized': 'in',
    'targets_pretokenized': 'out',
    'answer_choices': ['out', 'no'],
  }
  place = folder / 'p3' / 'super_glue_copa_a_plain'
  toy_t0.write_cached_task(place, 'validation', [example] * 2)
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(['some words', 'of a text', 'to learn from'] * 9),
    model_prefix=str(folder / 'spiece'),
    vocab_size=40,
    hard_vocab_limit=False,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    minloglevel=2,
  )
  (folder / 'spiece.vocab').unlink()
