"""Values of settings that cannot be."""

from bad_input_cases.case import Case, adapt, align, evaluate, train, write

# Setting, value, what is said of it.
_OF_TRAIN = (
  ('BATCH_SIZE', '0', 'MixtureSettings.batch_size is 0; at least 1'),
  ('INPUT_LENGTH', '1', 'MixtureSettings.input_length is 1; at least 2'),
  ('TARGET_LENGTH', '2.5', 'target_length is 2.5; a whole number'),
  ('SEED', '-1', 'seed is -1; at least 0'),
  ('MixtureSettings.temperature', '0.5', 'temperature is 0.5; at least 1'),
  ('MixtureSettings.temperature', '1e999', 'temperature is inf; a finite'),
  ('MixtureSettings.cap', '0', 'cap is 0; at least 1'),
  ('MixtureSettings.rates', '"fair"', "rates is 'fair'; one of 'prop"),
  ('MixtureSettings.packing', '"tight"', "packing is 'tight'; one of 'none'"),
  ('MixtureSettings.noise_density', '1', 'noise_density is 1; below 1'),
  ('MixtureSettings.length_buckets', '[(4, 4)]', "packing = 'length_buckets'"),
  ('STEPS', '0', 'TrainSettings.steps is 0; at least 1'),
  ('STEPS', '1e3', 'TrainSettings.steps is 1000.0; a whole number'),
  ('TrainSettings.keep', '0', 'keep is 0; at least 1'),
  ('TrainSettings.keep_every', '0', 'keep_every is 0; at least 1'),
  ('TrainSettings.accumulation', '3', 'accumulation'),
  ('TrainSettings.anneal_steps', '9', 'anneal_steps is 9; from 0 to'),
  ('TrainSettings.label_smoothing', '1.0', 'label_smoothing is 1.0; below 1'),
  ('TrainSettings.z_loss', '-1.0', 'z_loss is -1.0; at least 0'),
  ('TrainSettings.loss_normalisation', '"rows"', "'rows'"),
  ('LEARNING_RATES', '{"adapters": 1e999}', 'adapters is inf; a finite'),
  ('LEARNING_RATES', '{"adapters": -1.0}', 'adapters is -1.0; at least 0'),
  ('LEARNING_RATES', '{"adapter": 1.0}', "Did you mean 'adapters'"),
  ('LEARNING_RATES', '0.1', 'learning_rates is 0.1; numbers by label'),
  ('OptimizerSettings.name', '"adam"', "Did you mean 'adamw'"),
  ('OptimizerSettings.schedule', '"lin"', "'lin'"),
  ('OptimizerSettings.b1', '1.0', 'b1 is 1.0; below 1'),
  ('OptimizerSettings.eps', '0.0', 'eps is 0.0; above 0'),
  ('OptimizerSettings.clip_norm', '"big"', "clip_norm is 'big'; a number"),
  ('OptimizerSettings.warmup_steps', '-1', 'warmup_steps is -1; at least 0'),
  ('AdapterConfig.rank', '0', 'AdapterConfig.rank is 0; at least 1'),
  ('AdapterConfig.n_skills', '0', 'n_skills is 0; at least 1'),
  ('AdapterConfig.n_splits', '3', 'n_splits may be 1, 2, 4'),
  ('AdapterConfig.alpha', '-1e999', 'alpha is -inf; a finite'),
  ('AdapterConfig.targets', '("encodr/.*",)', "'encodr/.*' matches no linear"),
  ('AdapterConfig.router_scope', '"layers"', "Did you mean 'layer'"),
  ('AdapterConfig.mixing', '"softmx"', "Did you mean 'softmax'"),
  ('AdapterConfig.kind', '"ia4"', "Did you mean 'ia3'"),
  ('T5Config.dtype', '"float16"', 'the activations of T5 exceed'),
  ('T5Config.dtype', '"bf16"', "dtype 'bf16' is not known"),
  ('T5Config.dropout_rate', '1.5', 'dropout_rate is 1.5; below 1'),
  ('T5Config.num_heads', '-2', 'num_heads is -2; at least 1'),
  ('T5Config.num_encoder_layers', '1000000000', 'at most 4096'),
  ('T5Config.mlp_activations', '("gelo",)', "Did you mean 'gelu'"),
  ('train.train.mesh_shape', '(3, 5)', 'data=3 × model=5 does not fit'),
  ('train.train.mix_in', '"middle"', "'middle'"),
  ('train.train.split', '"trian"', "'trian'"),
  ('HeldBackSettings.limit', '0', 'limit is 0; at least 1'),
  ('HeldBackSettings.split', '"dev"', "no split 'dev', only train, valid"),
  ('AlignmentSettings.tasks', '1', 'tasks is 1; at least 2'),
  ('AlignmentSettings.wrt', '("weights",)', "of 'weights': one of"),
  ('RoutingStatisticsSettings.every', '-1', 'every is -1; at least 0'),
  ('TaskData.modules', '(3,)', 'modules holds 3; the name of a module'),
  ('TaskData.prepare', '"always"', "prepare is 'missing', 'stale' or 'never'"),
)
_OF_EVALUATE = (
  ('LIMIT', '0', 'limit is 0; at least 1'),
  ('INPUT_LENGTH', '-5', 'input_length is -5; at least 2'),
  ('TARGET_LENGTH', '0', '0; at least'),
  ('SPLIT', '"tests"', "Did you mean 'test'"),
  ('ADAPTER', '"mean"', "adapter is 'mean'; one of 'task', 'average'"),
  ('evaluate.batch_size', '0', 'batch_size is 0; at least 1'),
  ('evaluate.step', '5', 'does not have step 5. It has: 7'),
  ('DecodingSettings.num_beams', '0', 'num_beams is 0; at least 1'),
  ('DecodingSettings.temperature', '1e999', 'temperature is inf; a finite'),
  ('DecodingSettings.top_p', '1.5', 'top_p is 1.5; at most 1'),
  ('DecodingSettings.length_penalty', '"t5"', "'t5'"),
  ('EvaluationSettings.metrics', '("rouge",)', "'rouge'"),
  ('EvaluationSettings.task_ids', '"mixed"', "task_ids is 'mixed'; one of"),
  ('EvaluationSettings.seed', '-1', 'seed is -1; at least 0'),
)
_OF_ADAPT = (
  ('SHOTS', '0', 'shots is 0; at least 1'),
  ('SHOTS', '99', '99'),
  ('SEEDS', '(0, 0)', 'seeds must be different'),
  ('SEEDS', '(-1,)', 'of -1: at least 0'),
  ('STEPS', '0', 'FewShotSettings.steps is 0; at least 1'),
  ('METHOD', '"poly"', 'is a run of mhr'),
  ('TRAIN_SPLIT', '"shots"', "'shots'"),
  ('FewShotSettings.held_back', '-1', 'held_back is -1; at least 0'),
  ('FewShotSettings.forms', '"each"', "forms is 'each'; one of"),
  ('AdaptationSettings.side_by_side', '0', 'side_by_side is 0; at least 1'),
  ('AdaptationSettings.rows', '"zero"', "rows is 'zero'; one of"),
  ('LossSettings.length_norm', '-1.0', 'length_norm is -1.0; at least 0'),
  ('SoupSettings.n_nearest', '0', 'n_nearest is 0; at least 1'),
  ('ChoiceSettings.length_norm', '1e999', 'length_norm is inf; a finite'),
)
_OF_ALIGN = (
  ('STEP', '-1', 'step is -1; at least 0'),
  ('AlignmentSettings.examples', '0', 'examples is 0; at least 1'),
  ('AlignmentSettings.split', '"tests"', "Did you mean 'test'"),
)
# What must be made for a setting to be looked at.
_NEEDS = {
  'LossSettings.length_norm': {'AdaptationSettings.loss': '@LossSettings()'},
  'SoupSettings.n_nearest': {'AdaptationSettings.soup': '@SoupSettings()'},
  'ChoiceSettings.length_norm': {
    'EvaluationSettings.choices': '@ChoiceSettings()'
  },
}
_TABLES = (
  (train, _OF_TRAIN),
  (evaluate, _OF_EVALUATE),
  (adapt, _OF_ADAPT),
  (align, _OF_ALIGN),
)

_IN_A_FILE = """\
from __gin__ import dynamic_registration
from mhr_jax import trainer

trainer.TrainSettings.save_every = 0
"""

CASES = (
  *(
    Case(
      f'{command.__name__}: {name} = {value}',
      command(**{name: value, **_NEEDS.get(name, {})}),
      (message,),
      sample=(name, value) == ('LEARNING_RATES', '{"adapters": 1e999}'),
    )
    for command, rows in _TABLES
    for name, value, message in rows
  ),
  Case(
    'the line of a setting',
    train('--gin_file=mine.gin'),
    ('mine.gin:4: TrainSettings.save_every is 0; at least 1',),
    write('mine.gin', _IN_A_FILE),
  ),
  Case(
    'the flag of a setting',
    evaluate(LIMIT='-1'),
    ('command line: limit is -1; at least 1',),
  ),
)
