"""A model as a Hub-ready folder: model.safetensors and config.json in timm's layout, never a pickle.

`timm.create_model('local-dir:FOLDER', pretrained=True)` makes the same model again, and so does
`timm.create_model('hf-hub:OWNER/NAME', pretrained=True)` once the folder is uploaded.
"""

import errno
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import save
from timm.models._hub import save_config_for_hf
from timm.utils import unwrap_model
from torch import nn

from ..common import torch_file
from ..common.folders import check_replaceable, swap_in
from ..common.paths import read_json, user_path
from ..common.preprocessing import model_data_config
from ..common.text import reason, shown
from ..releases import find_release
from .bridge import CODE, auto_map, is_zoo_architecture, timm_config, write_code

__all__ = ['WEIGHTS', 'check_folder', 'save_config', 'save_folder', 'write_safetensors', 'write_torch']

WEIGHTS, CONFIG, CARD = 'model.safetensors', 'config.json', 'README.md'

FILES = (WEIGHTS, CONFIG, CODE)  # of `save_folder`
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# Entries of a pretrained cfg that hold for the weights it came with, and for no others.
WEIGHT_FACTS = ('license', 'origin_url', 'description', 'notes', 'label_names', 'label_descriptions')


def save_folder(
    model: nn.Module,
    folder: str | Path,
    label_names: Sequence[str] | None = None,
    label_descriptions: Mapping[str, str] | None = None,
    tag: str | None = None,
    data_config: Mapping[str, Any] | None = None,
    for_timm: bool = False,
) -> Path:
    """Write a Hub-ready folder. It appears whole or not at all.

    Args:
        model: A timm model, as `timm.create_model` made it, at any size and with any head.
        folder: Destination. An existing folder is replaced after everything was written, and only if it holds nothing
            but the files of an earlier call.
        label_names: Name of every class, in order. Default: those the model came with.
        label_descriptions: Descriptions by label name.
        tag: Name of these weights. Give one to weights that you trained: license, address and labels of the weights
            that training started from are then left out.
        data_config: Evaluation preprocessing where it differs from the model's, e.g. `dict(crop_pct=1.0)`.
        for_timm: Name timm's own class of the same function, so that the folder loads without this package; only
            for a TinyViT at its released size.

    Returns:
        The folder.

    Raises:
        ValueError: If the model cannot be rebuilt from its configuration (folded by `reparameterize_model`,
            pruned, features only) or written `for_timm`, or the number of labels is wrong.
        FileExistsError: If the folder holds other files.
    """
    model = unwrap_model(getattr(model, '_orig_mod', model))
    if not getattr(model, 'pretrained_cfg', None) or not hasattr(model, 'num_classes'):
        raise ValueError(f'{type(model).__name__} cannot be saved: it is not a whole timm model.')
    if label_names is not None and len(label_names) != model.num_classes:
        raise ValueError(f'{len(label_names)} label names for {model.num_classes} classes.')
    config: dict[str, Any] = {}
    if label_names is not None:
        config['label_names'] = list(label_names)
    if label_descriptions is not None:
        config['label_descriptions'] = dict(label_descriptions)
    folder = user_path(folder).resolve()
    with swap_in(folder, replaces=FILES) as new:
        tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
        write_safetensors(tensors, new / WEIGHTS)
        save_config(model, new / CONFIG, config, tag, data_config, for_timm)
        if 'auto_map' in read_json(new / CONFIG):
            write_code(new)
        _check(new, {k: tuple(v.shape) for k, v in tensors.items()})
    return folder


def check_folder(folder: str | Path) -> None:
    """See that `save_folder` can write a folder: before a training, not after it.

    Raises:
        FileExistsError: If the folder holds other files.
        OSError: If it cannot be written.
    """
    check_replaceable(user_path(folder).resolve(), FILES)


def save_config(
    model: nn.Module,
    path: Path,
    model_config: dict[str, Any] | None = None,
    tag: str | None = None,
    data_config: Mapping[str, Any] | None = None,
    for_timm: bool = False,
) -> None:
    """Write config.json: timm's, with the model's real input size, and readable by transformers 5.

    For our own architectures it also names the code that transformers loads them with, see `bridge.write_code`.

    Args:
        model: A timm model; may be on the meta device.
        path: Destination.
        model_config: Further top-level entries, see `timm.models.save_config_for_hf`.
        tag: See `save_folder`.
        data_config: See `save_folder`.
        for_timm: See `save_folder`.

    Raises:
        ValueError: See `save_folder`.
    """
    timm_model = cast(Any, model)
    source = timm_model.pretrained_cfg
    try:
        if tag is not None:
            kept = {k: v for k, v in source.items() if k not in WEIGHT_FACTS}
            timm_model.pretrained_cfg = dict(kept, tag=tag)
        save_config_for_hf(
            model,
            str(path),
            model_config=model_config,
            # Without this, a resized model would be saved with the size it had before.
            data_config=_real_input(model) | dict(data_config or {}),
        )
    finally:
        timm_model.pretrained_cfg = source
    config = read_json(path)
    # transformers passes num_classes itself and fails on a second one; timm reads the top-level entry.
    config['model_args'].pop('num_classes', None)
    for of_the_call in ('as_init', 'part'):  # arguments of the call that made the model, not of the model
        config['model_args'].pop(of_the_call, None)
    label_set = _label_set(config) if tag is None else None
    if label_set:
        config['label_set'] = label_set
    if for_timm:
        config = timm_config(config, model)
    elif is_zoo_architecture(config['architecture']):
        config['auto_map'] = auto_map()
    path.write_text(json.dumps(config, indent=2) + '\n')


def _real_input(model: nn.Module) -> dict[str, Any]:
    """The input size that the model takes; and where it has other channels than its cfg, the values for these."""
    config, cfg = model_data_config(model), cast(Any, model).pretrained_cfg
    changed = {key: config[key] for key in ('mean', 'std') if cfg.get(key) and len(cfg[key]) != len(config[key])}
    return dict(input_size=config['input_size'], **changed)


def _label_set(config: dict[str, Any]) -> str | None:
    """Name of the label set of a release in `timm.data.ImageNetInfo`: written out, it has up to 21841 labels."""
    release = find_release(f'{config["architecture"]}.{config["pretrained_cfg"].get("tag") or "-"}')
    if release is None or release.num_classes != config['num_classes'] or 'label_names' in config:
        return None
    return release.labels


def _check(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Rebuild the model from its config.json on the meta device, and compare names and shapes."""
    rebuilt = timm.create_model(f'local-dir:{folder}', device='meta').state_dict()
    differ = shapes.items() ^ {k: tuple(v.shape) for k, v in rebuilt.items()}.items()
    if differ:
        raise ValueError(
            f'config.json would not rebuild this model ({len({k for k, _ in differ})} entries differ, '
            f'such as {shown(min(differ)[0])}). Save the model before it is folded, pruned or otherwise rebuilt.'
        )


def write_safetensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write contiguous tensors; one that has several names, as in timm's CoaT, is written under each of them.

    Raises:
        OSError: If that fails, such as on a full disk.
    """
    try:
        # Not `save_file`: it writes to a name of its own, which nobody would remove after a kill. transformers requires
        # the entry that says that these are torch's tensors.
        path.write_bytes(save(_apart(tensors), metadata={'format': 'pt'}))
    except (OSError, SafetensorError) as e:
        raise write_error(e) from e


def _apart(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors, with a copy in place of each that begins where one before it does: safetensors refuses these."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        place = tensor.data_ptr()
        found[name] = tensor.clone() if tensor.numel() and place in seen else tensor
        seen.add(place)
    return found


def write_torch(content: Mapping[str, Any], path: Path) -> None:
    """Write what `torch.load` reads, the same bytes for the same content. Raises OSError if that fails."""
    try:
        torch_file.write_torch(content, path)
    except (OSError, RuntimeError) as e:
        raise write_error(e) from e


def write_error(error: BaseException) -> OSError:
    """OSError in place of what a writer of weights raised; without the file's name, which is a temporary one."""
    number = error.errno if isinstance(error, OSError) else None
    full = number in FULL or any(f'(os error {n})' in str(error) for n in FULL)
    why = 'the disk is full' if full else reason((error.strerror if isinstance(error, OSError) else None) or error)
    return OSError(f'The weights could not be written: {why}. No partial file was kept: make room and try again.')
