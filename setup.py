"""Packages mhr_jax; `tasks/` and `configs/` install as parts of it."""

import pathlib

import setuptools

_CORE = [
  'absl-py>=2.1',
  'array_record>=0.8.1',
  'etils[epath,epy]>=1.12',
  'flatbuffers>=24.3',
  'flax>=0.12,<0.13',
  'gin-config>=0.5.0,<0.6',
  'grain>=0.2.15',
  'importlib_resources>=6',
  'jax>=0.10,<0.12',
  'jaxtyping>=0.3',
  'jinja2>=3.1',
  'matplotlib>=3.9',
  'numpy>=2.0',
  'optax>=0.2.6,<0.3',
  'orbax-checkpoint>=0.12,<0.13',
  'rich>=13',
  'rouge-score>=0.1.2',
  'safetensors>=0.5',
  'scipy>=1.13',
  'sentencepiece>=0.2.1',
  'shtab>=1.8',
  'tensorboard>=2.20',
  'tensorflow-datasets>=4.9.9',
  'tensorstore>=0.1.80',
]

_EXTRAS = {
  # Registering and preparing tasks; training on prepared data needs none.
  'data': [
    'pyyaml>=6',
    'seqio>=0.0.20',
    'tensorflow>=2.21',
    'tensorflow-text>=2.21',
  ],
  # What a checkout of google-research/t5x imports beside ours and `data`.
  't5x': ['cached-property>=2', 'clu>=0.0.12', 'fiddle>=0.3.1'],
  'interop': [
    'nano-moe-jax==0.1.0',
    'peft>=0.21',
    'rouge==1.0.1',
    'torch==2.13.0',
    'transformers>=5.23',
    'wandb>=0.31',
  ],
  'cuda12': ['jax[cuda12]>=0.10,<0.12'],
  'tpu': ['jax[tpu]>=0.10,<0.12'],
  # A writer of metrics (`TrainSettings.writers`).
  'wandb': ['wandb>=0.31'],
  'audit': ['pip-audit>=2.10'],
  # Guides and reference; notebooks are pages.
  'docs': [
    'furo>=2025.9',
    'myst-nb>=1.3',
    'sphinx>=9,<10',
  ],
  # `playwright` drives the Chromium of the system, and downloads none.
  'dev': [
    'build>=1.6',
    'hypothesis>=6.150',
    'ipykernel>=7',
    'nbclient>=0.10',
    'nbformat>=5.10',
    'playwright>=1.50',
    'pre-commit>=4',
    'pyrefly>=1.4,<1.5',
    'pytest>=9',
    'pytest-timeout>=2.4',
    'pytest-xdist>=3.8',
    'ruff>=0.17,<0.18',
  ],
}

_CONFIG_FOLDERS = ['models', 'methods', 'runs', 'presets', 't5x']

setuptools.setup(
  name='mhr_jax',
  version='0.1.0',
  description='Multi-Head Adapter Routing for JAX: frozen T5, routed LoRA.',
  long_description=pathlib.Path('README.md').read_text(encoding='utf-8'),
  long_description_content_type='text/markdown',
  author='The mhr_jax authors',
  license_expression='Apache-2.0',
  license_files=['LICENSE'],
  keywords=['jax', 'flax', 't5', 'lora', 'adapters', 'multi-task'],
  classifiers=[
    'Development Status :: 4 - Beta',
    'Intended Audience :: Science/Research',
    'Operating System :: POSIX :: Linux',
    'Programming Language :: Python :: 3',
    'Programming Language :: Python :: 3.11',
    'Programming Language :: Python :: 3.12',
    'Programming Language :: Python :: 3.13',
    'Topic :: Scientific/Engineering :: Artificial Intelligence',
    'Typing :: Typed',
  ],
  project_urls={'Paper': 'https://arxiv.org/abs/2211.03831'},
  python_requires='>=3.11',
  packages=[
    'mhr_jax',
    'mhr_jax.analysis',
    'mhr_jax.convert',
    'mhr_jax.data',
    'mhr_jax.t5',
    'mhr_jax.t5x',
    'mhr_jax.tasks',
    'mhr_jax.configs',
    *(f'mhr_jax.configs.{folder}' for folder in _CONFIG_FOLDERS),
  ],
  package_dir={'mhr_jax.tasks': 'tasks', 'mhr_jax.configs': 'configs'},
  package_data={
    'mhr_jax': ['py.typed'],
    'mhr_jax.configs': ['**/*.gin'],
    'mhr_jax.analysis': ['*.html', '*.css', '*.js'],
  },
  install_requires=_CORE,
  extras_require=_EXTRAS,
  entry_points={'console_scripts': ['mhr-jax = mhr_jax.cli:main']},
)
