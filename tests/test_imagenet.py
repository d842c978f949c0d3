"""Evaluation of classifiers on small trees with the names of ImageNet's, with a model whose outputs are known."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import refused
from PIL import Image
from timm.data import ImageNetInfo, create_transform
from timm.data.real_labels import RealLabelsImagenet
from torch import nn

from tinyvit_zoo.checkpoints.head_22k import CLASSES_22K, head_22k_to_1k, in1k_classes_in_22k
from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.data.class_map import map_classes
from tinyvit_zoo.data.datasets import load_dataset
from tinyvit_zoo.data.folders import read_class_folders, read_folder
from tinyvit_zoo.data.image_dataset import Arrays, ImageDataset
from tinyvit_zoo.downstream.imagenet import evaluate
from tinyvit_zoo.downstream.imagenet_c import (
    ALEXNET_CLEAN_ERROR,
    ALEXNET_ERRORS,
    SEVERITIES,
    Corruptions,
    evaluate_corruptions,
)
from tinyvit_zoo.downstream.reports.imagenet import print_scores, write_scores

WNIDS = ImageNetInfo('imagenet-1k').label_names()
INFO = Path(timm.data.__file__).parent / '_info'


class Oracle(nn.Module):
    """Returns the row of a table that the color of an image encodes."""

    def __init__(self, table: torch.Tensor, **cfg) -> None:
        super().__init__()
        self.table = nn.Parameter(table.float())
        self.num_classes = table.shape[1]
        self.pretrained_cfg = dict(
            input_size=(3, 4, 4), mean=(0, 0, 0), std=(1, 1, 1), crop_pct=1.0, interpolation='nearest', **cfg
        )

    def forward(self, x):
        red, green = (255 * x[:, :2, 2, 2]).round().long().unbind(dim=1)
        return self.table[256 * green + red]


def image_of(row: int) -> Image.Image:
    """An image that makes an oracle return a row of its table."""
    return Image.new('RGB', (4, 4), (row % 256, row // 256, 0))


def tree(root: Path, rows: dict[str, list[int]]) -> Path:
    """A folder of class folders whose images encode these rows."""
    for name, asked in rows.items():
        (root / name).mkdir(parents=True)
        for i, row in enumerate(asked):
            image_of(row).save(root / name / f'{i:03}.png')
    return root


def one_hot(answers: list[int], outputs: int) -> torch.Tensor:
    return nn.functional.one_hot(torch.tensor(answers), outputs)


def indices(name: str) -> list[int]:
    return [int(line) for line in (INFO / f'imagenet_{name}_indices.txt').read_text().split()]


# top-1, top-5, classes


def test_accuracy_per_class_and_confusion_match_manual_counts(tmp_path):
    # Rows 0 and 1 answer class 0, row 2 answers 1, row 3 answers 2, and the second best is always class 6.
    table = 2 * one_hot([0, 0, 1, 2], 7) + one_hot([6] * 4, 7)
    data = read_folder(tree(tmp_path / 'd', dict(a=[0, 1, 2], b=[2], c=[3, 0], d=[3], e=[0], f=[0], g=[0, 1])), 'all')
    scores = evaluate(Oracle(table), data, batch_size=3)
    assert scores.predictions.tolist() == [0, 0, 1, 1, 2, 0, 2, 0, 0, 0, 0]
    assert scores.right.tolist() == [True, True, False, True, True, *[False] * 6]
    assert scores.top1 == pytest.approx(100 * 4 / 11)
    # g is always second; where an answer is wrong, a to f stand at 2 + number of equal ones before them.
    assert scores.ranks.tolist() == [0, 0, 2, 0, 0, 3, 4, 5, 6, 1, 1]
    assert scores.top5 == pytest.approx(100 * 9 / 11)
    assert scores.per_class == pytest.approx([200 / 3, 100, 50, 0, 0, 0, 0])
    assert scores.confusion[0].tolist() == [2, 1, 0, 0, 0, 0, 0]
    assert scores.confusion.sum() == 11
    assert scores.summary()['mean_per_class'] == pytest.approx(scores.per_class.mean())


def test_a_model_of_any_kind_gives_the_numbers_of_a_plain_loop():
    rng = np.random.default_rng(0)
    data = ImageDataset(
        'noise', 'test', [str(i) for i in range(10)], rng.integers(0, 10, 23),
        Arrays(rng.integers(0, 256, (23, 40, 48, 3), dtype=np.uint8), 'noise'),
    )  # fmt: skip
    model = timm.create_model('resnet10t', num_classes=10).train()
    scores = evaluate(model, data, batch_size=5, overrides=dict(input_size=(3, 32, 32), crop_pct=0.9))
    assert model.training  # left as it was
    assert (scores.preprocessing['crop_pct'], scores.preprocessing['input_size']) == (0.9, (3, 32, 32))

    model.eval()
    transform = create_transform((3, 32, 32), crop_pct=0.9, interpolation=model.pretrained_cfg['interpolation'])
    top1 = top5 = 0
    for image, label in data:
        with torch.inference_mode():
            answers = model(transform(image)[None])[0].topk(5).indices.tolist()
        top1 += answers[0] == label
        top5 += label in answers
    assert (scores.top1, scores.top5) == (100 * top1 / 23, 100 * top5 / 23)


def test_five_classes_have_no_top5_and_a_class_without_images_no_accuracy():
    data = ImageDataset('d', 'test', 'abcde', [0, 0, 1], Arrays(np.zeros((3, 4, 4, 3), np.uint8), 'd'))
    scores = evaluate(Oracle(one_hot([0], 5)), data)
    assert scores.top5 is None
    assert np.isnan(scores.per_class[2:]).all()
    assert scores.summary()['mean_per_class'] == 50


def test_among_equal_scores_the_first_class_ranks_higher():
    data = ImageDataset('d', 'test', WNIDS, [0, 7, 999], Arrays(np.zeros((3, 4, 4, 3), np.uint8), 'd'))
    scores = evaluate(Oracle(torch.zeros(1, 1000)), data)
    assert scores.predictions.tolist() == [0, 0, 0]
    assert scores.ranks.tolist() == [0, 7, 999]


def test_a_model_in_bfloat16_works_and_one_for_grey_images_is_refused(tmp_path):
    dataset = load_dataset('digits', 'test').subset(range(3))
    model = timm.create_model('test_resnet', num_classes=10, in_chans=1)
    refused(lambda: evaluate(model, dataset, progress=False), '1 channel,', 'in_chans=3', kind=EvaluationError)
    model = timm.create_model('test_resnet', num_classes=10).bfloat16()
    assert len(evaluate(model, dataset, progress=False).labels) == 3


@pytest.mark.parametrize('split', ['train', 'validation', 'test'])
def test_only_images_that_papers_report_on_are_for_a_card(split, tmp_path):
    tree(tmp_path / 'data', {WNIDS[7]: [7], WNIDS[9]: [9]})
    dataset = read_class_folders(tmp_path / 'data', 'imagenet-1k', WNIDS)
    dataset.split = split
    model = Oracle(one_hot(list(range(10)), 1000))
    head = dict(model=model, name='x', weights='pretrained', seed=None)
    write_scores(tmp_path / 'out', evaluate(model, dataset, progress=False), dataset, head, lambda text: None)
    assert (tmp_path / 'out' / '.eval_results' / 'imagenet-1k.yaml').exists() == (split != 'train')


def test_cropping_is_the_models_own_or_the_users(tmp_path):
    image = image_of(1).resize((8, 8))
    image.paste((0, 0, 0), (2, 2, 6, 6))  # asks for row 0 in the middle, 1 at the border
    (tmp_path / 'd' / 'a').mkdir(parents=True)
    (tmp_path / 'd' / 'b').mkdir()
    image.save(tmp_path / 'd' / 'a' / 'x.png')

    class Corner(Oracle):
        def forward(self, x):
            return super().forward(x[:, :, :1, :1].expand(-1, -1, 4, 4))

    model = Corner(one_hot([0, 1], 2))
    data = read_folder(tmp_path / 'd', 'all')
    assert evaluate(model, data).predictions.tolist() == [1]
    assert evaluate(model, data, overrides=dict(crop_pct=0.5)).predictions.tolist() == [0]


# ImageNet's relatives


@pytest.mark.parametrize('name', ['a', 'r'])
def test_only_the_outputs_of_the_200_classes_compete(tmp_path, name):
    chosen = indices(name)
    other = next(i for i in range(1000) if i not in chosen)
    # Every image is predicted as a class outside the 200; the true one is second best.
    table = 2 * one_hot([other] * 200, 1000) + one_hot(chosen, 1000)
    rows = {WNIDS[index]: [row] for row, index in enumerate(chosen)}
    scores = evaluate(Oracle(table), read_folder(tree(tmp_path / 'd', rows), 'all'))
    assert scores.top1 == 100
    assert '200 of 1000 outputs compete' in scores.compared
    # What an evaluation with the folder's own numbering among all outputs gives: timm#2456.
    naive = sum(int(table[row].argmax()) == label for label, row in enumerate(range(200)))
    assert naive <= 1


@pytest.mark.parametrize('as_text', [True, False])
def test_numbered_folders_are_not_sorted_as_text(tmp_path, as_text):
    rows = {str(i): [i] for i in range(1000)}
    data = read_folder(tree(tmp_path / 'd', rows), 'all')
    assert data.classes == tuple(map(str, range(1000)))
    if as_text:  # as torchvision sorts them, and sets that were made from it
        classes = sorted(data.classes)
        data = ImageDataset('v2', 'test', classes, np.argsort([int(c) for c in classes])[data.labels], data._source)
    assert evaluate(Oracle(torch.eye(1000)), data).top1 == 100
    table = torch.zeros(1000, CLASSES_22K)
    table[range(1000), in1k_classes_in_22k()] = 1.0
    table[850] = 0.0
    assert evaluate(Oracle(table), data).top1 == 99.9  # all but the class that 22k lacks


def test_a_22k_head_scores_like_its_conversion_to_1k(tmp_path, small):
    model = small(num_classes=CLASSES_22K, img_size=32)
    converted = small(num_classes=1000, img_size=32)
    converted.load_state_dict(head_22k_to_1k(model.state_dict()))
    rng = np.random.default_rng(0)
    labels = np.append(rng.integers(0, 1000, 12), 850)
    pixels = rng.integers(0, 256, (13, 32, 32, 3), dtype=np.uint8)
    data = ImageDataset('in1k', 'test', WNIDS, labels, Arrays(pixels, 'in1k'))
    ours, theirs = (evaluate(m, data, batch_size=13) for m in (model, converted))
    assert ours.predictions.tolist() == theirs.predictions.tolist()
    # The mean of 999 outputs and the output of 999 averaged rows differ by rounding.
    assert np.abs(ours.ranks - theirs.ranks).max() <= 1
    assert 'n04399382 is not among them' in ours.compared
    of_a = [i for i in indices('a') if i != 850]
    masked = ImageDataset('in-a', 'test', [WNIDS[i] for i in of_a], [0], Arrays(pixels[:1], 'in-a'))
    columns = map_classes(model, masked.classes).columns
    assert columns.tolist() == [in1k_classes_in_22k()[i] for i in of_a]


@pytest.mark.parametrize('outputs', [11221, 11821, CLASSES_22K, 21842, 21843])
def test_every_large_head_of_timm_finds_its_1k_outputs(outputs):
    columns = map_classes(Oracle(torch.zeros(1, outputs)), WNIDS).columns
    names = ImageNetInfo(timm.data.infer_imagenet_subset(dict(num_classes=outputs))).label_names()
    assert all(column < 0 or names[column] == wnid for column, wnid in zip(columns.tolist(), WNIDS, strict=True))
    assert (columns >= 0).sum() > 990


def test_real_labels_are_counted_as_timm_counts_them(tmp_path):
    rng = np.random.default_rng(0)
    table = torch.from_numpy(rng.random((40, 1000))).float()
    real = [sorted({int(table[i].topk(9).indices[j]) for j in rng.integers(0, 9, i % 4)}) for i in range(40)]
    pixels = np.stack([np.asarray(image_of(i)) for i in range(40)])
    data = ImageDataset('real', 'validation', WNIDS, rng.integers(0, 1000, 40), Arrays(pixels, 'real'), real)
    scores = evaluate(Oracle(table), data, batch_size=7)
    (tmp_path / 'real.json').write_text(json.dumps(real))
    files = [f'ILSVRC2012_val_{i + 1:08}.JPEG' for i in range(40)]
    theirs = RealLabelsImagenet(files, real_json=tmp_path / 'real.json')
    theirs.add_result(table)
    assert (scores.real(1), scores.real(5)) == pytest.approx((theirs.get_accuracy(1), theirs.get_accuracy(5)))
    assert 0 < scores.real(1) < scores.real(5) < 100
    assert scores.summary()['real_images'] == 30
    assert scores.summary()['real_mean_per_class'] is None
    assert scores.mean_per_class == scores.summary()['mean_per_class']  # by the one label of each image
    said = []
    print_scores(scores, data, dict(name='x', weights='y'), said.append)
    assert 'mean per class' in said[1]
    assert 'no mean per class: an image with several right labels is of no one class' in said[2]


def test_a_model_with_label_names_is_scored_on_the_shared_classes():
    names = ['cat', 'dog', '0', '1']
    model = Oracle(2 * one_hot([0, 1], 4) + one_hot([2, 3], 4), label_names=names)
    pixels = np.stack([np.asarray(image_of(i)) for i in range(2)])
    data = ImageDataset('digits', 'test', ['1', '0'], [1, 0], Arrays(pixels, 'digits'))
    scores = evaluate(model, data)
    assert scores.top1 == 100
    assert '2 of 4 outputs compete' in scores.compared


# what cannot be evaluated


def test_other_classes_than_the_models_are_refused():
    model = Oracle(torch.zeros(1, 1000))
    refused(lambda: map_classes(model, [str(i) for i in range(10)]), '1000 outputs', '10', kind=EvaluationError)
    refused(lambda: map_classes(model, ['n01440764', 'n00000000']), 'n00000000', kind=EvaluationError)
    refused(lambda: map_classes(Oracle(torch.zeros(1, 12)), WNIDS), '12 outputs', '1000', kind=EvaluationError)
    encoder = timm.create_model('test_vit', num_classes=0)
    refused(lambda: map_classes(encoder, WNIDS), 'without classifier', 'probe', kind=EvaluationError)


@pytest.mark.parametrize('workers', [0, 2])
def test_an_image_that_cannot_be_read_is_named(tmp_path, workers):
    data = read_folder(tree(tmp_path / 'd', dict(a=[0], b=[0, 0])), 'all')
    (tmp_path / 'd' / 'b' / '001.png').write_bytes(b'no image')
    model = Oracle(torch.zeros(1, 2))
    message = refused(lambda: evaluate(model, data, workers=workers), 'b/001.png', kind=EvaluationError)
    assert message.startswith(str(tmp_path))


def test_nan_is_refused_with_the_name_of_its_image(tmp_path):
    table = torch.zeros(2, 3)
    table[1, 2] = float('nan')
    data = read_folder(tree(tmp_path / 'd', dict(a=[0], b=[0], c=[0, 1])), 'all')
    refused(lambda: evaluate(Oracle(table), data), 'c/001.png', 'NaN', kind=EvaluationError)


def test_no_image_is_refused():
    data = ImageDataset('d', 'test', 'ab', [], Arrays(np.zeros((0, 4, 4, 3), np.uint8), 'd'))
    refused(lambda: evaluate(Oracle(torch.zeros(1, 2)), data), 'no images', kind=EvaluationError)


# ImageNet-C


@pytest.fixture
def corrupted(tmp_path):
    """All 75 sets, with four images of class a and one of b, and the number of a predicted as b in each."""
    rng = np.random.default_rng(0)
    wrong = {name: rng.integers(0, 5, 5).tolist() for name in ALEXNET_ERRORS}
    for name in ALEXNET_ERRORS:
        for severity, n in zip(SEVERITIES, wrong[name], strict=True):
            tree(tmp_path / 'c' / name / str(severity), dict(a=[1] * n + [0] * (4 - n), b=[1]))
    return tmp_path / 'c', wrong


def as_in_imagenet(root: Path) -> None:
    """Rename both classes of every set to two of ImageNet's."""
    for folder in root.glob('*/*'):
        (folder / 'a').rename(folder / WNIDS[7])
        (folder / 'b').rename(folder / WNIDS[9])


def either() -> Oracle:
    """Row 0 means class a, row 1 class b."""
    return Oracle(torch.eye(2))


def quiet(root: Path, model: nn.Module | None = None, **kwargs) -> Corruptions:
    return evaluate_corruptions(model or either(), root, progress=False, **kwargs)


def test_mce_is_the_mean_of_errors_over_those_of_alexnet(corrupted):
    root, wrong = corrupted
    result = quiet(root, clean_error=30.0)
    assert result.errors == {name: tuple(100 * n / 5 for n in counts) for name, counts in wrong.items()}
    by_hand = [100 * sum(wrong[name]) / 25 / error for name, error in ALEXNET_ERRORS.items()]
    assert list(result.ce.values()) == pytest.approx(by_hand)
    assert result.mce == pytest.approx(sum(by_hand) / 15)
    rises = [(100 * sum(wrong[n]) / 25 - 30) / (e - ALEXNET_CLEAN_ERROR) for n, e in ALEXNET_ERRORS.items()]
    assert result.relative_mce == pytest.approx(sum(rises) / 15)
    assert quiet(root).relative_mce is None


def test_classes_are_counted_over_all_corruptions(corrupted, tmp_path):
    root, wrong = corrupted
    result = quiet(root, keep=tmp_path / 'kept.json')
    total = sum(map(sum, wrong.values()))
    assert result.classes == dict(a=(300, pytest.approx(100 - total / 3)), b=(75, 100.0))
    assert result.per_class_errors == {name: tuple(100 * n / 8 for n in counts) for name, counts in wrong.items()}
    assert result.mean_per_class == pytest.approx(100 - total / 6)
    assert result.classes_at_zero == []
    never = quiet(root, Oracle(one_hot([1, 1], 2)))  # never a
    assert (never.mean_per_class, never.classes_at_zero) == (50, ['a'])
    # What an earlier version kept has no checksum, and of a set no classes: it is measured again.
    kept = json.loads((tmp_path / 'kept.json').read_text())
    del kept['done']['fog/1']['by_class'], kept['done']['fog/1']['mean_per_class'], kept['sha256']
    (tmp_path / 'kept.json').write_text(json.dumps(kept))
    assert quiet(root, keep=tmp_path / 'kept.json') == result


def test_alexnet_itself_has_an_mce_of_100():
    errors = {name: (100 * error,) * 5 for name, error in ALEXNET_ERRORS.items()}
    alexnet = Corruptions(errors, 100 * ALEXNET_CLEAN_ERROR, '', {})
    assert (alexnet.mce, alexnet.relative_mce) == pytest.approx((100, 100))


def test_stored_crops_are_not_cropped_again(corrupted):
    model = either()
    model.pretrained_cfg['crop_pct'] = 0.875
    assert quiet(corrupted[0], model).preprocessing['crop_pct'] == 1.0
    assert quiet(corrupted[0], model, overrides=dict(crop_pct=0.5)).preprocessing['crop_pct'] == 0.5


def test_a_single_corruption_is_scored_as_in_the_whole_set(corrupted):
    root, _ = corrupted
    as_in_imagenet(root)
    model = Oracle(one_hot([7, 9], 1000))
    model.pretrained_cfg['crop_pct'] = 0.875
    (root / 'blur').mkdir()
    (root / 'zoom_blur').rename(root / 'blur' / 'zoom_blur')
    alone = load_dataset('imagenet-c/zoom_blur/4', 'test', root, check_counts=False)
    scores = evaluate(model, alone, progress=False)
    assert scores.preprocessing['crop_pct'] == 1.0
    assert 100 - scores.top1 == pytest.approx(quiet(root, model).errors['zoom_blur'][3])
    assert evaluate(model, alone, overrides=dict(crop_pct=0.9), progress=False).preprocessing['crop_pct'] == 0.9


def test_the_archives_folders_may_be_in_between(corrupted):
    root, _ = corrupted
    expected = quiet(root)
    (root / 'noise').mkdir()
    for name in ('gaussian_noise', 'shot_noise', 'impulse_noise'):
        (root / name).rename(root / 'noise' / name)
    assert quiet(root) == expected


def test_all_classes_of_imagenet_compete_even_if_folders_are_missing(corrupted):
    root, _ = corrupted
    as_in_imagenet(root)
    result = quiet(root, Oracle(one_hot([500, 9], 1000)))  # 500 has no folder
    assert {error for errors in result.errors.values() for error in errors} == {80.0}


def test_finished_sets_are_saved_and_skipped_by_the_next_run(corrupted, tmp_path):
    root, _ = corrupted
    expected = quiet(root)
    keep, forwards = tmp_path / 'out' / 'kept.json', []

    def dying(module, args):
        forwards.append(1)
        if len(forwards) == 31:
            raise KeyboardInterrupt

    model = either()
    hook = model.register_forward_pre_hook(dying)
    with pytest.raises(KeyboardInterrupt):
        quiet(root, model, keep=keep)
    assert len(json.loads(keep.read_text())['done']) == 30
    assert quiet(root, model, keep=keep) == expected
    assert len(forwards) == 31 + 45
    assert quiet(root, model, keep=keep) == expected
    assert len(forwards) == 31 + 45
    hook.remove()
    other = Oracle(1 - torch.eye(2))  # the opposite answers
    assert quiet(root, other, keep=keep).mce != expected.mce


def test_an_edited_set_and_one_of_other_images_are_classified_again(corrupted, tmp_path):
    root, wrong = corrupted
    keep = tmp_path / 'kept.json'
    expected = quiet(root, keep=keep)
    kept = json.loads(keep.read_text())
    kept['done']['fog/1']['wrong'] = 0
    keep.write_text(json.dumps(kept))
    assert quiet(root, keep=keep) == expected
    # As many images as before, and the first one is of the other class.
    tree(tmp_path / 'other', dict(a=[1 - (wrong['fog'][0] > 0)], b=[]))
    (tmp_path / 'other' / 'a' / '000.png').replace(root / 'fog' / '1' / 'a' / 'other.png')
    (root / 'fog' / '1' / 'a' / '000.png').unlink()
    step = -20 if wrong['fog'][0] else 20
    assert quiet(root, keep=keep).errors['fog'][0] == pytest.approx(expected.errors['fog'][0] + step)


def test_a_set_with_another_image_of_equal_name_and_size_is_classified_again(corrupted, tmp_path):
    root, _ = corrupted
    keep = tmp_path / 'kept.json'
    path = root / 'fog' / '1' / 'b' / '000.png'
    image_of(1).save(path, 'BMP')  # without compression: another image is as long
    first, size = quiet(root, keep=keep), path.stat().st_size
    image_of(0).save(path, 'BMP')
    assert path.stat().st_size == size
    assert quiet(root, keep=keep).errors['fog'][0] == pytest.approx(first.errors['fog'][0] + 20)


def test_a_missing_set_and_a_damaged_file_are_one_sentence(corrupted, tmp_path):
    root, _ = corrupted
    keep = tmp_path / 'kept.json'
    keep.write_text('{"key":')
    refused(lambda: quiet(root, keep=keep), str(keep), 'remove it', kind=EvaluationError)
    (root / 'fog' / '3').rename(root / 'fog' / 'three')
    refused(lambda: quiet(root), '1 of the 75', 'fog/3', kind=EvaluationError)


def test_the_command_measures_all_sets_and_saves_them_with_the_results(cli, corrupted, tmp_path):
    root, _ = corrupted
    as_in_imagenet(root)
    line = ('evaluate', 'test_vit', '--random', '--data', 'imagenet-c', '--root', root, '--img-size', 32)
    code, out, err = cli(*line, '--output', tmp_path / 'out')
    assert code == 0, err
    results = json.loads((tmp_path / 'out' / 'results.json').read_text())
    assert f'mCE {results["mce"]:.2f} (AlexNet: 100)' in out
    assert f'accuracy mean per class {results["mean_per_class"]:.2f} %' in out
    assert len((tmp_path / 'out' / 'per_class.csv').read_text().splitlines()) == 3
    assert results['errors'].keys() == ALEXNET_ERRORS.keys()
    assert 'all of them' in results['compared']
    assert results['preprocessing']['crop_pct'] == 1.0
    assert len(json.loads((tmp_path / 'out' / 'finished.json').read_text())['done']) == 75
    assert len((tmp_path / 'out' / 'corruptions.csv').read_text().splitlines()) == 16
    with Image.open(tmp_path / 'out' / 'corruptions.png') as image:
        assert min(image.size) > 300
