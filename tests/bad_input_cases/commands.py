"""Mistakes on the command line and in gin files."""

from bad_input_cases.case import Case, both, gin_flags, train, write

_LINE = ('predict', 'run', '--task=copy', '--input=texts.txt')

CASES = (
  Case('no command', (), ('COMMAND', 'mhr-jax --help')),
  Case('no such command', ('trian',), ("'trian'", 'train'), sample=True),
  Case('no such flag', ('train', '--frobnicate'), ('--frobnicate', '--help')),
  Case('a command without a gin file', ('train',), ('--gin_file=',)),
  Case('no number', ('tasks', '--n=x'), ('--n', "'x'")),
  Case('doctor takes nothing', ('doctor', 'x'), ('arguments: x',)),
  Case('distributed', train('--distributed=a:1,2'), ('ADDRESS:PORT',)),
  # tasks, prepare
  Case('nothing is prepared', ('tasks', '--data_dir=x'), ('x', '--module=')),
  Case(
    'show an unknown task',
    ('tasks', '--show=onee', '--data_dir=data_cache'),
    ("'onee'", "'one'", 'mhr-jax prepare'),
  ),
  Case(
    'show an unknown split',
    ('tasks', '--show=one', '--split=tests', '--data_dir=data_cache'),
    ("'tests'", "'test'"),
  ),
  Case(
    'show a negative number',
    ('tasks', '--show=one', '--n=-1', '--data_dir=data_cache'),
    ('--n is -1; at least 1',),
  ),
  Case('no such module', ('tasks', '--module=nomo'), ("'nomo'", 'PYTHONPATH')),
  Case(
    'a module that fails',
    ('tasks', '--module=bad'),
    ('bad.py:2', 'oops'),
    write('bad.py', '\nraise ValueError("oops")\n'),
  ),
  Case('prepare nothing', ('prepare',), ('Which tasks?',)),
  # predict
  Case('predict from nowhere', ('predict', 'rnu'), ('rnu', "'run'")),
  Case(
    'an unknown task',
    (*_LINE, '--task=coppy'),
    ("'coppy'", "'copy'"),
    sample=True,
  ),
  Case('a task id out of range', (*_LINE, '--task=3'), ('3', '0 to 2')),
  Case('no task', ('predict', 'run', '--input=texts.txt'), ('copy, first',)),
  Case('no input', (*_LINE, '--input=none'), ('none: No such file',)),
  Case(
    'input that is no text',
    (*_LINE, '--input=latin'),
    ('latin', 'UTF-8'),
    write('latin', b'\xe9'),
  ),
  Case(
    'no tokens',
    (*_LINE, '--max_new_tokens=0'),
    ('max_new_tokens is 0; at least 1',),
  ),
  Case('no beams', (*_LINE, '--num_beams=-1'), ('num_beams is -1',)),
  # methods
  Case('an unknown model', ('methods', '--model=t5_xl'), ("'t5_xl'",)),
  Case(
    'no skills', ('methods', '--n_skills=0'), ('n_skills is 0; at least 1',)
  ),
  Case('no rank', ('methods', '--rank=0'), ('rank is 0; at least 1',)),
  Case('no tasks', ('methods', '--n_tasks=-3'), ('n_tasks is -3',)),
  Case(
    'splits that do not divide',
    ('methods', '--n_splits=3'),
    ('n_splits=3', '1, 2, 4'),
    sample=True,
  ),
  Case(
    'a target that matches nothing',
    ('methods', '--targets=encoder/atention/query'),
    ('encoder/atention/query', 'encoder/attention/query'),
  ),
  Case('a target that is no pattern', ('methods', '--targets=('), ("'('",)),
  # report
  Case('report of nothing', ('report', 'none'), ('There is no folder none',)),
  Case('report into a folder', ('report', 'run', '--output=ni'), ('ni',)),
  Case(
    'damaged metrics',
    ('report', 'run'),
    ('metrics.jsonl', 'line 1'),
    write('run/metrics.jsonl', '{"step\n{"step": 2}\n'),
  ),
  Case(
    'damaged run.json',
    ('report', 'run'),
    ('run.json', 'line 2'),
    write('run/run.json', '{"method":\n}'),
  ),
  Case(
    'damaged mixing weights',
    ('report', 'run'),
    ('routing.npz',),
    write('run/routing.npz', 'PK'),
  ),
  Case(
    'damaged skills',
    ('report', 'run'),
    ('skills.npz',),
    write('run/skills.npz', b''),
  ),
  Case(
    'damaged alignment',
    ('report', 'run'),
    ('alignment.json',),
    write('run/alignment.json', '{"a": 3}'),
  ),
  # show, study, gin
  Case('show nothing', ('show',), ('--gin_file=',)),
  Case(
    'show what binds nothing', ('show', 'methods/full.gin'), ('mhr-jax show',)
  ),
  Case(
    'no such gin file',
    ('show', 'runs/multi_tsk.gin'),
    ("'runs/multi_tsk.gin'", "runs/multi_task.gin'"),
    sample=True,
  ),
  Case('no such gin folder', ('show', 'runs/mhr.gin'), ("methods/mhr.gin'",)),
  Case('a binding without a value', ('train', '--gin.STEPS'), ('NAME=value',)),
  Case(
    'a string without quotes',
    train(RUN_DIR='new'),
    ('strings need quotes', '--gin.RUN_DIR='),
  ),
  Case('a value of another language', train(STEPS='true'), ('True',)),
  Case(
    'an unknown parameter',
    train(**{'TrainSettings.stepps': '3'}),
    ("'stepps'", "'steps'"),
    sample=True,
  ),
  Case(
    'an unknown name',
    train(**{'TrainSetings.steps': '3'}),
    ("'TrainSetings'", "'TrainSettings'"),
  ),
  Case(
    'a macro that is not set',
    ('show', 'runs/multi_task.gin'),
    ('BACKBONE is not set', 'runs/multi_task.gin:', '--gin_file=toy.gin'),
  ),
  Case(
    'a required value',
    train(RUN_DIR='%gin.REQUIRED'),
    ('RUN_DIR', '--gin.RUN_DIR='),
  ),
  Case(
    'a bracket that stays open',
    ('show', 'mine.gin'),
    ('mine.gin:2', 'bracket'),
    write('mine.gin', '\nX = (1,\n'),
  ),
  Case(
    'gin that is no gin',
    ('show', 'mine.gin'),
    ('mine.gin:3',),
    write('mine.gin', 'A = 1\n\nfor x in y\n'),
  ),
  Case(
    'gin that is no text',
    ('show', 'mine.gin'),
    ('mine.gin:2', 'UTF-8'),
    write('mine.gin', b'A = 1\n# \xff\n'),
  ),
  Case('gin that is a folder', ('show', 'ni'), ("'ni'",)),
  Case(
    'an include that is not there',
    ('show', 'mine.gin'),
    ('mine.gin:1', "'runs/none.gin'"),
    write('mine.gin', "include 'runs/none.gin'\n"),
  ),
  Case(
    'files that include each other',
    ('show', 'a.gin'),
    ('a.gin includes itself',),
    both(
      write('a.gin', "include 'b.gin'\n"), write('b.gin', "include 'a.gin'\n")
    ),
  ),
  Case(
    'an import that is not there',
    ('show', 'mine.gin'),
    ('mine.gin:2', 'nomodule', 'PYTHONPATH'),
    write(
      'mine.gin', 'from __gin__ import dynamic_registration\nimport nomodule\n'
    ),
  ),
  Case(
    'an import that fails',
    ('show', 'mine.gin'),
    ('mine.gin:2', 'oops'),
    both(
      write('failing.py', 'raise ValueError("oops")\n'),
      write(
        'mine.gin', 'from __gin__ import dynamic_registration\nimport failing\n'
      ),
    ),
  ),
  Case('macros in a circle', train(STEPS='%A', A='%B', B='%A'), ('A',)),
  Case('an unknown method', train(METHOD='"mhrz"'), ("'mhrz'", "'mhr_z'")),
  Case(
    'a study of no method',
    (
      'study',
      'presets/quickstart.gin',
      *gin_flags(**{'Study.methods': '("mhrx",)'}),
    ),
    ("'mhrx'", "'mhr"),
  ),
  Case(
    'a study without seeds',
    ('study', 'presets/quickstart.gin', *gin_flags(SEEDS='()')),
    ('at least one seed',),
  ),
  Case(
    'a study of half a seed',
    ('study', 'presets/quickstart.gin', *gin_flags(SEEDS='(0.5,)')),
    ('Study.seeds', '0.5', 'whole number'),
  ),
)
