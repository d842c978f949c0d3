"""Read a checkpoint file, whatever saved it, without running any code in it.

File -> object (`torch_file`, `shards`, safetensors) -> state dict (`wrappers`). Names are still those of the file;
`keymap` translates them.
"""

import errno
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from ..common.errors import CheckpointError, WeightsNotFoundError
from ..common.paths import MAX_PATH, read_json, user_path
from ..common.text import first_few, reason, shown
from .archive import RefusedError
from .shards import INDEX_NAMES, INDEX_SUFFIX, read_shards
from .torch_file import ForeignNameError, read_torch
from .wrappers import open_wrappers, unwrap

__all__ = [
    'Clues',
    'clues_of',
    'find_checkpoint',
    'open_checkpoint_file',
    'read_checkpoint',
    'read_with_clues',
    'unwrap',
]

CHECKPOINT_NAMES = ('model.safetensors', 'pytorch_model.bin', 'pytorch_model.pth', 'model.pth')
UNREADABLE = (errno.EACCES, errno.EPERM, errno.EIO, errno.ENOENT, errno.ESTALE, errno.EMFILE, errno.ENFILE)


@dataclass(frozen=True)
class Clues:
    """What a checkpoint reveals about its model apart from the tensors.

    Attributes:
        file: Name of the file, '' if there is none.
        prefix: Common prefix of all names of the model's tensors.
        trained_as: Name of the model in the training script (its saved `args.model`); None if not saved.
        config: The config.json in the same folder; None without one.
    """

    file: str = ''
    prefix: str = ''
    trained_as: str | None = None
    config: dict[str, Any] | None = None


def find_checkpoint(folder: str | Path) -> Path:
    """The checkpoint in a folder: the file with a known name, or the only file of a known kind.

    Raises:
        WeightsNotFoundError: If there is none, or several and none has a known name.
    """
    folder = Path(folder)
    for name in (*CHECKPOINT_NAMES, *INDEX_NAMES):
        if (folder / name).is_file():
            return folder / name
    for pattern in (f'*{INDEX_SUFFIX}', '*.safetensors', '*.bin', '*.pth', '*.pt', '*.pth.tar'):
        files = sorted(folder.glob(pattern))
        if len(files) == 1:
            return files[0]
        if files:
            raise WeightsNotFoundError(
                f'{folder} holds several checkpoints ({first_few(f.name for f in files)}): name one.'
            )
    raise WeightsNotFoundError(f'{folder} holds no checkpoint (looked for {", ".join(CHECKPOINT_NAMES)}).')


def read_checkpoint(path: str | Path, whole: bool = False, part: str | None = None) -> dict[str, torch.Tensor]:
    """State dict of a checkpoint file or folder, on CPU, in the file's own key layout.

    Reads safetensors and torch files (zip and legacy) and indices of either in several files, bare or wrapped (`model`,
    `state_dict`, `state_dict_ema`, ...), with DDP / EMA / torch.compile / FSDP prefixes. Pickles are loaded with
    `weights_only=True`, after a check that they are undamaged and ask for no more memory than the file can fill; a yacs
    `CfgNode` or argparse `Namespace` saved with the weights is replaced by an inert stand-in. Other entries are left
    out with a log line (thop's counts, `_extra_state`); counters of batches that were saved as floats are whole again.

    Args:
        path: File or folder; of a checkpoint in several files the index.
        whole: Return everything in a training wrapper that was saved whole (MoCo v3's two encoders, D-MAE's student
            and teacher), under its own names, instead of the trained model alone.
        part: Which of several models in the file: the key that it lies under, or the prefix of its names, such as
            'teacher' or 'model.student'.

    Raises:
        WeightsNotFoundError: If there is no such file.
        CheckpointError: If it is not a checkpoint, is damaged, or would run code, or if it holds several models and
            `part` names none of them.
    """
    path, checkpoint = open_checkpoint_file(path)
    return unwrap(checkpoint, _shown(path), whole, part)


def read_with_clues(path: str | Path, part: str | None = None) -> tuple[dict[str, torch.Tensor], Clues]:
    """As `read_checkpoint`, with the clues in and around the file."""
    path, checkpoint = open_checkpoint_file(path)
    return unwrap(checkpoint, _shown(path), part=part), clues_of(checkpoint, path)


def classes_in(path: str | Path) -> tuple[str, ...]:
    """Names of the classes that a detector or segmenter was trained with; none if the file does not say.

    Raises:
        As `read_checkpoint`.
    """
    _, found = open_checkpoint_file(path)
    for key in ('meta', 'dataset_meta', 'classes'):  # as mmengine saves them
        found = found.get(key) if isinstance(found, dict) else None
    return tuple(map(str, found)) if isinstance(found, list | tuple) else ()


def clues_of(checkpoint: Any, path: Path | None = None) -> Clues:
    """Clues of a loaded checkpoint, nothing in which is trusted to be well formed."""
    args = checkpoint.get('args') if isinstance(checkpoint, dict) else None
    # A Namespace has become an empty mapping with attributes, see `torch_file`.
    trained_as = getattr(args, 'model', None) or (args.get('model') if isinstance(args, dict) else None)
    try:
        inner, _ = open_wrappers(checkpoint)
    except CheckpointError:  # a part of it was named
        inner = None
    return Clues(
        file=path.name if path else '',
        prefix=_prefix([k for k in inner if isinstance(k, str)] if isinstance(inner, dict) else []),
        trained_as=trained_as if isinstance(trained_as, str) else None,
        config=_adjacent_config(path) if path else None,
    )


def _adjacent_config(path: Path) -> dict[str, Any] | None:
    config = path.with_name('config.json')
    if path.name not in (*CHECKPOINT_NAMES, *INDEX_NAMES) or not config.is_file():
        return None
    try:
        read = read_json(config)
    except (OSError, ValueError):
        return None
    return read if isinstance(read, dict) else None


def _prefix(keys: list[str]) -> str:
    """The prefix of 'blocks.0.norm1.weight', a key of every plain transformer; '' if it is not there."""
    ending = 'blocks.0.norm1.weight'
    found = [k.removesuffix(ending) for k in keys if k.endswith(ending) and not k.endswith(f'decoder_{ending}')]
    return min(found, key=len) if found else ''


def _shown(path: Path) -> str:
    return shown(path, MAX_PATH)


def open_checkpoint_file(path: str | Path) -> tuple[Path, Any]:
    """The file of a path, and the object in it.

    Raises:
        CheckpointError: See `read_checkpoint`, but for what the object is.
    """
    path = user_path(path, WeightsNotFoundError)
    if path.is_dir():
        path = find_checkpoint(path)
    if not path.is_file():
        raise WeightsNotFoundError(f'No checkpoint at {_shown(path)}.')
    if path.name.endswith(INDEX_SUFFIX):
        return path, read_shards(path, _read_file)
    return path, _read_file(path)


def _read_file(path: Path) -> Any:
    """The object in one file."""
    where, size = _shown(path), path.stat().st_size
    try:
        if _sniff(path, size) == 'safetensors':
            return safetensors.torch.load_file(path)
        with path.open('rb') as file:
            return read_torch(file, size)
    except CheckpointError:
        raise
    except ForeignNameError as e:
        raise CheckpointError(
            f'{where} asks to run or build `{e}` while loading. Weights need no such thing, so it was refused and '
            'nothing was run. If you trust the file, load it yourself and save its state dict as safetensors.'
        ) from e
    except RefusedError as e:
        raise CheckpointError(f'{where} was refused, and nothing in it was run: {e}.') from e
    except MemoryError as e:
        raise CheckpointError(f'{where} does not fit into the memory of this machine ({size:,} bytes).') from e
    except Exception as e:  # for damaged bytes all readers raise nearly anything, struct.error included
        if isinstance(e, OSError) and e.errno in UNREADABLE:
            raise CheckpointError(f'{where} cannot be read ({e.strerror}).') from e
        raise CheckpointError(
            f'{where} is damaged or cut short ({size} bytes; {_first_line(e)}). Download or copy it again.'
        ) from e


def _first_line(error: BaseException) -> str:
    return reason((str(error).splitlines() or [''])[0] or type(error).__name__, 160)


def _sniff(path: Path, size: int) -> str:
    """'safetensors' or 'torch', from the first bytes.

    Raises:
        CheckpointError: If it is neither; the message says what it is instead.
    """
    where = _shown(path)
    with path.open('rb') as f:
        head = f.read(512)
    if size == 0:
        raise CheckpointError(f'{where} is empty (0 bytes). Download or copy it again.')
    text = head.lstrip().lower()
    if text.startswith((b'<!doctype', b'<html', b'<?xml', b'<head')):
        raise CheckpointError(
            f'{where} is a web page, not a checkpoint: the download saved an error, login or quota page. '
            'Open the address in a browser and download the file itself.'
        )
    if text.startswith(b'version https://git-lfs'):
        raise CheckpointError(f'{where} is a Git LFS pointer, not the file itself. Run `git lfs pull` and try again.')
    if len(head) > 8 and head[8:9] == b'{' and int.from_bytes(head[:8], 'little') < 1 << 32:
        return 'safetensors'
    if head.startswith((b'PK\x03\x04', b'\x80')):
        return 'torch'
    what = 'a text file' if all(b in b'\t\n\r\f' or 32 <= b < 127 for b in head) else 'of no known format'
    raise CheckpointError(f'{where} is {what}, not a checkpoint (neither safetensors nor a torch file).')
