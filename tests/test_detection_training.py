"""Detectors and a segmenter learn within minutes of one CPU thread, from random weights, on generated data;
one is killed, resumed, reloaded and used. Metrics are those of mmdet and mmseg on images that were not trained on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from PIL import Image
from synthetic_ade import make_ade
from synthetic_coco import make_shapes, make_textured

from tinyvit_zoo.common.determinism import one_thread
from tinyvit_zoo.downstream.detection import engine
from tinyvit_zoo.downstream.detection.curves import read_points
from tinyvit_zoo.downstream.detection.custom_data import CustomData, use_custom_data
from tinyvit_zoo.downstream.detection.packaged_configs import read_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

CASCADE = 'ci_cascade_mask_rcnn_tinyvit_5m'
COCO_DATA = ('--train-annotations', 'train.json', '--validation-annotations', 'val.json')
EVERY_ITERATION = ('default_hooks.logger.interval=1', 'log_processor.window_size=1')
SHORT = ('train_cfg.max_iters=40', 'train_cfg.val_interval=40', 'param_scheduler.1.milestones=[30]')
BOX, MASK = 'coco/bbox_mAP_50', 'coco/segm_mAP_50'


@HOOKS.register_module()
class ValidateFirst(Hook):
    """Records the metrics of the random model."""

    priority = 'LOWEST'  # CurvesHook runs first

    def before_train(self, runner):
        runner.val_loop.run()


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp('data')
    return dict(
        shapes=make_shapes(root / 'shapes'), textured=make_textured(root / 'textured'), ade=make_ade(root / 'ade')
    )


def train(name, root, work_dir, *options) -> tuple[list[float], dict[str, float], dict[str, float]]:
    """Losses by iteration, and the metrics before and after the training."""
    config = read_config(name, options)
    config.custom_hooks = [*config.custom_hooks, dict(type='ValidateFirst')]
    next(hook for hook in config.custom_hooks if hook['type'] == 'CurvesHook')['interval'] = 1
    coco = dict(train_annotations=Path('train.json'), validation_annotations=Path('val.json'))
    use_custom_data(config, CustomData(root, **({} if config.default_scope == 'mmseg' else coco)))
    engine.train(config, engine.Run(work_dir))
    for figure in ('losses.png', 'metrics.png'):
        with Image.open(work_dir / figure) as image:
            assert min(image.size) > 300
    points = read_points(work_dir / 'curves.csv', until=10**9)
    losses = [value for _, name, value in points if name == 'train/loss']
    before, after = (
        {name.removeprefix('val/'): value for at, name, value in points if name.startswith('val/') and at == iteration}
        for iteration in (0, len(losses))
    )
    return losses, before, after


def assert_halved(losses: list[float]) -> None:
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < losses[0] / 2


@pytest.mark.full  # the same detector learns shapes below
def test_cascade_learns_textured_objects(data, tmp_path):
    losses, before, after = train(CASCADE, data['textured'], tmp_path / 'run')
    assert len(losses) == 60
    assert_halved(losses)
    for metric in (BOX, MASK):
        assert before.get(metric, 0) < 0.1  # mmdet reports no metric if nothing is found
        assert after[metric] > 0.5


@pytest.mark.parametrize(
    ('name', 'metrics', 'options'),
    [
        # The next one is the same detector with one loss more.
        pytest.param('ci_cascade_mask_rcnn_mini_swin_tiny', (BOX, MASK), SHORT, marks=pytest.mark.full),
        ('ci_distilled_cascade_mini_swin_tiny', (BOX, MASK), SHORT),
        ('ci_mask_rcnn_vit_pyramid_tinymim', (BOX, MASK), ()),
        ('ci_retinanet_tinyvit_5m', (BOX,), ()),
    ],
)
def test_detectors_learn(data, tmp_path, name, metrics, options):
    losses, before, after = train(name, data['shapes'], tmp_path / 'run', *options)
    assert_halved(losses)
    for metric in metrics:
        assert after[metric] > before.get(metric, 0) + 0.2  # mmdet reports no metric if nothing is found


def test_upernet_learns(data, tmp_path):
    losses, before, after = train('ci_upernet_tinyvit_5m', data['ade'], tmp_path / 'run')
    assert_halved(losses)
    assert after['mIoU'] > before['mIoU'] + 20  # percent


# ---- one that is killed


def start(work_dir: Path, root: Path, *more: str) -> subprocess.Popen:
    command = (sys.executable, '-m', 'tinyvit_zoo.cli', 'detect', 'train', CASCADE, '--work-dir', work_dir, '-d', root)
    with (work_dir.parent / f'{work_dir.name}.log').open('ab') as log:
        return subprocess.Popen(
            [*map(str, command), *COCO_DATA, *more, '--cfg-options', *EVERY_ITERATION],
            env={**os.environ, 'OMP_NUM_THREADS': '1'}, stdout=log, stderr=log,
        )  # fmt: skip


def logged(work_dir: Path) -> list[dict]:
    """mmengine's record of each iteration, oldest run first."""
    files = sorted(work_dir.glob('*/vis_data/scalars.json'))
    entries = [json.loads(line) for file in files for line in file.read_text().splitlines() if line.endswith('}')]
    return [entry for entry in entries if 'loss' in entry]


@pytest.fixture(scope='module')
def resumed(data, tmp_path_factory) -> tuple[Path, list[dict]]:
    """A training of 60 iterations that was killed (SIGKILL) after the 34th, its checkpoint at 30, and resumed."""
    work_dir = tmp_path_factory.mktemp('killed') / 'run'
    process = start(work_dir, data['shapes'])
    while process.poll() is None and not any(entry['step'] >= 34 for entry in logged(work_dir)):
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, (work_dir.parent / 'run.log').read_text()[-3000:]
    killed = logged(work_dir)
    time.sleep(1)  # mmengine names its folders by the second
    assert start(work_dir, data['shapes'], '--resume').wait() == 0, (work_dir.parent / 'run.log').read_text()[-3000:]
    return work_dir, killed


def test_a_killed_training_resumes_with_the_same_losses(resumed):
    work_dir, killed = resumed
    before = {entry['step']: entry for entry in killed}
    after = {entry['step']: entry for entry in logged(work_dir)[len(killed) :]}
    assert sorted(after) == list(range(31, 61))
    both = sorted(before.keys() & after.keys())
    assert both[:4] == [31, 32, 33, 34]
    for step in both:
        for key in ('loss', 'loss_rpn_cls', 's2.loss_bbox', 's0.loss_mask', 'grad_norm', 'lr'):
            assert after[step][key] == pytest.approx(before[step][key], rel=1e-4), (step, key)


def test_the_resumed_cascade_has_learned_the_shapes(resumed):
    work_dir, killed = resumed
    points = read_points(work_dir / 'curves.csv', until=10**9)
    metrics = {name: value for _, name, value in points if name.startswith('val/')}
    assert metrics[f'val/{BOX}'] > 0.5
    assert metrics[f'val/{MASK}'] > 0.5
    losses = [entry['loss'] for entry in logged(work_dir)]
    assert killed[0]['step'] == 1
    assert np.mean(losses[-5:]) < losses[0] / 2
    steps = [step for step, name, _ in points if name == 'train/loss']
    assert steps == [10, 20, 30, 40, 50, 60]  # over both runs
    assert list(work_dir.glob('*/vis_data/events.out.tfevents.*'))


def test_the_written_config_and_checkpoint_test_and_predict(resumed, data, cli, tmp_path):
    work_dir, _ = resumed
    config, checkpoint = work_dir / f'{CASCADE}.py', work_dir / 'iter_60.pth'
    code, out, err = cli('detect', 'test', config, checkpoint, '--work-dir', tmp_path / 'test')
    assert code == 0, err
    written = json.loads((tmp_path / 'test' / 'test_results.json').read_text())['metrics']
    points = {name: value for _, name, value in read_points(work_dir / 'curves.csv', until=10**9)}
    for metric in (BOX, MASK):
        assert written[metric] == pytest.approx(points[f'val/{metric}'], abs=1e-6)
        assert f'{metric}: {written[metric]:.4g}' in out

    code, out, err = cli('detect', 'predict', config, checkpoint, data['shapes'] / 'val', '-o', tmp_path / 'drawn')
    assert code == 0, err
    truth = json.loads((data['shapes'] / 'val.json').read_text())
    for image in truth['images']:
        file = data['shapes'] / 'val' / image['file_name']
        record = json.loads((tmp_path / 'drawn' / f'{file.stem}.json').read_text())
        with Image.open(file) as before, Image.open(tmp_path / 'drawn' / file.name) as after:
            assert after.size == before.size == (record['width'], record['height'])
            changed = np.asarray(after) != np.asarray(before.convert('RGB'))
        sure = [found for found in record['objects'] if found['score'] > 0.5]
        assert sure
        for found in sure:
            assert found['mask']['size'] == [record['height'], record['width']]
            x0, y0, x1, y1 = (int(v) for v in found['box'])
            assert changed[max(0, y0) : y1, max(0, x0) : x1].mean() > 0.3  # painted where the object is
        assert not changed[0, 0].any() or any(found['box'][0] < 1 for found in sure)
