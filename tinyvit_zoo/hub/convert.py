"""Convert checkpoints between layouts and formats, and import them into the local store of weights."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ..build import build_model
from ..checkpoints import (
    CLASSES_22K,
    KEY_MAPS,
    PLAIN_VIT_KEYS,
    CheckpointError,
    KeyMap,
    WeightsNotFoundError,
    backbone_part,
    check_finite,
    check_keys,
    counted_by_part,
    find_checkpoint,
    find_key_map,
    head_22k_to_1k,
    imported_path,
    read_checkpoint,
    with_counters,
)
from ..common.errors import ModelError
from ..common.files import check_writable, new_file
from ..common.paths import user_path
from ..common.text import count_of, first_few
from ..names import check_name
from ..releases import Release, all_releases, find_family, find_release, same_file
from .folder import check_folder, save_folder, write_safetensors, write_torch

__all__ = [
    'Checkpoint',
    'check_file_name',
    'convert',
    'import_weights',
    'init_model',
    'open_checkpoint',
    'verified_model',
]

TORCH_SUFFIXES = ('.pth', '.pt', '.bin')
INIT_TAG = 'init'
"""Tag of initial weights for training: license, labels and results of the encoder do not hold for them."""


@dataclass(frozen=True)
class Checkpoint:
    """A state dict under our names, and facts about the file it was read from.

    Attributes:
        path: The file.
        state_dict: Tensors under our names.
        key_map: Names of its family.
        layout: Layout of the keys in the file, 'ours' or 'official'.
        num_keys: Number of keys in the file.
        detector_keys: Names that were left out because they belong to a detector, not to its backbone.
        part: Which of several models in the file it is, None if there is one.
    """

    path: Path
    state_dict: dict[str, torch.Tensor]
    key_map: KeyMap
    layout: str
    num_keys: int
    detector_keys: tuple[str, ...] = ()
    part: str | None = None

    @property
    def classes(self) -> int:
        """Classes of the head, 0 without one."""
        return self.key_map.head_classes(self.state_dict) or 0

    @property
    def dtypes(self) -> list[str]:
        """Floating-point types, such as ['float32']."""
        return sorted({str(v.dtype).removeprefix('torch.') for v in self.state_dict.values() if v.is_floating_point()})

    def __str__(self) -> str:
        classes = f'{self.classes} classes' if self.classes else 'no classifier'
        layout = f'{self.key_map.family} in {self.layout} layout'
        text = f'{layout}, {count_of(self.num_keys, "key")}, {", ".join(self.dtypes)}, {classes}'
        if not self.detector_keys:
            return text
        return f'{text}; left out of a detector: {counted_by_part(self.detector_keys)}'


def open_checkpoint(path: str | Path, part: str | None = None) -> Checkpoint:
    """Read any file that `checkpoints.read_checkpoint` reads, under our names; of a detector, the backbone alone.

    Args:
        path: File or folder.
        part: See `read_checkpoint`.

    Raises:
        CheckpointError: If it cannot be read, belongs to no known family, or holds buffers that contradict its weights.
    """
    path = user_path(path, WeightsNotFoundError)
    path = find_checkpoint(path) if path.is_dir() else path  # its name identifies the weights, the folder's does not
    state_dict, detector_keys = backbone_part(read_checkpoint(path, part=part))
    key_map = find_key_map(state_dict)
    if key_map is None:
        families = ', '.join(dict.fromkeys(known.family for known in KEY_MAPS.values()))
        raise CheckpointError(f'{path} is of no known family ({families}). Its first keys: {first_few(state_dict)}.')
    ours, layout = key_map.to_ours(state_dict)
    if key_map.check_buffers and (layout == 'official' or key_map.same_names):
        try:
            key_map.check_buffers(state_dict)
        except CheckpointError as e:
            raise CheckpointError(f'{path}: {e}') from e
    return Checkpoint(path, ours, key_map, layout, len(state_dict), tuple(detector_keys), part)


def verified_model(
    checkpoint: Checkpoint, name: str, num_classes: int | None = None, img_size: tuple[int, int] | None = None
) -> nn.Module:
    """The model of that name with the checkpoint loaded: every key used, every shape equal, nothing resized.

    A resized load would store values that the file does not have under the name of its weights, so a file of another
    size is refused here although `create_model` could adapt it.

    Args:
        checkpoint: Under our names.
        name: 'architecture' or 'architecture.tag'.
        num_classes: Number of classes the file must have; default: that of the released tag.
        img_size: (H, W) that its tables are for; default: the architecture's.

    Returns:
        The model in eval mode, in the dtype of the checkpoint.

    Raises:
        CheckpointError: If it does not fit.
        ModelError: On an unknown name.
    """
    _check_family(checkpoint, name)
    release = find_release(name)
    expected = num_classes if num_classes is not None else release and release.num_classes
    if expected is not None and checkpoint.classes != expected:
        hint = ''
        if checkpoint.key_map is PLAIN_VIT_KEYS and not checkpoint.classes:
            hint = '; an encoder becomes the initial weights of a training with --as-init (as_init=True)'
        elif checkpoint.classes == CLASSES_22K:
            hint = '; a 22k head can be converted (--head in1k)'
        raise CheckpointError(
            f'{checkpoint.path} has {checkpoint.classes or "no"} classes, {name} {expected or "none"}. '
            f'Is it the file of another tag? A file of your own training needs its number of classes (--num-classes)'
            f'{hint}.'
        )
    arguments = _arguments(checkpoint, img_size) | dict(num_classes=checkpoint.classes)
    if checkpoint.key_map is PLAIN_VIT_KEYS:  # from the file, which holds more about its model than its tensors
        arguments |= dict(pretrained=True, pretrained_cfg_overlay=dict(file=str(checkpoint.path)), part=checkpoint.part)
    model = build_model(name, **arguments)
    state_dict = with_counters(checkpoint.state_dict, model.state_dict())
    try:
        check_keys(
            state_dict,
            model.state_dict(),
            checkpoint.key_map,
            checkpoint.layout,
            source_chans=cast(Any, model).in_chans,
        )
    except CheckpointError as e:
        raise CheckpointError(f'{checkpoint.path} is not {name}: {e}') from e
    model.load_state_dict(state_dict, strict=True)
    return model


def _check_family(checkpoint: Checkpoint, name: str) -> None:
    check_name(name)
    family = find_family(name)
    if family is None or KEY_MAPS[family] is not checkpoint.key_map:
        kind = f'a {KEY_MAPS[family].family}' if family else 'a model of another kind'
        raise CheckpointError(f'{checkpoint.path} holds {checkpoint.key_map.family} weights, {name} is {kind}.')


def _arguments(checkpoint: Checkpoint, img_size: tuple[int, int] | None) -> dict[str, Any]:
    """Arguments of `create_model` for a model that the checkpoint fits unchanged."""
    dtypes = {v.dtype for v in checkpoint.state_dict.values() if v.is_floating_point()}
    stem = checkpoint.state_dict.get(f'{checkpoint.key_map.first_conv}.weight')
    return dict(
        in_chans=stem.shape[1] if stem is not None and stem.ndim == 4 else 3,
        dtype=dtypes.pop() if len(dtypes) == 1 else torch.float32,
        **({'img_size': img_size} if img_size else {}),
    )


def init_model(
    checkpoint: Checkpoint, name: str, num_classes: int | None = None, img_size: tuple[int, int] | None = None
) -> nn.Module:
    """The model of that name, initialized for training from an encoder: new classifier and norms after the blocks.

    TinyMIM's recipe initializes a model of 3 heads from a file of 6, so heads are not compared; positions are resized.

    Args:
        checkpoint: Of a plain ViT (TinyMIM, MAE-Lite).
        name: 'architecture' or 'architecture.tag'.
        num_classes: Classes of the new classifier; default: the architecture's.
        img_size: (H, W); default: the architecture's.

    Returns:
        The model in eval mode, in the dtype of the checkpoint.

    Raises:
        CheckpointError: If its blocks do not fit, or it is of another family.
        ModelError: On an unknown name, or one of a family that has no `as_init`.
    """
    _check_family(checkpoint, name)
    if checkpoint.key_map is not PLAIN_VIT_KEYS:
        raise ModelError(
            f'{name} has no as_init, which only plain ViTs have: num_classes alone gives it a new classifier.'
        )
    return build_model(
        name,
        pretrained=True,
        as_init=True,
        part=checkpoint.part,
        pretrained_cfg_overlay=dict(file=str(checkpoint.path)),
        **_arguments(checkpoint, img_size),
        **({} if num_classes is None else dict(num_classes=num_classes)),
    )


def convert(
    source: str | Path,
    target: str | Path,
    layout: str | None = None,
    head: str | None = None,
    name: str | None = None,
    num_classes: int | None = None,
    img_size: tuple[int, int] | None = None,
    as_init: bool = False,
    part: str | None = None,
    allow_nonfinite: bool = False,
) -> tuple[Checkpoint, Path]:
    """Convert a checkpoint. The target appears whole or not at all; an existing one is kept until then.

    Args:
        source: Any file or folder that `read_checkpoint` reads.
        target: '*.safetensors', '*.pth' ('.pt', '.bin'), or else a Hub-ready folder, which needs `name`.
        layout: 'ours' or 'official'; default: ours, and official for '*.pth'. Official torch files are wrapped in
            'model', as the released code expects.
        head: 'in1k' turns a 21841-class head into the 1000-class one.
        name: Model to check the result against, by loading it.
        num_classes: See `verified_model`; 0 leaves the classifier out.
        img_size: See `verified_model`.
        as_init: Write initial weights for training `name`, see `init_model`, instead of the same weights in another
            form.
        part: Which of several models in the file, see `read_checkpoint`.
        allow_nonfinite: Also convert weights that hold NaN or infinity.

    Returns:
        The checkpoint that was read, and the path of the result.

    Raises:
        CheckpointError: If the file cannot be read, converted or does not fit `name`, or holds NaN or infinity.
        ModelError: If the name is unknown, or the arguments contradict each other.
        FileExistsError: If the target is a folder that holds other files.
        OSError: If it cannot be written.
    """
    target = user_path(target)
    is_file = target.suffix in ('.safetensors', *TORCH_SUFFIXES)
    if not is_file and (name is None or layout == 'official'):
        need = 'the name of the model (--name ARCHITECTURE.TAG)' if name is None else 'our layout'
        raise ModelError(f'{target} would be a folder for timm, which needs {need}; or end it in .safetensors or .pth.')
    if as_init and (name is None or head is not None):
        raise ModelError('as_init needs the name of the model to be trained (--name ARCHITECTURE) and takes no head.')
    if name is None and (num_classes or (img_size is not None and not _is_official(layout, target))):
        what = '--num-classes' if num_classes else '--img-size'
        raise ModelError(f'{what} is checked with the model: name it, too (--name ARCHITECTURE.TAG), or leave it out.')
    if is_file:
        check_writable(target)
    else:
        check_folder(target)
    read = open_checkpoint(source, part)
    check_finite(read.state_dict, str(read.path), allow_nonfinite)
    if as_init and name is not None:
        initial = init_model(read, name, num_classes, img_size)
        if not is_file:
            return read, save_folder(initial, target, tag=INIT_TAG)
        return read, _write_layout(initial.state_dict(), read.key_map, target, layout, img_size)
    state_dict = head_22k_to_1k(read.state_dict) if head == 'in1k' else read.state_dict
    if num_classes == 0:
        state_dict = {k: v for k, v in state_dict.items() if not read.key_map.is_head(k)}
    result = replace(read, state_dict=state_dict)
    model = verified_model(result, name, num_classes, img_size) if name else None
    if not is_file and model is not None:
        return read, save_folder(model, target)
    return read, _write_layout(state_dict, read.key_map, target, layout, img_size)


def _write_layout(
    state_dict: Mapping[str, torch.Tensor],
    key_map: KeyMap,
    target: Path,
    layout: str | None,
    img_size: tuple[int, int] | None,
) -> Path:
    official = _is_official(layout, target)
    state_dict = key_map.to_official(state_dict, img_size) if official else state_dict
    _write(state_dict, target, 'official' if official else 'ours')
    return target


def _is_official(layout: str | None, target: Path) -> bool:
    return (layout or ('official' if target.suffix in TORCH_SUFFIXES else 'ours')) == 'official'


def _write(state_dict: Mapping[str, torch.Tensor], path: Path, layout: str) -> None:
    # Tensors that were read may be views of one storage: give each its own.
    tensors = {k: v.contiguous().clone() for k, v in state_dict.items()}
    with new_file(path) as new:
        if path.suffix == '.safetensors':
            write_safetensors(tensors, new)
            return
        write_torch({'model': tensors} if layout == 'official' else tensors, new)


def import_weights(
    source: str | Path, name: str, part: str | None = None, allow_nonfinite: bool = False
) -> tuple[Checkpoint, Path]:
    """Keep a file as the weights of a released tag, so that `pretrained=True` finds them without a network.

    Args:
        source: Any file or folder that `read_checkpoint` reads.
        name: 'architecture.tag', or 'architecture' for its default tag.
        part: Which of several models in the file, see `read_checkpoint`.
        allow_nonfinite: Also import weights that hold NaN or infinity.

    Returns:
        The checkpoint that was read, and the folder it was stored in.

    Raises:
        CheckpointError: If the file is not that model, or holds NaN or infinity; nothing is stored then.
    """
    release = find_release(name)
    if release is None:
        known = ', '.join(r.name for r in all_releases())
        raise CheckpointError(f"There is no release called '{name}'. There are: {known}.")
    checkpoint = open_checkpoint(source, part)
    check_finite(checkpoint.state_dict, str(checkpoint.path), allow_nonfinite)
    model = verified_model(checkpoint, release.name)
    check_file_name(checkpoint.path, release)
    return checkpoint, save_folder(model, imported_path(release.name))


def check_file_name(path: Path, release: Release) -> None:
    """Raise CheckpointError if a file has the name of other weights, which is all that distinguishes tags.

    Args:
        path: The file.
        release: Release that it is said to be.
    """
    others = [f'the file of {r.name}' for r in all_releases() if r.has_file(path.name) and r is not release]
    others += ['a file of another model' for name in release.other_files if same_file(path.name, name)]
    if others:
        raise CheckpointError(
            f'{path.name} is the name of {others[0]}, not of {release.name}'
            + (f', which is {release.file}' if release.file else '')
            + '. If the file is the right one, rename it.'
        )
