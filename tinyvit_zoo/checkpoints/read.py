"""Read a checkpoint file, whatever saved it, without running any code in it.

File -> object (safetensors or a pickle restricted to tensors) -> state dict (unwrapped, prefixes stripped). Names are
still those of the file; `keymap` translates them.
"""

import json
import logging
import pickle
import pickletools
import re
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from ..common.errors import CheckpointError, WeightsNotFoundError
from ..common.text import first_few

__all__ = ['Clues', 'classes_in', 'clues_of', 'find_checkpoint', 'read_checkpoint', 'read_with_clues', 'unwrap']

_logger = logging.getLogger(__name__)

# Keys under which training scripts keep a state dict; averaged weights first, as timm's own loader prefers them.
WRAPPERS = ('state_dict_ema', 'model_ema', 'ema', 'state_dict', 'model', 'module')
# A key of the released Mini-DeiT's weights. Its training code also saves averaged weights, but evaluated the plain ones
# and published their accuracy.
PLAIN_WEIGHTS_COUNT = 'blocks.0.block.norm1.instances.0.weight'
# Prefixes of wrapping modules, in any order and number: DDP, torch.compile, timm's and torch's weight averaging.
PREFIXES = ('module.', '_orig_mod.', 'model_ema.', 'ema.', 'model.')
# Training wrappers that are saved whole: prefixes of the trained model, and of everything else. D-MAE also saves its
# teacher and head adapters, MoCo v3 the momentum copy and the predictor.
WHOLE_WRAPPERS = {
    'model.': ('tch_model.', 'attn_adapter.', 'hidden_adapter.'),
    'base_encoder.': ('momentum_encoder.', 'predictor.'),
}
# Buffers of the wrappers themselves: torch.optim.swa_utils.AveragedModel.
WRAPPER_BUFFERS = ('n_averaged',)

CHECKPOINT_NAMES = ('model.safetensors', 'pytorch_model.bin', 'pytorch_model.pth', 'model.pth')


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


class _Inert:
    """Replaces a number, dtype or path in a pickle, the value of which is not needed."""

    def __init__(self, *args: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


class _Settings:
    """Replaces a configuration object in a pickle by a plain mapping; runs none of its code."""

    def __new__(cls, *args: Any) -> OrderedDict:  # type: ignore[misc]  # the restricted unpickler fills no other class
        return OrderedDict()


# The only names beyond tensors that a checkpoint may hold: configurations and numbers that training code saves with the
# weights (Cream's `config`, argparse's `args` with its paths, an accuracy). None of the real classes is built.
_STAND_INS: tuple[tuple[type, str], ...] = (
    (_Settings, 'yacs.config.CfgNode'),
    (_Settings, 'argparse.Namespace'),
    *((_Inert, f'pathlib{module}.{kind}Path') for module in ('', '._local') for kind in ('Posix', 'Windows')),
    (_Inert, 'numpy.dtype'),
    (_Inert, 'numpy.core.multiarray.scalar'),
    (_Inert, 'numpy._core.multiarray.scalar'),
    *((_Inert, f'numpy.{module}._reconstruct') for module in ('core.multiarray', '_core.multiarray')),
    (_Inert, 'numpy.ndarray'),
)

# The losses of a training by mmengine, whose pickled history refers to `getattr`. Only files with such a history may
# use that name, and get a stand-in for it.
_HISTORY = 'mmengine.logging.history_buffer.HistoryBuffer'
_HISTORY_STAND_INS: tuple[tuple[type, str], ...] = ((_Inert, _HISTORY), (_Inert, 'builtins.getattr'))


# torch's allow-list is global to the process: one reader at a time may extend it.
_ALLOW_LIST = threading.Lock()


def find_checkpoint(folder: str | Path) -> Path:
    """The checkpoint in a folder: the file with a known name, or the only file of a known kind.

    Raises:
        WeightsNotFoundError: If there is none, or several and none has a known name.
    """
    folder = Path(folder)
    for name in CHECKPOINT_NAMES:
        if (folder / name).is_file():
            return folder / name
    for pattern in ('*.safetensors', '*.bin', '*.pth', '*.pt', '*.pth.tar'):
        files = sorted(folder.glob(pattern))
        if len(files) == 1:
            return files[0]
        if files:
            raise WeightsNotFoundError(
                f'{folder} holds several checkpoints ({first_few(f.name for f in files)}): name one.'
            )
    raise WeightsNotFoundError(f'{folder} holds no checkpoint (looked for {", ".join(CHECKPOINT_NAMES)}).')


def read_checkpoint(path: str | Path, whole: bool = False) -> dict[str, torch.Tensor]:
    """State dict of a checkpoint file or folder, on CPU, in the file's own key layout.

    Reads safetensors and torch files (zip and legacy), bare or wrapped (`model`, `state_dict`, `state_dict_ema`, ...),
    with DDP / EMA / torch.compile prefixes. Pickles are loaded with `weights_only=True`; a yacs `CfgNode` or argparse
    `Namespace` saved with the weights is replaced by an inert stand-in.

    Args:
        path: File or folder.
        whole: Return everything in a training wrapper that was saved whole (MoCo v3's two encoders, D-MAE's student
            and teacher), under its own names, instead of the trained model alone.

    Raises:
        WeightsNotFoundError: If there is no such file.
        CheckpointError: If it is not a checkpoint, is damaged, or would run code.
    """
    path, checkpoint = _open(path)
    return unwrap(checkpoint, str(path), whole)


def read_with_clues(path: str | Path) -> tuple[dict[str, torch.Tensor], Clues]:
    """As `read_checkpoint`, with the clues in and around the file."""
    path, checkpoint = _open(path)
    return unwrap(checkpoint, str(path)), clues_of(checkpoint, path)


def classes_in(path: str | Path) -> tuple[str, ...]:
    """Names of the classes that a detector or segmenter was trained with; none if the file does not say.

    Raises:
        As `read_checkpoint`.
    """
    _, found = _open(path)
    for key in ('meta', 'dataset_meta', 'classes'):  # as mmengine saves them
        found = found.get(key) if isinstance(found, dict) else None
    return tuple(map(str, found)) if isinstance(found, list | tuple) else ()


def clues_of(checkpoint: Any, path: Path | None = None) -> Clues:
    """Clues of a loaded checkpoint, nothing in which is trusted to be well formed."""
    args = checkpoint.get('args') if isinstance(checkpoint, dict) else None
    # A Namespace has become an empty mapping with attributes, see `_Settings`.
    trained_as = getattr(args, 'model', None) or (args.get('model') if isinstance(args, dict) else None)
    inner, _ = _open_wrappers(checkpoint)
    return Clues(
        file=path.name if path else '',
        prefix=_prefix([k for k in inner if isinstance(k, str)] if isinstance(inner, dict) else []),
        trained_as=trained_as if isinstance(trained_as, str) else None,
        config=_adjacent_config(path) if path else None,
    )


def _adjacent_config(path: Path) -> dict[str, Any] | None:
    config = path.with_name('config.json')
    if path.name not in CHECKPOINT_NAMES or not config.is_file():
        return None
    try:
        read = json.loads(config.read_text())
    except (OSError, ValueError):
        return None
    return read if isinstance(read, dict) else None


def _prefix(keys: list[str]) -> str:
    """The prefix of 'blocks.0.norm1.weight', a key of every plain transformer; '' if it is not there."""
    ending = 'blocks.0.norm1.weight'
    found = [k.removesuffix(ending) for k in keys if k.endswith(ending) and not k.endswith(f'decoder_{ending}')]
    return min(found, key=len) if found else ''


def _open(path: str | Path) -> tuple[Path, Any]:
    """The file of a path, and the object in it."""
    path = Path(path).expanduser()
    if path.is_dir():
        path = find_checkpoint(path)
    if not path.is_file():
        raise WeightsNotFoundError(f'No checkpoint at {path}.')
    kind = _sniff(path)
    try:
        checkpoint = safetensors.torch.load_file(path) if kind == 'safetensors' else _load_pickle(path)
    except pickle.UnpicklingError as e:
        raise CheckpointError(_refused(path, e)) from e
    except Exception as e:  # for damaged bytes both readers raise nearly anything, struct.error included
        raise CheckpointError(
            f'{path} is damaged or cut short ({path.stat().st_size} bytes; {_first_line(e)}). '
            'Download or copy it again.'
        ) from e
    return path, checkpoint


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


def _sniff(path: Path) -> str:
    """'safetensors' or 'torch', from the first bytes.

    Raises:
        CheckpointError: If it is neither; the message says what it is instead.
    """
    size = path.stat().st_size
    with path.open('rb') as f:
        head = f.read(512)
    if size == 0:
        raise CheckpointError(f'{path} is empty (0 bytes). Download or copy it again.')
    text = head.lstrip().lower()
    if text.startswith((b'<!doctype', b'<html', b'<?xml', b'<head')):
        raise CheckpointError(
            f'{path} is a web page, not a checkpoint: the download saved an error, login or quota page. '
            'Open the address in a browser and download the file itself.'
        )
    if text.startswith(b'version https://git-lfs'):
        raise CheckpointError(f'{path} is a Git LFS pointer, not the file itself. Run `git lfs pull` and try again.')
    if len(head) > 8 and head[8:9] == b'{' and int.from_bytes(head[:8], 'little') < 1 << 32:
        return 'safetensors'
    if head.startswith((b'PK\x03\x04', b'\x80')):
        return 'torch'
    what = 'a text file' if all(b in b'\t\n\r\f' or 32 <= b < 127 for b in head) else 'of no known format'
    raise CheckpointError(f'{path} is {what}, not a checkpoint (neither safetensors nor a torch file).')


def _load_pickle(path: Path) -> Any:
    try:
        return _unpickle(path, _STAND_INS)
    except pickle.UnpicklingError as e:
        if _HISTORY not in str(e):
            raise
        return _unpickle(path, _STAND_INS + _HISTORY_STAND_INS)


def _unpickle(path: Path, stand_ins: Iterable[tuple[type, str]]) -> Any:
    # An open file, not a path, since torch judges a path by its ending. The allow-list is global, hence the lock.
    with _ALLOW_LIST, torch.serialization.safe_globals(list(stand_ins)), path.open('rb') as f:
        return torch.load(f, map_location='cpu', weights_only=True)


def _refused(path: Path, error: pickle.UnpicklingError) -> str:
    found = re.search(r'GLOBAL ([\w.]+)', str(error))
    name = found[1] if found else _first_foreign_name(path)
    if name is None:
        return (
            f"{path} is not a checkpoint that torch's restricted reader accepts; nothing in it was run. "
            'Save the state dict as safetensors, or download the file again if it should be one.'
        )
    name = name if '.' in name else f'builtins.{name}'  # torch leaves `builtins` out
    return (
        f'{path} asks to run or build `{name}` while loading. Weights need no such thing, so it was refused and '
        'nothing was run. If you trust the file, load it yourself and save its state dict as safetensors.'
    )


def _first_foreign_name(path: Path) -> str | None:
    """First name outside torch and collections that a pickle asks for, read from its opcodes; nothing is run.

    Pickles of protocol 4 and 5 name things by an opcode that torch's reader does not know.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                data = archive.read(next(n for n in archive.namelist() if n.endswith('data.pkl')))
        else:
            data = path.read_bytes()
        strings: list[str] = []
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == 'STACK_GLOBAL' and len(strings) > 1:
                module, name = strings[-2:]
                if module.partition('.')[0] not in ('torch', 'collections'):
                    return f'{module}.{name}'
            elif isinstance(argument, str):
                strings.append(argument)
    except Exception:  # damaged bytes raise nearly anything
        return None
    return None


def unwrap(checkpoint: Any, where: str = 'the checkpoint', whole: bool = False) -> dict[str, torch.Tensor]:
    """The state dict inside a loaded checkpoint: wrappers opened, prefixes of wrapping modules removed.

    Args:
        checkpoint: The object in the file.
        where: Its name in error messages.
        whole: See `read_checkpoint`.

    Raises:
        CheckpointError: If no state dict is found.
    """
    checkpoint, under = _open_wrappers(checkpoint)
    if under:
        _logger.info('Using %r of %s.', under, where)
    if not isinstance(checkpoint, dict) or not checkpoint:
        kind = 'nothing' if isinstance(checkpoint, dict) else f'an object of type {type(checkpoint).__name__}'
        raise CheckpointError(f'{where} holds {kind}, not a state dict.')
    others = [str(k) for k, v in checkpoint.items() if not (isinstance(k, str) and isinstance(v, torch.Tensor))]
    if others:
        raise CheckpointError(
            f'{where} is not a state dict: {first_few(others)} are not named tensors. '
            f'A state dict is looked for at the top or under {", ".join(WRAPPERS)}.'
        )
    odd = [
        k for k, v in checkpoint.items() if v.layout != torch.strided or v.is_meta or v.is_quantized or v.is_complex()
    ]
    if odd:
        raise CheckpointError(
            f'{where} holds {first_few(odd)} as sparse, quantised, complex or empty (meta) tensors: save plain ones.'
        )
    return _strip_prefixes(checkpoint, whole)


def _open_wrappers(checkpoint: Any) -> tuple[Any, str]:
    """The object inside all wrappers, and the keys that lead to it, such as 'model.state_dict'."""
    opened = []
    while isinstance(checkpoint, dict):
        inner = next((k for k in WRAPPERS if isinstance(checkpoint.get(k), dict) and checkpoint[k]), None)
        if inner is None:
            break
        if isinstance(checkpoint.get('model'), dict) and PLAIN_WEIGHTS_COUNT in checkpoint['model']:
            inner = 'model'
        opened.append(inner)
        checkpoint = checkpoint[inner]
    return checkpoint, '.'.join(opened)


def _strip_prefixes(state_dict: dict[str, torch.Tensor], whole: bool) -> dict[str, torch.Tensor]:
    state_dict = {k: v for k, v in state_dict.items() if k not in WRAPPER_BUFFERS}
    averaged = {k: v for k, v in state_dict.items() if k.startswith('model_ema.')}
    if averaged:  # and plain ones in the same dict: the averaged weights win, as with WRAPPERS
        state_dict = averaged
    while True:
        prefix = next((p for p in PREFIXES if state_dict and all(k.startswith(p) for k in state_dict)), None)
        if prefix is None:
            return state_dict if whole else _trained_model(state_dict)
        state_dict = {k.removeprefix(prefix): v for k, v in state_dict.items()}


def _trained_model(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The trained model alone, if a training wrapper was saved whole."""
    for prefix, others in WHOLE_WRAPPERS.items():
        if any(k.startswith(prefix) for k in state_dict) and all(k.startswith((prefix, *others)) for k in state_dict):
            kept = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
            if len(kept) < len(state_dict):
                _logger.info('Using %r alone, without the %d other tensors.', prefix, len(state_dict) - len(kept))
            return kept
    return state_dict
