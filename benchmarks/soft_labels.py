"""Stored soft labels and the views that belong to them, compared with the obvious way to do the same.

One process, one thread, process CPU time, in turn.

    python benchmarks/soft_labels.py [--rounds 9]
"""

import argparse
import os
import random
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from timing import print_machine, write_figures

from tinyvit_zoo.common.paired_timing import measure, ratio
from tinyvit_zoo.data.replay import ViewSpec, draw_views
from tinyvit_zoo.soft_labels import Epoch, SoftLabels, Store, StoreInfo
from tinyvit_zoo.soft_labels.record import FormName

BATCH, BATCHES = 256, 16
VIEWS_TARGET = 100
RECORDS, LABELS, K, CLASSES = 200_000, 1024, 100, 21841
RECORD = 4 + 4 * K  # bytes in the released layout
READ_TARGETS = {'4 shards': 9, '49 shards': 5, 'compact, 4 shards': 5, '4 shards, unchecked': 18}


def seed_for_each_view(seeds: list[int]) -> None:
    """What an augmentation that draws from the global generators needs for every view, without its draws."""
    for seed in seeds:
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def view_parameters() -> dict[str, Callable[[], object]]:
    """Parameters of `BATCH * BATCHES` views of images of 375x500 pixels, and seeding for `BATCH`."""
    spec = ViewSpec.from_timm(224, auto_augment='rand-m9-mstd0.5-inc1', re_prob=0.25, re_mode='pixel')
    sizes = np.full((BATCH, 2), (375, 500))
    positions = np.random.default_rng(0).permutation(1_281_167)[: BATCH * BATCHES].reshape(BATCHES, BATCH)
    return dict(
        seeding=lambda: seed_for_each_view(positions[0].tolist()),
        parameters=lambda: [draw_views(spec, 0, 3, batch, sizes) for batch in positions],
    )


def write_official(folder: Path, records: np.ndarray) -> Path:
    """A dump of the released code, of one rank: names as keys, records as they are."""
    (folder / 'rank0-values.bin').write_bytes(records.tobytes())
    keys = ''.join(f'n{i // 1000:08d}_{i}\n' for i in range(len(records)))
    (folder / 'rank0-keys.txt').write_text(keys)
    return folder


def official_reader(folder: Path) -> Callable[[np.ndarray], tuple[np.ndarray, ...]]:
    """As the released code reads: a dictionary of keys, a seek and a read for every record, arrays collated."""
    keys = (folder / 'rank0-keys.txt').read_text().split()
    places = {key: i for i, key in enumerate(keys)}
    file = (folder / 'rank0-values.bin').open('rb')

    def read(positions: np.ndarray) -> tuple[np.ndarray, ...]:
        seeds, ids, probabilities = [], [], []
        for position in positions.tolist():
            file.seek(places[keys[position]] * RECORD)
            record = file.read(RECORD)
            seeds.append(np.frombuffer(record[:4], np.int32)[0])
            ids.append(np.frombuffer(record[4 : 4 + 2 * K], np.int16).copy())
            probabilities.append(np.frombuffer(record[4 + 2 * K :], np.float16).copy())
        return np.array(seeds), np.stack(ids), np.stack(probabilities)

    return read


def stored(folder: Path, labels: SoftLabels, form: FormName, shard_size: int) -> Epoch:
    info = StoreInfo(
        form=form, k=K, classes=CLASSES, classes_sha256='', teacher='synthetic', teacher_sha256='', precision='float32',
        views={}, seed=0, data='synthetic', fingerprint='', images=len(labels.ids), shard_size=shard_size, libraries={},
    )  # fmt: skip
    store = Store.create(folder / f'{form}-{shard_size}', info)
    for shard in store.missing_shards(0):
        part = slice(info.positions(shard).start, info.positions(shard).stop)
        store.write_shard(0, shard, SoftLabels(labels.ids[part], labels.probabilities[part]), {})
    store.finish(0)
    return store.epoch(0)


def synthetic(n: int) -> SoftLabels:
    """Peaked probabilities of K different classes, most probable first."""
    rng = np.random.default_rng(0)
    ids = (rng.permutation(CLASSES)[:K] + rng.integers(0, CLASSES, n)[:, None]) % CLASSES
    p = np.sort(rng.random((n, K), dtype=np.float32) ** 8 + 1e-6, axis=1)[:, ::-1]
    return SoftLabels(ids, p / p.sum(axis=1, keepdims=True) * np.float32(0.95))


def readers(folder: Path) -> dict[str, Callable[[], object]]:
    """Random batches from 200,000 records: the released layout, stores with every record checked, and without.

    Every record was read once before, so that files are in memory, and mapped: the first visit of a page costs more.
    """
    labels = synthetic(RECORDS)
    order = np.random.default_rng(1)
    epochs = {
        '4 shards': stored(folder, labels, 'exact', 65_536),
        '49 shards': stored(folder, labels, 'exact', 4096),
        'compact, 4 shards': stored(folder, labels, 'compact', 65_536),
    }
    records = np.zeros((RECORDS, RECORD), np.uint8)
    records[:, 4 : 4 + 2 * K] = np.ascontiguousarray(labels.ids.astype('<i2')).view(np.uint8)
    records[:, 4 + 2 * K :] = np.ascontiguousarray(labels.probabilities.astype('<f2')).view(np.uint8)
    official = official_reader(write_official(folder, records))
    calls = {'released code': lambda: official(order.permutation(RECORDS)[:LABELS])}
    for name, epoch in epochs.items():
        calls[name] = lambda epoch=epoch: epoch.read(order.permutation(RECORDS)[:LABELS])
    unchecked = epochs['4 shards']
    for read in (official, *(epoch.read for epoch in epochs.values())):
        for start in range(0, RECORDS, LABELS):
            read(np.arange(start, min(start + LABELS, RECORDS)))
    calls['4 shards, unchecked'] = lambda: unchecked._gather(order.permutation(RECORDS)[:LABELS])
    calls['drawing positions'] = lambda: order.permutation(RECORDS)[:LABELS]
    return calls


def report_readers(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Print microseconds a record and ratios, the drawing of positions taken off; returns the ratios."""
    draw = statistics.median(seconds.pop('drawing positions'))
    each = {name: (statistics.median(s) - draw) / LABELS * 1e6 for name, s in seconds.items()}
    ratios = {name: each['released code'] / value for name, value in each.items() if name != 'released code'}
    print(f'\nrandom batches of {LABELS} of {RECORDS:,} records, K = {K}; load {os.getloadavg()[0]:.1f}')
    for name, value in each.items():
        verdict = ''
        if name in ratios:
            met = 'met' if ratios[name] >= READ_TARGETS[name] else 'MISSED'
            verdict = f'{ratios[name]:6.1f}x   target {READ_TARGETS[name]:g} {met}'
        print(f'  {name:22s}{value:8.3f} us a record {verdict}')
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--json', type=Path, help='keep the figures in this file')
    args = parser.parse_args()
    torch.set_num_threads(1)
    where, rates = print_machine(args.rounds)
    seconds = measure(view_parameters(), args.rounds)
    each = dict(
        seeding=[s / BATCH for s in seconds['seeding']],
        parameters=[s / (BATCH * BATCHES) for s in seconds['parameters']],
    )
    speedup = ratio(each['seeding'], each['parameters'])
    print(
        f'\nparameters of a whole view, batch {BATCH}; load {os.getloadavg()[0]:.1f}\n'
        + '\n'.join(f'  {name:12s}{statistics.median(s) * 1e6:8.2f} us a view' for name, s in each.items())
        + f'\n  {speedup:.0f}x   target {VIEWS_TARGET} {"met" if speedup >= VIEWS_TARGET else "MISSED"}'
    )
    with tempfile.TemporaryDirectory() as folder:
        of_readers = measure(readers(Path(folder)), args.rounds)
    ratios = dict(views=speedup) | report_readers(of_readers)
    write_figures(args.json, where=where, rates=rates, seconds=each | of_readers, ratios=ratios)


if __name__ == '__main__':
    main()
