"""The demo: its images, a shortened run, its independence of the network and of unrelated packages."""

import csv
import http.server
import json
import socket
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import timm
import torch
from conftest import forget_modules
from PIL import Image

from tinyvit_zoo.common.hashes import state_hash
from tinyvit_zoo.downstream.compare import Row
from tinyvit_zoo.downstream.demo.comparison import comparison_images
from tinyvit_zoo.downstream.demo.digits import CLASSES, NUM_DIGITS, PHOTOS, SIZE, load_images
from tinyvit_zoo.downstream.demo.run import predict
from tinyvit_zoo.downstream.demo.student import Taught, teach_student
from tinyvit_zoo.soft_labels import Store


def test_training_and_held_out_images_are_disjoint():
    training, held_out = load_images()
    assert not {p.tobytes() for p in training.images} & {p.tobytes() for p in held_out.images}
    assert training.targets.unique().tolist() == held_out.targets.unique().tolist() == list(range(len(CLASSES)))
    assert {p.size for p in training.images + held_out.images} == {(SIZE, SIZE)}
    assert (len(training.targets), len(held_out.targets)) == (len(training), len(held_out))
    # Digits are split three to one; 1797 is what scikit-learn has.
    assert int(training.is_digit.sum()) + int(held_out.is_digit.sum()) == 1797
    assert int(training.is_digit.sum()) == 3 * 449


def test_crops_come_from_different_halves(monkeypatch):
    from tinyvit_zoo.downstream.demo import digits

    half = Image.new('RGB', (640, 427), 'red')
    half.paste('blue', (0, 427 // 2, 640, 427))
    monkeypatch.setattr(digits, 'load_photos', lambda: dict.fromkeys(digits.PHOTOS, half))
    training, held_out = load_images(limit=200)
    for images, expected in ((training, 2), (held_out, 0)):  # blue below, red above
        crops = [p for p, digit in zip(images.images, images.is_digit.tolist(), strict=True) if not digit]
        assert {max(range(3), key=p.getpixel((SIZE // 2, SIZE // 2)).__getitem__) for p in crops} == {expected}


def test_the_split_is_repeatable_and_depends_on_the_seed():
    one, two, other = (load_images(seed, limit=200)[1] for seed in (0, 0, 1))
    assert [p.tobytes() for p in one.images] == [p.tobytes() for p in two.images]
    assert [p.tobytes() for p in one.images] != [p.tobytes() for p in other.images]


def test_shifting_moves_images_and_keeps_channels():
    from tinyvit_zoo.downstream.demo.run import MAX_SHIFT, shift

    image = torch.arange(3.0)[:, None, None] + torch.zeros(3, SIZE, SIZE)
    image[:, 16, 16] += 10
    moved = shift(image.expand(64, -1, -1, -1))
    assert moved.shape == (64, 3, SIZE, SIZE)
    assert torch.equal(moved.amin(dim=(2, 3)), torch.arange(3.0).expand(64, 3))
    row, col = (moved[:, 0] == 10).nonzero()[:, 1:].unbind(dim=1)
    assert len(row) == 64
    for places in (row, col):
        assert places.min() == 16 - MAX_SHIFT
        assert places.max() == 16 + MAX_SHIFT


@pytest.mark.parametrize('photographs', [False, True])
def test_a_shortened_demo_writes_everything(tmp_path, photographs):
    from tinyvit_zoo.downstream.demo.run import run_demo

    said = []
    results = run_demo(tmp_path / 'out', epochs=1, limit=100, photographs=photographs, say=said.append)
    names = ('digits', 'textures') if photographs else ('digits',)
    written = tmp_path / 'out'
    assert json.loads((written / 'results.json').read_text()) == results
    assert results['max_difference_after_reload'] < 1e-6
    assert len(results['history']) == 1
    for name in ('contact_sheet.png', 'training.png'):
        with Image.open(written / name) as image:
            assert min(image.size) > 300
    reloaded = timm.create_model(f'local-dir:{written / "model"}', pretrained=True)
    assert reloaded.pretrained_cfg['label_names'] == list(CLASSES)
    assert reloaded.img_size == (SIZE, SIZE)
    assert len(list((written / 'held_out').glob('*.png'))) == 2 * len(CLASSES)
    assert any('HF_HUB_OFFLINE' in line for line in said)  # which the tests set
    assert next(line for line in said if '0_0.png' in line).count('%') == len(CLASSES)
    comparison = results['compared_with_random']
    assert {name: [row['task'] for row in rows][-1] for name, rows in comparison.items()} == dict.fromkeys(
        names, 'linear probe (ridge)'
    )
    for name, rows in comparison.items():
        assert rows[0]['task'] == '5-way 1-shot (cdfsl)'
        assert rows[0]['n'] == 100
        assert all(row['low'] <= row['difference'] <= row['high'] for row in rows)
        for figure in (f'few_shot_{name}', f'differences_{name}', f'tsne_{name}_trained', f'tsne_{name}_random'):
            with Image.open(written / f'{figure}.png') as image:
                assert min(image.size) > 200
    with (written / 'compared_with_random.csv').open() as file:
        assert len(list(csv.DictReader(file))) == sum(map(len, comparison.values()))
    first = comparison['digits'][0]
    assert said[-2].startswith('5-way 1-shot')
    assert f'{first["a"]:.1f} %' in said[-2]
    student = results['student']
    assert (student['epochs'], student['bytes_a_record'], student['n']) == (2, 24, results['held_out_images'])
    assert said[-1].startswith('Soft labels ')
    assert f'{student["a"]:.1f} % with them, {student["b"]:.1f} % with the true labels' in said[-1]
    assert Store.open(written / 'soft_labels').epochs() == [0, 1]
    with Image.open(written / 'soft_labels.png') as image:
        assert min(image.size) > 300
    assert results['data'].keys() == comparison.keys()
    assert results['versions']['timm'] == timm.__version__


def test_features_are_compared_on_images_that_were_not_trained_on():
    training, held_out = load_images(seed=1)
    assert comparison_images(seed=1).keys() == {'digits'}
    pools = comparison_images(seed=1, photographs=True)
    trained_on = {p.tobytes() for p in training.images}
    digits = pools['digits']
    shown = {digits.images.image(i).tobytes() for i in range(len(digits.images))}
    assert not shown & trained_on
    assert shown == {p.tobytes() for p, digit in zip(held_out.images, held_out.is_digit, strict=True) if digit}
    assert sorted([*digits.train, *digits.test]) == digits.episodes.tolist() == list(range(len(digits.images)))
    textures = pools['textures']
    names = {textures.images.classes[label] for label in textures.images.labels}
    assert len(names) == 19
    assert not names & set(PHOTOS)
    assert not set(textures.train) & set(textures.test)
    assert textures.episodes.tolist() == textures.test.tolist()


@pytest.mark.parametrize(
    ('difference', 'low', 'high', 'words'),
    [
        (2.5, 0.4, 4.6, 'gained 2.5 points (+0.4 to +4.6)'),
        (0.5, -0.4, 1.6, 'gained nothing that could be told from chance, +0.5 points'),
        (-2.5, -4.6, -0.4, 'lost 2.5 points'),
    ],
)
def test_what_the_student_gained_is_reported_in_any_case(difference, low, high, words):
    row = Row('', 90.0, 90.0 - difference, difference, low, high, 540, '')
    assert f'Soft labels {words}' in Taught(row, 98.0, 1000, {}, None).words


def test_a_student_replaces_the_soft_labels_of_an_earlier_demo(tmp_path):
    training, held_out = load_images(limit=60)
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = timm.create_model('test_vit', img_size=SIZE, num_classes=len(CLASSES)).eval()
        taught = teach_student(model, training, held_out, tmp_path / 's', predict, epochs=1, say=lambda text: None)
        assert Store.open(tmp_path / 's').info.teacher_sha256 == state_hash(model)
    assert taught.record['images'] == len(training)


@pytest.mark.slow
def test_the_demo_learns_the_digits(tmp_path):
    done = subprocess.run(
        [sys.executable, '-m', 'tinyvit_zoo.cli', 'demo', '--output', 'out'],
        cwd=tmp_path, capture_output=True, text=True, timeout=550,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / 'out' / 'results.json').read_text())
    assert results['digits_accuracy'] > 0.97
    assert results['crops_accuracy'] > 0.7  # chance is one in twelve
    assert results['digits_mean_per_class'] == pytest.approx(results['digits_accuracy'], abs=0.02)  # they are even
    assert done.stdout.count('mean per class') > 1
    assert results['max_difference_after_reload'] < 1e-6
    rows = {row['task']: row for row in results['compared_with_random']['digits']}
    assert len(rows) == 5
    assert all(row['low'] > 0 for row in rows.values())  # it was trained on digits
    digits = [f'out/held_out/{i}_0.png' for i in range(NUM_DIGITS)]
    command = [sys.executable, '-m', 'tinyvit_zoo.cli', 'classify', *digits, '--model', 'local-dir:out/model', '--json']
    answers = json.loads(subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout)
    right = sum(a['predictions'][0]['label'] == str(i) for i, a in enumerate(answers))
    assert right >= NUM_DIGITS - 1


# the Hub


@pytest.fixture
def hub(monkeypatch):
    """Calls `weights_at_hand` with another address of the Hub; its result is `.answer`."""
    from huggingface_hub import constants

    from tinyvit_zoo.downstream.demo.hub_probe import weights_at_hand

    def ask(endpoint, limit_s):
        monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
        monkeypatch.setattr(constants, 'ENDPOINT', endpoint)
        return SimpleNamespace(answer=weights_at_hand('tinyvit_5m_224', limit_s))

    return ask


def test_a_refused_connection_is_one_short_line(hub):
    with socket.socket() as closed:
        closed.bind(('127.0.0.1', 0))
        said = hub(f'http://127.0.0.1:{closed.getsockname()[1]}', limit_s=60)
    assert 'cannot be reached' in said.answer
    assert '\n' not in said.answer


@pytest.mark.parametrize(('status', 'reachable'), [(206, True), (404, False), (403, False)])
def test_only_a_hub_that_provides_the_file_counts(hub, status, reachable):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header('Content-Length', '1')
            self.end_headers()
            self.wfile.write(b'x')

        def log_message(self, *args): ...

    with http.server.HTTPServer(('127.0.0.1', 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        said = hub(f'http://127.0.0.1:{server.server_port}', limit_s=60)
        server.shutdown()
    assert (said.answer is None) == reachable


def test_a_silent_hub_is_abandoned(hub):
    with socket.create_server(('127.0.0.1', 0)) as silent:  # accepts and never answers
        said = hub(f'http://127.0.0.1:{silent.getsockname()[1]}', limit_s=0.5)
    assert said.answer


def test_a_hanging_name_lookup_is_abandoned(hub, monkeypatch):
    hanging, release, done = threading.Event(), threading.Event(), threading.Event()

    def look_up(*args, **kwargs):
        hanging.set()
        release.wait()
        done.set()
        return []

    monkeypatch.setattr(socket, 'getaddrinfo', look_up)
    try:
        said = hub('http://hub.invalid', limit_s=0.5)
        assert not done.is_set()
        assert hanging.wait(60)
    finally:
        release.set()
    assert 'did not answer' in said.answer


def test_imported_weights_need_no_hub(tmp_path, monkeypatch, hub):
    monkeypatch.setenv('TINYVIT_ZOO_HOME', str(tmp_path))
    (tmp_path / 'weights' / 'tinyvit_5m_224.dist_in22k_ft_in1k').mkdir(parents=True)
    assert hub('http://hub.invalid', limit_s=0.5).answer is None


def test_pretrained_weights_classify_the_photos(tmp_path, monkeypatch, official_file):
    from tinyvit_zoo.downstream.demo.run import classify_photos
    from tinyvit_zoo.hub.convert import import_weights

    monkeypatch.setenv('TINYVIT_ZOO_HOME', str(tmp_path))
    import_weights(official_file('tiny_vit_5m_224'), 'tinyvit_5m_224')
    said = []
    classify_photos(said.append)
    assert [line.split(':')[0] for line in said] == ['tinyvit_5m_224 on china.jpg', 'tinyvit_5m_224 on flower.jpg']
    assert all(line.count('%') == 5 for line in said)


# which `downstream`


@pytest.mark.slow
def test_the_demo_starts_in_a_folder_with_an_unrelated_downstream(tmp_path):
    (tmp_path / 'downstream').mkdir()
    (tmp_path / 'downstream' / '__init__.py').write_text('raise SystemExit("hostile")')
    (tmp_path / 'out').write_text('a file where the output folder should be')
    done = subprocess.run(
        [sys.executable, '-m', 'tinyvit_zoo.cli', 'demo', '--output', 'out'],
        cwd=tmp_path, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 1
    assert 'hostile' not in done.stderr
    assert done.stderr == f'{tmp_path.resolve()}/out/model cannot be written (Not a directory): choose another place.\n'
    assert 'Traceback' not in done.stderr


def test_without_the_demo_packages_one_sentence_says_what_to_install(monkeypatch, capsys):
    from tinyvit_zoo.cli.app import run_app

    forget_modules(monkeypatch, 'tinyvit_zoo.downstream.')
    monkeypatch.setitem(sys.modules, 'sklearn.datasets', None)
    monkeypatch.setattr(sys, 'argv', ['tinyvit-zoo', 'demo'])
    with pytest.raises(SystemExit) as end:
        run_app()
    assert end.value.code == 1
    out, err = capsys.readouterr()
    assert (out, err.count('\n')) == ('', 1)
    assert "pip install 'tinyvit-zoo[eval]'" in err
