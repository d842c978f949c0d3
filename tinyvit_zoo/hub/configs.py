"""The rendered pages in `hub_configs/`: config.json and card of every released tag, all of it a view of `releases`."""

import tempfile
from pathlib import Path

import timm

from ..releases import all_releases
from .card import render_card
from .folder import CONFIG, save_config

__all__ = ['build_configs', 'configs_folder', 'drifted_configs', 'render_config']

PACKAGE = Path(__file__).parents[1]
CARD = 'README.md'


def configs_folder() -> Path:
    """`hub_configs/`: inside an installed package, beside the package in a checkout.

    Raises:
        FileNotFoundError: If there is neither.
    """
    for folder in (PACKAGE / 'hub_configs', PACKAGE.parent / 'hub_configs'):
        if folder.is_dir():
            return folder
    raise FileNotFoundError('hub_configs/ is missing: neither inside the package nor beside it.')


def render_config(name: str) -> str:
    """Text of the config.json of a release, 'architecture.tag'; no weights are needed."""
    model = timm.create_model(name, device='meta')
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / CONFIG
        save_config(model, path)
        return path.read_text()


def build_configs() -> list[Path]:
    """Write config.json and README.md into hub_configs/<architecture.tag>/ for every release; return the folders."""
    folders = []
    for release in all_releases():
        folder = configs_folder() / release.name
        folder.mkdir(exist_ok=True)
        for file, text in _render(release.name).items():
            (folder / file).write_text(text)
        folders.append(folder)
    return folders


def _render(name: str) -> dict[str, str]:
    return {CONFIG: render_config(name), CARD: render_card(name)}


def drifted_configs() -> list[str]:
    """Names whose committed files differ from what `releases` says now, are missing, or have no release."""
    root = configs_folder()
    names = {release.name for release in all_releases()}
    committed = {path.name for path in root.iterdir() if path.is_dir()}
    differ = {
        name for name in names & committed
        if any(not (root / name / f).is_file() or (root / name / f).read_text() != t for f, t in _render(name).items())
    }  # fmt: skip
    return sorted(differ | (names ^ committed))
