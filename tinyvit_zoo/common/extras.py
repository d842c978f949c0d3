"""Packages that only some extras of `tinyvit-zoo` install, and the sentence of code that lacks one."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ['EXTRAS', 'MissingExtraError', 'needs_extra']

EXTRAS = {
    'detection-lite': ('cv2', 'matplotlib', 'mmcv', 'mmdet', 'mmengine', 'pycocotools', 'scipy', 'tqdm'),
    'eval': ('accelerate', 'matplotlib', 'scipy', 'skimage', 'sklearn'),
    'export': ('onnx', 'onnxruntime', 'onnxscript'),
    'segmentation': ('ftfy', 'mmseg', 'regex'),
    'transformers': ('transformers',),
}
"""Import names by extra."""


class MissingExtraError(ModuleNotFoundError):
    """A package of an extra is not installed; the message says how to install it."""


@contextmanager
def needs_extra(*extras: str) -> Iterator[None]:
    """A block of imports. If a package of these extras is missing, the error says which extra installs it.

    Args:
        *extras: Keys of `EXTRAS`; the first that has the package is named.

    Raises:
        MissingExtraError: Instead of the ModuleNotFoundError of such a package. Any other error stays as it is.
    """
    try:
        yield
    except MissingExtraError:
        raise
    except ModuleNotFoundError as e:
        package = (e.name or '').partition('.')[0]
        for extra in extras:
            if package in EXTRAS[extra]:
                sentence = f"{package} is not installed: pip install 'tinyvit-zoo[{extra}]'"
                raise MissingExtraError(sentence, name=e.name, path=e.path) from e
        raise
