"""Where a store lies: a folder of this machine, or an address from which whole files are fetched and kept."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ..common.errors import EvaluationError
from ..common.files import home, new_file
from ..common.text import reason

__all__ = ['Place']

T = TypeVar('T')


class Place:
    """A folder, or an address that fsspec can open, such as 's3://BUCKET/FOLDER' or 'hf://datasets/OWNER/NAME'.

    'file://' is a folder. Files of other addresses are kept in this machine's cache, under a key that changes
    with their content.

    Args:
        place: Either of them.

    Raises:
        EvaluationError: If nothing installed can open such an address.
    """

    def __init__(self, place: str | Path) -> None:
        self.name = str(place)
        self._system: Any = None
        self._root = ''
        if '://' in self.name:
            import fsspec

            try:
                self._system, self._root = fsspec.core.url_to_fs(self.name)
            except (ImportError, ValueError) as e:
                raise EvaluationError(f'{self.name} cannot be opened here ({reason(e)}).') from e
            if isinstance(self._system, fsspec.get_filesystem_class('file')):
                self.name, self._system = self._root, None

    def __str__(self) -> str:
        return self.name

    @property
    def is_local(self) -> bool:
        """Whether it is a folder."""
        return self._system is None

    @property
    def folder(self) -> Path:
        """The folder to write to. Raises: EvaluationError: If the place is an address."""
        if self._system:
            raise EvaluationError(
                f'Nothing can be saved to {self.name}: name a folder, and upload it when it is whole.'
            )
        return Path(self.name).expanduser()

    def names(self) -> list[str]:
        """Names of everything in the place; empty if there is no such place."""
        if not self._system:
            return sorted(p.name for p in self.folder.iterdir()) if self.folder.is_dir() else []
        try:
            found = self._try(lambda: self._system.ls(self._root, detail=False))
        except FileNotFoundError:
            return []
        return sorted(str(path).rstrip('/').rpartition('/')[2] for path in found)

    def has(self, name: str) -> bool:
        """Whether there is such a file, relative to the place."""
        if not self._system:
            return (self.folder / name).is_file()
        return self._try(lambda: self._system.exists(f'{self._root}/{name}'))

    def local(self, name: str, missing: str, key: str | None = None) -> Path:
        """A file of the place on this machine.

        Args:
            name: Relative to the place.
            missing: The message if there is no such file.
            key: Of its content: a file that was fetched with the same key is not fetched again.

        Raises:
            EvaluationError: If it is not there, or cannot be fetched.
        """
        if not self._system:
            if not (self.folder / name).is_file():
                raise EvaluationError(missing)
            return self.folder / name
        of_place = hashlib.sha256(self.name.encode()).hexdigest()[:16]
        kept = home() / 'soft_labels' / of_place / (key or 'latest') / name
        if key is None or not kept.exists():
            try:
                with new_file(kept) as new:
                    self._try(lambda: self._system.get_file(f'{self._root}/{name}', str(new)))
            except FileNotFoundError as e:
                raise EvaluationError(missing) from e
        return kept

    def _try(self, ask: Callable[[], T]) -> T:
        """Ask the file system. Raises: EvaluationError: For whatever its library raises but a missing file."""
        try:
            return ask()
        except FileNotFoundError:
            raise
        except Exception as e:  # libraries of file systems have no common base class of errors
            raise EvaluationError(f'{self.name} cannot be read ({reason(e)}).') from e
