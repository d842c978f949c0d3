"""Small vision transformers for timm: `import timm, tinyvit_zoo`, then `timm.create_model('tinyvit_21m_224', ...)`."""

import sys

from .version import __version__ as __version__

# `python -m tinyvit_zoo.cli` imports this package before it runs the command line, as `-m` says in argv until then.
# Help and usage errors need no model; a command registers the models itself.
if not (sys.argv[:1] == ['-m'] and 'tinyvit_zoo.cli' in sys.orig_argv):
    from . import models as models  # registers every model with timm
