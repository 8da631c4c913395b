"""Three commands to paste, for each command's `--help`."""

_RUN = (
  '--gin_file=models/t5_1_1_tiny.gin --gin_file=methods/mhr.gin'
  ' --gin_file=runs/multi_task.gin --gin_file=presets/skills.gin'
  ' --gin.RUN_DIR=\'"runs/mhr"\''
)
_EVALUATE = (
  '--gin_file=runs/evaluate.gin --gin_file=presets/skills.gin'
  ' --gin.RUN_DIR=\'"runs/mhr"\''
)
_ADAPT = (
  '--gin_file=runs/few_shot.gin --gin_file=presets/skills.gin'
  ' --gin.TASKS=\'"skills_heldout_id"\' --gin.RUN_DIR=\'"runs/mhr"\''
)
_ALIGN = (
  '--gin_file=runs/align.gin --gin_file=presets/skills.gin'
  ' --gin.RUN_DIR=\'"runs/mhr"\''
)

_PLAN = (
  f'{_RUN} --gin.BACKBONE_FROM=None'
  ' --gin.t5_config.name=\'"t5_1_1_xl"\' --n_tasks=313'
)

EXAMPLES = {
  'tasks': (
    'tasks --module=mhr_jax.tasks.skills',
    'tasks --module=mhr_jax.tasks.skills --show=skills_id_tail_reverse',
    'tasks --data_dir=data_cache',
  ),
  'prepare': (
    'prepare skills_train_id --module=mhr_jax.tasks.skills',
    'prepare --gin_file=presets/skills.gin',
    'prepare skills_train_id --module=mhr_jax.tasks.skills --remake=all',
  ),
  'train': (
    f'train {_RUN} --gin.BACKBONE_FROM=None --dry_run',
    f'train {_RUN} --gin.BACKBONE_FROM=\'"runs/backbone"\' --gin.STEPS=1000',
    'train --gin_file=models/t5_1_1_tiny.gin'
    ' --gin_file=runs/pretrain_backbone.gin --gin_file=presets/skills.gin'
    ' --gin.TASKS=\'"skills_operations"\' --gin.OBJECTIVE=\'"targets"\''
    ' --gin.STEPS=1500 --gin.RUN_DIR=\'"runs/backbone"\'',
  ),
  'adapt': (
    f'adapt --gin_file=methods/mhr.gin {_ADAPT} --dry_run',
    f'adapt --gin_file=methods/mhr_z.gin {_ADAPT}',
    f"adapt --gin_file=methods/mhr_z.gin {_ADAPT} --gin.SEEDS='(0,)'",
  ),
  'evaluate': (
    f'evaluate {_EVALUATE} --dry_run',
    f'evaluate {_EVALUATE} --gin.LIMIT=50',
    f'evaluate {_EVALUATE} --gin.TASKS=\'"skills_id_tail_reverse"\'',
  ),
  'align': (
    f'align {_ALIGN}',
    f'align {_ALIGN} --gin.AlignmentSettings.examples=32',
    'show runs/align.gin --gin.RUN_DIR=\'"runs/mhr"\''
    ' --gin_file=presets/skills.gin',
  ),
  'plan': (
    f'plan {_PLAN} --topology=v5e:8x8 --shapes_only',
    f'plan {_PLAN} --topology=cpu:64 --mesh=32x2 --mix_in=layer',
    f'plan {_PLAN} --topology=v5e:16x16 --batch=256 --json=plan.json',
  ),
  'predict': (
    'predict runs/mhr --task=skills_id_tail_reverse --input=texts.txt',
    'predict runs/mhr --task=average --num_beams=4 --input=texts.txt',
    'predict t5-v1_1-small --adapter=a_lora --input=texts.txt',
  ),
  'report': (
    'report runs/mhr',
    'report runs/quickstart --output=quickstart.html',
    'report runs/mhr runs/poly runs/lora',
  ),
  'show': (
    'show presets/quickstart.gin',
    'show runs/multi_task.gin models/t5_1_1_small.gin methods/mhr.gin',
    'show runs/evaluate.gin --gin.RUN_DIR=\'"runs/mhr"\'',
  ),
  'study': (
    'study presets/quickstart.gin',
    "study presets/quickstart.gin --gin.SEEDS='(0,)'"
    ' --gin.RUN_DIR=\'"runs/short"\'',
    'study presets/skills_study.gin',
  ),
  'doctor': (
    'doctor',
    'methods',
    'show presets/quickstart.gin',
  ),
  'methods': (
    'methods',
    'methods --model=t5_1_1_xl --n_tasks=313 --rank=16',
    'methods --model=t5_1_1_small --format=markdown',
  ),
  'convert': (
    'convert t5-v1_1-small backbone --format=native',
    'convert t5-v1_1-small first --format=hf --adapter=poly --task=1',
    'convert adapters first_lora --format=peft-lora --task=0',
  ),
  'export': (
    'export runs/mhr a_lora --format=peft-lora --task=skills_id_tail_reverse',
    'export runs/mhr all_tasks --format=peft-poly',
    'export runs/mhr average --format=hf --task=average',
  ),
  'completion': (
    'completion bash > ~/.local/share/bash-completion/completions/mhr-jax',
    'completion zsh > ~/.zsh/completions/_mhr-jax',
    'completion tcsh > ~/.mhr-jax.tcsh',
  ),
}


def examples_of(command: str) -> str:
  """Returns the last lines of a command's help; '' where there are none.

  >>> print(examples_of('doctor').splitlines()[1])
    mhr-jax doctor
  """
  lines = [f'  mhr-jax {line}' for line in EXAMPLES.get(command, ())]
  return '\n'.join(['three commands to paste:', *lines] if lines else [])
