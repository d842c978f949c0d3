"""Every evaluator: small data, folders that `finetune` wrote, a folder that another run writes to, no network."""

import json
import shutil
import socket
import threading
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import SMALL, refused, small_of
from fake_datasets import class_folders, image
from huggingface_hub import constants

from tinyvit_zoo import build
from tinyvit_zoo.build import build_model, check_name, load_model, resolve_name
from tinyvit_zoo.checkpoints.hub_silence import cache_if_silent, hub_silence
from tinyvit_zoo.common.errors import ModelError
from tinyvit_zoo.downstream import few_shot, knn
from tinyvit_zoo.export import model_to_export
from tinyvit_zoo.hub import save_folder
from tinyvit_zoo.info import describe
from tinyvit_zoo.training import run_state

COMMANDS = {
    'knn': ('knn', 'MODEL'),
    'fewshot': ('fewshot', 'MODEL', '--episodes', 2),
    'probe live': ('probe', 'MODEL', '--epochs', 1),
    'probe ridge': ('probe', 'MODEL', '--mode', 'ridge'),
    'compare': ('compare', 'MODEL', 'MODEL', '--episodes', 2),
    'evaluate': ('evaluate', 'MODEL'),
    'embed': ('embed', 'MODEL'),
    'finetune': ('finetune', 'MODEL', '--epochs', 1),
}
"""Without the number of anything that depends on the number of images."""

LOCKED = [name for name in COMMANDS if name != 'embed']  # which writes one file


def line(name: str, model: object, data: Path, output: Path) -> tuple:
    words = tuple(str(model) if word == 'MODEL' else word for word in COMMANDS[name])
    return (*words, '-d', data, '-o', output / 'x.npz' if name == 'embed' else output)


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    """Two classes of two images to learn from, and of one or two to test on, in Train and Test."""
    folder = tmp_path_factory.mktemp('data')
    class_folders(folder / 'Train', ('ant', 'bee'))
    class_folders(folder / 'Test', ('ant', 'bee'))
    return folder


@pytest.fixture(scope='module')
def run(tmp_path_factory) -> Path:
    """A folder such as `finetune` writes, with a model for two classes."""
    folder = tmp_path_factory.mktemp('run')
    save_folder(small_of('tinyvit', img_size=32, num_classes=2), folder / 'model', ['ant', 'bee'])
    (folder / 'results.json').write_text('{}')
    (folder / 'state.pt').touch()
    return folder


@pytest.mark.parametrize('name', COMMANDS)
def test_the_folder_that_finetune_wrote_is_a_model_and_defaults_fit_small_data(name, cli, run, data, tmp_path):
    code, out, err = cli(*line(name, run, data, tmp_path / 'out'), '--device', 'cpu')
    assert code == 0, err
    if name in ('knn', 'fewshot', 'compare'):
        assert 'too few' in out
    if name == 'knn':
        assert [row['k'] for row in json.loads((tmp_path / 'out' / 'results.json').read_text())['results']] == [1]


def test_every_spelling_of_such_a_folder_is_the_same_model(run, monkeypatch, cli, tmp_path):
    expected = small_of('tinyvit', img_size=32, num_classes=2)(torch.ones(1, 3, 32, 32))
    monkeypatch.chdir(run.parent)
    for name in (run, run / 'model', f'local-dir:{run}', run.name, f'{run.name}/model', f'{run}/'):
        model = load_model(str(name))
        assert torch.equal(model(torch.ones(1, 3, 32, 32)), expected)
        assert check_name(str(name)) == 'local-dir'
    assert model_to_export(str(run)).num_classes == 2
    assert describe(str(run))['architecture'] == 'tinyvit_5m_224'
    code, out, err = cli('classify', image(tmp_path / '0.png'), '-m', run, '--topk', 1)
    assert code == 0, err
    assert 'ant' in out or 'bee' in out


def test_the_name_of_a_model_goes_before_a_folder_that_is_called_so(run, tmp_path, monkeypatch):
    shutil.copytree(run, tmp_path / 'tinyvit_5m_224')
    monkeypatch.chdir(tmp_path)
    assert resolve_name('tinyvit_5m_224') == 'tinyvit_5m_224'
    assert resolve_name('./tinyvit_5m_224') == 'local-dir:tinyvit_5m_224/model'


def test_folders_without_a_model_and_files_say_what_to_give(tmp_path):
    (tmp_path / 'run').mkdir()
    refused(lambda: build_model(str(tmp_path / 'run')), 'run', 'without a model', 'config.json', kind=ModelError)
    (tmp_path / 'run' / 'state.pt').touch()
    refused(lambda: build_model(str(tmp_path / 'run')), 'has not ended', '`finetune`', kind=ModelError)
    (tmp_path / 'x.pth').touch()
    refused(lambda: build_model(str(tmp_path / 'x.pth')), 'is a file', '--weights', kind=ModelError)
    refused(lambda: build_model(str(tmp_path / 'none')), 'none', 'neither a folder nor a model', kind=ModelError)


@pytest.mark.parametrize('name', ['~nobody_of_this_name/x', 'n' * 300, 'a\x1b[31mb', '/' + 'n' * 300, ''])
def test_names_that_cannot_be_paths_are_one_sentence(name, cli, data, tmp_path):
    for words in (
        ('knn', name, '--random', '-d', data),
        ('knn', 'test_resnet', '--random', '-d', name),
        ('embed', 'test_resnet', '--random', '-d', name, '-o', tmp_path / 'x.npz'),
        ('classify', name, '-m', 'test_resnet'),
        ('knn', 'test_resnet', '--weights', name, '-d', data),
    ):
        code, _, err = cli(*words)
        assert (code, err.count('\n')) == (1, 1)
        assert len(err) < 1000
        assert '\x1b' not in err


def test_the_folder_that_finetune_wrote_gives_weights_and_a_page(run, cli, tmp_path):
    assert load_model('tinyvit_5m_224', run, **{**SMALL, 'num_classes': 2}, img_size=32).num_classes == 2
    assert cli('convert', run, tmp_path / 'x.safetensors')[0] == 0
    code, _, err = cli('verify', run)
    assert (code, err.count('\n')) == (1, 1)
    assert f'{run}/model' in err


@pytest.mark.parametrize('name', LOCKED)
def test_a_folder_that_another_run_writes_to_is_refused(name, cli, run, data, tmp_path, monkeypatch):
    monkeypatch.setattr(run_state, 'PATIENCE', 0.0)
    with run_state.alone_in(tmp_path / 'out'):
        code, _, err = cli(*line(name, run, data, tmp_path / 'out'), '--device', 'cpu')
    assert code == 1
    assert err.splitlines()[-1].startswith(f'Another run is writing to {tmp_path / "out"}: choose another --output')
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['.lock']


# defaults


@pytest.mark.parametrize(('N', 'ks'), [(5, (1,)), (10, (10,)), (99, (10, 20)), (100, (10, 20, 100)), (5000, knn.KS)])
def test_k_is_by_default_what_fits_the_bank(N, ks):
    assert knn.fitting_ks(N) == ks
    knn.check_ks(ks, N)
    values, labels = np.eye(N, 4, dtype=np.float32) + 1, np.arange(N) % 2
    assert tuple(knn.run(values, labels, values[:3], labels[:3]).accuracy) == ks


@pytest.mark.parametrize('command', ['knn', 'compare'])
def test_a_k_beyond_the_bank_names_the_option(command, cli, run, data):
    code, _, err = cli(*line(command, run, data, Path('unused'))[:-2], '-k', 5, '--device', 'cpu')
    assert (code, err.count('\n')) == (1, 1)
    assert '4 images of the bank, not 5' in err
    assert '-k' in err


@pytest.mark.parametrize(
    ('counts', 'given', 'expected'),
    [
        ([100] * 6, {}, (5, (5, 20, 50), 15)),
        ([100, 40, 40, 40, 40], {}, (5, (5, 20), 15)),
        ([12] * 3, {}, (3, (5,), 7)),
        ([4, 9], {}, (2, (3,), 1)),
        ([1, 9], {}, (2, (1,), 1)),  # which is refused then
        ([30] * 3, dict(shots=(2, 20)), (3, (2, 20), 15)),  # which is refused, too
        ([30] * 3, dict(queries=29), (3, (1,), 29)),
        ([3] * 9, dict(ways=7, shots=(5,), queries=15), (7, (5,), 15)),  # asked for, and so not changed
    ],
)
def test_episodes_are_by_default_what_fits_the_smallest_class(counts, given, expected):
    assert few_shot.fitting_counts(np.repeat(np.arange(len(counts)), counts), **given) == expected


@pytest.mark.parametrize(
    ('given', 'option'), [(('--ways', 3), '--ways'), (('--shots', '1,9'), '--shots'), (('--queries', 8), '--queries')]
)
@pytest.mark.parametrize('command', ['fewshot', 'compare'])
def test_episodes_beyond_the_data_name_the_option(command, given, option, cli, run, data):
    code, _, err = cli(*line(command, run, data, Path('unused'))[:-2], *given, '--device', 'cpu')
    assert (code, err.count('\n')) == (1, 1)
    assert option in err


# no network


class Server:
    """A Hub that closes every connection; with an answer it gives that before."""

    def __init__(self) -> None:
        self.answer, self.requests = b'', []
        self.listener = socket.create_server(('127.0.0.1', 0))
        self.address = f'http://127.0.0.1:{self.listener.getsockname()[1]}'
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                self.requests.append(connection.recv(1 << 16))
                connection.sendall(self.answer)

    @property
    def asked(self) -> int:
        """How often it was asked for a file; the client has questions of its own."""
        return sum(b'/resolve/' in request for request in self.requests)


@pytest.fixture
def server(monkeypatch):
    """The Hub for the client in this process."""
    server = Server()
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(constants, 'ENDPOINT', server.address)
    template = f'{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}'
    monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', template)
    with server.listener:
        yield server
        server.listener.shutdown(socket.SHUT_RDWR)


@contextmanager
def no_names(monkeypatch):
    """No host has an address."""

    def lost(*_, **__):
        raise socket.gaierror(-2, 'Name or service not known')

    with monkeypatch.context() as patch:
        patch.setattr(socket, 'getaddrinfo', lost)
        yield


def test_a_silent_hub_is_asked_once(server, cli, data):
    code, _, err = cli('knn', 'test_resnet', '-d', data, '--device', 'cpu')
    assert (code, err.count('\n')) == (1, 1)
    assert server.asked == 1
    for word in ('No weights for test_resnet', 'timm/test_resnet', 'not reachable', '--weights FILE or --random'):
        assert word in err
    assert constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize('name', ['test_resnet', 'tinyvit_5m_224', 'mini_swin_tiny_patch4_window7_224'])
@pytest.mark.parametrize('offline', [True, False])
def test_without_a_network_every_command_says_what_does_instead(name, offline, cli, data, tmp_path, monkeypatch):
    lines = [line(command, name, data, tmp_path / command) for command in COMMANDS]
    lines += [('export', name, '-o', tmp_path / 'x.pt2'), ('classify', image(tmp_path / '0.png'), '-m', name)]
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', offline)
    with no_names(monkeypatch):
        ends = {words[0]: cli(*words) for words in lines}
    options = dict(classify=('--weights FILE',), compare=('--weights-a FILE', '--random-b'))
    silent = {
        command: err
        for command, (code, _, err) in ends.items()
        if code != 1
        or f'No weights for {name}' not in err
        or not all(option in err.splitlines()[-1] for option in options.get(command, ('--weights FILE', '--random')))
    }
    assert silent == {}


def test_a_page_that_is_not_in_the_cache_is_named(server):
    refused(partial(build_model, 'hf-hub:nobody/nothing'), 'nobody/nothing', 'not reachable', kind=ModelError)
    assert server.asked == 1


def test_what_is_in_the_cache_is_loaded_without_an_answer(server, monkeypatch):
    """The Hub's client looks into it at once, and everything is as before afterwards."""
    seen, model = [], timm.create_model('test_resnet')

    def create(*_, **__):
        seen.append(constants.HF_HUB_OFFLINE)
        return model

    monkeypatch.setattr(build.timm, 'create_model', create)
    assert build_model('test_resnet', pretrained=True) is model
    assert (seen, constants.HF_HUB_OFFLINE, server.asked) == ([True], False, 1)


def test_random_weights_ask_nobody(server):
    build_model('test_resnet')
    build_model('tinyvit_5m_224', device='meta')
    assert not server.asked


def test_a_hub_that_has_no_such_page_is_not_silent(server):
    server.answer = b'HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n'
    assert hub_silence('nobody/nothing', 'config.json') is None
    with cache_if_silent('nobody/nothing@main', 'config.json') as silence:
        assert (silence, constants.HF_HUB_OFFLINE) == (None, False)
    server.answer = b''
    with cache_if_silent('nobody/nothing@main', 'config.json') as silence:
        assert silence is not None
        assert constants.HF_HUB_OFFLINE


def test_missing_weights_files_are_one_sentence(cli, data, tmp_path):
    (tmp_path / 'empty').mkdir()
    for weights in (tmp_path / 'none.pth', tmp_path / 'empty'):
        for name in ('tinyvit_5m_224', 'test_resnet'):
            code, _, err = cli('knn', name, '--weights', weights, '-d', data, '--device', 'cpu')
            assert (code, err.count('\n')) == (1, 1)
            assert str(weights) in err
