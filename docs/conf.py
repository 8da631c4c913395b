"""Sphinx's settings: `make docs` builds build/docs, a warning is an error."""

import importlib.metadata

project = 'mhr_jax'
author = 'the mhr_jax authors'
version = release = importlib.metadata.version('mhr_jax')

extensions = [
  'myst_nb',
  'sphinx.ext.autodoc',
  'sphinx.ext.napoleon',
  'sphinx.ext.viewcode',
]
exclude_patterns = ['figures']
html_theme = 'furo'
html_title = f'mhr_jax {version}'
html_copy_source = False
html_show_copyright = False

# Commands, files and shapes as well as Python stand in our indented blocks.
highlight_language = 'none'
myst_heading_anchors = 3
# `make test-nightly` executes the notebooks; pages show what they stored.
nb_execution_mode = 'off'

napoleon_google_docstring = True
napoleon_numpy_docstring = False
# A dataclass's fields are described once, by its docstring.
napoleon_use_ivar = True
# Docstrings mark code by single backticks.
default_role = 'code'
autodoc_member_order = 'bysource'
autodoc_typehints = 'signature'
autodoc_preserve_defaults = True
autodoc_typehints_format = 'short'
autodoc_class_signature = 'separated'
python_display_short_literal_types = True
python_maximum_signature_line_length = 79
