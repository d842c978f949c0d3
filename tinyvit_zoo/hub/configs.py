"""The rendered pages in `hub_configs/`: config.json, card and published results of every tag, a view of `releases`.

Building them also counts the models again and stores what was counted (`releases.profile`).
"""

import shutil
import tempfile
from pathlib import Path

import timm

from ..common.files import new_file
from ..common.paths import packaged_folder
from ..info import count_profiles
from ..releases import all_releases
from ..releases.profile import PROFILES, render_profiles, stored_profiles
from . import figure
from .card import EVAL_RESULTS, render_card, render_eval_results
from .folder import CARD, CONFIG, save_config

__all__ = [
    'build_configs',
    'build_figure',
    'configs_folder',
    'drifted_configs',
    'figure_drifted',
    'figure_path',
    'render_config',
    'render_page',
]


def configs_folder() -> Path:
    """`hub_configs/`, see `packaged_folder`.

    Raises:
        FileNotFoundError: If it is missing.
    """
    return packaged_folder('hub_configs')


def render_config(name: str) -> str:
    """Text of the config.json of a release, 'architecture.tag'; no weights are needed."""
    model = timm.create_model(name, device='meta')
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / CONFIG
        save_config(model, path)
        return path.read_text()


def render_page(name: str) -> dict[str, str]:
    """All files of the page of a release that need no weights: path in the page -> text."""
    return {CONFIG: render_config(name), CARD: render_card(name), **render_eval_results(name)}


def build_configs() -> list[Path]:
    """Store the profiles, write the page of every release into hub_configs/<architecture.tag>/; return the folders."""
    with new_file(PROFILES) as new:
        new.write_text(_profiles())
    stored_profiles.cache_clear()
    folders = []
    for release in all_releases():
        folder = configs_folder() / release.name
        shutil.rmtree(folder / EVAL_RESULTS, ignore_errors=True)  # may hold a data set without results now
        for file, text in render_page(release.name).items():
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        folders.append(folder)
    return folders


def drifted_configs() -> list[str]:
    """Names of pages whose files differ from what `releases` says, are missing or extra, or that have no release.

    Includes the name of the file of profiles if it differs from those counted on the models.
    """
    root = configs_folder()
    names = {release.name for release in all_releases()}
    committed = {path.name for path in root.iterdir() if path.is_dir()}
    differ = {name for name in names & committed if _files(root / name) != render_page(name)}
    profiles = set() if PROFILES.read_text() == _profiles() else {PROFILES.name}
    return sorted(differ | (names ^ committed) | profiles)


def _profiles() -> str:
    return render_profiles(count_profiles(all_releases()))


def _files(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob('*') if path.is_file()}


def figure_path() -> Path | None:
    """Where the figure of the README is; None outside a checkout, which alone has the documentation."""
    docs = configs_folder().parent / 'docs'
    return docs / 'images' / 'accuracy_over_gmacs.svg' if docs.is_dir() else None


def build_figure() -> Path | None:
    """Draw the figure of the README anew; return its path, None outside a checkout.

    Raises:
        ModelError: If matplotlib is missing.
    """
    path = figure_path()
    if path is not None:
        figure.draw(figure.points(), path)
    return path


def figure_drifted() -> bool:
    """Whether the committed figure shows other numbers than `releases` has; nothing is drawn, so no package is needed.

    False outside a checkout.
    """
    path = figure_path()
    return path is not None and figure.described(path) != figure.description(figure.points())
