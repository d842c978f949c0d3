"""Small vision transformers for timm: `import timm, tinyvit_zoo`, then `timm.create_model('tinyvit_21m_224', ...)`."""

from . import models as models  # registers every model with timm
from .version import __version__ as __version__
