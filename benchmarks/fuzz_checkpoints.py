"""Damaged and hostile checkpoints, thousands of them, through the readers: what each of them ends in.

A damaged file must load with the same numbers or end in one error of this package, within seconds and within three
times its size in memory. Files with checksums (zip) may not load with other numbers; the other formats have none. What
differs from a plain file without harm must load.

    python benchmarks/fuzz_checkpoints.py --files 10000
"""

import argparse
import ctypes
import gc
import io
import json
import random
import signal
import struct
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from tinyvit_zoo.checkpoints import CheckpointError, read_checkpoint
from tinyvit_zoo.checkpoints.manifest import read_manifest
from tinyvit_zoo.common.bounds import check_sizes
from tinyvit_zoo.common.errors import ModelError
from tinyvit_zoo.common.paths import read_json

SECONDS = 10
BASE_BYTES = 16 << 20
"""What reading a file of any size may take."""

Tensors = dict[str, torch.Tensor]


def small_weights() -> Tensors:
    """Names, shapes and types as checkpoints have them, in a few kB."""
    generator = torch.Generator().manual_seed(0)
    weights: Tensors = {}
    for i in range(3):
        weights |= {
            f'blocks.{i}.conv.weight': torch.randn(6, 3, 3, 3, generator=generator),
            f'blocks.{i}.bn.weight': torch.randn(6, generator=generator),
            f'blocks.{i}.bn.running_var': torch.rand(6, generator=generator),
            f'blocks.{i}.bn.num_batches_tracked': torch.tensor(1000 + i),
            f'blocks.{i}.mlp.weight': torch.randn(6, 5, generator=generator).half(),
            f'blocks.{i}.mask': torch.rand(4, 4, generator=generator) > 0.5,
        }
    return weights


def in_torch(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def training() -> dict[str, Any]:
    """What a training script saves."""
    return dict(
        model=small_weights(),
        epoch=7,
        metric=np.float64(81.5),
        args=argparse.Namespace(lr=0.1, model='small', output=Path('runs')),
        optimizer=dict(state={0: dict(step=torch.tensor(3.0), exp_avg=torch.zeros(6))}, param_groups=[dict(lr=0.1)]),
    )


def renamed(weights: Tensors, prefix: str = '', inside: str = '') -> Tensors:
    """Weights with other words in their names."""
    return {prefix + key.replace('.', f'.{inside}', 1): tensor for key, tensor in weights.items()}


def harmless() -> dict[str, bytes]:
    """Files that hold the small weights and something else, or hold them in another way."""
    weights, others = small_weights(), {k: torch.zeros_like(v) for k, v in small_weights().items()}
    counts = {f'{key.rpartition(".")[0]}.{name}': torch.zeros(1) for key in weights for name in NO_WEIGHTS}
    floats = {k: v.double() if k.endswith('num_batches_tracked') else v for k, v in weights.items()}
    beside = dict(
        args=argparse.Namespace(lr=0.1, nested=argparse.Namespace(a=(1, 2)), path=Path('runs')),
        numbers=[np.float64(81.2), np.int64(3), np.bool_(True)],
        array=np.zeros((2, 3)),
        names={'a', 'b'},
        binary=b'abc',
    )
    contents: dict[str, Any] = {
        'thop': weights | counts | dict(total_ops=torch.zeros(1), total_params=torch.zeros(1)),
        'extra states': weights | {'_extra_state': None, 'blocks.0._extra_state': torch.zeros(3)},
        'counters as floats': floats,
        **{f'{inside} inside': renamed(weights, inside=inside) for inside in WRAPPED_INSIDE},
        **{f'prefix {prefix}': renamed(weights, prefix) for prefix in PREFIXES},
        'prefixes at once': renamed(weights, 'module.student.', '_fsdp_wrapped_module._orig_mod.'),
        **{f'wrapper {wrapper}': {wrapper: weights, 'epoch': 3} for wrapper in WRAPPERS},
        'averaged weights': dict(model=others, model_ema=weights),
        'parameters': {k: torch.nn.Parameter(v) if v.dtype == torch.float32 else v for k, v in weights.items()},
        'things beside': dict(beside, model=weights),
    }
    files = {name: in_torch(content) for name, content in contents.items()}
    for protocol in (2, 3, 4, 5):
        for zipped in (True, False):
            options = dict(pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
            files[f'protocol {protocol}, {"zip" if zipped else "legacy"}'] = in_torch(
                dict(beside, model=weights), **options
            )
    files['no checksums'] = without_checksums(weights)
    files['deflated'] = deflated(in_torch(weights))
    return files


NO_WEIGHTS = ('total_ops', 'total_params', '_extra_state')
WRAPPED_INSIDE = ('_orig_mod.', '_fsdp_wrapped_module.', '_checkpoint_wrapped_module.')
PREFIXES = ('module.', '_orig_mod.', 'student.', 'encoder.', 'base_model.', 'timm_model.', 'image_encoder.')
WRAPPERS = ('state_dict', 'model', 'module', 'model_state_dict', 'params_ema', 'net', 'teacher', 'student')


def without_checksums(content: Any) -> bytes:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        return in_torch(content)
    finally:
        torch.serialization.set_crc32_options(before)


def deflated(data: bytes) -> bytes:
    """A zip file, compressed."""
    new = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(new, 'w', zipfile.ZIP_DEFLATED) as archive:
        for entry in old.infolist():
            archive.writestr(entry.filename, old.read(entry))
    return new.getvalue()


# --- damage


def flip_bit(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def set_byte(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])


def set_number(data: bytearray, rng: random.Random) -> None:
    number = rng.choice([0, 1, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1, rng.randrange(1 << 16)])
    format = rng.choice(['<H', '<I', '<Q', '>I', '>Q'])
    size = struct.calcsize(format)
    if len(data) > size:
        struct.pack_into(format, data, rng.randrange(len(data) - size), number % (1 << 8 * size))


def span(data: bytearray, rng: random.Random) -> tuple[int, int]:
    at = rng.randrange(len(data))
    return at, min(len(data), at + rng.choice([1, 2, 4, 16, 100, 1000]))


def fill(data: bytearray, rng: random.Random) -> None:
    at, end = span(data, rng)
    data[at:end] = rng.choice([bytes(end - at), b'\xff' * (end - at), rng.randbytes(end - at)])


def cut_end(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def cut_out(data: bytearray, rng: random.Random) -> None:
    at, end = span(data, rng)
    del data[at:end]


def insert(data: bytearray, rng: random.Random) -> None:
    at, end = span(data, rng)
    data[at:at] = rng.choice([data[at:end], rng.randbytes(end - at), b'PK\x05\x06', b'}' * 50, b'(' * 50, b'\x85' * 50])


def append(data: bytearray, rng: random.Random) -> None:
    data += rng.choice([b'\0', b'PK\x05\x06' + bytes(18), rng.randbytes(30), bytes(data[-200:]), bytes(data)])


def copy_over(data: bytearray, rng: random.Random) -> None:
    at, end = span(data, rng)
    there = rng.randrange(len(data))
    data[there : there + end - at] = data[at:end]


def near_the_end(data: bytearray, rng: random.Random) -> None:
    """In the table of contents of a zip file."""
    end = data[-2500:]
    rng.choice([flip_bit, set_byte, set_number])(end, rng)
    data[-2500:] = end


DAMAGES = (flip_bit, flip_bit, set_byte, set_number, fill, cut_end, cut_out, insert, append, copy_over, near_the_end)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The same file after one, two or three damages."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if changed:
            rng.choice(DAMAGES)(changed, rng)
    return bytes(changed)


def damaged_inside(data: bytes, rng: random.Random) -> bytes:
    """A zip file with a damaged pickle and right checksums: by intent, not by accident."""
    new = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(new, 'w') as archive:
        for entry in old.infolist():
            content = old.read(entry)
            archive.writestr(entry.filename, damaged(content, rng) if entry.filename.endswith('.pkl') else content)
    return new.getvalue()


# --- formats


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        name: For the table.
        file: Name of the file, where it matters.
        originals: Undamaged files.
        read: What is read from a file.
        damage: An undamaged file and random numbers -> a damaged file.
        has_checksums: A damaged file that loads must give the same numbers.
    """

    name: str
    file: str
    originals: tuple[bytes, ...]
    read: Callable[[Path], Any]
    damage: Callable[[bytes, random.Random], bytes] = damaged
    has_checksums: bool = False


def read_page_config(path: Path) -> Any:
    """As for a folder: the file, and a look at the sizes in it."""
    try:
        config = read_json(path)
    except ValueError as e:
        raise ModelError(f'{path}: {e}') from e
    check_sizes(config, str(path))
    return config


def formats() -> tuple[Format, ...]:
    weights, whole = small_weights(), training()
    shard = safetensors.torch.save(weights)
    index = dict(metadata=dict(total_size=1), weight_map=dict.fromkeys(weights, 'shard.safetensors'))
    manifest = dict(
        sha256={name: f'{i:064x}' for i, name in enumerate(('config.json', 'model.safetensors', 'a/b.txt'))}
    )
    model_args = dict(depths=[2, 2, 6, 2], embed_dims=[64, 128, 160, 320], img_size=[224, 224], drop_path_rate=0.1)
    config = dict(
        architecture='tinyvit_5m_224', num_classes=1000, pretrained_cfg=dict(input_size=[3, 224, 224]),
        model_args=model_args,
    )  # fmt: skip
    zips = (in_torch(whole), in_torch(weights), in_torch(whole, pickle_protocol=5))
    legacy = tuple(
        in_torch(whole, pickle_protocol=protocol, _use_new_zipfile_serialization=False) for protocol in (2, 4)
    )

    def read_index(path: Path) -> Any:
        (path.parent / 'shard.safetensors').write_bytes(shard)
        return read_checkpoint(path)

    texts = tuple(json.dumps(content, indent=2).encode() for content in (manifest, config, index))
    return (
        Format('zip', 'model.pth', zips, read_checkpoint, has_checksums=True),
        Format('zip, sealed again', 'model.pth', zips, read_checkpoint, damaged_inside),
        Format('legacy', 'model.pth', legacy, read_checkpoint),
        Format('safetensors', 'model.safetensors', (shard,), read_checkpoint),
        Format('manifest', 'manifest.json', texts[:1], read_manifest),
        Format('config', 'config.json', texts[1:2], read_page_config),
        Format('index', 'model.safetensors.index.json', texts[2:], read_index),
    )


# --- trying files


class HangError(BaseException):
    """Nothing may catch it."""


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise HangError in the block after so many seconds."""

    def stop(*_: Any) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def memory() -> tuple[int, int]:
    """Bytes of this process in memory: now, and at most since `forget_peak`; 0 where that is not known."""
    with suppress(OSError):
        lines = dict(line.split(':', 1) for line in Path('/proc/self/status').read_text().splitlines())
        now, most = (int(lines[key].split()[0]) * 1024 for key in ('VmRSS', 'VmHWM'))
        return now, most
    return 0, 0


def forget_peak() -> None:
    with suppress(OSError):  # elsewhere than on Linux
        Path('/proc/self/clear_refs').write_text('5')


def give_back_memory() -> None:
    """Give what is free in the heap back to the system: what a read takes from there would not be seen."""
    gc.collect()
    with suppress(OSError, AttributeError):  # elsewhere than with glibc
        ctypes.CDLL(None).malloc_trim(0)


def same(found: Any, expected: Any) -> bool:
    if not isinstance(expected, dict) or not all(isinstance(v, torch.Tensor) for v in expected.values()):
        return found == expected
    return found.keys() == expected.keys() and all(
        found[k].dtype == v.dtype and found[k].shape == v.shape and torch.equal(found[k], v)
        for k, v in expected.items()
    )


def outcome(path: Path, read: Callable[[Path], Any], expected: Any) -> str:
    """'equal', 'other numbers', 'refused', or what must not be: 'hang', 'memory', or the name of an exception."""
    size = path.stat().st_size
    before, most = memory()
    if most - before > BASE_BYTES // 2:  # else a peak of before may stay: to forget it takes longer than to read a file
        forget_peak()
    try:
        with limited(SECONDS):
            found = read(path)
        kind = 'equal' if same(found, expected) else 'other numbers'
    except (CheckpointError, ModelError) as e:
        kind = 'refused' if '\n' not in str(e) and len(str(e)) < 1500 and str(e).isprintable() else 'no sentence'
    except HangError:
        kind = 'hang'
    except BaseException as e:
        kind = type(e).__name__
    _, most = memory()
    return 'memory' if most - before > 3 * size + BASE_BYTES else kind


@dataclass
class Report:
    """What the files of a format ended in."""

    counts: Counter = field(default_factory=Counter)
    seconds: float = 0.0
    bad: list[tuple[str, bytes]] = field(default_factory=list)
    """Outcome and file, where it must not be."""


def try_format(format: Format, files: int, seed: int, folder: Path) -> Report:
    """Read every undamaged file, and so many damaged ones."""
    rng, report, path = random.Random(f'{format.name} {seed}'), Report(), folder / format.file
    allowed = {'equal', 'refused'} | (set() if format.has_checksums else {'other numbers'})
    expected = {}
    for original in format.originals:
        path.write_bytes(original)
        expected[original] = format.read(path)
    give_back_memory()
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for _ in range(files):
            original = rng.choice(format.originals)
            data = format.damage(original, rng)
            path.write_bytes(data)
            kind = outcome(path, format.read, expected[original])
            report.counts[kind] += 1
            if kind not in allowed:
                report.bad.append((kind, data))
    report.seconds = time.process_time() - start
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--files', type=int, default=2000, help='Damaged files of each format.')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--only', help='One format.')
    parser.add_argument('--keep', type=Path, help='Folder for the files that must not end as they do.')
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path, differences = Path(folder) / 'model.pth', harmless()
        for name, data in differences.items():
            path.write_bytes(data)
            if not same(read_checkpoint(path), small_weights()):
                raise SystemExit(f'{name}: loads with other numbers')
    print(f'{len(differences)} files with harmless differences load.')
    print(f'{"format":20}{"equal":>8}{"refused":>9}{"other numbers":>15}{"bad":>6}{"ms a file":>11}')
    for format in formats():
        if args.only not in (None, format.name):
            continue
        with tempfile.TemporaryDirectory() as folder:
            report = try_format(format, args.files, args.seed, Path(folder))
        equal, refused, other = (report.counts[kind] for kind in ('equal', 'refused', 'other numbers'))
        other_shown = str(other) if not format.has_checksums or other else '-'
        milliseconds = report.seconds / args.files * 1000
        print(f'{format.name:20}{equal:8}{refused:9}{other_shown:>15}{len(report.bad):6}{milliseconds:11.2f}')
        for i, (kind, data) in enumerate(report.bad):
            print(f'    {kind}, {len(data)} bytes')
            if args.keep:
                args.keep.mkdir(parents=True, exist_ok=True)
                (args.keep / f'{format.name}.{i}.{kind}').write_bytes(data)


if __name__ == '__main__':
    main()
