"""Where weights come from: the caller, an import, the Hub, the release's address; in that order."""

import errno
import hashlib
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from conftest import SMALL, refused
from minihub import MiniHub, Page
from timm.models import PretrainedCfg
from timm.models._hub import save_for_hf

from tinyvit_zoo.checkpoints import CheckpointError, WeightsNotFoundError, find_weights, imported_path, source
from tinyvit_zoo.releases import all_releases, find_release

NAME = 'tinyvit_5m_224.dist_in22k_ft_in1k'
HUB_ID = 'timm/tiny_vit_5m_224.dist_in22k_ft_in1k'
FILE = 'tiny_vit_5m_22kto1k_distill.pth'


@pytest.fixture(autouse=True)
def empty_caches(tmp_path, monkeypatch) -> None:
    """Every test starts without imported or cached files."""
    monkeypatch.setenv('TINYVIT_ZOO_HOME', str(tmp_path / 'zoo'))
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))


# --- the address


class FileServer:
    """Serves `files` by path, with ranges; `cut` cuts the next answer to a path after so many bytes."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut: dict[str, int] = {}
        self.ranges = True
        self.log: list[tuple[str, str | None]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_) -> None: ...

            def do_GET(self) -> None:
                asked = self.headers.get('Range')
                server.log.append((self.path, asked))
                if self.path not in server.files:
                    return self.send_error(404)
                data, first = server.files[self.path], 0
                if asked and server.ranges:
                    first = int(asked.removeprefix('bytes=').removesuffix('-'))
                    if first >= len(data):
                        return self.send_error(416)
                self.send_response(206 if first else 200)
                self.send_header('Content-Length', str(len(data) - first))
                self.end_headers()
                rest = data[first:]
                return self.wfile.write(rest[: server.cut.pop(self.path, len(rest))])

        self.server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self.server.server_port}'


@pytest.fixture
def server() -> Iterator[FileServer]:
    files = FileServer()
    thread = threading.Thread(target=files.server.serve_forever, daemon=True)
    thread.start()
    yield files
    files.server.shutdown()
    files.server.server_close()


def encoded(value: float = 1.0, size: int = 50_000) -> bytes:
    """A released file: an official-style pickle with one tensor."""
    buffer = io.BytesIO()
    torch.save({'model': {'w': torch.full((size,), value)}}, buffer)
    return buffer.getvalue()


def at(url: str, **changes) -> PretrainedCfg:
    """A configuration that names only an address."""
    return PretrainedCfg(**dict(architecture='tinyvit_5m_224', tag='mine', url=url) | changes)


def cached(tmp_path: Path) -> list[str]:
    """Names of the files that downloads left behind."""
    folder = tmp_path / 'torch/hub/checkpoints'
    return sorted(p.name for p in folder.rglob('*') if p.is_file() and p.suffix != '.lock')


def test_a_file_is_downloaded_once(server, tmp_path):
    server.files['/w.pth'] = encoded()
    for _ in range(3):
        weights = find_weights(at(f'{server.url}/w.pth'))
        assert weights.state_dict['w'].sum() == 50_000
        assert weights.origin == f'{server.url}/w.pth'
    assert server.log == [('/w.pth', None)]
    assert cached(tmp_path) == ['w.pth']


def test_cache_dir_moves_the_cache(server, tmp_path):
    server.files['/w.pth'] = encoded()
    find_weights(at(f'{server.url}/w.pth'), cache_dir=tmp_path / 'elsewhere')
    assert [p.name for p in (tmp_path / 'elsewhere').rglob('w.pth')] == ['w.pth']
    assert not (tmp_path / 'torch').exists()


def test_files_of_one_name_from_two_addresses_are_two_files(server):
    server.files |= {'/a/model.pth': encoded(1.0), '/b/model.pth': encoded(2.0)}
    for _ in range(2):
        for folder, value in (('a', 1.0), ('b', 2.0)):
            assert find_weights(at(f'{server.url}/{folder}/model.pth')).state_dict['w'][0] == value


def test_a_download_that_was_cut_off_is_resumed(server, tmp_path):
    server.files['/w.pth'] = data = encoded()
    server.cut['/w.pth'] = len(data) // 2
    with pytest.raises(WeightsNotFoundError, match=f'cut off after {len(data) // 2} of {len(data)} bytes'):
        find_weights(at(f'{server.url}/w.pth'))
    assert cached(tmp_path) == ['w.pth.part']
    assert find_weights(at(f'{server.url}/w.pth')).state_dict['w'].sum() == 50_000
    assert server.log[1:] == [('/w.pth', f'bytes={len(data) // 2}-')]
    assert cached(tmp_path) == ['w.pth']


def test_a_server_without_ranges_sends_it_all_again(server, tmp_path):
    server.files['/w.pth'] = data = encoded()
    server.cut['/w.pth'], server.ranges = len(data) // 2, False
    with pytest.raises(WeightsNotFoundError, match='cut off'):
        find_weights(at(f'{server.url}/w.pth'))
    assert find_weights(at(f'{server.url}/w.pth')).state_dict['w'].sum() == 50_000
    assert cached(tmp_path) == ['w.pth']


def test_a_part_longer_than_the_file_is_started_over(server, tmp_path):
    server.files['/w.pth'] = data = encoded()
    server.cut['/w.pth'] = len(data) - 1
    with pytest.raises(WeightsNotFoundError):
        find_weights(at(f'{server.url}/w.pth'))
    server.files['/w.pth'] = shorter = encoded(size=100)
    assert len(shorter) < len(data)
    with pytest.raises(WeightsNotFoundError, match='416'):
        find_weights(at(f'{server.url}/w.pth'))
    assert find_weights(at(f'{server.url}/w.pth')).state_dict['w'].sum() == 100


def test_a_part_of_another_file_does_not_poison_the_cache(server, tmp_path):
    server.files['/w.pth'] = encoded(1.0)
    server.cut['/w.pth'] = 1000
    with pytest.raises(WeightsNotFoundError):
        find_weights(at(f'{server.url}/w.pth'))
    server.files['/w.pth'] = b'PK\x03\x04' + bytes(5000)
    with pytest.raises(CheckpointError, match='downloads it again'):
        find_weights(at(f'{server.url}/w.pth'))
    server.files['/w.pth'] = encoded(2.0)
    assert find_weights(at(f'{server.url}/w.pth')).state_dict['w'][0] == 2.0


@pytest.mark.parametrize(
    ('page', 'words'),
    [
        (b'<!DOCTYPE html><html>Quota exceeded</html>', 'web page'),
        (b'', 'empty'),
        (b'moved', 'text file'),
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n', 'Git LFS pointer'),
    ],
)
def test_a_download_that_is_no_checkpoint_is_not_kept(page, words, server, tmp_path):
    server.files['/w.pth'] = page
    for _ in range(2):  # asked for again, not found in the cache
        with pytest.raises(CheckpointError, match=words) as caught:
            find_weights(at(f'{server.url}/w.pth'))
        assert f'{server.url}/w.pth' in str(caught.value)
    assert len(server.log) == 2
    assert cached(tmp_path) == []
    server.files['/w.pth'] = encoded()
    assert find_weights(at(f'{server.url}/w.pth')).state_dict['w'].sum() == 50_000


def test_a_wrong_checksum_is_reported_and_the_file_is_not_kept(server, tmp_path, monkeypatch):
    good = encoded()
    server.files[f'/{FILE}'] = encoded(2.0)
    release = replace(find_release(NAME), url=f'{server.url}/{FILE}', sha256=hashlib.sha256(good).hexdigest())
    monkeypatch.setattr(source, 'find_release', lambda name: release)
    cfg = PretrainedCfg(
        architecture=release.architecture, tag=release.tag, url=release.url, hf_hub_id=release.hf_hub_id
    )
    with pytest.raises(CheckpointError, match=f'released sha256 {release.sha256}'):
        find_weights(cfg)
    assert cached(tmp_path) == []
    server.files[f'/{FILE}'] = good
    assert find_weights(cfg).state_dict['w'][0] == 1.0
    assert cached(tmp_path) == [FILE]


def test_a_full_disk_is_one_clear_error(server, tmp_path, monkeypatch):
    class FullDisk(io.BytesIO):
        def write(self, data) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    server.files['/w.pth'] = encoded()
    whole = Path.open
    monkeypatch.setattr(Path, 'open', lambda p, *a, **k: FullDisk() if p.suffix == '.part' else whole(p, *a, **k))
    with pytest.raises(CheckpointError, match=r'Cannot save .*No space left on device') as caught:
        find_weights(at(f'{server.url}/w.pth'))
    assert '\n' not in str(caught.value)
    assert cached(tmp_path) == []
    monkeypatch.undo()
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    assert find_weights(at(f'{server.url}/w.pth')).state_dict['w'].sum() == 50_000


def test_a_cache_that_cannot_be_written_is_reported(server, tmp_path):
    (tmp_path / 'torch').write_text('a file where the folder should be')
    server.files['/w.pth'] = encoded()
    with pytest.raises(CheckpointError, match='Cannot save'):
        find_weights(at(f'{server.url}/w.pth'))


def test_many_at_once_download_once(server):
    server.files['/w.pth'] = encoded()
    with ThreadPoolExecutor(8) as pool:
        sums = list(pool.map(lambda _: find_weights(at(f'{server.url}/w.pth')).state_dict['w'].sum(), range(8)))
    assert sums == [50_000] * 8
    assert len(server.log) == 1


@pytest.mark.parametrize('url', ['http://127.0.0.1:9/w.pth', 'nonsense://x/w.pth', 'not an address', 'http://'])
def test_an_address_that_cannot_be_reached_is_reported(url):
    with pytest.raises(WeightsNotFoundError) as caught:
        find_weights(at(url))
    assert url in str(caught.value)


def test_a_missing_file_is_reported_with_its_status(server):
    with pytest.raises(WeightsNotFoundError, match=r'gone\.pth: HTTP Error 404'):
        find_weights(at(f'{server.url}/gone.pth'))


# --- the order, without a Hub (the environment says offline)


def test_without_the_hub_the_address_is_next(server):
    server.files['/w.pth'] = encoded()
    weights = find_weights(at(f'{server.url}/w.pth', hf_hub_id=HUB_ID))
    assert weights.origin == f'{server.url}/w.pth'


def test_all_places_and_reasons_are_named_when_none_has_the_weights(server):
    overlay = dict(url=f'{server.url}/{FILE}')
    with pytest.raises(WeightsNotFoundError) as caught:
        timm.create_model('tinyvit_5m_224', pretrained=True, pretrained_cfg_overlay=overlay)
    message = str(caught.value)
    assert f'the Hub page {HUB_ID}: not in the cache and not reachable' in message
    assert f'{server.url}/{FILE}: HTTP Error 404' in message
    assert 'dict(file=' in message
    assert f'tinyvit-zoo import FILE --name {NAME}' in message
    assert '\n' not in message
    assert isinstance(caught.value, FileNotFoundError)


def test_a_name_without_weights_says_so():
    with pytest.raises(WeightsNotFoundError, match=r'No weights were released for tinyvit_5m_224\.mine'):
        find_weights(at(''))


def store(value: float, name: str = NAME) -> None:
    folder = imported_path(name)
    folder.mkdir(parents=True)
    safetensors.torch.save_file({'w': torch.full((3,), value)}, folder / 'model.safetensors')


# --- releases whose file can only be fetched with a browser


BY_HAND = [release.name for release in all_releases() if release.manual_download]


def by_hand(name: str) -> PretrainedCfg:
    """The configuration that timm resolves the name of such a release to."""
    release = find_release(name)
    return PretrainedCfg(architecture=release.architecture, tag=release.tag, **release.pretrained_cfg())


@pytest.mark.parametrize('name', BY_HAND)
def test_one_error_says_which_file_from_which_page_and_the_command_that_keeps_it(name):
    release = find_release(name)
    message = refused(
        lambda: timm.create_model(name, pretrained=True),
        name,
        release.download_page,
        release.file or 'its name is not known',
        release.file_doubt or '',
        f'`tinyvit-zoo import FILE --name {name}`',
        kind=WeightsNotFoundError,
    )
    assert 'Tried' not in message


def test_an_overlay_wins_over_having_no_address(server, tmp_path):
    cfg = by_hand(BY_HAND[0])
    server.files['/w.pth'] = encoded(2.0)
    store(7.0, BY_HAND[0])
    assert find_weights(replace(cfg, url=f'{server.url}/w.pth')).state_dict['w'][0] == 2
    assert find_weights(replace(cfg, state_dict={'w': torch.zeros(1)})).state_dict['w'][0] == 0
    torch.save({'w': torch.ones(1)}, tmp_path / 'mine.pth')
    assert find_weights(replace(cfg, file=str(tmp_path / 'mine.pth'))).state_dict['w'][0] == 1
    with pytest.raises(WeightsNotFoundError, match='Tried: the Hub page me/mine'):
        find_weights(replace(cfg, hf_hub_id='me/mine'))
    for nothing in (dict(url=''), dict(hf_hub_id='')):  # no overlay: still the release's
        assert find_weights(replace(cfg, **nothing)).state_dict['w'][0] == 7


def test_imported_weights_are_found_where_there_is_no_address():
    store(7.0, BY_HAND[0])
    assert find_weights(by_hand(BY_HAND[0])).state_dict['w'][0] == 7.0
    with pytest.raises(WeightsNotFoundError, match='no program can download'):
        find_weights(by_hand(BY_HAND[1]))


def test_imported_weights_win_over_hub_and_address():
    store(7.0)
    weights = find_weights(timm.get_pretrained_cfg(NAME))
    assert weights.state_dict['w'][0] == 7.0
    assert str(imported_path(NAME)) in weights.origin


def test_imported_weights_are_of_one_tag():
    store(7.0, 'tinyvit_5m_224.in1k')
    assert find_weights(timm.get_pretrained_cfg('tinyvit_5m_224.in1k')).state_dict['w'][0] == 7.0
    with pytest.raises(WeightsNotFoundError, match='Tried'):
        find_weights(replace(timm.get_pretrained_cfg(NAME), url='http://127.0.0.1:9/w.pth'))


def test_weights_given_by_the_caller_win_over_imported_ones(server, tmp_path):
    store(7.0)
    cfg = timm.get_pretrained_cfg(NAME)
    assert find_weights(replace(cfg, state_dict={'w': torch.zeros(1)})).state_dict['w'][0] == 0
    torch.save({'w': torch.ones(1)}, tmp_path / 'mine.pth')
    assert find_weights(replace(cfg, file=str(tmp_path / 'mine.pth'))).state_dict['w'][0] == 1
    server.files['/w.pth'] = encoded(2.0)
    assert find_weights(replace(cfg, url=f'{server.url}/w.pth')).state_dict['w'][0] == 2


def test_a_damaged_import_is_reported_and_not_skipped():
    store(7.0)
    (imported_path(NAME) / 'model.safetensors').write_bytes(b'')
    with pytest.raises(CheckpointError, match='empty'):
        find_weights(timm.get_pretrained_cfg(NAME))


def test_a_local_folder_is_used_alone(small, tmp_path):
    store(7.0)
    save_for_hf(small(), tmp_path / 'hub', safe_serialization=True)
    model = timm.create_model(f'local-dir:{tmp_path / "hub"}', pretrained=True)
    torch.testing.assert_close(model.head.fc.bias, small().head.fc.bias, rtol=0, atol=0)
    (tmp_path / 'hub/model.safetensors').unlink()
    with pytest.raises(WeightsNotFoundError, match='no checkpoint'):
        timm.create_model(f'local-dir:{tmp_path / "hub"}', pretrained=True)


# --- the Hub, which a process finds by its environment


CLIENT = """
import json, sys, timm, tinyvit_zoo
for call in json.loads(sys.argv[1]):
    try:
        model = timm.create_model(pretrained=True, **call)
        print(json.dumps(model.head.fc.bias[0].item()))
    except Exception as e:
        print(json.dumps([type(e).__name__, str(e)]))
"""


@pytest.fixture
def hub() -> Iterator[MiniHub]:
    with MiniHub() as hub:
        yield hub


@pytest.fixture
def client(hub, tmp_path):
    """Runs calls of create_model in a process of its own; returns the first bias of each model, or its error."""

    def run(*calls: dict, **environment: str) -> list:
        calls = [dict(model_name='tinyvit_5m_224') | SMALL | call for call in calls]
        env = os.environ | hub.environment | dict(HF_HOME=str(tmp_path / 'huggingface')) | environment
        command = [sys.executable, '-c', CLIENT, json.dumps(calls)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=500, check=False)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


@pytest.fixture
def weights(small):
    """A small model's file in either format, identified by its first bias."""

    def make(value: float, kind: str) -> bytes:
        state_dict = small().state_dict()
        state_dict['head.fc.bias'] = torch.full_like(state_dict['head.fc.bias'], value)
        if kind == 'safetensors':
            return safetensors.torch.save(state_dict)
        buffer = io.BytesIO()
        torch.save(state_dict, buffer)
        return buffer.getvalue()

    return make


def test_the_hub_gives_safetensors_once_and_then_the_cache_does(hub, client, weights):
    files = {'model.safetensors': weights(1.0, 'safetensors'), 'pytorch_model.bin': weights(2.0, 'bin')}
    hub.pages[HUB_ID] = Page(files)
    assert client({}, {}, dict(model_name=NAME)) == [1.0, 1.0, 1.0]
    assert hub.downloads == [f'{HUB_ID}/model.safetensors']

    asked = len(hub.log)
    assert client({}, HF_HUB_OFFLINE='1') == [1.0]
    assert len(hub.log) == asked
    hub.close()
    assert client({}) == [1.0]  # online, but there is no answer


@pytest.mark.slow
def test_a_page_with_only_a_pickle_works_online_and_from_the_cache(hub, client, weights, server):
    server.files['/w.pth'] = weights(3.0, 'pth')
    hub.pages[HUB_ID] = Page({'pytorch_model.bin': weights(2.0, 'bin')})
    call = dict(pretrained_cfg_overlay=dict(url=f'{server.url}/w.pth'))
    assert client(call) == [2.0]
    assert client(call, HF_HUB_OFFLINE='1') == [2.0]
    hub.close()
    assert client(call) == [2.0]
    assert server.log == []


@pytest.mark.slow
def test_a_missing_or_empty_page_falls_back_to_the_address(hub, client, weights, server):
    server.files['/w.pth'] = weights(3.0, 'pth')
    call = dict(pretrained_cfg_overlay=dict(url=f'{server.url}/w.pth'))
    hub.pages['timm/empty'] = Page({'README.md': b'nothing here yet'})
    empty = dict(pretrained_cfg_overlay=dict(url=f'{server.url}/w.pth', hf_hub_id='timm/empty'))
    assert client(call, empty) == [3.0, 3.0]
    gone = dict(pretrained_cfg_overlay=dict(url=f'{server.url}/gone.pth'))
    empty_and_gone = dict(pretrained_cfg_overlay=dict(url=f'{server.url}/gone.pth', hf_hub_id='timm/empty'))
    (kind, message), (_, other) = client(gone, empty_and_gone)
    assert kind == 'WeightsNotFoundError'
    assert HUB_ID in message
    assert '404' in message
    assert f'{server.url}/gone.pth: HTTP Error 404' in message
    assert 'the page has none of model.safetensors, pytorch_model.bin' in other


@pytest.mark.slow
def test_imported_weights_need_no_hub_and_a_file_wins_over_both(hub, client, weights, tmp_path):
    hub.pages[HUB_ID] = Page({'model.safetensors': weights(1.0, 'safetensors')})
    imported_path(NAME).mkdir(parents=True)
    (imported_path(NAME) / 'model.safetensors').write_bytes(weights(4.0, 'safetensors'))
    (tmp_path / 'mine.pth').write_bytes(weights(5.0, 'pth'))
    overlay = dict(pretrained_cfg_overlay=dict(file=str(tmp_path / 'mine.pth')))
    assert client({}, overlay) == [4.0, 5.0]
    assert hub.log == []


@pytest.mark.slow
def test_a_page_of_ones_own_is_used_alone(hub, client, weights, small, tmp_path):
    save_for_hf(small(num_classes=5), tmp_path / 'page', safe_serialization=True)
    files = {p.name: p.read_bytes() for p in (tmp_path / 'page').iterdir()}
    hub.pages['me/mine'] = Page(files)
    hub.pages['me/html'] = Page({'config.json': files['config.json'], 'model.safetensors': b'<html>sorry</html>'})
    hub.pages['me/none'] = Page({'config.json': files['config.json']})
    expected = small(num_classes=5).head.fc.bias[0].item()
    calls = [dict(model_name=f'hf-hub:me/{page}', num_classes=5) for page in ('mine', 'html', 'none')]
    found, html, none = client(*calls)
    assert found == pytest.approx(expected)
    assert html[0] == 'CheckpointError'
    assert 'web page' in html[1]
    assert none[0] == 'WeightsNotFoundError'
    assert 'me/none' in none[1]
