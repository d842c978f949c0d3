"""Models as Hub pages: folders that timm and transformers load (`folder`, `pack`), cards, `push` and `verify`.

`configs` renders the pages of all releases; `convert` turns checkpoints into files, folders and imported weights.
"""

from .card import render_card, render_eval_results
from .configs import configs_folder, render_config, render_page
from .folder import save_folder

__all__ = [
    'configs_folder',
    'render_card',
    'render_config',
    'render_eval_results',
    'render_page',
    'save_folder',
]
