"""The store of soft labels: records, shards, epochs; every changed byte is noticed."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
from conftest import refused
from safetensors.numpy import load_file

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.soft_labels import Form, SoftLabels, Store, StoreInfo
from tinyvit_zoo.soft_labels import store as store_module
from tinyvit_zoo.soft_labels.sealed import read_sealed, write_sealed

FORMS = ['exact', 'compact']
INFO = StoreInfo(
    form='exact', k=5, classes=32, classes_sha256='c' * 64, teacher='a teacher', teacher_sha256='t' * 64,
    precision='float32', views={'size': [32, 32]}, seed=7, data='digits, train', fingerprint='f' * 64, images=50,
    shard_size=20, libraries={'pillow': '13.0'},
)  # fmt: skip


def teacher_output(n: int, classes: int, k: int, seed: int = 0, peak: float = 8.0) -> SoftLabels:
    """Probabilities of a teacher that is sure of one class, its K most probable classes, most probable first."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((n, classes)) * 1.6
    logits[np.arange(n), rng.integers(0, classes, n)] += peak
    p = np.exp(logits)
    p /= p.sum(axis=1, keepdims=True)
    ids = np.argsort(-p, axis=1)[:, :k]
    return SoftLabels(ids, np.take_along_axis(p, ids, 1).astype(np.float32))


def by_id(labels: SoftLabels) -> SoftLabels:
    """With the classes of each view in ascending order."""
    order = labels.ids.argsort(axis=1)
    return SoftLabels(*(np.take_along_axis(np.asarray(x), order, 1) for x in labels))


def saved(folder: Path, epochs: tuple[int, ...] = (3,), info: StoreInfo = INFO) -> Store:
    store = Store.create(folder, info)
    for epoch in epochs:
        labels = teacher_output(info.images, info.classes, info.k, seed=epoch)
        for shard in store.missing_shards(epoch):
            part = slice(info.positions(shard).start, info.positions(shard).stop)
            images = {p: 1000 * epoch + p for p in info.positions(shard) if p % 16 == 0}
            store.write_shard(epoch, shard, SoftLabels(labels.ids[part], labels.probabilities[part]), images)
        store.finish(epoch)
    return store


# records


@pytest.mark.parametrize(
    ('classes', 'k'), [(21841, 100), (1000, 10), (10, 10), (10, 1), (1, 1), (70_000, 20), (256, 3)]
)
@pytest.mark.parametrize('form', FORMS)
def test_a_record_gives_back_every_class_and_its_probability(form, classes, k):
    form, labels = Form(form, classes, k), teacher_output(40, classes, k)
    positions = np.arange(40) + 5
    records = form.encode(labels, 2, positions)
    assert records.shape == (40, form.size)
    read, known = by_id(form.decode(records, 2, positions)), by_id(labels)
    assert np.array_equal(read.ids, known.ids)
    error = np.abs(read.probabilities.astype(np.float64) - known.probabilities).sum(axis=1)
    assert error.mean() < 0.001 if form.name == 'exact' else error.mean() <= 0.005
    assert read.probabilities.sum(axis=1, dtype=np.float64).max() <= 1 + 1e-6
    assert read.probabilities.min() >= 0


def test_records_have_the_sizes_of_the_papers_data_and_below():
    assert Form('exact', 21841, 100).size == 404
    assert Form('compact', 21841, 100).size <= 232
    assert Form('exact', 1000, 10).size == 44
    assert Form('exact', 70_000, 100).size == 604


@pytest.mark.parametrize(('peak', 'most'), [(5.0, 0.005), (9.0, 0.005), (12.0, 0.005)])
def test_compact_probabilities_differ_by_at_most_half_a_percent_in_sum(peak, most):
    form, labels = Form('compact', 21841, 100), teacher_output(64, 21841, 100, peak=peak)
    read = by_id(form.decode(form.encode(labels, 0, np.arange(64)), 0, np.arange(64)))
    assert np.abs(read.probabilities - by_id(labels).probabilities).sum(axis=1).max() <= most


@pytest.mark.parametrize('form', FORMS)
def test_probabilities_that_would_round_to_more_than_one_leave_no_negative_rest(form):
    """As the released code's float16 records do in some of a thousand."""
    labels = teacher_output(1000, 10, 10, peak=3.0)
    assert (labels.probabilities.astype(np.float16).sum(axis=1, dtype=np.float64) > 1).sum() > 100
    form = Form(form, 10, 10)
    read = form.decode(form.encode(labels, 0, np.arange(1000)), 0, np.arange(1000))
    assert read.probabilities.sum(axis=1, dtype=np.float64).max() <= 1
    assert np.abs(by_id(read).probabilities - by_id(labels).probabilities).max() < 0.01


@pytest.mark.parametrize('form', FORMS)
def test_any_flipped_bit_of_a_record_is_noticed_and_so_is_another_place(form):
    form = Form(form, 1000, 4)
    record = form.encode(teacher_output(1, 1000, 4), 3, np.array([17]))
    form.decode(record, 3, np.array([17]))
    for epoch, position in ((2, 17), (3, 16), (3, 18), (17, 3)):
        with pytest.raises(EvaluationError, match=f'position {position}'):
            form.decode(record, epoch, np.array([position]))
    for bit in range(8 * form.size):
        changed = record.copy()
        changed[0, bit // 8] ^= 1 << bit % 8
        with pytest.raises(EvaluationError, match='position 17'):
            form.decode(changed, 3, np.array([17]))


@pytest.mark.parametrize(
    ('ids', 'p', 'word'),
    [
        ([[0, 1]], [[np.nan, 0.1]], 'finite'),
        ([[0, 1]], [[0.9, -0.1]], 'at least 0'),
        ([[0, 1]], [[0.9, 0.9]], 'at most 1'),
        ([[0, 8]], [[0.5, 0.1]], '0 to 7'),
        ([[-1, 2]], [[0.5, 0.1]], '0 to 7'),
        ([[4, 4]], [[0.5, 0.1]], 'different'),
        ([[4]], [[0.5]], r'\(n, 2\)'),
    ],
)
def test_labels_that_are_none_are_refused(ids, p, word):
    with pytest.raises(EvaluationError, match=word):
        Form('exact', 8, 2).encode(SoftLabels(np.array(ids), np.array(p)), 0, np.arange(1))


# stores


@pytest.mark.parametrize('form', FORMS)
def test_a_store_gives_the_labels_of_any_positions_in_their_order(form, tmp_path):
    info = replace(INFO, form=form)
    epoch = saved(tmp_path / 's', (3, 5), info) and Store.open(tmp_path / 's').epoch(5)
    positions = [49, 0, 20, 19, 0, 33]
    read, known = by_id(epoch.read(positions)), by_id(teacher_output(50, 32, 5, seed=5))
    assert np.array_equal(read.ids, known.ids[positions])
    assert np.allclose(read.probabilities, known.probabilities[positions], atol=4e-3)
    assert [epoch.image_crc32(p) for p in (0, 16, 32, 48, 17)] == [5000, 5016, 5032, 5048, None]


@pytest.mark.parametrize('position', [-1, 50, 2**40])
def test_a_position_beyond_the_data_set_is_named(position, tmp_path):
    epoch = saved(tmp_path / 's').epoch(3)
    refused(lambda: epoch.read([3, position, 7]), 'from 0 to 49', f'not {position}', kind=EvaluationError)


def test_a_shard_is_plain_safetensors_and_positions_take_no_bytes(tmp_path):
    saved(tmp_path / 's')
    files = sorted((tmp_path / 's' / 'epoch-0003').glob('*.safetensors'))
    assert [load_file(f)['records'].shape for f in files] == [(20, 24), (20, 24), (10, 24)]
    assert {p.name for p in (tmp_path / 's').rglob('*') if p.is_file()} == {
        'store.json', 'epoch.json', *(f.name for f in files)
    }  # fmt: skip


def test_epochs_are_saved_apart_and_one_alone_can_be_copied(tmp_path):
    saved(tmp_path / 'one', (0, 3))
    (tmp_path / 'two').mkdir()
    for name in ('store.json', 'epoch-0003'):
        source = tmp_path / 'one' / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / 'two' / name)
    assert Store.open(tmp_path / 'one').epochs() == [0, 3]
    assert Store.open(tmp_path / 'two').epochs() == [3]
    one, two = (Store.open(tmp_path / name).epoch(3).read(range(50)) for name in ('one', 'two'))
    assert np.array_equal(one.ids, two.ids)
    with pytest.raises(EvaluationError, match='no whole epoch 0, it has epoch 3'):
        Store.open(tmp_path / 'two').epoch(0)


def test_an_interrupted_epoch_is_not_read_and_is_completed_to_the_same_bytes(tmp_path):
    saved(tmp_path / 'whole')
    store = saved(tmp_path / 'cut')
    folder = tmp_path / 'cut' / 'epoch-0003'
    (folder / 'epoch.json').unlink()
    (folder / '00001.safetensors').unlink()
    (folder / '00002.safetensors').write_bytes((folder / '00002.safetensors').read_bytes()[:-5])
    assert store.epochs() == []
    assert store.missing_shards(3) == [1, 2]
    with pytest.raises(EvaluationError, match='lacks 2 shards, such as 1'):
        store.finish(3)
    saved(tmp_path / 'cut')
    trees = [{p.name: p.read_bytes() for p in (tmp_path / name / 'epoch-0003').iterdir()} for name in ('whole', 'cut')]
    assert trees[0] == trees[1]


def test_every_flipped_byte_of_a_store_is_noticed(tmp_path):
    """Headers and JSON included; what an earlier run left is not a reason to read less carefully."""
    saved(tmp_path / 's', info=replace(INFO, k=2, shard_size=25))
    silent = []
    for path in sorted(p for p in (tmp_path / 's').rglob('*') if p.is_file()):
        whole = path.read_bytes()
        for i in range(len(whole)):
            path.write_bytes(whole[:i] + bytes([whole[i] ^ 0x11]) + whole[i + 1 :])
            try:
                Store.open(tmp_path / 's').epoch(3).read(range(50))
                said = ''
            except EvaluationError as e:
                said = str(e)
            if str(path) not in said:
                silent.append((path.name, i, said))
        path.write_bytes(whole)
    assert silent == []
    assert len(Store.open(tmp_path / 's').epoch(3).read(range(50)).ids) == 50


def test_a_checksum_that_was_changed_before_its_epoch_is_noted_is_computed_again(tmp_path):
    """Saving again would otherwise note the header as it is by then."""
    saved(tmp_path / 's')
    path = tmp_path / 's/epoch-0003/00000.safetensors'
    whole = path.read_bytes()
    assert whole.count(b'3016') == 1
    path.write_bytes(whole.replace(b'3016', b'3017'))
    assert Store.open(tmp_path / 's').missing_shards(3) == [0]
    saved(tmp_path / 's')
    assert path.read_bytes() == whole


def _sealed(path: Path, **changes) -> None:
    """Change a sealed file as somebody would who knows the format."""
    write_sealed(path, read_sealed(path) | changes)


def _headed(path: Path, old: bytes, new: bytes) -> None:
    """Change the header of the first shard and its hash in the note."""
    shard = path / '00000.safetensors'
    data = shard.read_bytes()
    length = int.from_bytes(data[:8], 'little')
    header = data[8 : 8 + length].replace(old, new)
    assert header != data[8 : 8 + length]
    shard.write_bytes(len(header).to_bytes(8, 'little') + header + data[8 + length :])
    sha256 = hashlib.sha256(shard.read_bytes()[: 8 + len(header)]).hexdigest()
    hashes = read_sealed(path / 'epoch.json')['shards'] | {shard.name: sha256}
    _sealed(path / 'epoch.json', shards=hashes)


FORGED = {
    'no number of images': lambda s: _sealed(s / 'store.json', images='50'),
    'no images': lambda s: _sealed(s / 'store.json', images=0),
    'no size of shards': lambda s: _sealed(s / 'store.json', shard_size=0),
    'views that are a list': lambda s: _sealed(s / 'store.json', views=[1]),
    'an unknown form': lambda s: _sealed(s / 'store.json', form='other'),
    'hashes that are a list': lambda s: _sealed(s / 'epoch-0003/epoch.json', shards=['0']),
    'hashes that are numbers': lambda s: _sealed(s / 'epoch-0003/epoch.json', shards={'00000.safetensors': 7}),
    'an endless place': lambda s: _headed(s / 'epoch-0003', b'"data_offsets":[0', b'"data_offsets":[' + b'9' * 40),
    'no checksums of images': lambda s: _headed(s / 'epoch-0003', b'\\"images\\"', b'\\"others\\"'),
}


@pytest.mark.parametrize('change', FORGED)
def test_a_forged_store_is_an_error_too(change, tmp_path):
    """Stores come from other people: their hashes may be right and their content none."""
    saved(tmp_path / 's')
    FORGED[change](tmp_path / 's')
    refused(lambda: Store.open(tmp_path / 's').epoch(3).read(range(50)), kind=EvaluationError)


def test_a_fetched_store_writes_nowhere_but_into_its_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('TINYVIT_ZOO_HOME', str(tmp_path / 'a/b/c/home'))
    saved(tmp_path / 's')
    hashes = read_sealed(tmp_path / 's/epoch-0003/epoch.json')['shards']
    _sealed(tmp_path / 's/epoch-0003/epoch.json', shards=dict.fromkeys(hashes, '../../../../../'))
    memory = fsspec.filesystem('memory')
    memory.put(str(tmp_path / 's'), '/labels/forged', recursive=True)
    try:
        with pytest.raises(EvaluationError, match='not the file that was written'):
            Store.open('memory://labels/forged').epoch(3)
    finally:
        memory.rm('/labels', recursive=True)
    outside = [
        p for p in (tmp_path / 'a').rglob('*.safetensors') if tmp_path / 'a/b/c/home/soft_labels' not in p.parents
    ]
    assert outside == []


def _swap(a: Path, b: Path) -> None:
    one, two = a.read_bytes(), b.read_bytes()
    a.write_bytes(two)
    b.write_bytes(one)


CHANGES = {
    'two shards swapped': lambda s: _swap(s / 'epoch-0003/00000.safetensors', s / 'epoch-0003/00001.safetensors'),
    'a shard of another epoch': lambda s: _swap(s / 'epoch-0003/00000.safetensors', s / 'epoch-0004/00000.safetensors'),
    'a note of another epoch': lambda s: _swap(s / 'epoch-0003/epoch.json', s / 'epoch-0004/epoch.json'),
    'a shard cut': lambda s: (s / 'epoch-0003/00002.safetensors').write_bytes(b'\x10' * 40),
    'an empty shard': lambda s: (s / 'epoch-0003/00002.safetensors').write_bytes(b''),
    'bytes after a shard': lambda s: (s / 'epoch-0003/00002.safetensors').open('ab').write(b'x'),
    'no shard': lambda s: (s / 'epoch-0003/00002.safetensors').unlink(),
    'no note': lambda s: (s / 'epoch-0003/epoch.json').unlink(),
    'no description': lambda s: (s / 'store.json').unlink(),
    'a list as description': lambda s: (s / 'store.json').write_text('[]'),
}


@pytest.mark.parametrize('change', CHANGES)
def test_files_in_the_wrong_place_are_named(change, tmp_path):
    saved(tmp_path / 's', (3, 4))
    CHANGES[change](tmp_path / 's')
    refused(lambda: Store.open(tmp_path / 's').epoch(3).read(range(50)), str(tmp_path / 's'), kind=EvaluationError)


def test_an_epoch_of_another_store_is_named(tmp_path):
    saved(tmp_path / 's')
    saved(tmp_path / 'other', info=replace(INFO, seed=8))
    shutil.rmtree(tmp_path / 's' / 'epoch-0003')
    shutil.copytree(tmp_path / 'other' / 'epoch-0003', tmp_path / 's' / 'epoch-0003')
    with pytest.raises(EvaluationError, match='another epoch or store'):
        Store.open(tmp_path / 's').epoch(3)


def test_a_shard_of_another_store_is_named(tmp_path):
    saved(tmp_path / 's')
    saved(tmp_path / 'other', info=replace(INFO, seed=8))
    shutil.copy(tmp_path / 'other/epoch-0003/00001.safetensors', tmp_path / 's/epoch-0003/00001.safetensors')
    with pytest.raises(EvaluationError, match=r'00001\.safetensors belongs to another place, epoch or store'):
        Store.open(tmp_path / 's').epoch(3)


@pytest.mark.parametrize(
    ('attribute', 'value'),
    [('classes', 31), ('seed', 8), ('fingerprint', 'other'), ('teacher_sha256', 'other'), ('views', {}), ('k', 4)],
)
def test_a_folder_of_other_labels_is_not_continued_and_both_values_are_reported(attribute, value, tmp_path):
    saved(tmp_path / 's')
    before = (tmp_path / 's' / 'store.json').read_bytes()
    with pytest.raises(EvaluationError) as e:
        Store.create(tmp_path / 's', replace(INFO, **{attribute: value}))
    assert str(value) in str(e.value)
    assert str(getattr(INFO, attribute))[:50] in str(e.value)
    assert (tmp_path / 's' / 'store.json').read_bytes() == before


def test_of_other_settings_the_message_has_those_that_differ(tmp_path):
    views = dict(color_jitter=None, erasing=dict(area=[0.02, 0.333], aspect=[0.3, 3.333]), size=[32, 32])
    info = replace(INFO, views=views)
    saved(tmp_path / 's', info=info)
    other = replace(info, views=dict(views, size=[64, 64]), images=51, teacher_sha256='u' * 64)
    refused(
        lambda: Store.create(tmp_path / 's', replace(other, images=50)), "views {'size': [32, 32]}",
        "this is {'size': [64, 64]}", 'another store', kind=EvaluationError,
    )  # fmt: skip
    refused(lambda: Store.create(tmp_path / 's', replace(other, views=views)), 'images 50', '51', kind=EvaluationError)


def test_other_versions_of_libraries_continue_a_store(tmp_path):
    saved(tmp_path / 's')
    store = Store.create(tmp_path / 's', replace(INFO, libraries={'pillow': '14.0'}))
    assert store.missing_shards(3) == []


def test_a_later_version_of_the_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, 'VERSION', 2)
    saved(tmp_path / 's')
    monkeypatch.undo()
    with pytest.raises(EvaluationError, match='version 2, this package reads 1'):
        Store.open(tmp_path / 's')


def test_a_store_is_read_from_an_address_and_its_shards_are_fetched_once(tmp_path, monkeypatch):
    monkeypatch.setenv('TINYVIT_ZOO_HOME', str(tmp_path / 'home'))
    saved(tmp_path / 's', (3, 4))
    memory = fsspec.filesystem('memory')
    memory.put(str(tmp_path / 's'), '/labels/s', recursive=True)
    fetched = []
    get_file = memory.get_file
    monkeypatch.setattr(
        type(memory), 'get_file', lambda self, path, *rest, **kw: fetched.append(path) or get_file(path, *rest, **kw)
    )
    try:
        for _ in range(2):
            store = Store.open('memory://labels/s')
            assert store.epochs() == [3, 4]
            assert np.array_equal(
                store.epoch(3).read([49, 0]).ids, Store.open(tmp_path / 's').epoch(3).read([49, 0]).ids
            )
        assert sum(path.endswith('.safetensors') for path in fetched) == 3
        assert not any('epoch-0004/0' in path for path in fetched)
        with pytest.raises(EvaluationError, match='name a folder'):
            Store.create('memory://labels/new', INFO)
        with pytest.raises(EvaluationError, match='holds no soft labels'):
            Store.open('memory://labels/none')
    finally:
        memory.rm('/labels', recursive=True)


def test_an_address_of_this_machine_is_a_folder(tmp_path):
    saved(tmp_path / 's')
    store = Store.create((tmp_path / 's').as_uri(), INFO)
    assert store.place.folder == tmp_path / 's'
    assert store.epochs() == [3]


def test_an_address_that_nothing_can_open_is_one_sentence():
    with pytest.raises(EvaluationError, match=r'nowhere://labels cannot be opened'):
        Store.open('nowhere://labels')


def test_a_full_disk_leaves_finished_shards_and_no_partial_one(tmp_path, monkeypatch):
    store = saved(tmp_path / 's')
    folder = tmp_path / 's' / 'epoch-0004'

    def full(*args, **kwargs):
        raise OSError(28, 'No space left on device')

    labels = teacher_output(20, 32, 5)
    store.write_shard(4, 0, labels, {})
    monkeypatch.setattr('tinyvit_zoo.soft_labels.shard.to_bytes', full)
    with pytest.raises(EvaluationError, match=r'No space left on device.*finished shards stay'):
        store.write_shard(4, 1, labels, {})
    assert [p.name for p in folder.iterdir()] == ['00000.safetensors']


def test_opening_reads_headers_only(tmp_path, monkeypatch):
    """Two million records would otherwise take seconds; their number of files is what counts."""
    saved(tmp_path / 's')
    calls = []
    decode = Form.decode
    monkeypatch.setattr(
        Form, 'decode', lambda self, records, *rest: calls.append(len(records)) or decode(self, records, *rest)
    )
    epoch = Store.open(tmp_path / 's').epoch(3)
    assert calls == []
    epoch.read([1, 2])
    assert calls == [2]


def test_a_description_says_what_the_labels_are(tmp_path):
    saved(tmp_path / 's')
    content = json.loads((tmp_path / 's' / 'store.json').read_text())
    assert {k: content[k] for k in ('teacher', 'k', 'images', 'seed')} == dict(
        teacher='a teacher', k=5, images=50, seed=7
    )
