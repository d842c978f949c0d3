"""The installed mmcv, and the stand-in for its compiled ops: in `sys.modules`, or as a file in mmcv's folder.

mmcv-lite is mmcv without the extension `mmcv._ext`, and so installs without a compiler. mmdet imports `mmcv.ops`, which
imports `mmcv._ext`. If mmcv has an extension, compiled or a third party's, nothing is changed.
"""

import importlib
import importlib.util
import re
import sys
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES, PathFinder
from pathlib import Path
from typing import Literal

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.files import new_file

__all__ = ['MMCV', 'find_mmcv', 'install', 'remove_file', 'require', 'write_file']

SOURCE = Path(__file__).with_name('mmcv_ext.py')
MARK = re.compile(r"^STAND_IN_OF = 'tinyvit-zoo'$", re.MULTILINE)
HOW_TO_INSTALL = (
    "pip install 'tinyvit-zoo[detection-lite]', which takes mmcv-lite 2.1.0 and needs no compiler, or a compiled mmcv "
    '2.1.0 for mmdet 3.3.0'
)


@dataclass(frozen=True)
class MMCV:
    """An installed mmcv, not imported.

    Attributes:
        folder: Of the package.
        extension: The `mmcv._ext` that an import would find: 'compiled', 'ours' (a file of `write_file`), 'other' (a
            third party's file) or None.
    """

    folder: Path
    extension: Literal['compiled', 'ours', 'other'] | None


def find_mmcv() -> MMCV:
    """The mmcv that `import mmcv` would find: mmcv, mmcv-lite or onedl-mmcv.

    Raises:
        EvaluationError: If there is none.
    """
    importlib.invalidate_caches()  # a file may just have been written
    spec = importlib.util.find_spec('mmcv')
    # If our file outlives mmcv's uninstallation, its folder is a namespace package, which has no origin.
    if spec is None or spec.origin is None:
        raise EvaluationError(f'Detection and segmentation need mmcv: {HOW_TO_INSTALL}.')
    folder = Path(spec.origin).parent
    return MMCV(folder, _extension(folder))


def _extension(folder: Path) -> Literal['compiled', 'ours', 'other'] | None:
    spec = PathFinder.find_spec('mmcv._ext', [str(folder)])
    if spec is None or spec.origin is None:
        return None
    if spec.origin.endswith(tuple(EXTENSION_SUFFIXES)):
        return 'compiled'
    return 'ours' if _is_ours(Path(spec.origin)) else 'other'


def _is_ours(path: Path) -> bool:
    return bool(MARK.search(path.read_text(encoding='utf-8', errors='replace')))


def install() -> bool:
    """Make `import mmcv._ext` give the stand-in, in this process, if mmcv has no extension of its own.

    Returns:
        Whether this process uses the stand-in.

    Raises:
        EvaluationError: If there is no mmcv.
    """
    extension = find_mmcv().extension
    if 'mmcv._ext' not in sys.modules and extension in (None, 'ours'):
        from . import mmcv_ext

        sys.modules['mmcv._ext'] = mmcv_ext
    return getattr(sys.modules.get('mmcv._ext'), 'STAND_IN_OF', None) == 'tinyvit-zoo'


def require(package: Literal['mmdet', 'mmseg']) -> None:
    """Import mmdet or mmseg.

    Raises:
        EvaluationError: If it is missing or versions do not fit, with the command that installs it.
    """
    extra = {'mmdet': 'detection-lite', 'mmseg': 'detection-lite,segmentation'}[package]
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as e:
        raise EvaluationError(
            f"{package} cannot be imported without {e.name}: pip install 'tinyvit-zoo[{extra}]', or "
            f"'tinyvit-zoo[{extra.replace('-lite', '')}]' where you have a compiled mmcv."
        ) from e
    except AssertionError as e:  # both check the versions of mmcv and mmengine
        raise EvaluationError(
            f"{e} 'tinyvit-zoo[{extra}]' has versions that fit; first pip uninstall the installed mmcv."
        ) from e


def write_file() -> tuple[Path, Literal['written', 'updated', 'unchanged']]:
    """Write the stand-in to mmcv's folder, for programs that do not import `tinyvit_zoo.downstream.detection` first.

    Returns:
        The file, and what was done.

    Raises:
        EvaluationError: If there is no mmcv, its extension is not ours, or the folder is not writable.
    """
    mmcv = find_mmcv()
    path = mmcv.folder / '_ext.py'
    if mmcv.extension == 'compiled':
        raise EvaluationError(f'{mmcv.folder} has compiled ops and needs no stand-in.')
    there = path.exists()
    if there and not _is_ours(path):
        raise EvaluationError(
            f'{path} is not a file of this package and was not changed; delete it to install the stand-in there.'
        )
    if there and path.read_bytes() == SOURCE.read_bytes():
        return path, 'unchanged'
    try:
        with new_file(path) as new:
            new.write_bytes(SOURCE.read_bytes())
    except OSError as e:
        raise _not_changed(path, e) from e
    return path, 'updated' if there else 'written'


def remove_file() -> tuple[Path, Literal['removed', 'absent']]:
    """Remove the file that `write_file` wrote to mmcv's folder.

    Returns:
        The file, and what was done.

    Raises:
        EvaluationError: If there is no mmcv, the file is not ours, or it may not be deleted.
    """
    path = find_mmcv().folder / '_ext.py'
    if not path.exists():
        return path, 'absent'
    if not _is_ours(path):
        raise EvaluationError(f'{path} is not a file of this package and was not changed.')
    try:
        path.unlink()
        Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)
    except OSError as e:
        raise _not_changed(path, e) from e
    return path, 'removed'


def _not_changed(path: Path, error: OSError) -> EvaluationError:
    return EvaluationError(
        f'{path} cannot be changed ({error.strerror}): run the command as the owner of that environment, or import '
        'tinyvit_zoo.downstream.detection before mmdet, which needs no file.'
    )
