"""Checkpoints of whole detectors and segmenters: read without executing code in them, and never loaded in part.

mmengine loads what fits and logs the rest as a warning, so a checkpoint of another model leaves weights random.
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.model import is_model_wrapper
from torch import nn

from tinyvit_zoo.checkpoints import CheckpointError, read_checkpoint, with_counters
from tinyvit_zoo.checkpoints.read import classes_in
from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.text import count_of, first_few, shown

__all__ = ['check_start', 'latest_checkpoint', 'load_detector']

HEADS = ('rpn_head', 'roi_head', 'bbox_head', 'mask_head', 'decode_head', 'auxiliary_head')


def load_detector(model: nn.Module, path: str | Path, classes: Sequence[str] = ()) -> None:
    """Load the weights of a checkpoint of the same model into a detector or segmenter.

    Args:
        model: Detector or segmenter.
        path: The checkpoint.
        classes: Names that the outputs will be given. Compared with those that the checkpoint was trained with, if it
            says so.

    Raises:
        CheckpointError: If the file cannot be read, a parameter or buffer is missing, left over or of another shape, or
            the classes differ; the model is then unchanged.
    """
    model = _unwrapped(model)
    weights = with_counters(read_checkpoint(path, whole=True), model.state_dict())
    missing, left_over, shapes = _compare(model, weights)
    if missing or left_over or shapes:
        raise CheckpointError(_misfit(path, len(model.state_dict()), missing, left_over, shapes))
    if known := _other_classes(path, classes):
        raise CheckpointError(
            f'{path} was trained with the classes {_named(known)}, and the config has {_named(classes)}: use the '
            'config that it was trained with, which is in the same folder.'
        )
    model.load_state_dict(weights)


def _other_classes(path: str | Path, classes: Sequence[str]) -> tuple[str, ...]:
    """The classes that a checkpoint was trained with, if they are not the given ones, in their order."""
    known = classes_in(path) if classes else ()
    return known if known != tuple(classes) else ()


def _named(classes: Sequence[str]) -> str:
    return first_few(classes, 10)


def check_start(model: nn.Module, path: str | Path, classes: Sequence[str] = ()) -> str:
    """Check a checkpoint to start a training from: only heads may differ, as they do with other classes.

    Args:
        model: Detector or segmenter.
        path: The checkpoint; nothing is loaded.
        classes: Names of the outputs, see `load_detector`.

    Returns:
        Sentences that name the parameters that will start from random weights, and classes whose outputs were others in
        the checkpoint; '' if there are none.

    Raises:
        CheckpointError: If the file cannot be read, or backbone or neck do not fit.
    """
    model = _unwrapped(model)
    weights = with_counters(read_checkpoint(path, whole=True), model.state_dict())
    missing, left_over, shapes = _compare(model, weights)
    own = [k for k in (*missing, *left_over, *shapes) if not k.startswith(HEADS)]
    if own:
        raise CheckpointError(_misfit(path, len(model.state_dict()), missing, left_over, shapes))
    fresh = [*missing, *shapes]
    said = []
    if fresh:
        said.append(f'From random weights: {count_of(len(fresh), "parameter")} of the heads ({first_few(fresh)}).')
    if not fresh and (known := _other_classes(path, classes)):
        said.append(f'Its heads were trained with the classes {_named(known)}, and now learn {_named(classes)}.')
    return ' '.join(said)


def _unwrapped(model: Any) -> nn.Module:
    return model.module if is_model_wrapper(model) else model


def _compare(
    model: nn.Module, weights: dict[str, torch.Tensor]
) -> tuple[list[str], list[str], dict[str, tuple[tuple[int, ...], tuple[int, ...]]]]:
    """Names that are missing, names left over, and those with (shape in the file, shape in the model)."""
    own = model.state_dict()
    shapes = {
        k: (tuple(v.shape), tuple(own[k].shape)) for k, v in weights.items() if k in own and v.shape != own[k].shape
    }
    return [k for k in own if k not in weights], [k for k in weights if k not in own], shapes


def _misfit(path: str | Path, total: int, missing: list[str], left_over: list[str], shapes: dict) -> str:
    # With another number of classes the last layers of the heads differ, and nothing else.
    if shapes and not missing and not left_over and all(k.startswith(HEADS) for k in shapes):
        name, (theirs, ours) = next(iter(shapes.items()))
        return (
            f'{path} is of a model with another number of classes: {name} is {theirs} in the file and {ours} here. '
            'Use the config that it was trained with, which is in the same folder.'
        )
    parts = []
    if missing:
        parts.append(f'{len(missing)} of {total} tensors are missing ({first_few(missing)})')
    if left_over:
        parts.append(f'{len(left_over)} are left over ({first_few(left_over)})')
    if shapes:
        name, (theirs, ours) = next(iter(shapes.items()))
        parts.append(f'{len(shapes)} have another shape ({shown(name)}: {theirs} in the file, {ours} here)')
    no_detector = len(missing) == total and not any(k.startswith('backbone.') for k in left_over)
    hint = ' Weights of a classifier go into the config: model.backbone.pretrained.' if no_detector else ''
    return f'{path} is not a checkpoint of this model: {"; ".join(parts)}. Nothing was loaded.{hint}'


def latest_checkpoint(work_dir: Path) -> Path | None:
    """The newest complete checkpoint of a run in its work dir, None if there is no checkpoint.

    The one that `last_checkpoint` names comes first. A killed run may have left that file empty, or a truncated
    checkpoint (by mmengine's own hook, which writes in place): those are skipped.

    Raises:
        EvaluationError: If there are checkpoints but none is complete.
    """
    pointer = work_dir / 'last_checkpoint'
    named = pointer.read_text().strip() if pointer.is_file() else ''
    found = [path for kind in ('iter', 'epoch') for path in work_dir.glob(f'{kind}_*.pth')]
    found.sort(key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)
    if named:  # a work dir may have been moved since
        found = [*(p for p in (Path(named), work_dir / Path(named).name) if p.is_file()), *found]
    for path in found:
        if zipfile.is_zipfile(path):  # the table of contents is written last
            return path
    if found:
        raise EvaluationError(f'No checkpoint in {work_dir} is complete ({found[0].name} is cut short): start again.')
    return None
