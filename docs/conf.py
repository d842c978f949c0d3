"""Sphinx configuration; `make docs` builds the site with warnings as errors."""

import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ.setdefault('CUDA_VISIBLE_DEVICES', '')

from sphinx.domains.python import PythonDomain

from tinyvit_zoo import __version__

project = 'tinyvit-zoo'
author = 'The tinyvit-zoo team'
copyright = author
release = version = __version__

extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
    'sphinx.ext.autosummary',
    'sphinx.ext.napoleon',
    'sphinx.ext.viewcode',
    'sphinx_copybutton',
]
exclude_patterns = ['_build']
templates_path = ['_templates']

myst_enable_extensions = ['colon_fence']
myst_heading_anchors = 3

autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_default_options = {'members': True, 'show-inheritance': True}
autodoc_member_order = 'bysource'
autodoc_typehints = 'signature'
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
default_role = 'code'  # docstrings write `name`

html_theme = 'furo'
html_title = f'tinyvit-zoo {release}'
html_show_sphinx = False
html_static_path = ['_static']
html_css_files = ['custom.css']


def _as_plain_text(app, what, name, obj, options, lines: list[str]) -> None:
    """Escape the signs that reST would take for markup: docstrings here are plain text with `code` in backquotes."""
    for i, line in enumerate(lines):
        parts = line.split('`')
        for j in range(0, len(parts), 2):  # what stands between backquotes is code
            parts[j] = re.sub(r'(?<![\\*\s])([*|])|(?<=\s)([*|])(?!\*?\w+( \(.*\))?:)', r'\\\g<0>', parts[j])
            if j and re.match(r'\w', parts[j]):  # a plural, as in `Dataset`s
                parts[j] = rf'\ {parts[j]}'
        lines[i] = '`'.join(parts)


class _PythonDomain(PythonDomain):
    """Takes a class that several packages export without a warning: autodoc notes its home under each of them."""

    def note_object(self, name, objtype, node_id, aliased=False, location=None) -> None:
        if not (aliased and name in self.objects):
            super().note_object(name, objtype, node_id, aliased, location)


def setup(app) -> None:
    app.add_domain(_PythonDomain, override=True)
    app.connect('autodoc-process-docstring', _as_plain_text, priority=100)  # before napoleon
