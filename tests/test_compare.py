"""Two models on the same images, and the commands `evaluate` and `compare` from end to end."""

import csv
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from conftest import forget_modules, refused
from PIL import Image

from tinyvit_zoo.cli.evaluator_options import processes
from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.data.split import stratified_split
from tinyvit_zoo.downstream import few_shot, knn
from tinyvit_zoo.downstream.classifiers import ridge
from tinyvit_zoo.downstream.compare import PROBE, ModelFeatures, compare, difference_of_right
from tinyvit_zoo.downstream.features.extraction import Features
from tinyvit_zoo.hub import save_folder

# differences of right answers


def right(*counts: int) -> tuple[np.ndarray, np.ndarray]:
    """Right answers of two models, by how many both, the first, the second, and neither have right."""
    pairs = np.repeat([[1, 1], [1, 0], [0, 1], [0, 0]], counts, axis=0).astype(bool)
    return pairs[:, 0], pairs[:, 1]


def test_a_difference_and_its_interval_follow_from_the_table_of_pairs():
    row = difference_of_right('t', *right(50, 20, 8, 22))
    assert (row.a, row.b, row.difference, row.n) == pytest.approx((70, 58, 12, 100))
    # Agresti & Min: the interval of Wald for 50.5, 20.5, 8.5, 22.5.
    middle, n = (20.5 - 8.5) / 102, 102
    half = 1.96 * np.sqrt((20.5 + 8.5) - (20.5 - 8.5) ** 2 / n) / n
    assert (row.low, row.high) == pytest.approx((100 * (middle - half), 100 * (middle + half)))
    assert row.p == pytest.approx(2 * sum(np.exp(_log_binomial(28, i)) for i in range(9)) / 2**28)


def _log_binomial(n: int, k: int) -> float:
    return float(np.log(np.arange(n - k + 1, n + 1)).sum() - np.log(np.arange(1, k + 1)).sum())


def test_models_that_never_differ_still_have_an_interval():
    row = difference_of_right('t', *right(90, 0, 0, 10))
    assert row.difference == 0
    assert row.low < 0 < row.high
    assert row.p == 1


def test_common_difficulty_does_not_widen_the_interval():
    easy = difference_of_right('t', *right(80, 10, 5, 5))
    hard = difference_of_right('t', *right(5, 10, 5, 80))
    assert (easy.low, easy.high) == (hard.low, hard.high)


def test_the_interval_covers_the_truth_at_its_nominal_rate():
    rng = np.random.default_rng(0)
    shares = np.array([0.6, 0.15, 0.05, 0.2])  # the true difference is 10 points
    rows = [difference_of_right('t', *right(*rng.multinomial(60, shares))) for _ in range(400)]
    covered = np.mean([row.low <= 10 <= row.high for row in rows])
    assert 0.92 < covered < 0.985


# comparing features


def features(signal: float, seed: int, per_class: int = 30) -> ModelFeatures:
    """Six classes whose means are `signal` apart, on the same images for every seed."""
    rng = np.random.default_rng(seed)
    means = np.random.default_rng(99).normal(size=(6, 16))
    labels = np.arange(6 * per_class) % 6
    parts = [
        Features(
            torch.from_numpy(signal * means[labels] + rng.normal(size=(len(labels), 16))).float(),
            torch.from_numpy(labels),
            tuple('abcdef'),
            '',
        )
        for _ in range(2)
    ]
    return ModelFeatures(f'signal {signal}', *parts)


def test_every_row_equals_the_results_of_its_evaluator_for_both_models():
    a, b = features(1.5, 0), features(0.3, 1)
    rows = {row.task: row for row in compare(a, b, shots=(1, 5), episodes=40, k=7, seed=3)}
    assert list(rows) == ['5-way 1-shot (cdfsl)', '5-way 5-shot (cdfsl)', 'kNN (k = 7)', PROBE]
    labels = a.test.labels.numpy()
    episodes = few_shot.sample_episodes(labels, 5, 5, 15, 40, 3)
    results = [few_shot.run(m.test.values, labels, episodes) for m in (a, b)]
    paired = few_shot.paired(*results)
    row = rows['5-way 5-shot (cdfsl)']
    assert (row.a, row.b, row.a_ci95) == (results[0].mean, results[1].mean, results[0].ci95)
    assert (row.difference, row.low, row.high) == (paired.mean, paired.mean - paired.ci95, paired.mean + paired.ci95)
    assert row.n == 40
    for model, side in ((a, 'a'), (b, 'b')):
        train, test = model.train, model.test
        near = knn.run(train.values, labels, test.values, labels, [7]).accuracy[7]
        fit, held = stratified_split(labels, 0.1, 3)
        values = train.values.numpy()
        linear = ridge.probe(values[fit], labels[fit], values[held], labels[held], test.values.numpy(), labels).test
        assert getattr(rows['kNN (k = 7)'], side) == pytest.approx(near)
        assert getattr(rows[PROBE], side) == pytest.approx(linear)
    assert all(row.low > 0 for row in rows.values())
    assert rows[PROBE].p < 0.01


def test_a_model_does_not_differ_from_itself_and_swapping_changes_the_sign():
    a, b = features(0.6, 0), features(0.5, 1)
    few = dict(episodes=20, solver='prototype')
    assert all(row.difference == 0 and row.low <= 0 <= row.high for row in compare(a, a, **few))
    for one, other in zip(compare(a, b, **few), compare(b, a, **few), strict=True):
        assert one.difference == -other.difference
        assert (one.low, one.high) == pytest.approx((-other.high, -other.low))


def test_without_training_images_there_is_only_few_shot():
    a, b = (ModelFeatures(m.name, None, m.test) for m in (features(1, 0), features(1, 1)))
    assert [row.p for row in compare(a, b, episodes=10, solver='ridge')] == [None]


def test_features_of_other_images_are_refused():
    a, b = features(1, 0), features(1, 1, per_class=31)
    refused(lambda: compare(a, b), 'not of the same images', kind=EvaluationError)
    without = ModelFeatures(a.name, None, a.test)
    refused(lambda: compare(a, without), 'not of the same images', kind=EvaluationError)


# commands


@pytest.fixture(scope='module')
def image_folder(tmp_path_factory):
    """A folder with train and test of three classes: bright, dark, and either."""
    root = tmp_path_factory.mktemp('images')
    rng = np.random.default_rng(0)
    for split, n in (('train', 8), ('test', 12)):
        for name, level in (('bright', 200), ('dark', 30), ('grey', 115)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(n):
                pixels = (level + rng.integers(-30, 31, (32, 32, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f'{i:02}.png')
    return root


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """A folder with a small model of these classes and one more."""
    torch.manual_seed(0)
    model = timm.create_model('resnet10t', num_classes=4).eval()
    model.pretrained_cfg['input_size'] = (3, 32, 32)
    return save_folder(model, tmp_path_factory.mktemp('m') / 'model', label_names=('dark', 'grey', 'bright', 'cat'))


def results_of(folder) -> dict:
    return json.loads((folder / 'results.json').read_text())


def test_evaluate_prints_and_writes_what_was_measured(cli, saved, image_folder, tmp_path):
    code, out, err = cli('evaluate', f'local-dir:{saved}', '--data', image_folder, '--output', tmp_path / 'out')
    assert code == 0, err
    results = results_of(tmp_path / 'out')
    assert f'top-1 {results["top1"]:.2f} %' in out
    assert '3 of 4 outputs compete' in out
    assert '36 images' in out
    assert results['images'] == 36
    assert results['top1_ci95'][0] < results['top1'] < results['top1_ci95'][1]
    assert results['preprocessing']['input_size'] == [3, 32, 32]
    assert results['command'].startswith('tinyvit-zoo evaluate local-dir:')
    assert len(results['model']['weights_sha256']) == len(results['data']['sha256']) == 64
    with (tmp_path / 'out' / 'per_class.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert [row['id'] for row in rows] == ['bright', 'dark', 'grey']
    assert sum(float(row['top1']) for row in rows) / 3 == pytest.approx(results['mean_per_class'], abs=1e-3)
    with (tmp_path / 'out' / 'confusion.csv').open() as file:
        assert sum(int(row['images']) for row in csv.DictReader(file)) == 36
    assert {p.name for p in (tmp_path / 'out').glob('*.png')} == {'per_class.png', 'confusion.png'}


def test_evaluate_accepts_another_crop_and_size(cli, saved, image_folder, tmp_path):
    line = (
        'evaluate',
        f'local-dir:{saved}',
        '-d',
        image_folder,
        '--crop-pct',
        0.5,
        '--img-size',
        64,
        '-o',
        tmp_path / 'out',
    )
    code, out, err = cli(*line)
    assert code == 0, err
    assert 'Preprocessing: 64 px, crop 0.5' in out
    assert results_of(tmp_path / 'out')['preprocessing']['input_size'] == [3, 64, 64]


def test_evaluate_refuses_in_one_sentence(cli, image_folder, tmp_path):
    for arguments, words in (
        (('resnet10t', '--random', '--data', image_folder), '1000 outputs'),
        (('resnet10t', '--random', '--data', 'no-such-data'), 'no-such-data'),
        (('resnet10t', '--random', '--data', tmp_path), str(tmp_path)),
        (('resnet10t', '--random', '--data', 'imagenet-c'), '--root'),
        (('no_such_model', '--random', '--data', image_folder), 'no_such_model'),
    ):
        code, out, err = cli('evaluate', *arguments)
        assert code != 0
        assert out == ''
        assert err.count('\n') == 1
        assert words in err


@pytest.mark.parametrize('command', [('evaluate', 'a'), ('compare', 'a', 'b')])
def test_without_matplotlib_one_sentence_says_what_to_install_before_anything_is_done(cli, monkeypatch, command):
    forget_modules(monkeypatch, 'tinyvit_zoo.downstream.')
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    code, out, err = cli(*command, '--data', 'digits')
    assert (code, out, err.count('\n')) == (1, '', 1)
    assert "pip install 'tinyvit-zoo[eval]'" in err


def test_compare_prints_a_paired_table_and_writes_it(cli, saved, image_folder, tmp_path):
    line = ('compare', f'local-dir:{saved}', 'test_vit', '--random-b', '--data', image_folder, '--img-size', 32)
    few = ('--ways', 3, '--shots', '1,3', '--queries', 5, '--episodes', 30, '-k', 5)
    code, out, err = cli(*line, *few, '--output', tmp_path / 'out')
    assert code == 0, err
    results = results_of(tmp_path / 'out')
    assert [row['task'] for row in results['rows']] == [
        '3-way 1-shot (cdfsl)', '3-way 3-shot (cdfsl)', 'kNN (k = 5)', PROBE,
    ]  # fmt: skip
    for row in results['rows']:
        assert f'{row["difference"]:+.2f}' in out
        assert row['low'] <= row['difference'] <= row['high']
    assert 'B: test_vit (random (seed 0))' in out
    assert results['a']['weights_sha256'] != results['b']['weights_sha256']
    assert {key: part['images'] for key, part in results['data'].items()} == dict(train=24, test=36)
    names = {p.name for p in (tmp_path / 'out').iterdir()}
    figures = {f'{n}.png' for n in ('differences', 'shots', 'tsne_a', 'tsne_b')}
    assert names == {'.lock', 'results.json', 'compare.csv', *figures}


def test_compare_accepts_a_weights_file_and_data_without_splits(cli, image_folder, tmp_path):
    torch.manual_seed(1)
    torch.save(timm.create_model('resnet10t').state_dict(), tmp_path / 'w.pth')
    line = ('compare', 'resnet10t', 'resnet10t', '--weights-a', tmp_path / 'w.pth', '--random-b', '--img-size', 32)
    few = ('--ways', 2, '--shots', 1, '--queries', 2, '--episodes', 4)
    code, out, err = cli(*line, '--data', image_folder / 'train', *few)
    assert code == 0, err
    assert f'A: resnet10t ({tmp_path / "w.pth"})' in out
    assert '24 test images' in out
    assert 'kNN' not in out


def test_compare_never_tests_on_training_images(cli, image_folder, tmp_path):
    line = ('compare', 'resnet10t', 'resnet10t', '--random-a', '--random-b', '--img-size', 32, '--ways', 2)
    few = ('--shots', 1, '--queries', 2, '--episodes', 4)
    shutil.copytree(image_folder / 'train', tmp_path / 'alone' / 'train')
    shutil.copytree(image_folder / 'train', tmp_path / 'crops' / 'dataset' / 'train')  # crop_disease has train alone
    (tmp_path / 'alone' / 'train' / 'grey' / '00.png').write_bytes(b'nothing')
    for data, words in (
        ((tmp_path / 'alone', '--skip-unreadable'), '23 test images'),
        (('crop_disease', '--root', tmp_path / 'crops', '--any-counts'), '24 test images'),
    ):
        code, out, err = cli(*line, *few, '--data', *data)
        assert code == 0, err
        assert words in out
        assert 'shot' in out
        assert 'kNN' not in out


def test_a_class_named_train_or_test_is_not_a_split_and_a_folder_may_be_the_root(cli, saved, tmp_path):
    for name in ('train', 'test', 'car', 'ship'):
        (tmp_path / 'data' / name).mkdir(parents=True)
        Image.new('RGB', (32, 32)).save(tmp_path / 'data' / name / '0.png')
    for data in ((tmp_path / 'data',), ('folder', '--root', tmp_path / 'data')):
        model = ('resnet10t', '--random', '--img-size', 32)
        code, _, err = cli('evaluate', *model, '--data', *data)
        assert code == 1
        assert '1000 outputs, the data 4 classes' in err


@pytest.mark.parametrize(('cards', 'backend', 'chosen'), [(0, 'gloo', []), (1, 'cpu:gloo,cuda:nccl', [0])])
def test_processes_without_a_gpu_of_their_own_join_the_others(cards, backend, chosen, monkeypatch):
    begun, set_to = [], []
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: cards)
    monkeypatch.setattr(torch.cuda, 'set_device', set_to.append)
    monkeypatch.setattr(torch.distributed, 'init_process_group', lambda backend, **options: begun.append(backend))
    monkeypatch.setattr(torch.distributed, 'get_rank', lambda: 1)
    monkeypatch.setattr(torch.distributed, 'destroy_process_group', lambda: None)
    for name, value in (('WORLD_SIZE', '2'), ('RANK', '1'), ('LOCAL_RANK', '1')):
        monkeypatch.setenv(name, value)
    with processes() as first:
        assert not first
    assert (begun, set_to) == ([backend], chosen)


@pytest.mark.slow
@pytest.mark.parametrize('command', ['evaluate', 'compare'])
def test_two_processes_give_the_result_of_one(command, saved, image_folder, tmp_path):
    models = [f'local-dir:{saved}'] if command == 'evaluate' else [f'local-dir:{saved}', 'test_vit', '--random-b']
    few = (
        []
        if command == 'evaluate'
        else ['--ways', '3', '--shots', '1', '--queries', '5', '-k', '5', '--img-size', '32']
    )
    line = ['tinyvit_zoo.cli', command, *models, '--data', str(image_folder), '--batch-size', '5', *few]
    launchers = dict(one=[], two=['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2'])
    found = {}
    for name, launcher in launchers.items():
        done = subprocess.run(
            [sys.executable, *launcher, '-m', *line, '--output', str(tmp_path / name)],
            cwd=tmp_path, capture_output=True, text=True, timeout=500,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found[name] = {k: v for k, v in results_of(tmp_path / name).items() if k not in ('command', 'time')}
        assert done.stdout.count('Written to') == 1
    assert found['one'] == found['two']
