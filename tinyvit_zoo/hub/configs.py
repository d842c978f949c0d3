"""The rendered pages in `hub_configs/`: one folder a released tag, all of it a view of `releases`."""

import tempfile
from pathlib import Path

import timm

from ..releases import all_releases
from .folder import CONFIG, save_config

__all__ = ['build_configs', 'configs_folder', 'drifted_configs', 'render_config']

PACKAGE = Path(__file__).parents[1]


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
    """Write hub_configs/<architecture.tag>/config.json for every release, and return the paths."""
    paths = []
    for release in all_releases():
        path = configs_folder() / release.name / CONFIG
        path.parent.mkdir(exist_ok=True)
        path.write_text(render_config(release.name))
        paths.append(path)
    return paths


def drifted_configs() -> list[str]:
    """Names whose committed config.json differs from what `releases` says now, is missing, or has no release."""
    root = configs_folder()
    names = {release.name for release in all_releases()}
    committed = {path.name for path in root.iterdir() if path.is_dir()}
    differ = {
        name for name in names & committed
        if not (root / name / CONFIG).is_file() or (root / name / CONFIG).read_text() != render_config(name)
    }  # fmt: skip
    return sorted(differ | (names ^ committed))
