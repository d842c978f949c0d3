"""What leaves the house for the Hub: Hub-ready folders (`folder`) and the rendered pages of releases (`configs`)."""

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
