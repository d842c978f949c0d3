"""The commands `detect ...`: configs by name, a user's own data, and one clear sentence for every error."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image
from synthetic_ade import make_ade
from synthetic_coco import make_shapes

from tinyvit_zoo.checkpoints import CheckpointError
from tinyvit_zoo.downstream.detection import bench
from tinyvit_zoo.downstream.detection.custom_data import CustomData, use_custom_data
from tinyvit_zoo.downstream.detection.detector_checkpoint import check_start
from tinyvit_zoo.downstream.detection.packaged_configs import all_configs, read_config
from tinyvit_zoo.downstream.detection.predict import Found, write_predictions

pytestmark = pytest.mark.slow  # mmdet's import alone takes seconds

RETINANET = 'ci_retinanet_tinyvit_5m'
UPERNET = 'ci_upernet_tinyvit_5m'
ANNOTATIONS = ('--train-annotations', 'train.json', '--validation-annotations', 'val.json')
TWO_ITERATIONS = ('train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'train_dataloader.batch_size=1')


@pytest.fixture(scope='module')
def shapes(tmp_path_factory) -> Path:
    return make_shapes(tmp_path_factory.mktemp('shapes'), train=3, val=1, size=96)


@pytest.fixture
def own(shapes, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(shapes, tmp_path / 'own'))


def build(name, *options):
    config = read_config(name, options)
    init_default_scope(config.default_scope)
    return MODELS.build(config.model)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory) -> Path:
    """Checkpoint of a RetinaNet with random weights."""
    path = tmp_path_factory.mktemp('checkpoint') / 'retinanet.pth'
    torch.save(dict(meta={}, state_dict=build(RETINANET).state_dict()), path)
    return path


def change(path: Path, act) -> None:
    content = json.loads(path.read_text())
    act(content)
    path.write_text(json.dumps(content))


def complaint(answer, *words) -> str:
    code, _, err = answer
    last = err.strip().splitlines()[-1] if err.strip() else ''
    assert code in (1, 2), err
    assert 'Traceback' not in err
    for word in words:
        assert word in last, last
    return last


# ---- configs


def test_configs_are_listed_with_their_descriptions(cli):
    code, out, _ = cli('detect', 'config')
    assert code == 0
    for name, path in all_configs().items():
        assert f'{name}\n    ' in out
        assert path.is_file()
    lines = out.splitlines()
    assert all(len(line.strip()) > 20 for line in lines[1::2])


@pytest.mark.parametrize('name', ['cascade_mask_rcnn_tinyvit_21m_fpn_1x_coco', RETINANET, UPERNET])
def test_a_config_is_written_whole(cli, tmp_path, name):
    path = tmp_path / 'my.py'
    code, out, err = cli('detect', 'config', name, '-o', path)
    assert (code, out.strip()) == (0, str(path)), err
    text = path.read_text()
    assert text.startswith(f'# Made by: tinyvit-zoo detect config {name}\n')
    assert not any(line.startswith('_base_') for line in text.splitlines())
    assert Config.fromfile(path).to_dict() == read_config(name).to_dict()
    before = path.read_bytes()
    complaint(cli('detect', 'config', RETINANET, '-o', path), str(path), '--force')
    assert path.read_bytes() == before
    assert cli('detect', 'config', RETINANET, '-o', path, '--force')[0] == 0
    assert path.read_bytes() != before or name == RETINANET


def test_unknown_configs_get_the_nearest_names(cli, tmp_path):
    complaint(
        cli('detect', 'config', 'cascade_mask_rcnn_tinyvit_21m'), 'Did you mean cascade_mask_rcnn_tinyvit_21m_fpn'
    )
    complaint(cli('detect', 'config', 'xyz'), 'detect config')
    complaint(cli('detect', 'config', RETINANET, '-o', tmp_path / 'my.txt'), 'my.py')
    (tmp_path / 'broken.py').write_text('model = dict(')
    complaint(cli('detect', 'config', tmp_path / 'broken.py'), 'cannot be read as a config')


def test_options_are_those_of_mmdet(cli):
    config = read_config(RETINANET, ['train_cfg.max_iters=7', 'model.backbone.out_indices=1,2,3', 'work_dir=there'])
    assert config.train_cfg.max_iters == 7
    assert list(config.model.backbone.out_indices) == [1, 2, 3]
    assert config.work_dir == 'there'
    complaint(cli('detect', 'train', RETINANET, '--cfg-options', 'lr'), 'KEY=VALUE')
    complaint(cli('detect', 'train', RETINANET, 'extra'), "'extra' is one argument too many")


# ---- a user's own data


def test_custom_data_sets_files_classes_and_heads(shapes, own):
    change(own / 'train.json', lambda c: c['categories'].append(dict(id=3, name='star')))
    config = read_config('cascade_mask_rcnn_tinyvit_5m_fpn_1x_coco')
    classes = use_custom_data(config, CustomData(own, Path('train.json'), validation_annotations=Path('val.json')))
    assert classes == ('rectangle', 'circle', 'star')
    assert [head.num_classes for head in config.model.roi_head.bbox_head] == [3, 3, 3]
    assert config.model.roi_head.mask_head.num_classes == 3
    train, val = config.train_dataloader.dataset, config.val_dataloader.dataset
    assert Path(train.ann_file) == own / 'train.json'
    assert Path(train.data_prefix.img) == own / 'train'  # found: a folder of the annotations' name
    assert Path(val.data_prefix.img) == own / 'val'
    assert tuple(train.metainfo.classes) == tuple(val.metainfo.classes) == classes
    assert Path(config.val_evaluator.ann_file) == own / 'val.json'
    assert Path(config.test_evaluator.ann_file) == own / 'val.json'

    two = read_config('mask_rcnn_tinyvit_5m_fpn_1x_coco')
    assert use_custom_data(two, CustomData(own, Path('train.json'), classes=('circle', 'star'))) == ('circle', 'star')
    assert two.model.roi_head.bbox_head.num_classes == 2


def test_training_on_custom_data_takes_three_commands(cli, own, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = cli('detect', 'train', RETINANET, '-d', own, *ANNOTATIONS, '--cfg-options', *TWO_ITERATIONS)
    assert code == 0, err
    assert '2 classes: rectangle, circle' in out
    folder = tmp_path / 'work_dirs' / RETINANET
    assert (folder / 'iter_2.pth').is_file()
    assert (folder / 'losses.png').is_file()
    # The commands printed as the next ones work as printed.
    lines = [line.partition('tinyvit-zoo ')[2].split() for line in out.splitlines() if 'tinyvit-zoo detect' in line]
    own_events = {path.name for path in folder.glob('*/vis_data/*')}
    assert 'scalars.json' in own_events  # not in the folder of an earlier run of this process
    code, out, err = cli(*lines[0])
    assert code == 0, err
    assert 'coco/bbox_mAP: ' in out or 'there are no metrics' in out  # two iterations may find nothing
    code, out, err = cli(*[{'IMAGE': str(own / 'val'), 'FOLDER': 'out'}.get(word, word) for word in lines[1]])
    assert code == 0, err
    assert (tmp_path / 'out' / '0001.json').is_file()
    # A second run neither overwrites it nor trains further.
    again = cli('detect', 'train', RETINANET, '-d', own, *ANNOTATIONS, '--cfg-options', *TWO_ITERATIONS)
    complaint(again, 'iter_2.pth of an earlier run', '--resume')


def test_a_test_on_a_file_of_other_order_ids_and_fewer_classes_keeps_the_classes(cli, checkpoint, own, tmp_path):
    def reverse(content):
        content['categories'] = [dict(id=9, name='circle')]
        content['annotations'] = [dict(a, category_id=9) for a in content['annotations'] if a['category_id'] == 2]

    change(own / 'train.json', reverse)
    data = ('-d', own, '--validation-annotations', 'train.json')
    code, out, err = cli('detect', 'test', RETINANET, checkpoint, *data, '--work-dir', tmp_path)
    assert code == 0, err
    assert '2 classes: rectangle, circle' in out
    assert 'no object of 1 of 2 classes' in out
    written = Config.fromfile(tmp_path / f'{RETINANET}.py')
    assert written.test_dataloader.dataset.metainfo.classes == ('rectangle', 'circle')


def test_a_training_without_workers_or_a_validation_file_of_its_own(cli, own, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaders = [
        f'{part}_dataloader.{key}' for part in ('train', 'val') for key in ('num_workers=0', 'persistent_workers=1')
    ]
    answer = cli('detect', 'train', RETINANET, '-d', own, *ANNOTATIONS, '--cfg-options', *TWO_ITERATIONS, *loaders)
    assert answer[0] == 0, answer[2]
    alone = cli('detect', 'train', RETINANET, '-d', own, *ANNOTATIONS[:2], '--work-dir', tmp_path / 'run')
    complaint(alone, 'data/shapes/val.json', '--validation-annotations')
    assert 'The validation is on data/shapes/val.json, as the config says' in alone[1]


def test_an_image_of_one_row_is_left_out_or_passes(cli, own, tmp_path):
    for part in ('train', 'val'):
        Image.new('RGB', (300, 1)).save(own / part / 'line.png')
        image = dict(id=99, file_name='line.png', width=300, height=1)
        one = dict(id=999, image_id=99, category_id=1, bbox=[5, 0, 20, 1], area=20, iscrowd=0)
        one['segmentation'] = [[5, 0, 25, 0, 25, 1, 5, 1]]
        change(own / f'{part}.json', lambda c, i=image, a=one: (c['images'].append(i), c['annotations'].append(a)))
    code, _, err = cli(
        'detect', 'train', RETINANET, '-d', own, *ANNOTATIONS, '--work-dir', tmp_path / 'run', '--cfg-options',
        'train_cfg.max_iters=4', 'train_cfg.val_interval=4', 'train_dataloader.batch_size=1',
    )  # fmt: skip
    assert code == 0, err


DAMAGED = {
    'no annotations': (lambda own: os.remove(own / 'train.json'), 'train.json'),
    'no JSON': (lambda own: (own / 'train.json').write_text('{'), 'not a JSON file'),
    'not COCO': (lambda own: (own / 'train.json').write_text('[]'), "COCO's format"),
    'no images at all': (
        lambda own: change(own / 'train.json', lambda content: content.update(images=[])),
        'names no images',
    ),
    'no image': (lambda own: os.remove(own / 'train' / '0002.png'), '1 of 3 images'),
    'no validation image': (lambda own: os.remove(own / 'val' / '0001.png'), '0001.png'),
    'other categories': (
        lambda own: change(own / 'val.json', lambda c: [k.update(name=f'other{k["id"]}') for k in c['categories']]),
        'None of the classes',
    ),
}


@pytest.mark.parametrize('case', DAMAGED)
def test_damaged_data_is_reported_before_the_training(cli, own, tmp_path, case):
    damage, words = DAMAGED[case]
    damage(own)
    answer = cli('detect', 'train', RETINANET, '-d', own, *ANNOTATIONS, '--work-dir', tmp_path / 'run')
    complaint(answer, words)
    assert not list((tmp_path / 'run').glob('*.pth'))


def test_an_object_without_a_mask_is_reported_where_masks_are_learned(cli, own, tmp_path):
    change(own / 'train.json', lambda c: c['annotations'][1].update(segmentation=[]))
    arguments = ('-d', own, *ANNOTATIONS, '--work-dir', tmp_path / 'run')
    complaint(cli('detect', 'train', 'ci_mask_rcnn_tinyvit_5m', *arguments), 'Object 2 of image', 'empty mask')
    assert cli('detect', 'train', RETINANET, *arguments, '--cfg-options', *TWO_ITERATIONS)[0] == 0


def test_another_number_of_classes_is_reported(cli, own, tmp_path):
    root = f'{own}/'
    answer = cli(
        'detect', 'train', RETINANET, '--work-dir', tmp_path / 'run', '--cfg-options', 'model.bbox_head.num_classes=5',
        *(f'{loader}_dataloader.dataset.data_root={root}' for loader in ('train', 'val')),
    )  # fmt: skip
    complaint(answer, 'has 5 classes, the data set 2', '--classes')


def test_impossible_requests_are_refused(cli, shapes, tmp_path):
    complaint(cli('detect', 'train', RETINANET, '-d', tmp_path / 'none', *ANNOTATIONS), 'There is no folder')
    complaint(cli('detect', 'train', RETINANET, '-d', shapes), '--train-annotations')
    complaint(cli('detect', 'train', RETINANET, '--classes', 'a,b'), '--data DIR')
    if not torch.cuda.is_available():
        answer = cli('detect', 'train', RETINANET, '-d', shapes, *ANNOTATIONS, '--amp', '--work-dir', tmp_path / 'run')
        complaint(answer, '--amp needs a GPU')


# ---- checkpoints


def predict(cli, config, checkpoint, shapes, tmp_path):
    return cli('detect', 'predict', config, checkpoint, shapes / 'val', '-o', tmp_path / 'out')


def test_checkpoints_of_other_models_are_refused(cli, checkpoint, shapes, tmp_path):
    other = predict(cli, 'ci_mask_rcnn_tinyvit_5m', checkpoint, shapes, tmp_path)
    complaint(other, 'not a checkpoint of this model', 'rpn_head', 'Nothing was loaded')
    other_backbone = cli('detect', 'test', 'ci_cascade_mask_rcnn_mini_swin_tiny', checkpoint, '--work-dir', tmp_path)
    complaint(other_backbone)  # data and weights are both missing: one sentence in any case
    torch.save(dict(state_dict=build(RETINANET, 'model.bbox_head.num_classes=7').state_dict()), tmp_path / '7.pth')
    complaint(predict(cli, RETINANET, tmp_path / '7.pth', shapes, tmp_path), 'another number of classes')
    classifier = {k.removeprefix('backbone.net.'): v for k, v in build(RETINANET).backbone.state_dict().items()}
    torch.save(dict(model=classifier), tmp_path / 'classifier.pth')
    complaint(predict(cli, RETINANET, tmp_path / 'classifier.pth', shapes, tmp_path), 'not a checkpoint of this model')
    assert not list((tmp_path / 'out').glob('*.png'))


def test_a_checkpoint_of_other_classes_or_another_order_is_refused(cli, shapes, tmp_path):
    model = build(RETINANET)
    for classes in (('circle', 'rectangle'), ('cat', 'dog')):
        saved = dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=classes)))
        torch.save(saved, tmp_path / 'other.pth')
        words = (f'trained with the classes {", ".join(classes)}', 'rectangle, circle')
        complaint(predict(cli, RETINANET, tmp_path / 'other.pth', shapes, tmp_path), *words)
        tested = ('detect', 'test', RETINANET, tmp_path / 'other.pth', '-d', shapes, '--work-dir', tmp_path / 'test')
        complaint(cli(*tested, '--validation-annotations', 'val.json'), *words)
        assert ', '.join(classes) in check_start(model, tmp_path / 'other.pth', ('rectangle', 'circle'))
    assert check_start(model, tmp_path / 'other.pth', ('cat', 'dog')) == ''


def test_damaged_and_missing_checkpoints_are_refused(cli, checkpoint, shapes, tmp_path):
    complaint(predict(cli, RETINANET, tmp_path / 'none.pth', shapes, tmp_path), 'No checkpoint at')
    (tmp_path / 'half.pth').write_bytes(checkpoint.read_bytes()[:100_000])
    complaint(predict(cli, RETINANET, tmp_path / 'half.pth', shapes, tmp_path), 'damaged or cut short')


def test_a_training_starts_from_a_detector_of_other_classes_but_not_of_another_model(cli, checkpoint, shapes, tmp_path):
    ours = build(RETINANET)
    assert check_start(ours, checkpoint) == ''
    torch.save(dict(state_dict=build(RETINANET, 'model.bbox_head.num_classes=7').state_dict()), tmp_path / '7.pth')
    assert 'bbox_head.retina_cls' in check_start(ours, tmp_path / '7.pth')
    with pytest.raises(CheckpointError, match='not a checkpoint of this model'):
        check_start(
            build('ci_retinanet_tinyvit_5m', 'model.neck.out_channels=32', 'model.bbox_head.in_channels=32'), checkpoint
        )
    command = ('detect', 'train', 'ci_cascade_mask_rcnn_mini_swin_tiny', '-d', shapes, *ANNOTATIONS)
    answer = cli(*command, '--work-dir', tmp_path / 'run', '--load-from', checkpoint)
    complaint(answer, 'not a checkpoint of this model', 'backbone.')
    assert not list((tmp_path / 'run').glob('*.pth'))


# ---- images


def test_images_of_any_kind_are_read_and_bad_ones_reported(cli, checkpoint, shapes, tmp_path):
    folder = tmp_path / 'in'
    folder.mkdir()
    Image.new('L', (80, 60), 90).save(folder / 'grey.jpg')
    Image.new('RGBA', (60, 80), (200, 30, 30, 128)).save(folder / 'clear.png')
    turned = Image.new('RGB', (100, 50))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(folder / 'turned.jpg', exif=exif)
    code, out, err = cli('detect', 'predict', RETINANET, checkpoint, folder, '-o', tmp_path / 'out', '--threshold', 0.9)
    assert code == 0, err
    assert out.count('nothing found') == 3
    assert json.loads((tmp_path / 'out' / 'turned.json').read_text())['width'] == 50
    assert json.loads((tmp_path / 'out' / 'grey.json').read_text())['objects'] == []

    def run(*images):
        return cli('detect', 'predict', RETINANET, checkpoint, *images, '-o', tmp_path / 'out')

    (tmp_path / 'text.png').write_text('no image')
    complaint(run(tmp_path / 'text.png'), 'text.png is not an image of a known format')
    complaint(run(tmp_path / 'text.png', '--skip-unreadable'), 'text.png')  # nothing was done
    complaint(run(tmp_path / 'none.png'), 'There is no image')
    (tmp_path / 'empty').mkdir()
    complaint(run(tmp_path / 'empty'), 'holds no images')
    shutil.copy(folder / 'grey.jpg', tmp_path / 'grey.jpg')
    complaint(run(folder / 'grey.jpg', tmp_path / 'grey.jpg'), "'grey'")
    shutil.copy(folder / 'clear.png', tmp_path / 'out' / 'mine.png')
    complaint(run(tmp_path / 'out' / 'mine.png'), 'would be replaced')
    annotated = tmp_path / 'out' / 'clear.json'
    annotated.write_text('{"shapes": [], "imageHeight": 80}')
    complaint(run(folder / 'clear.png'), f'{annotated} is of something else and would be replaced')
    assert 'shapes' in annotated.read_text()
    annotated.unlink()  # what is left may be a photograph
    complaint(run(folder / 'clear.png'), 'clear.png is of something else and would be replaced')
    assert run(folder / 'grey.jpg')[0] == 0  # its own predictions may be replaced


@pytest.mark.parametrize('renames', range(4), ids=lambda number: f'after-{number}')
def test_a_run_that_was_killed_between_its_files_is_no_obstacle_to_the_next(tmp_path, monkeypatch, renames):
    def predictor(image: Image.Image) -> Found:
        return Found(np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=int))

    predictor.classes = ()
    Image.new('RGB', (8, 8)).save(tmp_path / 'photo.jpg')
    out = tmp_path / 'out'

    def run() -> list[Path]:
        return [drawn for drawn, _ in write_predictions(predictor, [tmp_path / 'photo.jpg'], out)]

    run()
    child = os.fork()
    if not child:
        left = itertools.count(renames, -1)

        def killed(step):
            def rename(*names):
                if not next(left):
                    os._exit(9)
                return step(*names)

            return rename

        monkeypatch.setattr(Path, 'rename', killed(Path.rename))
        monkeypatch.setattr(Path, 'replace', killed(Path.replace))
        try:
            run()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert run() == [out / 'photo.png']
    assert sorted(path.name for path in out.iterdir()) == ['photo.json', 'photo.png']


@pytest.mark.parametrize('name', [RETINANET, UPERNET])
def test_images_that_cannot_be_read_or_resized_are_named_and_the_others_done(cli, checkpoint, tmp_path, name):
    if name == UPERNET:
        checkpoint = tmp_path / 'upernet.pth'
        torch.save(dict(state_dict=build(UPERNET).state_dict()), checkpoint)
    folder = tmp_path / 'in'
    folder.mkdir()
    for stem, size in dict(a=(40, 40), h=(1, 1), m=(3000, 2), n=(2, 3000), z=(40, 40)).items():
        Image.new('RGB', size, (9, 99, 9)).save(folder / f'{stem}.png')
    (folder / 'b.jpg').write_bytes(b'\xff\xd8\xff no picture')
    Image.new('F', (40, 40), 1e9).save(folder / 'c.tif')
    (folder / '._a.png').write_text('what macOS leaves')
    for skip in ((), ('--skip-unreadable',)):
        output = tmp_path / f'out{len(skip)}'
        code, _, err = cli('detect', 'predict', name, checkpoint, folder, '-o', output, '--threshold', 0.9, *skip)
        assert code == (0 if skip else 1)
        assert sorted(path.stem for path in output.glob('*.json')) == ['a', 'h', 'z']
        sentences = [line for line in err.splitlines() if str(folder) in line]
        for sentence, words in zip(sentences, ('b.jpg', 'c.tif', 'm.png: An image of 3000x2', 'n.png'), strict=True):
            assert words in sentence
        assert 'OpenCV' not in err


def test_a_16_bit_image_is_predicted_like_the_8_bit_one(cli, checkpoint, shapes, tmp_path):
    folder = tmp_path / 'in'
    folder.mkdir()
    with Image.open(shapes / 'val' / '0001.png') as image:
        grey = image.convert('L')
    grey.save(folder / 'eight.png')
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(folder / 'sixteen.png')
    assert cli('detect', 'predict', RETINANET, checkpoint, folder, '-o', tmp_path / 'out', '--threshold', 0)[0] == 0
    eight, sixteen = (json.loads((tmp_path / 'out' / f'{name}.json').read_text()) for name in ('eight', 'sixteen'))
    assert eight['objects']
    assert eight['objects'] == sixteen['objects']


def test_a_segmentation_is_drawn_over_the_image(cli, tmp_path):
    root = make_ade(tmp_path / 'ade', train=1, val=1, size=64)
    torch.save(dict(state_dict=build(UPERNET).state_dict()), tmp_path / 'upernet.pth')
    images = root / 'images' / 'validation'
    code, out, err = cli('detect', 'predict', UPERNET, tmp_path / 'upernet.pth', images, '-o', tmp_path / 'out')
    assert code == 0, err
    assert ' %' in out
    record = json.loads((tmp_path / 'out' / '0000.json').read_text())
    assert sum(record['shares'].values()) == pytest.approx(1, abs=1e-4)
    with Image.open(tmp_path / 'out' / '0000.png') as drawn, Image.open(images / '0000.jpg') as image:
        assert drawn.height > image.height  # with a legend below
        top = np.asarray(drawn)[: image.height, : image.width]
        assert (top != np.asarray(image)).mean() > 0.5


# ---- in separate processes


def in_process(*command, cwd=None, **environment) -> subprocess.CompletedProcess:
    env = {**os.environ, 'OMP_NUM_THREADS': '1', **environment}
    return subprocess.run([*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True, timeout=500)


def test_a_folder_called_downstream_is_not_in_the_way(tmp_path):
    (tmp_path / 'downstream').mkdir()
    (tmp_path / 'downstream' / '__init__.py').write_text("raise SystemExit('the wrong one')")
    done = in_process(sys.executable, '-m', 'tinyvit_zoo.cli', 'detect', 'config', UPERNET, '-o', 'my.py', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'my.py').is_file()


def test_stock_tools_take_a_packaged_config(shapes, tmp_path):
    import mmdet

    tools = Path(mmdet.__file__).parent / '.mim' / 'tools'
    config = all_configs()[RETINANET]
    options = (
        '--work-dir', tmp_path / 'run', '--cfg-options', *TWO_ITERATIONS,
        *(f'{loader}_dataloader.dataset.data_root={shapes}/' for loader in ('train', 'val', 'test')),
        *(f'{kind}_evaluator.ann_file={shapes}/val.json' for kind in ('val', 'test')),
    )  # fmt: skip
    # `custom_imports` of the config installs the stand-in in time.
    done = in_process(sys.executable, tools / 'train.py', config, *options)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / 'run' / 'iter_2.pth').is_file()
    assert (tmp_path / 'run' / 'losses.png').is_file()
    # test.py imports mmcv's operators before it reads the config, which is why there is `install-ops`.
    start = f'import tinyvit_zoo.downstream.detection, runpy, sys; sys.argv[0] = {str(tools / "test.py")!r}; '
    start += "runpy.run_path(sys.argv[0], run_name='__main__')"
    done = in_process(sys.executable, '-c', start, config, tmp_path / 'run' / 'iter_2.pth', *options)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'Iter(test) [1/1]' in done.stdout + done.stderr


def test_two_processes_resume_with_the_same_losses(shapes, tmp_path):
    def run(folder, *more):
        done = in_process(
            sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node=2', '--standalone',
            '-m', 'tinyvit_zoo.cli', 'detect', 'train', RETINANET, '-d', shapes, *ANNOTATIONS, '--work-dir', folder,
            *more, '--cfg-options', 'train_dataloader.batch_size=1', 'train_cfg.max_iters=3',
            'train_cfg.val_interval=99', 'default_hooks.logger.interval=1', 'log_processor.window_size=1',
            'default_hooks.checkpoint.interval=2',
            CUDA_VISIBLE_DEVICES='',
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count('Next: tinyvit-zoo detect test') == 1  # one process prints
        logs = sorted(folder.glob('*/vis_data/scalars.json'))
        entries = map(json.loads, logs[-1].read_text().splitlines())
        return {entry['step']: entry['loss'] for entry in entries if 'loss' in entry}

    whole = run(tmp_path / 'run')
    assert sorted(whole) == [1, 2, 3]
    os.remove(tmp_path / 'run' / 'iter_3.pth')  # as if it had been killed before
    assert run(tmp_path / 'run', '--resume') == pytest.approx({3: whole[3]}, rel=1e-4)


# ---- bench


def test_bench_compares_time_memory_and_size(cli, tmp_path):
    names = ('tinyvit_5m_224', 'tinyvit_5m_224+cp', bench.SWIN)
    code, out, err = cli('detect', 'bench', *names, '--img-size', 160, '--rounds', 1, '-o', tmp_path)
    assert code == 0, err
    result = json.loads((tmp_path / 'bench.json').read_text())
    rows = result['backbones']
    assert set(rows) == set(names)
    assert rows[bench.SWIN]['channels'] == [96, 192, 384, 768]
    assert rows[bench.SWIN]['parameters'] > 27e6 > 8e6 > rows[names[0]]['parameters']
    assert all(len(row['forward_s']) == len(row['training_step_s']) == 1 for row in rows.values())
    if sys.platform == 'linux':
        assert 0 < rows[names[1]]['step_peak_bytes'] < rows[names[0]]['step_peak_bytes']  # gradient checkpointing
    assert set(result['ratios'][bench.SWIN]) == set(names[:2])
    assert 'times as fast' in out
    complaint(cli('detect', 'bench', 'resnet_of_nobody'), "'resnet_of_nobody' cannot be made as a backbone")
    complaint(cli('detect', 'bench', 'tinyvit_5m_224+cq'), 'only +cp and numbers')


def test_bench_lays_a_backbone_out_as_a_config_does():
    net = bench.build(bench.DEFAULT[-2]).net
    assert net.img_size == (448, 448)
    assert [stage.shift for stage in net.stages] == [(3, 3)] * 4
